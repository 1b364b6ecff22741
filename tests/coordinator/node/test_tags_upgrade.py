"""Names get tags once all members know them (version 3). Broken if a member or a client of version 2 met
what it does not know, if what had begun before could not be ended as it had begun, or if a name without a tag
counted for anything afterwards.

A node with ``version_max`` stands for one of the release before, and so does a client whose calls have only
what that release had.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from tests.coordinator.node.cluster import CLUSTER, QUICK, Cluster, client, running
from tests.coordinator.node.test_versions import agreed, restart
from undoubt.coordinator.coordinator import Coordinator
from undoubt.coordinator.errors import Impostor
from undoubt.coordinator.ledger import calls
from undoubt.coordinator.ledger.agents import AgentBinding
from undoubt.coordinator.ledger.cluster import ledger as cluster_ledger
from undoubt.coordinator.ledger.cluster.ledger import ClusterLedger
from undoubt.coordinator.ledger.contract import (
    BranchRecord,
    DecisionRecord,
    RecordedDecision,
    Session,
    SessionState,
    Verdict,
    is_newer,
)
from undoubt.coordinator.ledger.machine import Machine
from undoubt.coordinator.node.driver import Driver
from undoubt.coordinator.node.fsm import NodeStateMachine
from undoubt.coordinator.raft import Entry
from undoubt.coordinator.settings import CoordinatorSettings, LedgerSettings
from undoubt.coordinator.wire import Versions
from undoubt.coordinator.wire import connect as dial
from undoubt.participants.contract import Decision, Evidence, PrepareResult, Vote
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import Gid, Protocol, TxId
from undoubt.participants.registry import Registry
from undoubt.participants.scripted import ScriptedParticipant

COMMIT, ABORT = Decision.COMMIT, Decision.ABORT
FORMER = msgspec.structs.replace(QUICK, version_max=2)
BRANCHES = (BranchRecord(1, "orders"), BranchRecord(2, "payments"))
NAMES = ("orders", "payments")


class WithHistory(ScriptedParticipant):
    """Its evidence has all that a participant of this release tells."""

    async def begin(self, *given: Any, **more: Any) -> Any:
        branch = await super().begin(*given, **more)
        prepare = branch.prepare

        async def telling(*given: Any, **more: Any) -> PrepareResult:
            result: PrepareResult = await prepare(*given, **more)
            assert result.vote is Vote.PREPARED and result.evidence is not None
            evidence = Evidence(
                result.evidence.xid, result.evidence.system, result.evidence.timeline, "history", 77
            )
            return PrepareResult(result.vote, evidence)

        branch.prepare = telling  # type: ignore[method-assign]
        return branch


class OfVersion2(ClusterLedger):
    """Opens sessions as a process of the former release does: it draws a nonce, and knows of no key."""

    async def _open_session(
        self, name: str, ttl_s: float, *, bind: bool = False, agent: AgentBinding | None = None
    ) -> Session:
        assert agent is None
        session: Session = await self._call(calls.OpenSessionCall(name, ttl_s, self._nonce(), bind))
        return session


@contextlib.asynccontextmanager
async def mixed(folder: Path) -> AsyncIterator[Cluster]:
    """Three nodes that have agreed on version 2; the third is of the release that knows no other."""
    cluster = Cluster(folder, 3, version=2)
    cluster.own_settings = {3: FORMER}
    await cluster.start()
    try:
        await cluster.leader()
        yield cluster
    finally:
        await cluster.stop()


async def secrets(cluster: Cluster) -> set[bytes]:
    """Of all nodes, once each has one."""
    while True:
        found = {node.ledger.machine.state.secret for node in cluster.nodes.values()}
        if b"" not in found:
            return found
        await asyncio.sleep(0.01)


def named(txid: TxId, protocol: Protocol = Protocol.TWO_PHASE) -> Gid:
    """Without a tag."""
    return Gid(CLUSTER, Protocol(protocol), txid, 1, "orders")


def without_newer(record: DecisionRecord) -> bool:
    return not record.cause and not any(map(is_newer, record.branches))


async def verdict(ledger: Any, gid: Gid) -> Verdict:
    found: Verdict = (await ledger.ledger.outcomes([gid]))[gid]
    return found


@contextlib.asynccontextmanager
async def coordinating(ledger: Any) -> AsyncIterator[tuple[Coordinator, list[WithHistory]]]:
    registry = Registry()
    databases = [WithHistory(name) for name in NAMES]
    for database in databases:
        registry.add(database)
    async with Coordinator(ledger, registry, CoordinatorSettings(drain_s=0.01)) as coordinator:
        yield coordinator, databases


@pytest.mark.parametrize("protocol", ["2pc", "3pc", "paxos"])
async def test_with_a_member_of_the_former_version_nothing_newer_is_recorded(
    tmp_path: Path, protocol: str
) -> None:
    """It would stop, or lose half of it. Transactions go on as ever, names as they were, and the evidence is
    what that version knows; once it is upgraded, a new coordinator's names have tags."""
    async with mixed(tmp_path) as cluster, client(cluster) as ledger:
        kept: list[DecisionRecord] = []
        finish = ledger.client.finish

        async def finishing(txids: Any) -> None:
            kept.extend(await ledger.unfinished())
            await finish(txids)

        ledger.client.finish = finishing  # type: ignore[method-assign]

        async def transfer() -> list[Gid]:
            kept.clear()
            async with coordinating(ledger.ledger) as (coordinator, databases):
                async with coordinator.transaction(protocol=protocol) as tx:
                    for name in NAMES:
                        await tx.branch(name)
                    committed = await tx.commit()
                while (await ledger.records([committed.txid]))[committed.txid] is not RecordedDecision.COMMIT:
                    await asyncio.sleep(0.01)
                return [branch.gid for database in databases for branch in database.branches]

        gids = await transfer()
        assert {gid.tag for gid in gids} == {""}
        assert kept
        assert all(map(without_newer, kept))
        assert {node.replica.replicated.version for node in cluster.nodes.values()} == {2}
        await restart(cluster, 3, QUICK)
        await agreed(cluster, 3)
        assert len(await secrets(cluster)) == 1
        gids = await transfer()
        assert len({gid.tag for gid in gids} - {""}) == 2
        assert {(branch.tag, branch.history) for record in kept for branch in record.branches} == {
            (gid.tag, "history") for gid in gids
        }
        await cluster.settled()
        assert len(cluster.images()) == 1


