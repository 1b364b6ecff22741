"""How long a ledger in etcd keeps what, and that what is deleted changes no answer. Each test's docstring
says what breaks if it fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from tests.coordinator.ledger.conftest import Etcd
from tests.coordinator.ledger.etcd_stage import Line, Place, place_in, store_of, writes
from tests.coordinator.ledger.signing import Signing
from tests.coordinator.ledger.test_etcd import ABORT, BRANCHES, COMMIT, verdict_of
from tests.coordinator.ledger.test_keys import Client
from tests.etcd import EtcdCluster
from undoubt.coordinator.errors import BranchListMismatch
from undoubt.coordinator.ledger.contract import RecordedDecision, Verdict
from undoubt.coordinator.ledger.etcd import messages
from undoubt.coordinator.ledger.etcd.ledger import EtcdLedger
from undoubt.coordinator.ledger.etcd.maintenance import KEPT_LONGER_S, EtcdLeadership
from undoubt.coordinator.ledger.keys import KeyHolder, KeyState


@pytest.fixture
async def place(etcd: EtcdCluster) -> AsyncIterator[Place]:
    async with place_in(etcd) as made:
        yield made


@pytest.fixture
async def ledger(place: Place) -> Signing:
    return await place.open()


@pytest.fixture
async def aging(etcd: EtcdCluster, tmp_path: Path) -> AsyncIterator[Etcd]:
    """A ledger whose time the test moves."""
    backend = Etcd(tmp_path)
    backend.cluster = etcd
    await backend.open()
    yield backend
    await backend.close()


def upkeep_of(ledger: Signing) -> EtcdLeadership:
    opened = ledger.ledger
    assert isinstance(opened, EtcdLedger)
    return opened.upkeep


async def _all_of(ledger: Signing, *kinds: str) -> list[bytes]:
    store = store_of(ledger)
    return [kv.key for kind in kinds for kv in await store.every(store.keys.all(kind))]


async def test_a_key_is_kept_for_the_retention_although_its_write_took_long(aging: Etcd) -> None:
    """A key counts from the ledger time that its commit has read: a repetition runs again within the
    retention."""
    one = await Client.opened(aging.ledger)
    await one.claim(1, "k")
    line = Line(aging.ledger)

    async def hold(path: str, sent: msgspec.Struct) -> None:
        if writes(path, sent):
            line.hold = None
            await aging.opened.upkeep.move(59_000)

    line.hold = hold
    assert await one.commit(1, "k", b"r") is COMMIT
    await aging.elapse(aging.retention_s - 1)
    assert await aging.ledger.key_holder("k") == KeyHolder(one.txid(1), KeyState.COMMITTED, b"r")
    await aging.elapse(KEPT_LONGER_S)
    assert await aging.ledger.key_holder("k") is None


async def test_a_decision_without_details_is_still_the_only_one(place: Place, ledger: Signing) -> None:
    """Bounding what a ledger takes makes it forget what it has decided, or decide once more."""
    session, ended = await ledger.open_session("test", 600), await ledger.open_session("ended", 600)
    for one in (session, ended):
        for seq, decision in ((1, COMMIT), (2, ABORT), (3, COMMIT), (600, COMMIT)):
            await ledger.decide(one.txid(seq), decision, BRANCHES)
        await ledger.finish([one.txid(seq) for seq in (1, 2, 600)])
    await ledger.close_session(ended)
    await ledger.keep_alive(session, 601)
    upkeep = upkeep_of(ledger)
    assert await upkeep.summarize(most=0) == 6
    assert len(await _all_of(ledger, "decision", "decided")) == 4  # unfinished
    assert len(await _all_of(ledger, "summary")) == 4
    other = await place.open()
    for one in (session, ended):
        assert await ledger.decide(one.txid(1), COMMIT, BRANCHES) is COMMIT
        assert await other.decide(one.txid(1), ABORT, BRANCHES) is COMMIT
        assert await other.decide(one.txid(2), COMMIT, BRANCHES) is ABORT
        with pytest.raises(BranchListMismatch):
            await other.decide(one.txid(600), COMMIT, BRANCHES[:1])
        assert await verdict_of(other, one.txid(2)) is Verdict.ABORTED
        found = await other.transaction(one.txid(600))
        assert (found.record, found.verdict, found.protocol) == ("commit", Verdict.COMMITTED, None)
        assert (await other.transaction(one.txid(3))).branches
        assert await other.transaction(one.txid(4)) is None
    # Of the last decision that this process was told of only a summary is left: it is not lost.
    assert await ledger.decide(session.txid(601), COMMIT, BRANCHES) is COMMIT
    assert await ledger.decide(session.txid(602), COMMIT, BRANCHES) is COMMIT
    assert (await ledger.info()).incarnation == 1
    assert await upkeep.summarize(most=0) == 0


async def test_a_decision_is_not_summarized_while_it_may_be_made_again(ledger: Signing) -> None:
    """A request that arrives late finds no decision, and records another one."""
    session = await ledger.open_session("test", 600)
    line = Line(ledger)
    await ledger.decide(session.txid(1), ABORT, BRANCHES)
    [(path, late)] = [each for each in line.sent if writes(*each)]
    for _ in range(2):
        await ledger.finish([session.txid(1)])
        await upkeep_of(ledger).summarize(most=0)
        await line.again(path, late)
        assert await ledger.unfinished() == []
        await ledger.keep_alive(session, 2)


async def test_details_are_deleted_by_age_and_number(aging: Etcd) -> None:
    """etcd fills up, or operators miss the details of what was just decided."""
    ledger, upkeep = aging.ledger, aging.opened.upkeep
    session = await ledger.open_session("test", 600)
    txids = [session.txid(seq) for seq in range(1, 131)]
    await asyncio.gather(*(ledger.decide(txid, COMMIT, BRANCHES) for txid in txids))
    await ledger.finish(txids)
    assert await upkeep.summarize(most=0) == 0  # above the floor
    await ledger.keep_alive(session, 131)
    assert await upkeep.summarize(most=130) == 0
    assert await upkeep.summarize(most=100) == 30
    assert {info.txid for info in await ledger.transactions(limit=1000)} == set(txids[30:])
    assert await upkeep.summaries.summarize(3600.0) == 0
    assert await upkeep.summaries.summarize(0.0) == 100
    assert await ledger.transactions(limit=1000) == []
    assert set((await ledger.records(txids)).values()) == {RecordedDecision.COMMIT}


async def test_nothing_is_left_of_a_session_whose_history_has_ended(aging: Etcd) -> None:
    """etcd fills up with claims of keys, and decisions, of sessions that ended long ago."""
    ledger = aging.ledger
    one, other = await Client.opened(ledger), await Client.opened(ledger)
    for seq in range(1, 4):
        await one.claim(seq, f"k{seq}")
    assert await one.commit(1, "k1", b"r") is COMMIT
    await ledger.decide(one.txid(2), ABORT, BRANCHES)
    await ledger.decide(one.txid(4), COMMIT, BRANCHES)
    await ledger.finish([one.txid(seq) for seq in (1, 2, 4)])
    await ledger.close_session(one.session)
    assert (await other.claim(1, "k3")).txid == other.txid(1)  # free, and claimed again
    await aging.elapse(aging.settings.history_s + aging.retention_s)
    await aging.elapse(0)
    kinds = ("session", "dropped", "floor", "decision", "decided", "unfinished", "key", "key-of", "key-age")
    left = await _all_of(ledger, *kinds)
    assert len(left) == 3
    assert await ledger.key_holder("k3") is None  # its session has ended too


async def test_a_late_deletion_of_history_deletes_nothing_that_is_kept(aging: Etcd) -> None:
    """A leader that waited deletes decisions of a session that, after a snapshot was restored, is kept."""
    ledger = aging.ledger
    session = await ledger.open_session("test", 5)
    await ledger.decide(session.txid(1), COMMIT, BRANCHES)
    await ledger.finish([session.txid(1)])
    store = store_of(ledger)
    kept = [
        messages.put(kv.key, kv.value)
        for kind in ("session", "decision", "decided")
        for kv in await store.every(store.keys.all(kind))
    ]
    await ledger.close_session(session)
    line = Line(ledger)
    await aging.elapse(aging.settings.history_s + aging.retention_s)
    await aging.elapse(0)
    assert await _all_of(ledger, "decision", "dropped") == []
    late = [each for each in line.sent if writes(*each)]
    await store.client.transact(messages.EtcdTransaction(success=kept))
    for path, sent in late:
        await line.again(path, sent)
    assert len(await _all_of(ledger, "session", "decision", "decided")) == 3


async def test_a_session_that_was_set_back_to_before_its_end_is_kept(aging: Etcd) -> None:
    """A leader finds a session that ended long ago, etcd is set back to the time before that end, and the
    leader drops the session: what recovery could end by itself is forgotten, and nothing is retained."""
    ledger = aging.ledger
    session = await ledger.open_session("test", 5)
    store = store_of(ledger)
    key = store.keys.session(session.id, session.nonce)
    [kv] = (await store.client.range(messages.Range(key))).kvs
    await ledger.close_session(session)
    line = Line(ledger)
    before = [messages.put(key, kv.value)]

    async def hold(path: str, sent: msgspec.Struct) -> None:
        if before and isinstance(sent, messages.Range) and sent.count_only:  # the session was found old
            await store.client.transact(messages.EtcdTransaction(success=[before.pop()]))

    line.hold = hold
    await aging.elapse(aging.retention_s + KEPT_LONGER_S)
    assert not before
    assert await verdict_of(ledger, session.txid(1)) is Verdict.ABORTED
    await aging.elapse(aging.retention_s)
    assert await verdict_of(ledger, session.txid(1)) is Verdict.ABORTED
    await aging.elapse(KEPT_LONGER_S)
    assert await verdict_of(ledger, session.txid(1)) is Verdict.FORGOTTEN
