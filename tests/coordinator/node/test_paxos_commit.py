"""Paxos Commit on a cluster: its nodes as acceptors, over real TCP and real files, without a leader's
help."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from tests.coordinator.ledger.signing import Signing
from tests.coordinator.node.cluster import CLUSTER, Cluster, client, running
from undoubt.coordinator.coordinator import Coordinator
from undoubt.coordinator.errors import (
    ClusterNotReady,
    LedgerError,
    LedgerUnavailable,
    OutcomeUnknown,
    TransactionAborted,
)
from undoubt.coordinator.ledger.cluster.admin import change_members
from undoubt.coordinator.ledger.cluster.messages import MemberChange
from undoubt.coordinator.ledger.contract import BranchRecord, RecordedDecision
from undoubt.coordinator.ledger.memory import MemoryLedger
from undoubt.coordinator.node.bootstrap import beginning, joining
from undoubt.coordinator.node.storage.contract import DiskIdentity
from undoubt.coordinator.node.storage.node_storage import create
from undoubt.coordinator.protocols.steps import PaxosStep, TwoPhaseStep
from undoubt.coordinator.settings import CoordinatorSettings
from undoubt.participants.contract import Decision, XactStatus
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import Protocol, TxId
from undoubt.participants.registry import Registry
from undoubt.participants.scripted import ScriptedParticipant
from undoubt.recovery.service import RecoveryService
from undoubt.recovery.settings import RecoverySettings

T = TypeVar("T")

COMMIT, ABORT = Decision.COMMIT, Decision.ABORT
NAMES = ("orders", "payments")
BRANCHES = [BranchRecord(1, "orders", 11, 22, "00000001"), BranchRecord(2, "payments", 12, 23, "00000001")]

SETTINGS = CoordinatorSettings(protocol="paxos", session_ttl_s=10.0, drain_s=0.01)


class Stage:
    """A coordinator over scripted participants and a cluster; it stops at ``held`` until that is set. It and
    recoveries have the client itself, and name branches themselves."""

    def __init__(self, cluster: Cluster, ledger: Signing, settings: CoordinatorSettings = SETTINGS) -> None:
        self.cluster, self.ledger = cluster, ledger
        self.registry = Registry()
        self.databases = {name: ScriptedParticipant(name) for name in NAMES}
        for number, database in enumerate(self.databases.values()):
            database.system += number
            self.registry.add(database)
        self.held: dict[str, tuple[asyncio.Event, asyncio.Event]] = {}
        self.coordinator = Coordinator(ledger.ledger, self.registry, settings, observe=self._observe)

    async def _observe(self, step: Any, subject: str) -> None:  # noqa: ARG002 - whoever it is, it stops
        if str(step) in self.held:
            arrived, go_on = self.held[str(step)]
            arrived.set()
            await go_on.wait()

    def hold(self, step: str) -> asyncio.Event:
        """Stop whoever comes to ``step``; returns what is set when somebody has."""
        self.held[step] = asyncio.Event(), asyncio.Event()
        return self.held[step][0]

    def release(self, step: str) -> None:
        self.held.pop(step)[1].set()

    async def transfer(self, timeout: float = 30.0) -> TxId:
        async with self.coordinator.transaction(timeout=timeout) as tx:
            for name in NAMES:
                await tx.branch(name)
            await tx.commit()
        return tx.id

    def xact_statuses(self) -> set[XactStatus]:
        return {
            database.xact_statuses[branch.xid]
            for database in self.databases.values()
            for branch in database.branches
        }

    def in_doubt(self) -> int:
        return sum(len(database.prepared) for database in self.databases.values())

    async def recover(self, ledger: Any = None) -> None:
        """Passes until nothing is prepared."""
        service = RecoveryService(
            ledger or self.ledger.ledger, self.registry, RecoverySettings(interval_s=0.0)
        )
        for _ in range(50):
            await service.run_once()
            if not self.in_doubt():
                return

    async def recorded(self, txid: TxId) -> RecordedDecision:
        records: Mapping[TxId, RecordedDecision] = await self.ledger.records([txid])
        return records[txid]


@contextlib.asynccontextmanager
async def staged(folder: Path, nodes: int = 3, timeout_s: float = 30.0) -> AsyncIterator[Stage]:
    async with running(folder, nodes) as cluster, client(cluster, timeout_s) as ledger:
        stage = Stage(cluster, ledger)
        async with stage.coordinator:
            yield stage


def kept(cluster: Cluster, txid: TxId) -> list[int]:
    """The nodes whose acceptors have a record of it."""
    return [
        number
        for number, node in cluster.nodes.items()
        if node.replica.acceptors.acceptor.record(txid) is not None
    ]


@pytest.mark.parametrize("nodes", [1, 3])
async def test_it_commits_and_is_finished(tmp_path: Path, nodes: int) -> None:
    """Broken if votes do not reach the acceptors, or the outcome does not reach ledger and history."""
    async with staged(tmp_path, nodes) as stage:
        txid = await stage.transfer()
        assert stage.xact_statuses() == {XactStatus.COMMITTED}
        assert len(kept(stage.cluster, txid)) > nodes // 2
        while (told := await stage.ledger.transaction(txid)) is None or not told.finished:
            await asyncio.sleep(0.01)
        assert (told.protocol, told.record) == (Protocol.PAXOS, RecordedDecision.COMMIT)
        xids = [branch.xid for database in stage.databases.values() for branch in database.branches]
        assert [branch.xid for branch in told.branches] == xids


async def test_connections_do_not_wait_for_the_ledgers_copy(tmp_path: Path) -> None:
    """Broken if a leader that is dead or paused uses up the connections of commits that are over, or if who
    was told of a commit then hears that nothing is known of it."""
    async with staged(tmp_path) as stage:
        arrived = stage.hold(TwoPhaseStep.BEFORE_DECIDE)
        txid = await stage.transfer()
        assert arrived.is_set()
        assert all(branch.released for database in stage.databases.values() for branch in database.branches)
        assert await stage.recorded(txid) is RecordedDecision.NOT_RECORDED
        assert await stage.coordinator.outcome(txid) is RecordedDecision.COMMIT
        stage.release(TwoPhaseStep.BEFORE_DECIDE)
        while await stage.recorded(txid) is RecordedDecision.NOT_RECORDED:
            await asyncio.sleep(0.01)


async def test_nobody_needs_to_lead(tmp_path: Path) -> None:
    """Broken if a dead or paused leader delays a commit: here nobody can be elected while it happens."""
    async with staged(tmp_path) as stage:
        txid = await stage.transfer()
        cluster = stage.cluster
        for number in cluster.nodes:
            cluster.cut(number)
        while any(node.leads for node in cluster.nodes.values()):
            await asyncio.sleep(0.01)
        alone = asyncio.create_task(stage.transfer())
        await alone
        assert alone.result().seq == txid.seq + 1
        assert stage.xact_statuses() == {XactStatus.COMMITTED}
        for number in cluster.nodes:
            cluster.heal(number)
        while await stage.recorded(alone.result()) is not RecordedDecision.COMMIT:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("wrong", ["without tags", "with another tag", "one without a tag"])
async def test_a_vote_under_a_name_that_was_never_given(tmp_path: Path, wrong: str) -> None:
    """Broken if a client that leaves tags out has a name chosen which nobody can verify: no COMMIT could be
    recorded for it."""
    async with staged(tmp_path, timeout_s=0.5) as stage:
        session = await stage.ledger.acceptors.open_session("shop", 300.0)
        txid = session.txid(1)
        votes = {
            "without tags": BRANCHES,
            "with another tag": stage.ledger.tagged(session.txid(2), BRANCHES, Protocol.PAXOS),
            "one without a tag": [stage.ledger.tagged(txid, BRANCHES, Protocol.PAXOS)[0], BRANCHES[1]],
        }
        with pytest.raises(LedgerUnavailable, match="never gave"):
            await stage.ledger.client.acceptors.vote(txid, votes[wrong])
        assert kept(stage.cluster, txid) == []
        assert (await stage.ledger.acceptors.settle(txid)).decision is ABORT
        assert await stage.ledger.acceptors.vote(session.txid(3), BRANCHES) is COMMIT


async def test_a_minority_of_acceptors_is_not_needed(tmp_path: Path) -> None:
    """Broken if one node that is down holds up commits."""
    async with staged(tmp_path) as stage:
        await stage.transfer()
        leader = await stage.cluster.leader()
        await stage.cluster.stop(leader.identity.node)
        await stage.transfer()
        assert stage.xact_statuses() == {XactStatus.COMMITTED}


async def test_without_a_quorum_nobody_guesses(tmp_path: Path) -> None:
    """Broken if silence is taken for aborted, or the votes are not sent to the acceptors that come back."""
    async with staged(tmp_path, timeout_s=0.3) as stage:
        await stage.transfer()
        await stage.cluster.stop(2, 3)
        with pytest.raises(OutcomeUnknown) as caught:
            await stage.transfer(timeout=0.5)
        assert stage.in_doubt() == 2
        await stage.cluster.start(2, 3)
        while stage.in_doubt():
            await asyncio.sleep(0.01)
        assert stage.xact_statuses() == {XactStatus.COMMITTED}
        while await recorded_by_anybody(stage, caught.value.txid) is not RecordedDecision.COMMIT:
            await asyncio.sleep(0.01)


async def recorded_by_anybody(stage: Stage, txid: TxId) -> RecordedDecision:
    try:
        return await stage.recorded(txid)
    except LedgerUnavailable:
        return RecordedDecision.NOT_RECORDED


async def test_one_transaction_may_choose_it(tmp_path: Path) -> None:
    """Broken if a session that was opened without acceptors were voted on, or all others had to be bound."""
    async with running(tmp_path) as cluster, client(cluster) as ledger:
        registry = Registry()
        databases = [ScriptedParticipant(name) for name in NAMES]
        for database in databases:
            registry.add(database)
        async with Coordinator(ledger.ledger, registry) as coordinator:
            for protocol in ("2pc", "paxos", "2pc"):
                async with coordinator.transaction(protocol=protocol) as tx:
                    for name in NAMES:
                        await tx.branch(name)
        sessions = sorted(await ledger.sessions(), key=lambda session: session.id)
        assert [session.acceptors for session in sessions] == [(), (1, 2, 3)]
        assert {xact_status for database in databases for xact_status in database.xact_statuses.values()} == {
            XactStatus.COMMITTED
        }


async def test_members_that_a_session_is_bound_to_stay(tmp_path: Path) -> None:
    """Broken if nodes were let go that must be asked about transactions which may be undecided."""
    async with running(tmp_path) as cluster, client(cluster) as ledger:
        session = await ledger.acceptors.open_session("shop", 300.0)
        remove = [MemberChange("remove", number) for number in (1, 2)]
        with pytest.raises(ClusterNotReady, match="bound to the nodes 1, 2, 3"):
            await change_members(cluster.settings, remove, wait_s=0.0)
        await change_members(cluster.settings, remove[:1])
        assert await ledger.acceptors.vote(session.txid(1), BRANCHES) is COMMIT
        await ledger.decide(session.txid(1), COMMIT, BRANCHES, protocol=Protocol.PAXOS)
        await ledger.close_session(session)
        await change_members(cluster.settings, remove[1:])


# Recovery.

STEPS = {
    str(TwoPhaseStep.AFTER_PREPARE): XactStatus.ABORTED,
    str(PaxosStep.BEFORE_VOTE): XactStatus.ABORTED,
    str(PaxosStep.AFTER_VOTE): XactStatus.COMMITTED,
    str(TwoPhaseStep.BEFORE_SECOND_PHASE): XactStatus.COMMITTED,
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("inside", [True, False], ids=["where a node leads", "from outside"])
async def test_recovery_ends_what_a_dead_coordinator_left(tmp_path: Path, step: str, inside: bool) -> None:
    """Broken if recovery presumes an outcome, or finds another one than the coordinator may have told."""
    async with staged(tmp_path) as stage:
        await stage.transfer()
        arrived = stage.hold(step)
        hanging = asyncio.create_task(stage.transfer())
        await arrived.wait()
        if step != TwoPhaseStep.BEFORE_SECOND_PHASE:  # there it is recorded, and anybody may finish it
            await stage.recover()
            assert stage.in_doubt() > 0, "its session is alive: it was left alone"
        await stage.cluster.elapse(60.0)
        ledger = (await stage.cluster.leader()).ledger if inside else None
        await stage.recover(ledger)
        assert stage.in_doubt() == 0
        (first, *_), (second, *_) = (each.branches[1:] for each in stage.databases.values())
        xact_statuses = {
            stage.databases["orders"].xact_statuses[first.xid],
            stage.databases["payments"].xact_statuses[second.xid],
        }
        assert xact_statuses == {STEPS[step]}
        recorded = await stage.recorded(first.gid.txid)
        assert recorded is (
            RecordedDecision.COMMIT if STEPS[step] is XactStatus.COMMITTED else RecordedDecision.ABORT
        )
        stage.release(step)
        if STEPS[step] is XactStatus.COMMITTED:
            await hanging
        else:
            with pytest.raises(TransactionAborted):
                await hanging
        assert stage.in_doubt() == 0


async def test_a_coordinator_that_votes_too_late_learns_that_it_is_aborted(tmp_path: Path) -> None:
    """Broken if a coordinator that was only slow commits what a recovery has aborted. The interleaving to
    fear: all is prepared, the session expires, a recovery aborts one branch, then the votes arrive."""
    async with staged(tmp_path) as stage:
        arrived = stage.hold(str(PaxosStep.BEFORE_VOTE))
        hanging = asyncio.create_task(stage.transfer())
        await arrived.wait()
        await stage.cluster.elapse(60.0)
        payments = stage.databases["payments"]
        payments.down = UsageError("cut off")
        service = RecoveryService(stage.ledger.ledger, stage.registry, RecoverySettings(interval_s=0.0))
        await service.run_once()
        payments.down = None
        assert len(stage.databases["orders"].prepared) == 0
        assert len(payments.prepared) == 1
        stage.release(str(PaxosStep.BEFORE_VOTE))
        with pytest.raises(TransactionAborted):
            await hanging
        assert stage.xact_statuses() == {XactStatus.ABORTED}


async def test_several_recoveries_at_once_agree(tmp_path: Path) -> None:
    """Broken if two that run into each other find two outcomes, or never come to an end."""
    async with staged(tmp_path) as stage:
        session = await stage.ledger.acceptors.open_session("dead", 300.0)
        txids = [session.txid(seq) for seq in range(1, 9)]
        for txid in txids[:4]:
            assert await stage.ledger.acceptors.vote(txid, BRANCHES) is COMMIT
        await stage.cluster.settled()
        nodes = [node.ledger.acceptors for node in stage.cluster.nodes.values()]
        for txid in txids:
            settling = [each.settle(txid) for each in [*nodes, stage.ledger.acceptors] * 2]
            found = await asyncio.gather(*settling)
            branches = tuple(stage.ledger.tagged(txid, BRANCHES, Protocol.PAXOS))
            wanted = (COMMIT, branches) if txid in txids[:4] else (ABORT, ())
            assert {(each.decision, each.branches) for each in found} == {wanted}


async def test_votes_after_a_recovery_change_nothing(tmp_path: Path) -> None:
    """Broken if the first ballot outvotes a higher one."""
    async with staged(tmp_path) as stage:
        session = await stage.ledger.acceptors.open_session("slow", 300.0)
        assert (await stage.ledger.acceptors.settle(session.txid(1))).decision is ABORT
        assert await stage.ledger.acceptors.vote(session.txid(1), BRANCHES) is ABORT


async def test_a_session_is_bound_to_the_voters_that_it_was_opened_under(tmp_path: Path) -> None:
    """Broken if a recovery asked anybody else."""
    async with staged(tmp_path) as stage:
        session = await stage.ledger.acceptors.open_session("shop", 300.0)
        assert session.acceptors == (1, 2, 3)
        (told,) = [each for each in await stage.ledger.sessions() if each.id == session.id]
        assert told.acceptors == (1, 2, 3)
        await stage.cluster.settled()
        for node in stage.cluster.nodes.values():
            assert node.replica.replicated.machine.state.sessions[session.id].acceptors == (1, 2, 3)


async def test_of_an_unknown_session_nobody_knows(tmp_path: Path) -> None:
    """Broken if acceptors are asked that the transaction was never bound to."""
    async with staged(tmp_path) as stage:
        txid = TxId(99, "0" * 16, 1)
        for call in (stage.ledger.acceptors.settle(txid), stage.ledger.acceptors.vote(txid, BRANCHES)):
            with pytest.raises(OutcomeUnknown, match="which acceptors"):
                await call


async def test_what_ended_sessions_left_unrecorded_is_recorded(tmp_path: Path) -> None:
    """Broken if a transaction that is committed everywhere, and whose coordinator died before it could tell
    the ledger so, stays unknown for ever: with nothing prepared, no recovery has a reason to ask. Here the
    node that leads has not even heard of the votes."""
    async with running(tmp_path) as cluster, client(cluster) as ledger:
        session = await ledger.acceptors.open_session("shop", 300.0)
        committed, aborted = session.txid(1), session.txid(2)
        await cluster.settled()
        leader = await cluster.leader()
        leader.replica.acceptors.disk_full = True
        branches = ledger.tagged(committed, BRANCHES, Protocol.PAXOS)
        assert await ledger.acceptors.vote(committed, branches) is COMMIT
        assert leader.identity.node not in kept(cluster, committed)
        leader.replica.acceptors.disk_full = False
        assert (await ledger.acceptors.settle(aborted)).decision is ABORT

        async def look() -> dict[TxId, RecordedDecision]:
            await (await cluster.leader()).orphaned_votes.settle_all()
            return dict(await ledger.records([committed, aborted]))

        assert set((await look()).values()) == {RecordedDecision.NOT_RECORDED}  # its coordinator is about to
        await ledger.close_session(session)
        while set((found := await look()).values()) & {RecordedDecision.NOT_RECORDED}:
            pass
        assert found == {committed: RecordedDecision.COMMIT, aborted: RecordedDecision.ABORT}
        (record,) = (one for one in await ledger.unfinished() if one.txid == committed)
        assert (record.branches, record.protocol) == (tuple(branches), Protocol.PAXOS)


# What is on the disks.


@pytest.mark.parametrize("joins", [True, False])
async def test_a_node_that_lost_its_disk_answers_for_nobody(tmp_path: Path, joins: bool) -> None:
    """Broken if a node that somebody starts again, empty, under its old number takes part as an acceptor:
    with it there is a second quorum that has never heard of the votes, and what is committed is aborted."""
    async with staged(tmp_path, timeout_s=1.0) as stage:
        cluster, acceptors = stage.cluster, stage.ledger.acceptors
        txid = (await acceptors.open_session("shop", 300.0)).txid(1)
        await cluster.settled()
        leader = (await cluster.leader()).identity.node
        lost, third = (number for number in cluster.addresses if number != leader)
        await cluster.stop(third)
        assert await until_answered(lambda: acceptors.vote(txid, BRANCHES)) is COMMIT
        await cluster.stop(lost, leader)
        cluster.place(lost).rename(tmp_path / "lost")
        begun = joining() if joins else beginning(CLUSTER, cluster.addresses)
        create(cluster.place(lost), DiskIdentity(CLUSTER, lost, "another-disk"), *begun)
        await cluster.start(lost, third)
        with pytest.raises(LedgerUnavailable):
            await acceptors.settle(txid)
        await cluster.start(leader)
        assert (await until_answered(lambda: acceptors.settle(txid))).decision is COMMIT


async def until_answered(call: Callable[[], Awaitable[T]]) -> T:
    while True:
        with contextlib.suppress(LedgerUnavailable):
            return await call()


async def test_what_was_voted_on_survives_the_whole_cluster(tmp_path: Path) -> None:
    """Broken if a vote or a promise is answered before it is on the disk, or not read back."""
    async with running(tmp_path) as cluster:
        async with client(cluster) as ledger:
            session = await ledger.acceptors.open_session("shop", 300.0)
            assert await ledger.acceptors.vote(session.txid(1), BRANCHES) is COMMIT
            assert (await ledger.acceptors.settle(session.txid(2))).decision is ABORT
        await cluster.stop()
        await cluster.start()
        assert len(kept(cluster, session.txid(1))) >= 2
        async with client(cluster) as ledger:
            found = await ledger.acceptors.settle(session.txid(1))
            branches = ledger.tagged(session.txid(1), BRANCHES, Protocol.PAXOS)
            assert (found.decision, list(found.branches)) == (COMMIT, branches)
            assert await ledger.acceptors.vote(session.txid(2), BRANCHES) is ABORT


async def test_what_is_recorded_and_below_the_floor_is_forgotten(tmp_path: Path) -> None:
    """Broken if acceptors keep everything for ever, or let go what the ledger does not hold yet."""
    async with running(tmp_path) as cluster, client(cluster) as ledger:
        session = await ledger.acceptors.open_session("shop", 300.0)
        for seq in (1, 2, 3):
            assert await ledger.acceptors.vote(session.txid(seq), BRANCHES) is COMMIT
        for seq in (1, 3):
            await ledger.decide(session.txid(seq), COMMIT, BRANCHES, protocol=Protocol.PAXOS)
        await ledger.keep_alive(session, 3)
        await wait_until(cluster, lambda acceptor: acceptor.record(session.txid(1)) is None)
        for node in cluster.nodes.values():
            node.replica.acceptors.forget()
        for seq in (2, 3):  # nothing is recorded of the one; the other is not below the floor
            assert (await ledger.acceptors.settle(session.txid(seq))).decision is COMMIT
        # Late votes of what is forgotten: the ledger tells.
        assert await ledger.acceptors.vote(session.txid(1), BRANCHES) is COMMIT
        await cluster.stop()
        await cluster.start()
        await cluster.leader()
        assert await ledger.acceptors.vote(session.txid(1), BRANCHES) is COMMIT
        # A node that ended before it had forgotten it on its disk does so now.
        await wait_until(cluster, lambda acceptor: acceptor.record(session.txid(1)) is None)


async def test_of_a_session_that_ended_in_order_nothing_is_kept(tmp_path: Path) -> None:
    """Broken if acceptors keep what was going on when a session was replaced, or closed, for as long as the
    ledger remembers it: a week, and another session every few minutes."""
    settings = msgspec.structs.replace(SETTINGS, session_ttl_s=300.0, session_transactions_max=2)
    async with running(tmp_path) as cluster, client(cluster) as ledger:
        stage = Stage(cluster, ledger, settings)
        async with stage.coordinator:
            for _ in range(5):
                await asyncio.gather(*(stage.transfer() for _ in range(3)))
            last = (await stage.transfer()).session
            await wait_until(
                cluster, lambda acceptor: {each.txid.session for each in acceptor.kept().records} <= {last}
            )
        await wait_until(cluster, lambda acceptor: acceptor.count == 0)


async def test_what_was_given_up_at_the_end_can_still_be_settled(tmp_path: Path) -> None:
    """All is prepared, nothing is voted on, and the ledger does not record that it is aborted before the
    coordinator closes. Broken if acceptors let it go, as if the ledger had its outcome: nobody could end
    it."""
    async with running(tmp_path) as cluster, client(cluster) as ledger:
        stage = Stage(cluster, ledger, SETTINGS)
        async with stage.coordinator:
            await stage.transfer()
            arrived = stage.hold(str(PaxosStep.BEFORE_VOTE))
            hanging = asyncio.create_task(stage.transfer())
            await arrived.wait()
            later = stage.held.pop(str(PaxosStep.BEFORE_VOTE))
            await stage.transfer()
            hanging.cancel()
        await asyncio.gather(hanging, return_exceptions=True)
        later[1].set()
        for node in cluster.nodes.values():
            await node.ledger.sessions() if node.leads else None
            node.replica.acceptors.forget()
        assert stage.in_doubt() == 2
        await stage.recover()
        assert stage.in_doubt() == 0


async def wait_until(cluster: Cluster, true: Any) -> None:
    while not all(true(node.replica.acceptors.acceptor) for node in cluster.nodes.values()):
        await asyncio.sleep(0.01)


async def test_a_full_disk_takes_no_votes(tmp_path: Path) -> None:
    """Broken if an acceptor without room makes a leader wait instead of asking the others."""
    async with running(tmp_path) as cluster, client(cluster) as ledger:
        session = await ledger.acceptors.open_session("shop", 300.0)
        cluster.nodes[1].replica.note_full(True)
        assert await ledger.acceptors.vote(session.txid(1), BRANCHES) is COMMIT
        assert 1 not in kept(cluster, session.txid(1))
        cluster.nodes[1].replica.note_full(False)


async def test_a_leader_that_breaks_the_protocol_is_told(tmp_path: Path) -> None:
    """Broken if a second set of votes in the first ballot is heard, or brings an acceptor down."""
    async with running(tmp_path) as cluster, client(cluster, 0.5) as ledger:
        session = await ledger.acceptors.open_session("shop", 300.0)
        await cluster.settled()  # who has not heard of the session is not asked again
        assert await ledger.acceptors.vote(session.txid(1), BRANCHES) is COMMIT
        await wait_until(cluster, lambda acceptor: acceptor.record(session.txid(1)) is not None)
        before = {number: node.replica.acceptors.acceptor.kept() for number, node in cluster.nodes.items()}
        with pytest.raises(LedgerError, match="two lists of branches"):
            await ledger.acceptors.vote(session.txid(1), BRANCHES[:1])
        assert before == {
            number: node.replica.acceptors.acceptor.kept() for number, node in cluster.nodes.items()
        }


async def test_a_ledger_without_acceptors_says_so() -> None:
    """Broken if a transaction that can never be voted on were begun."""
    registry = Registry()
    async with Coordinator(MemoryLedger(), registry) as coordinator:
        with pytest.raises(UsageError, match="raft://"):
            coordinator.transaction(protocol="paxos")
