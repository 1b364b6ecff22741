"""Moving a ledger between all backends. Each test's docstring says what breaks if it fails."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from tests.etcd import EtcdCluster
from tests.servers import Server
from undoubt.coordinator.errors import BranchListMismatch, LedgerMoved, MoveRefused
from undoubt.coordinator.ledger import open_ledger
from undoubt.coordinator.ledger.contract import RecordedDecision, Verdict
from undoubt.coordinator.ledger.keys import KeyState
from undoubt.coordinator.ledger.locks import LockRequest
from undoubt.coordinator.ledger.move_mark import MoveMark, MovePhase
from undoubt.coordinator.ledger.moving import move as moving
from undoubt.coordinator.ledger.moving.image import LedgerImage
from undoubt.coordinator.ledger.moving.sqlite import SqlitePlace
from undoubt.participants.contract import Decision
from undoubt.participants.ids import Protocol

from .move_stage import BRANCHES, FREED, KEPT, KINDS, OTHERS, Filled, Places, acts_of, fill, places
from .signing import Signing

PAIRS = [(one, other if other != one else f"{other}-2") for one, other in itertools.product(KINDS, repeat=2)]


async def refuses(there: Places, kind: str, *, names: str) -> None:
    with pytest.raises(LedgerMoved, match=names):
        await open_ledger(there.settings(kind), serves=True)


async def check(ledger: Signing, filled: Filled) -> None:
    """Everything that was recorded is there, and sessions that had ended have ended."""
    txids = filled.txids
    verdicts = await ledger.outcomes(
        [txids[name] for name in ("done", "aborted done", "committed", "aborted", "undecided", "keyed")]
    )
    assert [str(verdict) for verdict in verdicts.values()] == [
        *("committed", "aborted", "committed", "aborted", "aborted", "committed")
    ]
    asked = await ledger.outcomes([txids["precommitted"]], protocol=Protocol.THREE_PHASE)
    assert set(asked.values()) == {Verdict.ASK_PROTOCOL}
    unfinished = {record.txid: record for record in await ledger.unfinished()}
    assert set(unfinished) == {txids[name] for name in ("committed", "aborted", "keyed")}
    assert unfinished[txids["aborted"]].cause == "an operator"
    (branch,) = unfinished[txids["keyed"]].branches
    assert (branch.xid, branch.history, branch.position) == (2**40, "h", 7)
    kept = await ledger.key_holder(KEPT)
    assert kept is not None
    assert (kept.txid, kept.state, kept.result) == (txids["keyed"], KeyState.COMMITTED, b"result")
    assert await ledger.key_holder(FREED) is None
    info = await ledger.transaction(txids["precommitted"])
    assert info is not None
    assert info.precommitted
    heuristics = await ledger.heuristics(include_forgotten=True)
    assert {(each.gid.txid, each.forgotten) for each in heuristics} == {
        (txids["committed"], False),
        (txids["done"], True),
    }
    acts = acts_of(await ledger.acts(limit=100))
    assert [act for act in acts if act[0] == "tx resolve"] == [
        ("tx resolve", f"number {number}") for number in (2, 1, 0)
    ]
    assert "ledger move" in {verb for verb, _ in acts}
    (agent,) = await ledger.agent_keys([filled.bound])
    assert agent is not None
    assert agent.binding.history == "history"
    infos = {each.id: each for each in await ledger.sessions()}
    assert infos[filled.session.id].floor == 3
    await _finished_are_compared(ledger, filled)


async def _finished_are_compared(ledger: Signing, filled: Filled) -> None:
    done = filled.txids["done"]
    found = await ledger.transaction(done)
    assert found is not None
    assert (found.record, found.finished) == (RecordedDecision.COMMIT, True)
    assert await ledger.decide(done, Decision.COMMIT, OTHERS) is Decision.COMMIT
    with pytest.raises(BranchListMismatch):
        await ledger.decide(done, Decision.COMMIT, BRANCHES)


@pytest.mark.parametrize(("source", "target"), PAIRS)
async def test_every_record_is_at_the_new_place(
    source: str, target: str, tmp_path: Path, postgres: Server, etcd: EtcdCluster
) -> None:
    """A move loses a decision, a key, a token, an act or another record; or the old place still answers."""
    async with places(tmp_path, postgres, etcd, source, target) as there:
        async with there.opened(source, create=True) as ledger:
            filled = await fill(ledger)
            before = await ledger.info()
            details = await ledger.transactions(limit=100)
        moved = await moving.move(there.settings(source), there.urls[target], note="because")
        assert moved.counts is not None
        assert (moved.counts.unfinished, moved.counts.finished, moved.counts.keys) == (3, 2, 1)
        await refuses(there, source, names="was moved to")
        async with there.opened(target) as ledger:
            await check(ledger, filled)
            after = await ledger.info()
            assert after.ledger_id == before.ledger_id == moved.ledger_id
            assert after.incarnation == before.incarnation + 1
            session = await ledger.open_session("after", 60.0)
            assert session.id > filled.session.id + 1000
            entry = await ledger.lock(LockRequest("door", session.id, session.nonce, 1), wait=False)
            assert entry is not None
            assert entry.token is not None
            assert entry.token > filled.token
            if "raft" not in source + target:
                kept = {info.txid for info in await ledger.transactions(limit=100)}
                assert kept == {info.txid for info in details}
                assert moved.details_left == 0
            await ledger.finish([filled.txids["committed"]])
            await ledger.close_session(session)


async def test_a_ledger_goes_around_and_comes_back(
    tmp_path: Path, postgres: Server, etcd: EtcdCluster
) -> None:
    """What one backend writes another reads wrongly; or a place from which a ledger was moved cannot take it
    again."""
    async with places(tmp_path, postgres, etcd, *KINDS) as there:
        async with there.opened("sqlite", create=True) as ledger:
            filled = await fill(ledger)
        tour = [*KINDS, *reversed(KINDS[:-1])]
        for source, target in itertools.pairwise(tour):
            await moving.move(there.settings(source), there.urls[target])
            await refuses(there, source, names="was moved to")
            async with there.opened(target) as ledger:
                await check(ledger, filled)


@pytest.mark.parametrize("kind", KINDS)
async def test_an_open_session_is_named_and_nothing_is_sealed(
    kind: str, tmp_path: Path, postgres: Server, etcd: EtcdCluster
) -> None:
    """A ledger is moved under a coordinator that works; or a refused move stops the work."""
    target = "sqlite-2"
    async with (
        places(tmp_path, postgres, etcd, kind, target) as there,
        there.opened(kind, create=True) as ledger,
    ):
        session = await ledger.open_session("shop@host", 60.0)
        with pytest.raises(MoveRefused, match=f"{session.id}"):
            await moving.move(there.settings(kind), there.urls[target])
        await ledger.keep_alive(session, 1)
        await ledger.close_session(session)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_used_ledger_is_not_replaced(
    kind: str, tmp_path: Path, postgres: Server, etcd: EtcdCluster
) -> None:
    """A move overwrites the records of another ledger."""
    async with places(tmp_path, postgres, etcd, "sqlite-1", kind) as there:
        async with there.opened("sqlite-1", create=True) as ledger:
            await fill(ledger)
        async with there.opened(kind, create=True) as ledger:
            other = await ledger.open_session("other", 60.0)
        with pytest.raises(MoveRefused, match="there is ledger"):
            await moving.move(there.settings("sqlite-1"), there.urls[kind])
        async with there.opened("sqlite-1"):
            pass
        async with there.opened(kind) as ledger:
            await ledger.close_session(other)


@pytest.mark.parametrize("kind", ["postgresql", "raft", "etcd"])
async def test_the_seal_itself_looks_for_sessions(
    kind: str, tmp_path: Path, postgres: Server, etcd: EtcdCluster
) -> None:
    """A session that is opened between the look and the seal decides after it."""
    async with (
        places(tmp_path, postgres, etcd, kind) as there,
        there.opened(kind, create=True) as ledger,
    ):
        place = moving.place_of(there.settings(kind))
        session = await ledger.open_session("shop@host", 60.0)
        mark = MoveMark("m", "sqlite:///there", 1.0, MovePhase.SEALED)
        with pytest.raises(MoveRefused, match="sessions are open"):
            await place.seal(mark)
        await ledger.close_session(session)
        await place.seal(mark)
        for asked in (ledger.open_session("late", 60.0), ledger.unfinished(), ledger.sessions()):
            with pytest.raises(LedgerMoved, match="is being moved to"):
                await asked
        txid = session.txid(1)
        with pytest.raises(LedgerMoved):
            await ledger.outcomes([txid])
        with pytest.raises(LedgerMoved):
            await ledger.decide(txid, Decision.ABORT, BRANCHES)
        await place.close()


async def test_a_copy_that_differs_is_not_entered(
    tmp_path: Path, postgres: Server, etcd: EtcdCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the new place has lost is found out when the old one is gone."""
    whole = SqlitePlace.write

    async def lossy(self: SqlitePlace, image: LedgerImage) -> None:
        await whole(self, LedgerImage(replace(image.state, unfinished={}), image.finished))

    async with places(tmp_path, postgres, etcd, "sqlite", "sqlite-2") as there:
        async with there.opened("sqlite", create=True) as ledger:
            filled = await fill(ledger)
        with monkeypatch.context() as patched:
            patched.setattr(SqlitePlace, "write", lossy)
            with pytest.raises(MoveRefused, match="unfinished 3 and 0"):
                await moving.move(there.settings("sqlite"), there.urls["sqlite-2"])
        await refuses(there, "sqlite", names="is being moved to")
        await refuses(there, "sqlite-2", names="is being moved here")
        await moving.move(there.settings("sqlite"), there.urls["sqlite-2"])
        async with there.opened("sqlite-2") as ledger:
            await check(ledger, filled)


