"""Members come and go under load; leaders hand over; what is refused. Broken if a decision were lost or
refused while the cluster changes, if a number could come back on another disk, or if an operator could stop
the cluster by mistake."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.coordinator.node.cluster import CLUSTER, Cluster, client, running
from tests.ports import free_ports
from undoubt.coordinator.errors import (
    ClusterNotReady,
    ClusterRefused,
    LedgerUnavailable,
    LedgerUnusable,
    UnknownNode,
)
from undoubt.coordinator.ledger import backup
from undoubt.coordinator.ledger.acting import system_user
from undoubt.coordinator.ledger.cluster import admin
from undoubt.coordinator.ledger.cluster.messages import BackupCall, MemberChange, NodeStatus
from undoubt.coordinator.ledger.cluster.status import ask
from undoubt.coordinator.ledger.contract import BranchRecord, RecordedDecision, SessionState, Verdict
from undoubt.coordinator.node.bootstrap import joining, restored
from undoubt.coordinator.node.storage.contract import DiskIdentity
from undoubt.coordinator.node.storage.node_storage import create
from undoubt.coordinator.raft import ConfigChange
from undoubt.coordinator.wire import VERSIONS
from undoubt.participants.contract import Decision
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import TxId

COMMIT, ABORT = Decision.COMMIT, Decision.ABORT
BRANCHES = (BranchRecord(1, "orders"), BranchRecord(2, "payments"))


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running(tmp_path) as found:
        await found.leader()
        yield found


async def change(cluster: Cluster, *changes: MemberChange, wait_s: float = 30.0) -> NodeStatus:
    return await admin.change_members(cluster.settings, changes, wait_s=wait_s)


async def added(cluster: Cluster, number: int, *, disk: str = "", start: bool = True) -> None:
    """A learner on an empty disk."""
    if number not in cluster.addresses:
        cluster.addresses[number] = f"127.0.0.1:{free_ports(1)[0]}"
    disk = disk or f"disk-{number}"
    create(cluster.place(number), DiskIdentity(CLUSTER, number, disk), *joining())
    await change(cluster, MemberChange("add", number, cluster.addresses[number], disk, VERSIONS.highest))
    if start:
        await cluster.start(number)


@contextlib.asynccontextmanager
async def load(cluster: Cluster) -> AsyncIterator[dict[TxId, Decision]]:
    """Eight callers decide all the time; what they were told. A call that fails fails the test."""
    told: dict[TxId, Decision] = {}
    ended = asyncio.Event()
    async with client(cluster) as ledger:
        session = await ledger.open_session("load", 600.0)

        async def decide(worker: int) -> None:
            seq = worker
            while not ended.is_set():
                txid = session.txid(seq)
                told[txid] = await ledger.decide(txid, COMMIT, BRANCHES)
                seq += 8

        workers = [asyncio.create_task(decide(worker)) for worker in range(1, 9)]
        while len(told) < 50:
            await asyncio.sleep(0.01)
        yield told
        after = len(told) + 50
        while len(told) < after:
            assert not any(worker.done() for worker in workers)
            await asyncio.sleep(0.01)
        ended.set()
        await asyncio.gather(*workers)
        records = await ledger.records(told)
        assert set(told.values()) == {COMMIT}
        assert set(records.values()) == {RecordedDecision.COMMIT}


async def test_growing_and_shrinking_under_load(cluster: Cluster) -> None:
    """3, 5, 3: the first two nodes leave, whoever leads. Nothing fails and nothing is lost."""
    async with load(cluster):
        await added(cluster, 4)
        await added(cluster, 5)
        grown = await change(cluster, MemberChange("promote", 4), MemberChange("promote", 5))
        assert (grown.voters, grown.learners, grown.outgoing_voters) == ((1, 2, 3, 4, 5), (), ())
        shrunk = await change(cluster, MemberChange("remove", 1), MemberChange("remove", 2))
        assert (shrunk.voters, shrunk.outgoing_voters) == ((3, 4, 5), ())
        assert set(shrunk.nodes) == {3, 4, 5}
        await cluster.stop(1, 2)
    await cluster.settled()
    assert len(cluster.images()) == 1


async def test_the_leader_can_be_removed(cluster: Cluster) -> None:
    """It leads until the new configuration is committed, then goes (thesis §4.2.2); the call ends well."""
    async with load(cluster):
        number = (await cluster.leader()).identity.node
        status = await change(cluster, MemberChange("remove", number))
        assert number not in status.voters
        assert len(status.voters) == 2
        await cluster.leader(but=number)


async def test_a_leader_that_is_removed_hands_over_to_nobody_who_is_dead(tmp_path: Path) -> None:
    """Until an election timeout has passed it would take nothing any more, and nobody would take over."""
    async with running(tmp_path, 5) as cluster:
        leader = await cluster.leader()
        dead = min(number for number in cluster.nodes if number != leader.identity.node)
        await cluster.settled()
        raft, asked = leader.replica.raft, list[int]()
        while len({raft.match(number) for number in cluster.nodes}) > 1:
            await asyncio.sleep(0.01)
        await cluster.stop(dead)
        transfer = raft.transfer

        def told(to: int) -> None:
            asked.append(to)
            transfer(to)

        raft.transfer = told  # type: ignore[method-assign]
        await change(cluster, MemberChange("remove", leader.identity.node))
        assert asked
        assert dead not in asked


async def test_a_dead_node_is_replaced(cluster: Cluster) -> None:
    """The way back to three after a machine is gone."""
    async with load(cluster):
        dead = next(number for number, node in cluster.nodes.items() if not node.leads)
        await cluster.stop(dead)
        await added(cluster, 4)
        await change(cluster, MemberChange("promote", 4))
        status = await change(cluster, MemberChange("remove", dead))
        assert status.voters == tuple(sorted({1, 2, 3, 4} - {dead}))


async def test_everything_may_be_asked_again(cluster: Cluster) -> None:
    """A call whose answer was lost with a leader is repeated: it must neither fail nor do it twice."""
    await added(cluster, 4)
    again = MemberChange("add", 4, cluster.addresses[4], "disk-4")
    assert (await change(cluster, again)).learners == (4,)
    for _ in range(2):
        assert (await change(cluster, MemberChange("promote", 4))).voters == (1, 2, 3, 4)
    assert (await change(cluster, again)).voters == (1, 2, 3, 4)
    for _ in range(2):
        assert (await change(cluster, MemberChange("remove", 4))).voters == (1, 2, 3)


@pytest.mark.parametrize("number", [1, 4])
async def test_a_number_never_comes_back(cluster: Cluster, number: int) -> None:
    """Whoever counted on the old disk's votes and entries must not find an empty one under its name."""
    await added(cluster, 4)
    taken = MemberChange("add", number, cluster.addresses[number], "another-disk")
    with pytest.raises(ClusterRefused, match="the next is 5"):
        await change(cluster, taken)
    await change(cluster, MemberChange("remove", number))
    with pytest.raises(ClusterRefused, match="the next is 5"):
        await change(cluster, taken)
    await cluster.stop()
    await cluster.start(*({1, 2, 3, 4} - {number}))
    with pytest.raises(ClusterRefused, match="the next is 5"):
        await change(cluster, taken)