async def test_what_began_before_there_was_a_secret_ends_as_it_began(tmp_path: Path) -> None:
    """Its names have no tags, and never get any: verdicts are told by them, and decisions recorded without.
    In a session of later a name without a tag is nobody's."""
    async with mixed(tmp_path) as cluster, client(cluster) as ledger:
        before = await ledger.open_session("before", 600.0)
        ended = await ledger.open_session("ended", 600.0)
        await ledger.close_session(ended)
        assert (before.key, ended.key) == (b"", b"")
        assert await ledger.decide(before.txid(1), COMMIT, BRANCHES) is COMMIT
        assert await ledger.decide(before.txid(2), ABORT, BRANCHES, cause="because") is ABORT
        assert await verdict(ledger, named(TxId(9, "0" * 16, 1))) is Verdict.FORGOTTEN
        await ledger.doom(before.txid(3), "because")  # does nothing yet
        assert await ledger.doomed(before.txid(3)) is None
        assert all(map(without_newer, await ledger.unfinished()))
        await restart(cluster, 3, QUICK)
        await agreed(cluster, 3)
        await secrets(cluster)
        assert await ledger.decide(before.txid(3), COMMIT, BRANCHES) is COMMIT
        told = [await verdict(ledger, named(before.txid(seq))) for seq in (1, 2, 3, 4)]
        assert told == [Verdict.COMMITTED, Verdict.ABORTED, Verdict.COMMITTED, Verdict.ACTIVE]
        assert await verdict(ledger, named(before.txid(4), Protocol.THREE_PHASE)) is Verdict.ASK_PROTOCOL
        assert await verdict(ledger, named(ended.txid(1))) is Verdict.ABORTED
        assert await verdict(ledger, named(TxId(9, "0" * 16, 1))) is Verdict.IMPOSTOR
        assert await verdict(ledger, named(TxId(before.id, "0" * 16, 1))) is Verdict.IMPOSTOR
        after = await ledger.open_session("after", 600.0)
        assert after.key
        assert await verdict(ledger, named(after.txid(1))) is Verdict.IMPOSTOR
        assert await verdict(ledger, ledger.gid(after.txid(1))) is Verdict.ACTIVE
        with pytest.raises(Impostor):
            await ledger.ledger.decide(after.txid(1), COMMIT, BRANCHES)
        assert await ledger.decide(after.txid(1), COMMIT, BRANCHES) is COMMIT
        await cluster.elapse(601.0)
        assert await verdict(ledger, named(before.txid(4))) is Verdict.ABORTED
        await cluster.settled()
        assert len(cluster.images()) == 1


async def test_the_secret_is_drawn_once(tmp_path: Path) -> None:
    """Whoever leads draws one as soon as all know what it is. Broken if a later one took the place of the
    first: no name that was given would be known any more."""
    async with running(tmp_path) as cluster, client(cluster) as ledger:
        (secret,) = await secrets(cluster)
        session = await ledger.open_session("shop", 600.0)
        for _ in range(2):
            leader = await cluster.leader()
            await leader.ledger.draw_secret()
            number = leader.identity.node
            await cluster.stop(number)
            await cluster.leader()
            await cluster.start(number)
        await cluster.settled()
        assert await secrets(cluster) == {secret}
        assert await verdict(ledger, ledger.gid(session.txid(1))) is Verdict.ACTIVE


