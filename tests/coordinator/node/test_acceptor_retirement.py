"""Members change while sessions are bound to them as acceptors of Paxos Commit. Broken if the acceptors of a
transaction moved, if a coordinator stayed with nodes that are no members any more, or if nodes were let go
that somebody has yet to ask."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.coordinator.node.cluster import Cluster, client, running
from tests.coordinator.node.test_members import added
from tests.coordinator.node.test_paxos_commit import Stage, kept
from undoubt.coordinator.errors import ClusterNotReady
from undoubt.coordinator.ledger.cluster.admin import change_members, transfer
from undoubt.coordinator.ledger.cluster.messages import MemberChange
from undoubt.coordinator.ledger.contract import BranchRecord, RecordedDecision, SessionInfo, SessionState
from undoubt.coordinator.paxos import AcceptorReply, AcceptorRequest
from undoubt.coordinator.protocols.steps import PaxosStep
from undoubt.coordinator.raft import ConfigChange
from undoubt.coordinator.settings import CoordinatorSettings
from undoubt.participants.contract import Decision, XactStatus
from undoubt.participants.ids import TxId

COMMIT, ABORT = Decision.COMMIT, Decision.ABORT
BRANCHES = [BranchRecord(1, "orders", 11, 22, "00000001"), BranchRecord(2, "payments", 12, 23, "00000001")]
QUICK = CoordinatorSettings(protocol="paxos", session_ttl_s=1.0, drain_s=0.01)


def remove(*numbers: int) -> list[MemberChange]:
    return [MemberChange("remove", number) for number in numbers]


async def grown(cluster: Cluster) -> None:
    """From three to five."""
    for number in (4, 5):
        await added(cluster, number)
    await change_members(
        cluster.settings, [MemberChange("promote", number) for number in (4, 5)], wait_s=30.0
    )


async def bound(stage: Stage, *acceptors: int) -> list[SessionInfo]:
    """Once the only open session is bound to these; all sessions."""
    while True:
        sessions = sorted(await stage.ledger.sessions(), key=lambda session: session.id)
        open_ones = [session for session in sessions if session.state is SessionState.OPEN]
        if [session.acceptors for session in open_ones] == [acceptors]:
            return sessions
        await asyncio.sleep(0.01)


async def test_a_coordinator_moves_with_the_members_and_its_transactions_do_not(tmp_path: Path) -> None:
    """The interleaving to fear: all is prepared, the members change, the coordinator moves on, and then the
    votes are sent. They go to the nodes of the day on which its session was opened, and to no others."""
    async with running(tmp_path) as cluster, client(cluster) as ledger:
        stage = Stage(cluster, ledger, QUICK)
        async with stage.coordinator:
            await bound(stage, 1, 2, 3)
            arrived = stage.hold(str(PaxosStep.BEFORE_VOTE))
            hanging = asyncio.create_task(stage.transfer())
            await arrived.wait()
            await grown(cluster)
            while {each.acceptors for each in await ledger.sessions()} != {(1, 2, 3), (1, 2, 3, 4, 5)}:
                await asyncio.sleep(0.01)
            await change_members(cluster.settings, remove(1), wait_s=30.0)
            stage.release(str(PaxosStep.BEFORE_VOTE))
            first = await hanging
            second = await stage.transfer()
            assert first.session < second.session
            assert stage.xact_statuses() == {XactStatus.COMMITTED}
            assert {*kept(cluster, first)} <= {1, 2, 3}
            sessions = await bound(stage, 2, 3, 4, 5)
            assert sessions[0].state is SessionState.CLOSED, "what it had begun is over: its nodes may go"
            await change_members(cluster.settings, remove(2, 4), wait_s=60.0)
            await cluster.stop(1, 2, 4)
            await bound(stage, 3, 5)
            await stage.transfer()


async def test_nodes_stay_until_the_coordinator_has_moved(tmp_path: Path) -> None:
    """All of its acceptors are to go: it has a transaction that has not been voted on."""
    async with running(tmp_path) as cluster, client(cluster) as ledger:
        stage = Stage(cluster, ledger, QUICK)
        async with stage.coordinator:
            await bound(stage, 1, 2, 3)
            arrived = stage.hold(str(PaxosStep.BEFORE_VOTE))
            hanging = asyncio.create_task(stage.transfer())
            await arrived.wait()
            await grown(cluster)
            with pytest.raises(ClusterNotReady, match="bound to the nodes 1, 2, 3"):
                await change_members(cluster.settings, remove(1, 2), wait_s=0.0)
            removing = asyncio.create_task(change_members(cluster.settings, remove(1, 2), wait_s=60.0))
            stage.release(str(PaxosStep.BEFORE_VOTE))
            await hanging
            assert (await removing).voters == (3, 4, 5)
            assert stage.xact_statuses() == {XactStatus.COMMITTED}


async def test_no_session_is_bound_to_the_members_of_before(tmp_path: Path) -> None:
    """The change is checked, a session is opened, then the change is made: it would be bound to nodes of
    which no majority stays, and could end nothing."""
    async with running(tmp_path) as cluster, client(cluster) as ledger:
        leader = await cluster.leader()
        gone = [number for number in (1, 2, 3) if number != leader.identity.node]
        checked, go_on = asyncio.Event(), asyncio.Event()
        make = leader.replica.proposals.reconfigure

        async def reconfigure(change: ConfigChange) -> None:
            checked.set()
            await go_on.wait()
            await make(change)

        leader.replica.proposals.reconfigure = reconfigure  # type: ignore[method-assign]
        removing = asyncio.create_task(change_members(cluster.settings, remove(*gone), wait_s=30.0))
        await checked.wait()
        opening = asyncio.create_task(ledger.acceptors.open_session("shop", 300.0))
        await ledger.info()  # it came before
        go_on.set()
        assert (await removing).voters == (leader.identity.node,)
        assert (await opening).acceptors == (leader.identity.node,)


async def test_what_an_ended_session_left_is_settled_first(tmp_path: Path) -> None:
    """Its acceptors know of it, and the leader does not: none of them would be left to be asked. One was
    chosen, one was accepted by a minority, one never came anywhere."""
    async with running(tmp_path) as cluster, client(cluster) as ledger:
        session = await ledger.acceptors.open_session("shop", 300.0)
        chosen, minority, nowhere = (session.txid(seq) for seq in (1, 2, 3))
        assert await ledger.acceptors.vote(chosen, BRANCHES) is COMMIT
        ask = ledger.acceptor_client.ask

        def only_the_first(
            node: int, request: AcceptorRequest, answer: Callable[[AcceptorReply | Exception], None]
        ) -> None:
            if node == 1:
                ask(node, request, answer)

        ledger.client.acceptors._ask = only_the_first
        voting = asyncio.create_task(ledger.acceptors.vote(minority, BRANCHES))
        while kept(cluster, minority) != [1]:
            await asyncio.sleep(0.01)
        voting.cancel()
        await asyncio.gather(voting, return_exceptions=True)
        await ledger.close_session(session)
        await grown(cluster)
        await transfer(cluster.settings, 4)
        await change_members(cluster.settings, remove(1, 2, 3), wait_s=30.0)
        await cluster.stop(1, 2, 3)
        found = await ledger_of(cluster, 4, 5)
        assert found == {
            chosen: RecordedDecision.COMMIT,
            minority: found[minority],
            nowhere: RecordedDecision.NOT_RECORDED,
        }
        assert found[minority] is not RecordedDecision.NOT_RECORDED


async def ledger_of(cluster: Cluster, *numbers: int) -> dict[object, RecordedDecision]:
    """What all of these have recorded of the first three transactions of the first session."""
    leader = await cluster.leader()
    session = min(leader.ledger.machine.state.sessions.values(), key=lambda book: book.id).session()
    txids = [session.txid(seq) for seq in (1, 2, 3)]
    await cluster.settled()
    (told,) = {
        tuple(cluster.nodes[number].ledger.machine.record(txid) for txid in txids) for number in numbers
    }
    return dict(zip(txids, told, strict=True))


async def test_what_cannot_be_settled_holds_nodes_back(tmp_path: Path) -> None:
    """Two of its three acceptors are down for now, and the third says that something is undecided."""
    async with running(tmp_path) as cluster, client(cluster) as ledger:
        session = await ledger.acceptors.open_session("shop", 300.0)
        txid = session.txid(1)
        assert await ledger.acceptors.vote(txid, BRANCHES) is COMMIT
        await grown(cluster)
        await ledger.close_session(session)
        await transfer(cluster.settings, 4)
        holding = kept(cluster, txid)[0]
        away = [number for number in (1, 2, 3) if number != holding]
        await cluster.stop(*away)
        with pytest.raises(ClusterNotReady, match=f"{txid} is not decided"):
            await change_members(cluster.settings, remove(*away), wait_s=0.0)
        removing = asyncio.create_task(change_members(cluster.settings, remove(*away), wait_s=60.0))
        await cluster.start(*away)
        await removing
        async with client(cluster) as again:
            assert (await again.records([txid]))[txid] is RecordedDecision.COMMIT


async def test_all_that_is_left_is_settled_however_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes tell of so much at once, and have more: what is not asked for again is lost with them. First they
    have what is left of another session, which holds nobody back."""
    monkeypatch.setattr("undoubt.coordinator.node.acceptors.HELD_MAX", 2)
    monkeypatch.setattr("undoubt.coordinator.node.orphaned_votes.INTERVAL_S", 3600.0)
    async with running(tmp_path) as cluster, client(cluster) as ledger:
        sessions = [await ledger.acceptors.open_session("shop", 300.0)]
        await grown(cluster)
        sessions.append(await ledger.acceptors.open_session("shop", 300.0))
        assert [len(session.acceptors) for session in sessions] == [3, 5]
        left = [[session.txid(seq) for seq in range(1, 6)] for session in sessions]
        for txid in (txid for txids in left for txid in txids):
            assert await ledger.acceptors.vote(txid, BRANCHES) is COMMIT
        for session in sessions:
            await ledger.close_session(session)
        await transfer(cluster.settings, 1)
        await change_members(cluster.settings, remove(3, 4, 5), wait_s=30.0)
        others, needed = left
        assert set((await ledger.records(others)).values()) == {RecordedDecision.NOT_RECORDED}
        assert set((await ledger.records(needed)).values()) == {RecordedDecision.COMMIT}


async def test_sessions_are_opened_while_what_is_left_is_settled(tmp_path: Path) -> None:
    """There may be much of it. Broken if coordinators have to wait for it who have nothing to do with it."""
    async with running(tmp_path) as cluster, client(cluster) as ledger:
        session = await ledger.acceptors.open_session("shop", 300.0)
        assert await ledger.acceptors.vote(session.txid(1), BRANCHES) is COMMIT
        await ledger.close_session(session)
        leader = await cluster.leader()
        gone = [number for number in (1, 2, 3) if number != leader.identity.node]
        arrived, go_on = asyncio.Event(), asyncio.Event()
        settle = leader.orphaned_votes.settle

        async def slowly(txid: TxId) -> None:
            arrived.set()
            await go_on.wait()
            await settle(txid)

        leader.orphaned_votes.settle = slowly  # type: ignore[method-assign]
        removing = asyncio.create_task(change_members(cluster.settings, remove(*gone), wait_s=30.0))
        await arrived.wait()
        opened = await ledger.acceptors.open_session("shop", 300.0)
        go_on.set()
        await ledger.close_session(opened)
        assert (await removing).voters == (leader.identity.node,)
        assert await ledger.records([session.txid(1)]) == {session.txid(1): RecordedDecision.COMMIT}