async def test_numbers_are_remembered_by_snapshots(cluster: Cluster) -> None:
    """The log that told of a removed node is dropped some day."""
    await added(cluster, 7)
    await change(cluster, MemberChange("remove", 7))
    for number in (1, 2, 3):
        await admin.snapshot(cluster.settings, cluster.addresses[number])
    await cluster.stop()
    await cluster.start(1, 2, 3)
    with pytest.raises(ClusterRefused, match="the next is 8"):
        await change(cluster, MemberChange("add", 7, "127.0.0.1:1", "another-disk"))


async def test_a_learner_that_is_not_there_is_not_promoted(cluster: Cluster) -> None:
    """It would count in every majority and acknowledge nothing."""
    await added(cluster, 4, start=False)
    with pytest.raises(ClusterNotReady, match="node 4"):
        await change(cluster, MemberChange("promote", 4), wait_s=0.0)
    with pytest.raises(UnknownNode, match="not a member"):
        await change(cluster, MemberChange("promote", 9))
    promoting = asyncio.create_task(change(cluster, MemberChange("promote", 4)))
    await cluster.start(4)
    assert (await promoting).voters == (1, 2, 3, 4)


async def test_what_would_stop_the_cluster_is_refused(cluster: Cluster) -> None:
    """Two are left of three, one of them dead: removing the living one would end every majority for good."""
    leader = await cluster.leader()
    others = sorted({1, 2, 3} - {leader.identity.node})
    await cluster.stop(others[0])
    with pytest.raises(ClusterNotReady, match=f"silent: {others[0]}"):
        await change(cluster, MemberChange("remove", others[1]), wait_s=0.0)
    with pytest.raises(ClusterRefused, match="no voter"):
        await change(cluster, *(MemberChange("remove", number) for number in (1, 2, 3)))
    assert set(leader.replica.raft.configuration.incoming) == {1, 2, 3}
    await change(cluster, MemberChange("remove", others[0]))