async def test_a_client_of_the_former_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is upgraded after the nodes: its sessions have no tags, although there is a secret, and work as
    ever. Its recovery asks by transaction, and is told nothing of other sessions that it would act on: to it,
    their names are foreign."""
    async with running(tmp_path) as cluster, client(cluster) as ledger:
        await secrets(cluster)
        tagged = await ledger.open_session("new", 600.0)
        assert await ledger.decide(tagged.txid(1), COMMIT, BRANCHES) is COMMIT
        monkeypatch.setattr(cluster_ledger, "connect", partial(dial, versions=Versions(1, 2)))
        old = await OfVersion2.open(LedgerSettings(url=cluster.settings.url))
        try:
            assert old.leader_client.link is not None
            assert old.leader_client.link.version == 2
            session = await old.open_session("old", 600.0)
            bound = await old.acceptors.open_session("bound", 600.0)
            assert (session.key, bound.key) == (b"", b"")
            assert await old.decide(session.txid(1), COMMIT, BRANCHES) is COMMIT
            await old.precommit(session.txid(2), BRANCHES)
            assert await old.acceptors.vote(bound.txid(1), BRANCHES) is COMMIT
            await old.keep_alive(session, 2)
            asked = (session.txid(1), session.txid(2), tagged.txid(1), tagged.txid(2))
            assert await old._call(calls.OutcomesCall(asked, Protocol.TWO_PHASE)) == [
                Verdict.COMMITTED, Verdict.ACTIVE, Verdict.ACTIVE, Verdict.ACTIVE,
            ]  # fmt: skip
            assert {each.id for each in await old.sessions()} == {session.id, bound.id, tagged.id}
        finally:
            await old.close()
        monkeypatch.undo()
        assert await verdict(ledger, named(session.txid(1))) is Verdict.COMMITTED
        assert await verdict(ledger, named(session.txid(2))) is Verdict.ACTIVE


async def test_nobody_without_the_request_gets_the_key(tmp_path: Path) -> None:
    """The nonce is public from the first PREPARE on: who asks again with it is told no more than that."""
    async with running(tmp_path, 1) as cluster, client(cluster) as ledger:
        await secrets(cluster)
        session = await ledger.open_session("shop", 600.0)
        again = await ledger.client._call(calls.OpenSessionCall("shop", 600.0, session.nonce))
        assert (again.id, again.nonce, again.key) == (session.id, session.nonce, b"")
        assert session.key


async def test_a_leader_that_has_not_applied_its_log_yet_verifies_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interleaving to fear: it is elected, and asked for a decision before it has applied that the
    session was opened. Broken if names of a session that it does not know yet were let pass unseen."""
    async with running(tmp_path, 1) as cluster, client(cluster) as ledger:
        session = await ledger.open_session("shop", 600.0)
        node = await cluster.leader()
        books = node.ledger.machine.state.sessions
        read = node.replica.read

        async def catching_up() -> None:
            books.setdefault(session.id, book)
            await read()

        monkeypatch.setattr(Driver, "leads", property(lambda _: False, lambda *_: None), raising=False)
        monkeypatch.setattr(node.replica, "read", catching_up)
        txid = session.txid(1)
        for by in (node.ledger, ledger.ledger):
            for ask in (partial(by.decide, txid, COMMIT, BRANCHES), partial(by.precommit, txid, BRANCHES)):
                book = books.pop(session.id)
                with pytest.raises(Impostor):
                    await ask()
                book = books.pop(session.id, book)
                books[session.id] = book
        monkeypatch.undo()
        assert (await ledger.records([txid]))[txid] is RecordedDecision.NOT_RECORDED
        assert await ledger.transaction(txid) is None
        assert await ledger.decide(txid, COMMIT, BRANCHES) is COMMIT


async def test_what_is_no_protocol_is_refused_to_its_caller_alone(tmp_path: Path) -> None:
    """Broken if it cut the connection, which all callers of the process share."""
    async with running(tmp_path, 1) as cluster, client(cluster) as ledger:
        session = await ledger.open_session("shop", 600.0)
        link = ledger.client.leader_client.link
        with pytest.raises(UsageError, match="Invalid enum value 'x'"):
            await ledger.client.decide(session.txid(1), COMMIT, BRANCHES, protocol=cast("Protocol", "x"))
        assert await ledger.decide(session.txid(1), COMMIT, BRANCHES) is COMMIT
        assert ledger.client.leader_client.link is link


