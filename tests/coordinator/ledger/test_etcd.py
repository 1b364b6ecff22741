"""What a ledger in etcd has to bear that others have not: answers that are lost, requests that arrive late,
leases that end early, an etcd that was set back. Each test's docstring says what breaks if it fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from tests.coordinator.ledger.etcd_stage import Line, Place, operations_of, place_in, store_of, writes
from tests.coordinator.ledger.signing import Signing
from tests.coordinator.ledger.test_keys import Client
from tests.coordinator.ledger.test_lock_conformance import held, request
from tests.etcd import EtcdCluster
from undoubt.coordinator.errors import (
    LedgerMissing,
    LedgerUnavailable,
    OutcomeUnknown,
    SessionLost,
)
from undoubt.coordinator.ledger import maintenance
from undoubt.coordinator.ledger.contract import (
    BranchRecord,
    RecordedDecision,
    Session,
    SessionState,
    Verdict,
)
from undoubt.coordinator.ledger.etcd import messages
from undoubt.coordinator.ledger.etcd.client import Unanswered
from undoubt.coordinator.ledger.etcd.keyspace import Era, decode, encode, number
from undoubt.coordinator.ledger.pages import every_unfinished
from undoubt.participants.contract import Decision
from undoubt.participants.errors import UsageError

COMMIT, ABORT = Decision.COMMIT, Decision.ABORT
BRANCHES = (BranchRecord(1, "orders", 2**40, 2**62, "00000001"), BranchRecord(2, "payments", 77))


@pytest.fixture
async def place(etcd: EtcdCluster) -> AsyncIterator[Place]:
    async with place_in(etcd) as made:
        yield made


@pytest.fixture
async def ledger(place: Place) -> Signing:
    return await place.open()


def key_of(ledger: Signing, session: Session) -> bytes:
    """The key that etcd deletes together with the lease of ``session``."""
    return store_of(ledger).keys.lease(session.id, session.nonce)


async def verdict_of(ledger: Signing, txid: object) -> Verdict:
    [verdict] = (await ledger.outcomes([txid])).values()  # type: ignore[type-var]
    return verdict


async def test_a_ledger_is_never_made_silently(etcd: EtcdCluster) -> None:
    """An application with a wrong prefix records decisions where no recovery looks."""
    place = Place(etcd)
    with pytest.raises(LedgerMissing):
        await place.open()
    assert (await maintenance.init(place.settings)).incarnation == 1
    ledger = await place.open()
    assert (await maintenance.init(place.settings)).ledger_id == ledger.ledger_id
    keys = store_of(ledger).keys
    await store_of(ledger).client.transact(messages.EtcdTransaction(success=[messages.delete(keys.era)]))
    await ledger.close()
    with pytest.raises(LedgerMissing, match="yet there are keys"):
        await maintenance.init(place.settings)


async def test_a_decision_whose_answer_was_lost_is_found_by_its_repetition(ledger: Signing) -> None:
    """The coordinator is told of a conflict with itself, or the decision is recorded twice."""
    session = await ledger.open_session("test", 600)
    line = Line(ledger)
    for seq, decision in ((1, COMMIT), (2, ABORT)):
        line.lose = writes
        assert await ledger.decide(session.txid(seq), decision, BRANCHES) is decision
    assert line.lost == 2
    assert [record.decision for record in await ledger.unfinished()] == [COMMIT, ABORT]


async def test_a_decision_that_arrives_late_changes_nothing(place: Place, ledger: Signing) -> None:
    """A COMMIT that waited in a slow member is recorded after ABORT was answered."""
    session = await ledger.open_session("test", 600)
    other = await place.open()
    line = Line(other)
    await other.decide(session.txid(1), COMMIT, BRANCHES)
    [(path, late)] = [each for each in line.sent if writes(*each)]
    keys = store_of(ledger).keys
    gone = [
        messages.delete(keys.decision(session.txid(1))),
        messages.delete(keys.unfinished(session.txid(1))),
    ]
    await store_of(ledger).client.transact(
        messages.EtcdTransaction(success=gone)
    )  # as if it had not arrived yet
    assert await ledger.decide(session.txid(1), ABORT, BRANCHES) is ABORT
    await line.again(path, late)
    assert (await ledger.records([session.txid(1)]))[session.txid(1)] is RecordedDecision.ABORT
    await store_of(ledger).client.transact(messages.EtcdTransaction(success=gone))
    await ledger.close_session(session)
    await line.again(path, late)
    assert await verdict_of(ledger, session.txid(1)) is Verdict.ABORTED


async def test_a_floor_that_was_raised_stops_a_late_commit(ledger: Signing) -> None:
    """A transaction that was presumed aborted, because its floor had passed it, commits."""
    session = await ledger.open_session("test", 600)
    line = Line(ledger)
    await ledger.decide(session.txid(1), COMMIT, BRANCHES)
    [(path, late)] = [each for each in line.sent if writes(*each)]
    gone = [messages.delete(store_of(ledger).keys.decision(session.txid(1)))]
    await store_of(ledger).client.transact(messages.EtcdTransaction(success=gone))
    await ledger.keep_alive(session, 2)
    assert await verdict_of(ledger, session.txid(1)) is Verdict.ABORTED
    await line.again(path, late)
    assert await verdict_of(ledger, session.txid(1)) is Verdict.ABORTED


async def test_a_grant_that_arrives_late_gives_nobody_the_lock(ledger: Signing) -> None:
    """A lock that was given back is held for ever by a request that its process has ended."""
    session = await ledger.open_session("test", 600)
    asked = request(session)
    await held(ledger, request(session, "another"))  # so that there is a counter of tokens
    line = Line(ledger)
    line.lose = writes
    await held(ledger, asked)
    late = [each for each in line.sent if writes(*each)]
    assert await ledger.unlock(asked)
    for path, sent in late:
        await line.again(path, sent)
    assert await ledger.lock_entry(asked) is None
    assert [info.name for info in await ledger.locks()] == ["another"]


async def test_a_session_whose_opening_arrives_late_is_not_open(ledger: Signing) -> None:
    """A session that nobody knows is renewed for ever with the known one, and holds back the retention."""
    line = Line(ledger)
    line.lose = writes
    session = await ledger.open_session("test", 600)
    assert line.lost == 1
    assert [info.id for info in await ledger.sessions()] == [session.id]
    await ledger.close_session(session)
    for path, sent in [each for each in line.sent if writes(*each)]:
        await line.again(path, sent)
    assert [info.state for info in await ledger.sessions()] == [SessionState.CLOSED]


async def test_a_lease_that_ends_between_grant_and_put_is_granted_again(ledger: Signing) -> None:
    """A coordinator that waited for its turn cannot begin; or its session begins without a lease, and never
    expires."""
    line = Line(ledger)
    revoked: list[int] = []

    async def hold(path: str, sent: msgspec.Struct) -> None:
        if writes(path, sent) and not revoked:
            [lease] = {
                operation.request_put.lease
                for operation in sent.success  # type: ignore[attr-defined]
                if operation.request_put is not None and operation.request_put.lease
            }
            revoked.append(lease)
            await line.again("lease/revoke", messages.LeaseId(lease))

    line.hold = hold
    session = await ledger.open_session("test", 600)
    assert len(revoked) == 1
    assert await ledger.decide(session.txid(1), COMMIT, BRANCHES) is COMMIT
    assert len(await ledger.sessions()) == 1


async def test_a_lease_that_etcd_revokes_early_ends_its_session(ledger: Signing) -> None:
    """A coordinator that still counts on its lease commits what recovery has aborted."""
    session = await ledger.open_session("test", 600)
    await ledger.decide(session.txid(1), COMMIT, BRANCHES)
    [lease] = (await store_of(ledger).client.range(messages.Range(key_of(ledger, session)))).kvs
    await store_of(ledger).client.revoke(lease.lease)
    assert await verdict_of(ledger, session.txid(2)) is Verdict.ABORTED
    assert await ledger.decide(session.txid(2), COMMIT, BRANCHES) is ABORT
    assert await verdict_of(ledger, session.txid(1)) is Verdict.COMMITTED
    with pytest.raises(SessionLost):
        await ledger.keep_alive(session, 1)
    [info] = await ledger.sessions()
    assert info.state is SessionState.EXPIRED


async def test_a_renewal_cannot_bring_an_ended_session_back(place: Place, ledger: Signing) -> None:
    """A session that was closed by another process is open again, after its transactions were aborted."""
    session = await ledger.open_session("test", 600)
    other = await place.open()
    line = Line(ledger)

    async def hold(path: str, sent: msgspec.Struct) -> None:
        if writes(path, sent):
            line.hold = None
            await other.close_session(session)

    line.hold = hold
    with pytest.raises(SessionLost):
        await ledger.keep_alive(session, 1)
    assert await verdict_of(other, session.txid(1)) is Verdict.ABORTED
    assert await ledger.decide(session.txid(1), COMMIT, BRANCHES) is ABORT


async def test_many_decisions_share_a_transaction_within_etcds_limit(ledger: Signing) -> None:
    """etcd refuses more than 128 operations: a burst of commits fails, or each pays for a sync of its own."""
    session = await ledger.open_session("test", 600)
    line = Line(ledger)
    txids = [session.txid(seq) for seq in range(1, 501)]
    assert set(await asyncio.gather(*(ledger.decide(txid, COMMIT, BRANCHES) for txid in txids))) == {COMMIT}
    sent = [each for path, each in line.sent if writes(path, each)]
    assert len(sent) < 20
    await ledger.finish(txids[:400])
    assert [record.txid async for record in every_unfinished(ledger)] == txids[400:]
    for _, each in line.sent:
        if isinstance(each, messages.EtcdTransaction):
            assert operations_of(each) <= messages.OPERATIONS_MAX


async def test_a_decision_that_is_too_large_fails_alone(ledger: Signing) -> None:
    """One caller's list of branches makes the commits of everybody else fail."""
    session = await ledger.open_session("test", 600)
    large = tuple(BranchRecord(n, "p" * 60, history="h" * 100) for n in range(1, 20_001))
    first, *others = await asyncio.gather(
        ledger.decide(session.txid(1), COMMIT, large),
        *(ledger.decide(session.txid(seq), COMMIT, BRANCHES) for seq in range(2, 9)),
        return_exceptions=True,
    )
    assert isinstance(first, UsageError)
    assert set(others) == {COMMIT}


