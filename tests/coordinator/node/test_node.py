"""Nodes in one process, on real TCP and real files: what a client is told stays true, whoever dies."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from tests.coordinator.ledger.signing import Signing
from tests.coordinator.node.cluster import CLUSTER, QUICK, Cluster, client, running
from tests.coordinator.node.full_disk import FullDisk, without_room
from undoubt.coordinator.errors import LedgerUnavailable, SessionLost
from undoubt.coordinator.ledger.contract import (
    BranchRecord,
    Heuristic,
    RecordedDecision,
    Session,
    SessionState,
    Verdict,
)
from undoubt.coordinator.node.errors import NodeStopped, NotLeading
from undoubt.coordinator.node.ledger import NodeLedger
from undoubt.coordinator.node.node import Node
from undoubt.coordinator.node.storage.contract import DiskWrite
from undoubt.participants.contract import Decision, Settled
from undoubt.participants.ids import Gid, Protocol

COMMIT, ABORT = Decision.COMMIT, Decision.ABORT
BRANCHES = (
    BranchRecord(1, "orders", 77, 2**62, "00000001"),
    BranchRecord(2, "payments", 78, 2**62, "00000001"),
)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running(tmp_path) as found:
        yield found


async def test_all_nodes_become_the_same(cluster: Cluster) -> None:
    """A node whose state differs would, as leader, answer otherwise than the one before."""
    async with client(cluster) as ledger:
        session = await ledger.open_session("test", 10.0)
        for seq in range(1, 30):
            await ledger.decide(session.txid(seq), COMMIT if seq % 3 else ABORT, BRANCHES)
        await ledger.finish([session.txid(seq) for seq in range(1, 20)])
        await ledger.keep_alive(session, 25)
    await cluster.settled()
    assert len(cluster.images()) == 1


async def test_what_was_answered_outlives_the_leader(cluster: Cluster) -> None:
    """The whole point of a replicated ledger."""
    async with client(cluster) as ledger:
        session = await ledger.open_session("test", 10.0)
        for round_ in range(3):
            txid = session.txid(round_ + 1)
            assert await ledger.decide(txid, COMMIT, BRANCHES) is COMMIT
            leader = await cluster.leader()
            number = leader.identity.node
            await cluster.stop(number)
            assert await ledger.decide(txid, ABORT, BRANCHES) is COMMIT
            assert (await ledger.outcomes([txid]))[txid] is Verdict.COMMITTED
            await cluster.start(number)


async def test_nothing_acknowledged_is_lost_while_leaders_come_and_go(cluster: Cluster) -> None:
    """Decides are under way at every moment of three failovers; each is answered once and for all."""
    answered: dict[int, Decision] = {}
    async with client(cluster) as ledger:
        session = await ledger.open_session("test", 60.0)
        ended = asyncio.Event()

        async def decide(worker: int) -> None:
            seq = worker
            while not ended.is_set():
                order = COMMIT if seq % 2 else ABORT
                answered[seq] = await ledger.decide(session.txid(seq), order, BRANCHES)
                seq += 16

        workers = [asyncio.create_task(decide(worker)) for worker in range(1, 17)]
        for _ in range(3):
            before = len(answered)
            while len(answered) < before + 100:
                await asyncio.sleep(0.01)
            number = (await cluster.leader()).identity.node
            await cluster.stop(number)
            await cluster.leader()
            await cluster.start(number)
        ended.set()
        await asyncio.gather(*workers)
        records = await ledger.records([session.txid(seq) for seq in answered])
        assert {txid.seq: str(record) for txid, record in records.items()} == {
            seq: str(decision) for seq, decision in answered.items()
        }
        assert {seq for seq, decision in answered.items() if decision is ABORT} == {
            seq for seq in answered if seq % 2 == 0
        }
        assert len(await ledger.unfinished()) == len(answered)
    await cluster.settled()
    assert len(cluster.images()) == 1


async def test_a_leader_that_is_cut_off_answers_nothing(cluster: Cluster) -> None:
    """The interleaving to fear: it still believes that it leads, while its successor has decided otherwise.
    Neither its reads nor its decisions may reach a caller."""
    old = await cluster.leader()
    ledger = Signing(old.ledger)
    session = await ledger.open_session("test", 60.0)
    txid = session.txid(1)
    cluster.cut(old.identity.node)
    deciding = asyncio.create_task(ledger.decide(txid, COMMIT, BRANCHES))
    reading = asyncio.create_task(ledger.outcomes([txid]))
    renewing = asyncio.create_task(ledger.keep_alive(session, 1))
    new = await cluster.leader(but=old.identity.node)
    assert await Signing(new.ledger).decide(txid, ABORT, BRANCHES) is ABORT
    for task in (deciding, reading, renewing):
        with pytest.raises(NotLeading):
            await task
    cluster.heal(old.identity.node)
    await cluster.settled()
    assert len(cluster.images()) == 1
    assert old.replica.replicated.machine.record(txid) is RecordedDecision.ABORT


async def test_an_entry_that_took_a_proposals_place_is_no_answer_to_it(cluster: Cluster) -> None:
    """Broken if whoever asked a leader that was replaced is told the result of what another was asked: the
    first of both places goes to the new leader's empty entry, the second to its first command."""
    old = await cluster.leader()
    ledger = Signing(old.ledger)
    session = await ledger.open_session("test", 60.0)
    cluster.cut(old.identity.node)
    asked, last = [], old.replica.raft.last_index
    for seq in (1, 2):
        asked.append(asyncio.create_task(ledger.decide(session.txid(seq), COMMIT, BRANCHES)))
        while old.replica.raft.last_index < last + seq:
            await asyncio.sleep(0)
    new = await cluster.leader(but=old.identity.node)
    assert await Signing(new.ledger).decide(session.txid(3), ABORT, BRANCHES) is ABORT
    cluster.heal(old.identity.node)
    await cluster.settled()
    for task in asked:
        with pytest.raises(NotLeading):
            await task
    records = [old.replica.replicated.machine.record(session.txid(seq)) for seq in (1, 2, 3)]
    assert records == [RecordedDecision.NOT_RECORDED, RecordedDecision.NOT_RECORDED, RecordedDecision.ABORT]