async def test_what_only_acceptors_know_is_not_left_behind(
    tmp_path: Path, postgres: Server, etcd: EtcdCluster
) -> None:
    """A transaction of Paxos Commit is committed by its acceptors, and the ledger moves without them."""
    async with places(tmp_path, postgres, etcd, "raft", "etcd") as there:
        async with there.opened("raft") as ledger:
            session = await ledger.acceptors.open_session("paxos", 60.0)
            txid = session.txid(1)
            tagged = ledger.tagged(txid, BRANCHES, Protocol.PAXOS)
            assert await ledger.acceptors.vote(txid, tagged) is Decision.COMMIT
            await ledger.close_session(session)
        while True:  # until the leader has recorded what the acceptors have chosen
            try:
                await moving.move(there.settings("raft"), there.urls["etcd"])
            except MoveRefused as error:
                assert str(txid) in str(error)  # noqa: PT017 - any other refusal is one too many
                await asyncio.sleep(0.1)
            else:
                break
        async with there.opened("etcd") as ledger:
            verdicts = await ledger.outcomes([txid], protocol=Protocol.PAXOS)
            assert set(verdicts.values()) == {Verdict.COMMITTED}


async def test_branches_that_only_acceptors_can_decide_are_named(
    tmp_path: Path, postgres: Server, etcd: EtcdCluster
) -> None:
    """A prepared branch of Paxos Commit is left without the acceptors that decide it."""

    async def prepared(ledger_id: str) -> list[str]:
        return [f"undoubt:{ledger_id}:p:1"]

    async with places(tmp_path, postgres, etcd, "raft", "sqlite") as there:
        with pytest.raises(MoveRefused, match=r"Paxos Commit are prepared.*:p:1"):
            await moving.move(there.settings("raft"), there.urls["sqlite"], prepared=prepared)
        async with there.opened("raft"):
            pass