async def test_an_etcd_set_back_behind_the_last_renewal_records_no_commit(ledger: Signing) -> None:
    """What was presumed aborted after the snapshot commits, since the session is open again in it."""
    session = await ledger.open_session("test", 600)
    store, key = store_of(ledger), key_of(ledger, session)
    old = await store.client.range(messages.Range(key))
    await ledger.keep_alive(session, 1)
    [kv] = old.kvs
    await store.client.transact(messages.EtcdTransaction(success=[messages.put(key, kv.value, kv.lease)]))
    with pytest.raises(OutcomeUnknown):
        await ledger.decide(session.txid(1), COMMIT, BRANCHES)
    assert (await ledger.info()).incarnation == 2
    assert await verdict_of(ledger, session.txid(1)) is Verdict.FORGOTTEN


async def test_a_snapshot_restored_as_another_cluster_begins_an_incarnation(
    place: Place, ledger: Signing
) -> None:
    """Sessions of the time before the snapshot decide beside those that recovery has presumed aborted."""
    session = await ledger.open_session("test", 600)
    store, keys = store_of(ledger), store_of(ledger).keys
    era = decode((await store.read([keys.era]))[keys.era] or b"", Era)
    elsewhere = encode(msgspec.structs.replace(era, cluster_id=era.cluster_id + 1))
    await store.client.transact(messages.EtcdTransaction(success=[messages.put(keys.era, elsewhere)]))
    other = await place.open()
    assert (await other.info()).incarnation == 2
    for each in (ledger, other):
        with pytest.raises(OutcomeUnknown):
            await each.decide(session.txid(1), COMMIT, BRANCHES)
        assert await verdict_of(each, session.txid(1)) is Verdict.FORGOTTEN
    with pytest.raises(SessionLost):
        await ledger.keep_alive(session, 1)
    assert (await ledger.open_session("test", 600)).id > session.id + 2**31
    assert (await ledger.info()).incarnation == 2