@pytest.mark.parametrize(
    ("opened", "keyed"),
    [
        (
            lambda ledger, digit: ledger.open_session("test", 60.0, request="0011223344556677" + digit * 16),
            True,
        ),
        (lambda ledger, digit: ledger.open_session("test", 60.0, nonce="001122334455667" + digit), False),
    ],
    ids=["request", "nonce, as of version 0.1.0"],
)
async def test_a_session_opened_twice_by_one_request_is_one(
    cluster: Cluster, opened: Callable[[NodeLedger, str], Awaitable[Session]], keyed: bool
) -> None:
    """A client whose answer was lost with the leader asks the next one: two sessions would be open, one of
    them held by nobody."""
    first = await cluster.leader()
    session = await opened(first.ledger, "f")
    await cluster.stop(first.identity.node)
    second = await cluster.leader()
    assert await opened(second.ledger, "f") == session
    assert len(await second.ledger.sessions()) == 1
    other = await opened(second.ledger, "e")
    assert other.id > session.id
    assert bool(session.key) is keyed
    assert (session.key != other.key) is keyed


async def test_a_new_leader_gives_every_session_its_full_lifetime(cluster: Cluster) -> None:
    """Renewals that went to the old leader are unknown to the new one: to expire on the strength of their
    absence would end coordinators that are alive."""
    first = await cluster.leader()
    session = await first.ledger.open_session("test", 10.0)
    cluster.now_s += 9.0
    await first.ledger.keep_alive(session, 1)
    await cluster.stop(first.identity.node)
    second = await cluster.leader()
    await second.ledger.expire_due()
    cluster.now_s += 9.0
    assert await second.ledger.expire_due() == []
    await second.ledger.keep_alive(session, 1)
    cluster.now_s += 10.5
    assert await second.ledger.expire_due() == [session.id]
    with pytest.raises(SessionLost):
        await second.ledger.keep_alive(session, 1)


async def test_who_leads_again_has_forgotten_the_lifetimes_of_its_first_time(cluster: Cluster) -> None:
    """Meanwhile the session was renewed elsewhere: by the old deadlines it would expire at once."""
    first = await cluster.leader()
    session = await first.ledger.open_session("test", 10.0)
    other = next(node for node in cluster.nodes.values() if node is not first)
    await _made_leader(cluster, other)
    cluster.now_s += 9.0
    await other.ledger.keep_alive(session, 1)
    await _made_leader(cluster, first)
    cluster.now_s += 9.0
    assert await first.ledger.expire_due() == []
    await first.ledger.keep_alive(session, 1)


async def test_ledger_time_is_told_once_by_whoever_leads(cluster: Cluster) -> None:
    """Time that is told twice lets retention drop sessions that a participant may still ask about."""
    for _ in range(3):
        leader = await cluster.leader()
        cluster.now_s += 100.0
        await leader.ledger.advance_time()
        number = leader.identity.node
        await cluster.stop(number)
        await cluster.leader()
        await cluster.start(number)
    leader = await cluster.leader()
    await leader.ledger.advance_time()
    assert (await leader.ledger.info()).ledger_time_s <= 300.0