async def test_two_operators_cannot_do_together_what_neither_may(cluster: Cluster) -> None:
    """Of four voters one is dead. Either of two others may be removed, and not both: the one that would be
    left with the dead one could commit nothing any more, not even the way back."""
    await added(cluster, 4)
    await change(cluster, MemberChange("promote", 4))
    leader = await cluster.leader()
    dead, first, second = sorted({1, 2, 3, 4} - {leader.identity.node})
    await cluster.stop(dead)
    arrived, go_on = asyncio.Event(), asyncio.Event()
    make = leader.replica.proposals.reconfigure

    async def reconfigure(change: ConfigChange) -> None:
        arrived.set()
        await go_on.wait()
        await make(change)

    leader.replica.proposals.reconfigure = reconfigure  # type: ignore[method-assign]
    one = asyncio.create_task(change(cluster, MemberChange("remove", first)))
    await arrived.wait()
    other = asyncio.create_task(change(cluster, MemberChange("remove", second), wait_s=0.0))
    async with client(cluster) as ledger:
        for _ in range(20):  # it comes as far as it can
            await ledger.info()
        go_on.set()
        assert (await one).voters == tuple(sorted({1, 2, 3, 4} - {first}))
        with pytest.raises(ClusterNotReady, match=f"silent: {dead}"):
            await other
        session = await ledger.open_session("test", 60.0)
        assert await ledger.decide(session.txid(1), COMMIT, BRANCHES) is COMMIT