async def test_a_revision_that_goes_back_begins_one_incarnation(place: Place, ledger: Signing) -> None:
    """A snapshot restored under the same cluster id is not noticed; or each process begins an incarnation of
    its own."""
    other = await place.open()
    session = await ledger.open_session("test", 600)
    for each in (ledger, other):
        await each.sessions()
        seen = store_of(each).seen
        store_of(each).seen = seen._replace(revision=seen.revision + 10**6)  # as if that had been lost
        store_of(each).clock_revision += 10**6
    with pytest.raises(OutcomeUnknown):
        await ledger.decide(session.txid(1), COMMIT, BRANCHES)
    with pytest.raises(OutcomeUnknown):
        await other.decide(session.txid(1), COMMIT, BRANCHES)
    assert [(await each.info()).incarnation for each in (ledger, other)] == [2, 2]


async def test_an_end_and_a_decision_are_read_at_one_revision(place: Place, ledger: Signing) -> None:
    """A decision that was recorded between two reads is missed, and the end of its session is seen: a
    committed transaction counts as aborted."""
    session = await ledger.open_session("test", 600)
    reader = await place.open()
    line = Line(reader)
    txids = [session.txid(seq) for seq in range(1, 400)]
    reads = 0

    async def hold(path: str, sent: msgspec.Struct) -> None:
        nonlocal reads
        if path == "kv/txn" and not writes(path, sent):
            reads += 1
            if reads == 2:
                await asyncio.gather(*(ledger.decide(txid, COMMIT, BRANCHES) for txid in txids))
                await ledger.close_session(session)

    line.hold = hold
    verdicts = await reader.outcomes(txids)
    assert reads > 3
    assert set(verdicts.values()) <= {Verdict.ACTIVE, Verdict.COMMITTED}