async def test_everything_is_there_after_all_were_stopped(cluster: Cluster) -> None:
    """A power cut of the whole room."""
    async with client(cluster) as ledger:
        session = await ledger.open_session("test", 60.0)
        for seq in range(1, 20):
            await ledger.decide(session.txid(seq), COMMIT, BRANCHES)
        await ledger.finish([session.txid(seq) for seq in range(1, 10)])
    await cluster.settled()
    before = cluster.images()
    await cluster.stop()
    await cluster.start()
    await cluster.settled()
    assert cluster.images() == before
    async with client(cluster) as ledger:
        told = await ledger.transaction(session.txid(3))
        assert told is not None
        assert (told.finished, list(told.branches)) == (
            True,
            ledger.tagged(told.txid, BRANCHES, Protocol.TWO_PHASE),
        )


SNAPSHOTS = msgspec.structs.replace(QUICK, snapshot_log_bytes=4_000, trailing_entries=5)


async def test_a_node_that_was_away_for_long_gets_a_snapshot(tmp_path: Path) -> None:
    """The entries that it lacks are compacted: without the snapshot it would never come back."""
    async with running(tmp_path, node_settings=SNAPSHOTS) as cluster, client(cluster) as ledger:
        session = await ledger.open_session("test", 60.0)
        leader = await cluster.leader()
        away = next(number for number in cluster.nodes if number != leader.identity.node)
        await cluster.stop(away)
        for seq in range(1, 1500, 10):
            many = range(seq, seq + 10)
            await asyncio.gather(*(ledger.decide(session.txid(one), COMMIT, BRANCHES) for one in many))
            if seq % 3 == 0:
                await ledger.finish([session.txid(one) for one in many])
        assert leader.replica.raft.first_index > 2
        await cluster.start(away)
        await cluster.settled()
        assert len(cluster.images()) == 1
        assert cluster.nodes[away].replica.raft.snapshot_index > 1
        # It goes on from there, also after a restart.
        await cluster.stop(away)
        await cluster.start(away)
        await cluster.settled()
        assert len(cluster.images()) == 1


async def test_no_image_is_made_while_a_leaders_is_being_stored(tmp_path: Path) -> None:
    """Its index is the one that stands from now on, but the machine is still the former: an image of it under
    that index would take the place of the leader's on the disk, and the node would come back without what was
    decided in between, and say that it was aborted."""
    async with running(tmp_path, node_settings=SNAPSHOTS) as cluster, client(cluster) as ledger:
        session = await ledger.open_session("test", 60.0)
        leader = await cluster.leader()
        away = next(number for number in cluster.nodes if number != leader.identity.node)
        await cluster.stop(away)
        for seq in range(1, 200):
            await ledger.decide(session.txid(seq), COMMIT, BRANCHES)
        assert leader.replica.raft.first_index > 2
        await cluster.start(away)
        storage, replica = cluster.storages[away], cluster.nodes[away].replica
        write, asked = storage.write, list[asyncio.Future[int]]()

        def writing(writes: Sequence[DiskWrite]) -> asyncio.Future[bool]:
            if any(each.replaces_log for each in writes):
                asked.append(replica.snapshot())
            return write(writes)

        storage.write = writing  # type: ignore[method-assign]
        await cluster.settled()
        assert len(asked) == 1
        assert await asked[0] == replica.raft.snapshot_index
        await cluster.stop(away)
        await cluster.start(away)
        await cluster.settled()
        assert len(cluster.images()) == 1


async def test_the_log_on_disk_stays_short_and_starts_quickly(tmp_path: Path) -> None:
    """A log that only grows fills the disk, and each restart takes longer than the last."""
    async with running(tmp_path, 1, SNAPSHOTS) as cluster, client(cluster) as ledger:
        session = await ledger.open_session("test", 60.0)
        for seq in range(1, 400):
            await ledger.decide(session.txid(seq), COMMIT, BRANCHES)
            await ledger.finish([session.txid(seq)])
        before = cluster.images()
        await cluster.stop()
        await cluster.start()
        (node,) = cluster.nodes.values()
        assert node.replica.raft.last_index - node.replica.raft.first_index < 199
        assert node.replica.raft.snapshot_index > 400
        await cluster.leader()
        assert cluster.images() == before
        assert len(await ledger.transactions(limit=1000)) == 399