async def test_a_removed_node_is_told_and_disturbs_nobody(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """It goes on asking for votes; the others neither answer nor begin a new term."""
    async with load(cluster):
        follower = next(number for number, node in cluster.nodes.items() if not node.leads)
        await change(cluster, MemberChange("remove", follower))
        term = (await cluster.leader()).replica.raft.term
        removed = cluster.nodes[follower]
        await cluster.stop(follower)
        await cluster.start(follower)
        while not any(f"node {follower} was removed" in record.getMessage() for record in caplog.records):
            await asyncio.sleep(0.01)
        assert removed is not cluster.nodes[follower]
        assert (await cluster.leader()).replica.raft.term == term


async def test_leadership_is_handed_over(cluster: Cluster) -> None:
    """To whoever is named, or to whoever is best, once."""
    async with load(cluster):
        before = (await cluster.leader()).identity.node
        to = next(number for number in (1, 2, 3) if number != before)
        await admin.transfer(cluster.settings, to)
        assert (await cluster.leader(but=before)).identity.node == to
        await admin.transfer(cluster.settings, to)
        assert (await cluster.leader()).identity.node == to
        await admin.transfer(cluster.settings)
        await cluster.leader(but=to)
        with pytest.raises(UnknownNode, match="node 9 is not a member"):
            await admin.transfer(cluster.settings, 9)


async def test_snapshots_on_request(cluster: Cluster) -> None:
    """Each node for itself, leader or not; and a node that starts from one has all."""
    async with client(cluster) as ledger:
        session = await ledger.open_session("test", 600.0)
        for seq in range(1, 20):
            await ledger.decide(session.txid(seq), COMMIT, BRANCHES)
        await cluster.settled()
        index = (await cluster.leader()).replica.raft.applied_index
        for number in (1, 2, 3):
            assert await admin.snapshot(cluster.settings, cluster.addresses[number]) >= index
            assert await admin.snapshot(cluster.settings, cluster.addresses[number]) >= index
    await cluster.stop()
    await cluster.start()
    async with client(cluster) as ledger:
        assert (await ledger.records([session.txid(19)]))[session.txid(19)] is RecordedDecision.COMMIT


async def taken(cluster: Cluster, path: Path) -> backup.Backup:
    status, piece, image = await admin.image(cluster.settings)
    about = backup.About(status.cluster, status.ledger_id, piece.index, piece.term, 0.0, "test")
    backup.write(path, backup.Backup(about, image))
    return backup.read(path)


async def test_a_restored_ledger_presumes_nothing(tmp_path: Path) -> None:
    """What committed after the backup was made must never be told as aborted: the database still holds it
    prepared, and recovery would roll back one half of it."""
    async with running(tmp_path / "a") as cluster, client(cluster) as ledger:
        session = await ledger.open_session("before", 600.0)
        ended = await ledger.open_session("ended", 600.0)
        await ledger.decide(session.txid(1), COMMIT, BRANCHES)
        await ledger.keep_alive(session, 2)
        await ledger.close_session(ended)
        kept = await taken(cluster, tmp_path / "backup")
        late = await ledger.open_session("late", 600.0)
        for txid in (session.txid(2), late.txid(1)):
            assert await ledger.decide(txid, COMMIT, BRANCHES) is COMMIT
        first_id = ledger.ledger_id
    other = Cluster(tmp_path / "b", 0)
    other.addresses = {number: f"127.0.0.1:{port}" for number, port in enumerate(free_ports(3), 1)}
    other.settings = type(other.settings)(url="raft://" + ",".join(other.addresses.values()))
    for number in other.addresses:
        ledger_id, hard_state, snapshot = restored(kept.image, other.addresses)
        assert ledger_id == first_id
        create(other.place(number), DiskIdentity("zzzzzzzzzz", number, f"new-{number}"), hard_state, snapshot)
    await other.start()
    try:
        async with client(other) as ledger:
            assert ledger.ledger_id == first_id
            assert (await ledger.info()).incarnation == 2
            verdicts = await ledger.outcomes(
                [session.txid(1), session.txid(2), session.txid(3), late.txid(1), ended.txid(1)]
            )
            assert list(verdicts.values()) == [
                Verdict.COMMITTED, Verdict.FORGOTTEN, Verdict.FORGOTTEN, Verdict.FORGOTTEN, Verdict.ABORTED,
            ]  # fmt: skip
            assert SessionState.OPEN not in {info.state for info in await ledger.sessions()}
            assert (await ledger.open_session("new", 60.0)).id > late.id + 2**31
    finally:
        await other.stop()


async def test_a_backup_of_many_pieces(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of two images never make one."""
    monkeypatch.setattr("undoubt.coordinator.node.admin.PIECE_BYTES", 100)
    async with load(cluster):
        _, piece, image = await admin.image(cluster.settings)
    assert piece.size == len(image) > 1000
    restored(image, {1: "a:1"})
    with pytest.raises((ClusterRefused, LedgerUnavailable)):
        await ask(
            cluster.addresses[(await cluster.leader()).identity.node],
            BackupCall(100), 5.0, cluster.settings.wire,
        )  # fmt: skip


async def test_a_damaged_backup_is_not_restored(cluster: Cluster, tmp_path: Path) -> None:
    """Any flipped byte, a cut end, another file."""
    path = tmp_path / "backup"
    kept = await taken(cluster, path)
    assert backup.read(path) == kept
    with pytest.raises(UsageError, match="exists already"):
        backup.write(path, kept)
    whole = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    for position in (0, len(backup.MAGIC), len(backup.MAGIC) + 40, len(whole) - 1):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(LedgerUnusable):
            backup.read(path)
    path.write_bytes(whole[:-10])
    with pytest.raises(LedgerUnusable, match="damaged"):
        backup.read(path)


async def test_who_changes_the_members_is_recorded(cluster: Cluster) -> None:
    """Also by a client that says nothing of itself, and where whoever led hands over with it."""
    async with client(cluster) as ledger:
        successor = (await cluster.leader()).replica.raft.node % 3 + 1
        await admin.transfer(cluster.settings, successor, note="new disk")
        with pytest.raises(ClusterRefused):
            await admin.change_members(cluster.settings, [MemberChange("promote", 9)], wait_s=0)
        refused, moved = await ledger.acts(limit=2)
    assert (moved.verb, moved.subject) == ("cluster transfer", f"node {successor}")
    assert (moved.note, moved.result, moved.who) == ("new disk", "done", system_user())
    assert (refused.verb, refused.subject) == ("cluster promote", "node 9")
    assert refused.result.startswith("UnknownNode: node 9 is not a member")