async def test_a_transaction_that_is_decided_between_two_reads_is_not_finished(
    place: Place, ledger: Signing
) -> None:
    """An operator is told that all branches have committed, of a transaction that was only decided: it was
    looked for with its details before the decision, and without them after it."""
    session = await ledger.open_session("test", 600)
    txid = session.txid(1)
    reader = await place.open()
    line, key = Line(reader), store_of(reader).keys.decision(txid)
    decided: list[Decision] = []

    async def after(path: str, sent: msgspec.Struct, answer: Any) -> Any:
        ranges = [each.request_range for each in getattr(sent, "success", ())]
        if not decided and any(ranged is not None and ranged.key == key for ranged in ranges):
            decided.append(await ledger.decide(txid, COMMIT, BRANCHES))
        return answer

    line.after = after
    info = await reader.transaction(txid)
    assert decided == [COMMIT]
    assert (info.record, info.finished, len(info.branches)) == (RecordedDecision.COMMIT, False, 2)


async def test_a_key_that_was_written_twice_is_one_record(ledger: Signing) -> None:
    """The count of decisions, or the pages of history, contain a transaction twice."""
    session = await ledger.open_session("test", 600)
    for _ in range(2):
        await ledger.decide(session.txid(1), COMMIT, BRANCHES)
    assert [info.txid for info in await ledger.transactions(limit=10)] == [session.txid(1)]
    assert (await ledger.info()).decisions_kept == 1


async def test_check_finds_what_is_wrong_with_the_keys(place: Place, ledger: Signing) -> None:
    """An operator trusts a ledger that has lost decisions."""
    session = await ledger.open_session("test", 600)
    await ledger.decide(session.txid(1), COMMIT, BRANCHES)
    assert await maintenance.check(place.settings) == []
    store, keys = store_of(ledger), store_of(ledger).keys
    gone = [messages.delete(keys.decision(session.txid(1))), messages.put(keys.next_session, number(1))]
    await store.client.transact(messages.EtcdTransaction(success=gone))
    found = await maintenance.check(place.settings)
    assert [words.partition(" ")[0] for words in found] == ["session", "transaction"]