async def test_a_leader_whose_disk_is_full_hands_over_and_comes_back(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk on one node must not stop commits; nor may the node lose anything by it."""
    async with client(cluster) as ledger:
        session = await ledger.open_session("test", 60.0)
        full = await cluster.leader()
        number = full.identity.node
        storage = cluster.storages[number]
        disk = FullDisk(cluster.place(number), monkeypatch)
        disk.full = True
        without_room(storage)
        many = [BranchRecord(branch, f"a-participant-with-quite-a-name-{branch}") for branch in range(1, 40)]
        for seq in range(1, 50):
            assert await ledger.decide(session.txid(seq), COMMIT, many) is COMMIT
        raft = full.replica.raft
        assert raft.disk_full
        assert not full.leads
        disk.full = False
        while full.replica.raft.disk_full:
            await asyncio.sleep(0.01)
        await ledger.decide(session.txid(50), COMMIT, BRANCHES)
        await cluster.settled()
        await cluster.stop(number)
        await cluster.start(number)  # what it acknowledged while its disk was full is on that disk
        await cluster.settled()
        assert len(cluster.images()) == 1


async def test_without_room_anywhere_proposals_are_refused_and_reads_go_on(cluster: Cluster) -> None:
    """Operators have to see what is there while they make room."""
    async with client(cluster) as ledger:
        session = await ledger.open_session("test", 60.0)
        await ledger.decide(session.txid(1), COMMIT, BRANCHES)
        for storage in cluster.storages.values():
            storage.reserve.give_up()
            storage.reserve.hold = lambda: False  # type: ignore[method-assign]
        async with client(cluster, timeout_s=1.0) as impatient:
            while True:
                try:
                    await impatient.decide(session.txid(2), COMMIT, BRANCHES)
                except LedgerUnavailable as error:
                    if "disk is full" in str(error):
                        break
        assert (await ledger.outcomes([session.txid(1)])) == {session.txid(1): Verdict.COMMITTED}
        for storage in cluster.storages.values():
            del storage.reserve.hold
        assert await ledger.decide(session.txid(3), COMMIT, BRANCHES) is COMMIT


async def test_a_leader_whose_disk_stalls_is_replaced(cluster: Cluster) -> None:
    """A store that hangs must not keep a leader in office whose decisions take for ever."""
    async with client(cluster) as ledger:
        session = await ledger.open_session("test", 60.0)
        stalled = await cluster.leader()
        go_on = asyncio.Event()
        storage = cluster.storages[stalled.identity.node]
        write = storage.write

        def slowly(writes: object) -> asyncio.Future[bool]:
            async def later() -> bool:
                await go_on.wait()
                return await write(writes)  # type: ignore[arg-type]

            return asyncio.ensure_future(later())

        storage.write = slowly  # type: ignore[method-assign]
        assert await ledger.decide(session.txid(1), COMMIT, BRANCHES) is COMMIT
        other = await cluster.leader(but=stalled.identity.node)
        assert await Signing(other.ledger).decide(session.txid(1), ABORT, BRANCHES) is COMMIT
        assert not stalled.leads
        go_on.set()
        storage.write = write  # type: ignore[method-assign]
        await cluster.settled()
        assert len(cluster.images()) == 1


async def test_a_node_whose_disk_fails_stops_and_the_others_go_on(cluster: Cluster) -> None:
    """Nobody knows what is on that disk: it may neither vote nor answer."""
    async with client(cluster) as ledger:
        session = await ledger.open_session("test", 60.0)
        broken = await cluster.leader()
        storage = cluster.storages[broken.identity.node]

        def fail() -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        storage.files.log.active.sync = fail  # type: ignore[method-assign]
        assert await ledger.decide(session.txid(1), COMMIT, BRANCHES) is COMMIT
        error = await broken.failed
        assert "writing to node data" in str(error)
        with pytest.raises(NodeStopped):
            await Signing(broken.ledger).decide(session.txid(2), COMMIT, BRANCHES)
        with pytest.raises(NodeStopped):
            await broken.ledger.sessions()


async def test_a_command_of_a_newer_version_stops_a_node_that_does_not_know_it(tmp_path: Path) -> None:
    """To skip it would make this node's state differ from the others' for ever."""
    async with running(tmp_path, 1) as cluster:
        leader = await cluster.leader()
        before = cluster.images()
        leader.replica.raft.propose(msgspec.msgpack.encode([["from-the-future", 1]]))
        leader.replica.turns.wake()
        assert "from-the-future" in str(await leader.failed)
        assert cluster.images() == before
        with pytest.raises(NodeStopped):
            await leader.ledger.info()


async def test_a_leader_that_is_stopped_in_order_hands_over(cluster: Cluster) -> None:
    """A rolling restart must not cost an election timeout for each node."""
    leader = await cluster.leader()
    term = leader.replica.raft.term
    await leader.hand_over(5.0)
    successor = await cluster.leader(but=leader.identity.node)
    assert successor.replica.raft.term == term + 1
    assert not leader.leads


async def test_a_client_hears_of_an_end_of_its_patience_only(tmp_path: Path) -> None:
    """Without a majority nothing is known: the error says so, after the deadline, and the call may be
    repeated."""
    async with running(tmp_path) as cluster, client(cluster, timeout_s=0.5) as ledger:
        session = await ledger.open_session("test", 60.0)
        first, second, _ = cluster.nodes
        await cluster.stop(first, second)
        with pytest.raises(LedgerUnavailable, match="no answer in time from the ledger's cluster"):
            await ledger.decide(session.txid(1), COMMIT, BRANCHES)
        await cluster.start(first, second)
        await cluster.leader()
        while True:
            try:
                assert await ledger.decide(session.txid(1), COMMIT, BRANCHES) is COMMIT
                break
            except LedgerUnavailable:
                continue


async def test_closed_sessions_stay_closed_everywhere(cluster: Cluster) -> None:
    """A node that lags behind and then leads must not take COMMITs for a session that others closed."""
    async with client(cluster) as ledger:
        session = await ledger.open_session("test", 60.0)
        lagging = next(node for node in cluster.nodes.values() if not node.leads)
        cluster.cut(lagging.identity.node)
        await ledger.close_session(session)
        cluster.heal(lagging.identity.node)
        await _made_leader(cluster, lagging)
        assert await ledger.decide(session.txid(1), COMMIT, BRANCHES) is ABORT
        (told,) = await ledger.sessions()
        assert told.state is SessionState.CLOSED


async def _made_leader(cluster: Cluster, wanted: Node) -> None:
    while not wanted.leads:
        leader = await cluster.leader()
        if leader is not wanted:
            leader.replica.raft.transfer(wanted.identity.node)
            leader.replica.turns.wake()
        await asyncio.sleep(0.05)


async def test_forgetting_a_heuristic_twice_by_one_request_is_told_the_same(cluster: Cluster) -> None:
    """An operator whose answer was lost with the leader would else hear that there was nothing to forget."""
    first = await cluster.leader()
    session = await first.ledger.open_session("test", 60.0)
    gid = Gid(CLUSTER, Protocol.TWO_PHASE, session.txid(1), 1, "orders")
    await first.ledger.record_heuristic(Heuristic(gid, Settled.HEURISTIC_ROLLBACK, COMMIT, 1.5))
    assert await first.ledger.forget_heuristic(gid, request="one")
    await cluster.stop(first.identity.node)
    second = await cluster.leader()
    assert await second.ledger.forget_heuristic(gid, request="one")
    assert not await second.ledger.forget_heuristic(gid, request="another")
    assert not await second.ledger.forget_heuristic(gid)


async def test_more_than_may_be_uncommitted_waits_at_the_leader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To send callers away would only make them ask again, all of them at once, when there is the most to
    do."""
    monkeypatch.setattr("undoubt.coordinator.node.settings.UNCOMMITTED_BYTES_MAX", 1)
    async with running(tmp_path) as cluster, client(cluster) as ledger:
        session = await ledger.open_session("test", 60.0)
        await cluster.leader()
        link = ledger.leader_client.link
        for turn in range(5):
            decides = [ledger.decide(session.txid(turn * 50 + at), COMMIT, BRANCHES) for at in range(1, 51)]
            tasks = []
            for decide in decides:
                tasks.append(asyncio.create_task(decide))
                await asyncio.sleep(0)
            assert set(await asyncio.gather(*tasks)) == {COMMIT}
        assert ledger.leader_client.link is link


async def test_history_can_be_read_with_a_full_disk(tmp_path: Path) -> None:
    """What finished a moment ago is shown without being written first."""
    async with running(tmp_path, 1) as cluster, client(cluster) as ledger:
        session = await ledger.open_session("test", 60.0)
        await ledger.decide(session.txid(1), COMMIT, BRANCHES)
        await ledger.finish([session.txid(1)])
        (storage,) = cluster.storages.values()
        storage.write = lambda writes: asyncio.get_running_loop().create_future()  # type: ignore[method-assign]
        (told,) = await ledger.transactions(limit=10)
        assert (told.finished, list(told.branches)) == (
            True,
            ledger.tagged(told.txid, BRANCHES, Protocol.TWO_PHASE),
        )
        assert await ledger.transaction(session.txid(1)) == told