@pytest.mark.parametrize("voted", [False, True], ids=["no vote", "aborted votes"])
async def test_what_the_acceptors_have_aborted_is_recorded(tmp_path: Path, voted: bool) -> None:
    """Tags travel with votes, and what is aborted may never have got one. Broken if it could not be recorded
    then: the acceptors would keep it for ever, and be held for it."""
    async with running(tmp_path) as cluster, client(cluster) as ledger:
        session = await ledger.acceptors.open_session("shop", 600.0)
        txid = session.txid(1)
        leader = await cluster.leader()
        assert (await leader.ledger.acceptors.settle(txid)).decision is ABORT
        if voted:
            gids = [ledger.gid(txid, Protocol.PAXOS, one.number, one.participant) for one in BRANCHES]
            late = [BranchRecord(gid.branch, gid.participant, tag=gid.tag) for gid in gids]
            assert await ledger.acceptors.vote(txid, late) is ABORT
        await ledger.close_session(session)
        await leader.orphaned_votes.settle(txid)
        assert (await ledger.records([txid]))[txid] is RecordedDecision.ABORT


# Made by the release that knew version 2 at most.
IMAGE = (
    "mH~kQqhUHR#Q~3*0jgnQV`OD!XJ~0^0RsS%oB^;fFfcGMFfcGMFfcGMFfccyb7*gH&HxD~z@VgWaAj@*z>$&x0g;jd0>lWmi0jC<"
    "i0jCa0h|J`FfcGMFfcGMFfcGMFfcGUq;zR)Y|a1)C%~YjZ*XO90l<)u!~l?yhNN_OX=H<^b7gaLX>V=;rEYI-V`Z=~FfcGMFfcGM"
    "FfcGMFfccxb7gS@sBm&`bZ=vCY@u+dWMyM%b7^mGrekkyZE19<Vsc?_V`yb_l9d6bZ*pX1a&rq7s4y@vFfcGMF_i+SaAA3EWo~qH"
    "z`($&WMyM%WMyPuVRXwt3;+NC00021V{dPAWNB_;bZ>H`b7*gHkdcL?ba-iGgQs(4b8~5LZULokZ*F5{urM$%FfcGMFfcGMFfcGM"
    "H=}c9aRjJva&L5RV{dGsGpJ&6VQyn+Wpk310j6(qWMy)53l^v_FfcGMFfcKd0;q6dd2MBGbaTMKz@lMv%RmwU000000IOqfZ*pX5"
    "Zeet9a-?%;Z*T#C0s"
)
ENTRY = (
    "l$51mY-x670kAMIFfcGMFfcGMFfcGMFgFC2retMfX=G)Cr*ma<b7^mG0i|wlZewMzFfcGMFfcGMFfcGMFfcGTqjP0(1)(ygV{dJ3"
    "X>^j60j6(qWMy)53l^v_FfcGMFfcKd0;q6dd2MBGbaTMKz{@}u00000005JvV{C78Wdg7;FfcGMFfcGMFfcGMFfcfiq;zR*We3gx"
    "0fwL"
)


def test_a_snapshot_and_a_log_of_the_release_before() -> None:
    """Broken if a field had changed its place or its meaning: of all of it is told what that release would
    tell."""
    found = NodeStateMachine(Machine(""), {})
    found.restore(base64.b85decode(IMAGE))
    shop, machine = "0000000000000007", found.machine
    assert (found.version, machine.state.ledger_id, machine.state.secret) == (2, CLUSTER, b"")
    found.apply(Entry.make(9, 1, base64.b85decode(ENTRY)))
    told = [machine.verdict(TxId(1, shop, seq), Protocol.TWO_PHASE) for seq in range(1, 7)]
    assert told == [
        Verdict.COMMITTED, Verdict.ABORTED, Verdict.COMMITTED,
        Verdict.ACTIVE, Verdict.COMMITTED, Verdict.ACTIVE,
    ]  # fmt: skip
    evidenced, bare = BranchRecord(1, "orders", 11, 22, "00000001"), BranchRecord(2, "payments")
    unfinished = {record.txid.seq: record for record in machine.unfinished()}
    told_of = {seq: (each.branches, each.cause) for seq, each in unfinished.items()}
    assert told_of == dict.fromkeys((3, 5), ((evidenced, bare), ""))
    precommitted = machine.precommitted(TxId(1, shop, 4))
    assert precommitted is not None
    assert precommitted.branches == (evidenced, bare)
    states = {book.id: (book.state, book.tagged, book.acceptors) for book in machine.state.sessions.values()}
    assert states == {1: (SessionState.OPEN, False, (1,)), 2: (SessionState.CLOSED, False, ())}
    again = NodeStateMachine(Machine(""), {})
    again.restore(found.image())
    assert again.image() == found.image()