async def test_an_incarnation_begins_although_sessions_are_opened_meanwhile(
    place: Place, ledger: Signing
) -> None:
    """In an etcd that was set back, and is busy, the old sessions go on deciding."""
    session = await ledger.open_session("test", 600)
    other = await place.open()
    line = Line(ledger)

    async def hold(path: str, sent: msgspec.Struct) -> None:
        if writes(path, sent):
            line.hold = None
            await other.open_session("busy", 600)

    line.hold = hold
    await ledger.begin_incarnation("a test")
    assert len(await ledger.sessions()) == 2
    for each in (ledger, other):
        assert (await each.info()).incarnation == 2
        assert await verdict_of(each, session.txid(1)) is Verdict.FORGOTTEN


async def test_a_renewal_beside_a_decision_is_no_sign_of_a_loss(ledger: Signing) -> None:
    """A decision is computed from a read, while a renewal is acknowledged: that the read does not contain it
    would end all sessions of all processes."""
    session = await ledger.open_session("test", 600)
    await ledger.keep_alive(session, 2)
    line = Line(ledger)
    renewed = 0

    async def after(path: str, sent: msgspec.Struct, answer: Any) -> Any:
        nonlocal renewed
        if path == "kv/txn" and not writes(path, sent) and not renewed:
            renewed = 1
            await ledger.keep_alive(session, 2)
            await ledger.decide(session.txid(3), COMMIT, BRANCHES)
        return answer

    line.after = after
    assert await ledger.decide(session.txid(1), COMMIT, BRANCHES) is ABORT  # below the floor: computed
    assert renewed == 1
    assert (await ledger.info()).incarnation == 1
    assert await ledger.decide(session.txid(2), COMMIT, BRANCHES) is COMMIT


@pytest.mark.parametrize("lost", [False, True])
async def test_a_session_that_was_opened_before_an_incarnation_does_not_decide_in_it(
    place: Place, ledger: Signing, lost: bool
) -> None:
    """A session that has ended with its incarnation commits what an operator has rolled back."""
    other = await place.open()
    line = Line(ledger)

    async def after(path: str, sent: msgspec.Struct, answer: Any) -> Any:
        if writes(path, sent):
            line.after = None
            await other.begin_incarnation("a test")
            await ledger.sessions()
            if lost:
                raise Unanswered("lost by the test")
        return answer

    line.after = after
    session = await ledger.open_session("test", 600)
    assert await verdict_of(other, session.txid(1)) is Verdict.FORGOTTEN
    with pytest.raises(OutcomeUnknown):
        await ledger.decide(session.txid(1), COMMIT, BRANCHES)
    with pytest.raises(SessionLost):
        await ledger.keep_alive(session, 1)


async def test_a_renewal_by_a_deposed_leader_does_not_count(ledger: Signing) -> None:
    """A holder of a lock counts on a lease that no leader of etcd has renewed."""
    session = await ledger.open_session("test", 600)
    line = Line(ledger)
    terms: list[int] = []

    async def after(path: str, sent: msgspec.Struct, answer: Any) -> Any:
        if isinstance(answer, messages.Renewed):
            header = answer.result.header
            terms.append(header.raft_term)
            older = msgspec.structs.replace(header, raft_term=header.raft_term - 1)
            return messages.Renewed(msgspec.structs.replace(answer.result, header=older))
        return answer

    line.after = after
    with pytest.raises(LedgerUnavailable, match="was not renewed"):
        await ledger.keep_alive(session, 1)
    assert terms[0] > 0
    line.after = None
    await ledger.keep_alive(session, 1)
    assert await ledger.decide(session.txid(1), COMMIT, BRANCHES) is COMMIT


async def test_an_etcd_that_was_set_back_commits_no_key(ledger: Signing) -> None:
    """A run with a key commits beside the second run that began after the first was presumed aborted."""
    one = await Client.opened(ledger)
    await one.claim(1, "k")
    store, key = store_of(ledger), key_of(ledger, one.session)
    [kv] = (await store.client.range(messages.Range(key))).kvs
    await ledger.keep_alive(one.session, 1)
    await store.client.transact(messages.EtcdTransaction(success=[messages.put(key, kv.value, kv.lease)]))
    with pytest.raises(OutcomeUnknown):
        await one.commit(1, "k", b"r")
    assert (await ledger.info()).incarnation == 2
