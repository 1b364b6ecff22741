"""Members of two versions in one cluster. Broken if something got into the log, or were asked of a node, that
a member does not know: it would stop, or go on with half of it; or if a version were agreed on that a member
does not speak, or went back.

A node with ``version_max`` stands for one of the release before: what is newer stops it, as it would stop
that one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from tests.coordinator.ledger.signing import Signing
from tests.coordinator.node.cluster import CLUSTER, QUICK, Cluster, client
from tests.coordinator.wire.support import Side
from tests.ports import free_ports
from undoubt.coordinator.coordinator import Coordinator
from undoubt.coordinator.errors import ClusterRefused, LedgerUnavailable, LedgerUnusable, VersionHeldBack
from undoubt.coordinator.ledger import calls
from undoubt.coordinator.ledger.agents import AgentBinding
from undoubt.coordinator.ledger.cluster import admin
from undoubt.coordinator.ledger.cluster.messages import MemberChange
from undoubt.coordinator.ledger.cluster.status import survey
from undoubt.coordinator.ledger.commands import (
    AskLock,
    ClaimKey,
    CommitKey,
    Decide,
    Doom,
    DrawSecret,
    EndLock,
    FreeKey,
    OpenSession,
    Precommit,
    ReceiveState,
    RecordAct,
    RecordHeuristic,
    Restore,
    RevokeLock,
    SealLedger,
    SettleMove,
)
from undoubt.coordinator.ledger.contract import Act, BranchRecord, Heuristic, RecordedDecision
from undoubt.coordinator.ledger.locks import LockRequest
from undoubt.coordinator.ledger.machine import Machine
from undoubt.coordinator.ledger.move_mark import MoveMark, MovePhase
from undoubt.coordinator.node.bootstrap import joining, restored
from undoubt.coordinator.node.fsm import Agree, LogCommand, NodeStateMachine, encode_batch
from undoubt.coordinator.node.settings import NodeSettings
from undoubt.coordinator.node.storage.contract import DiskIdentity
from undoubt.coordinator.node.storage.node_storage import create
from undoubt.coordinator.raft import Entry
from undoubt.coordinator.rpc import envelope
from undoubt.coordinator.settings import CoordinatorSettings
from undoubt.coordinator.wire import (
    VERSIONS,
    Address,
    HandshakeRefused,
    PeerRole,
    Versions,
    WireSettings,
    connect,
)
from undoubt.coordinator.wire import PeerIdentity as Named
from undoubt.participants.contract import Decision, Settled
from undoubt.participants.ids import Gid, Protocol, TxId, new_nonce
from undoubt.participants.registry import Registry
from undoubt.participants.scripted import ScriptedParticipant

FORMER = msgspec.structs.replace(QUICK, version_max=1)
V1 = Versions(1, 1)
NEWEST = VERSIONS.highest
BRANCHES = (BranchRecord(1, "orders"), BranchRecord(2, "payments"))


@contextlib.asynccontextmanager
async def mixed(folder: Path, *former: int) -> AsyncIterator[Cluster]:
    """Three nodes that begin with the former version; ``former`` are of the release that has no other."""
    cluster = Cluster(folder, 3, version=1)
    cluster.own_settings = dict.fromkeys(former, FORMER)
    await cluster.start()
    try:
        await cluster.leader()
        yield cluster
    finally:
        await cluster.stop()


async def restart(cluster: Cluster, number: int, settings: NodeSettings) -> None:
    cluster.own_settings[number] = settings
    await cluster.stop(number)
    await cluster.start(number)


async def agreed(cluster: Cluster, version: int) -> None:
    while any(node.replica.replicated.version != version for node in cluster.nodes.values()):
        assert not any(node.failed.done() for node in cluster.nodes.values())
        await asyncio.sleep(0.01)


async def decided(ledger: Signing, count: int) -> None:
    session = await ledger.open_session("test", 600.0)
    for seq in range(1, count + 1):
        assert await ledger.decide(session.txid(seq), Decision.COMMIT, BRANCHES) is Decision.COMMIT


async def test_one_member_of_the_former_version_holds_the_others_up(tmp_path: Path) -> None:
    """What is new is refused, and the refusal names the node; everything else goes on. Once that node is
    upgraded too, by itself and for good, it is not."""
    async with mixed(tmp_path, 3) as cluster, client(cluster) as ledger:
        while (await survey(cluster.settings)).held_up_by != (3,):
            await asyncio.sleep(0.01)
        if cluster.nodes[3].leads:
            await admin.transfer(cluster.settings, 1)
        with pytest.raises(VersionHeldBack, match=r"needs version 2, .* agreed on 1: node 3 supports 1"):
            await ledger.acceptors.open_session("shop", 300.0)
        await decided(ledger, 5)
        await restart(cluster, 3, QUICK)
        await agreed(cluster, NEWEST)
        session = await ledger.acceptors.open_session("shop", 300.0)
        assert session.acceptors == (1, 2, 3)
        await cluster.settled()
        assert len(cluster.images()) == 1
        found = await survey(cluster.settings)
        assert found.held_up_by == ()
        assert {seen.status.agreed_version for seen in found.nodes if seen.status} == {NEWEST}


async def test_a_member_that_is_away_holds_them_up_too(tmp_path: Path) -> None:
    """Nobody knows which version it will come back with."""
    async with contextlib.AsyncExitStack() as stack:
        cluster = Cluster(tmp_path / "away", 3, version=1)
        stack.push_async_callback(cluster.stop)
        cluster.own_settings[3] = FORMER
        await cluster.start()
        await cluster.settled()
        await cluster.stop(3)
        ledger = await stack.enter_async_context(client(cluster))
        with pytest.raises(VersionHeldBack, match="node 3 is not connected"):
            await ledger.acceptors.open_session("shop", 300.0)
        await decided(ledger, 5)
        cluster.own_settings[3] = QUICK
        await cluster.start(3)
        await agreed(cluster, NEWEST)
        await ledger.acceptors.open_session("shop", 300.0)


async def test_what_was_refused_for_want_of_room_is_proposed_again(tmp_path: Path) -> None:
    """Broken if a leader thinks that the version is being agreed on, for as long as it leads."""
    async with contextlib.AsyncExitStack() as stack:
        cluster = Cluster(tmp_path / "full", 1, version=1)
        stack.push_async_callback(cluster.stop)
        await cluster.start()
        replica = cluster.nodes[1].replica
        replica.note_full(True)
        await cluster.leader()
        replica.keep_versions()
        ledger = await stack.enter_async_context(client(cluster))
        await ledger.info()  # what was proposed is answered by then
        assert replica.replicated.version == 1
        replica.note_full(False)
        await agreed(cluster, NEWEST)


async def test_a_leader_of_the_former_version_is_asked_nothing_new(tmp_path: Path) -> None:
    """It would cut the client off, again and again."""
    async with mixed(tmp_path, 1, 2, 3) as cluster, client(cluster) as ledger:
        with pytest.raises(VersionHeldBack, match="which leads, uses version 1"):
            await ledger.acceptors.open_session("shop", 300.0)
        txid = TxId(1, new_nonce(), 1)  # of no session whose key another test has
        with pytest.raises(VersionHeldBack):
            await ledger.outcomes([txid], protocol=Protocol.PAXOS)
        await decided(ledger, 5)


async def test_what_is_newer_than_a_connection_ends_it(tmp_path: Path) -> None:
    """A client that forgets what was agreed on is a client gone wrong."""
    async with mixed(tmp_path) as cluster:
        asking = Side()
        where = Address.parse(cluster.addresses[1])
        connection = await connect(
            where, Named(PeerRole.CLIENT), asking, WireSettings(), timeout_s=5.0, versions=V1
        )
        call = calls.OpenSessionCall("shop", 10.0, "0" * 16, bind=True)
        connection.send(envelope.encode([envelope.Request(1, call)]))
        while not connection.closed:
            await asyncio.sleep(0.01)


async def test_no_way_back_once_all_have_agreed(tmp_path: Path) -> None:
    """The log may hold by now what the former release does not know: it is told at its start, or when it
    meets another node; and the others do not wait for it."""
    async with mixed(tmp_path) as cluster, client(cluster) as ledger:
        await agreed(cluster, NEWEST)
        await cluster.settled()
        cluster.own_settings[3] = FORMER
        await cluster.stop(3)
        with pytest.raises(LedgerUnusable, match=rf"agreed on version {NEWEST}, .*newer release"):
            await cluster.start(3)
        await ledger.acceptors.open_session("shop", 300.0)
        leader = await cluster.leader()
        me = Named(PeerRole.NODE, CLUSTER, 3, disk="disk-3")
        where = Address.parse(cluster.addresses[leader.identity.node])
        with pytest.raises(HandshakeRefused, match=f"agreed on {NEWEST}"):
            await connect(where, me, Side(), WireSettings(), timeout_s=5.0, versions=V1)
        cluster.own_settings[3] = QUICK
        await cluster.start(3)
        await cluster.settled()
        assert len(cluster.images()) == 1


async def test_a_node_that_went_back_just_before_stops(tmp_path: Path) -> None:
    """The interleaving to fear: all have said that they speak it, one comes back older, and only then it is
    agreed on. It stops there, or is not spoken with any more: either way it applies nothing of what
    follows."""
    async with mixed(tmp_path, 3) as cluster, client(cluster) as ledger:
        if cluster.nodes[3].leads:
            await admin.transfer(cluster.settings, 1)
        leader = await cluster.leader(but=3)
        while leader.replica.agreement.version_with(3) != 1:
            await asyncio.sleep(0.01)
        leader.replica.agreement.due = lambda: NEWEST  # type: ignore[method-assign] # as it was a moment ago
        leader.replica.keep_versions()
        while any(cluster.nodes[number].replica.replicated.version < NEWEST for number in (1, 2)):
            await asyncio.sleep(0.01)
        del leader.replica.agreement.due
        await ledger.acceptors.open_session("shop", 300.0)
        await decided(ledger, 5)
        behind = cluster.nodes[3]
        while not behind.failed.done() and leader.replica.agreement.version_with(
            3
        ):  # or it is not spoken with
            await asyncio.sleep(0.01)
        assert behind.replica.replicated.version == 1
        assert not any(book.acceptors for book in behind.ledger.machine.state.sessions.values())
        await restart(cluster, 3, QUICK)
        await cluster.settled()
        assert len(cluster.images()) == 1


async def test_what_joins_speaks_what_was_agreed_on(tmp_path: Path) -> None:
    """A learner that is too old could never be brought up to date, and holds up every later version."""
    async with mixed(tmp_path) as cluster:
        await agreed(cluster, NEWEST)
        cluster.addresses[4] = f"127.0.0.1:{free_ports(1)[0]}"
        create(cluster.place(4), DiskIdentity(CLUSTER, 4, "disk-4"), *joining())
        add = MemberChange("add", 4, cluster.addresses[4], "disk-4", 1)
        with pytest.raises(ClusterRefused, match=rf"node 4 supports version 1 at most, .* on {NEWEST}"):
            await admin.change_members(cluster.settings, [add])
        await admin.change_members(cluster.settings, [msgspec.structs.replace(add, version=NEWEST)])
        await cluster.start(4)
        await agreed(cluster, NEWEST)


async def test_learners_count(tmp_path: Path) -> None:
    """They apply the log like all others."""
    async with mixed(tmp_path, 1, 2, 3) as cluster:
        cluster.addresses[4] = f"127.0.0.1:{free_ports(1)[0]}"
        create(cluster.place(4), DiskIdentity(CLUSTER, 4, "disk-4"), *joining())
        await admin.change_members(
            cluster.settings, [MemberChange("add", 4, cluster.addresses[4], "disk-4", 1)]
        )
        cluster.own_settings[4] = FORMER
        await cluster.start(4)
        for number in (1, 2, 3):
            await restart(cluster, number, QUICK)
        while (await survey(cluster.settings)).held_up_by != (4,):
            await asyncio.sleep(0.01)
        leader = await cluster.leader()
        while 0 in {leader.replica.agreement.version_with(number) for number in cluster.nodes}:
            await asyncio.sleep(0.01)
        leader.replica.keep_versions()
        async with client(cluster) as ledger:
            await decided(ledger, 5)  # behind whatever was proposed before
        assert {node.replica.replicated.version for node in cluster.nodes.values()} == {1}
        await restart(cluster, 4, QUICK)
        await agreed(cluster, NEWEST)


async def test_paxos_is_refused_by_transaction_and_two_phase_commit_goes_on(tmp_path: Path) -> None:
    """A coordinator that is configured for what the cluster cannot do yet says so, and does not hang; later
    it can, without a restart."""
    async with mixed(tmp_path, 3) as cluster, client(cluster) as ledger:
        registry = Registry()
        for name in ("orders", "payments"):
            registry.add(ScriptedParticipant(name))
        settings = CoordinatorSettings(protocol="paxos")
        async with Coordinator(ledger.ledger, registry, settings) as coordinator:

            async def transfer(protocol: str) -> TxId:
                async with coordinator.transaction(protocol=protocol) as tx:
                    for name in ("orders", "payments"):
                        await tx.branch(name)
                    return (await tx.commit()).txid

            first = await transfer("2pc")
            for _ in range(2):
                with pytest.raises(VersionHeldBack):
                    await transfer("paxos")
            assert (await transfer("2pc")).session == first.session
            await restart(cluster, 3, QUICK)
            await agreed(cluster, NEWEST)
            txid = await transfer("paxos")
            while (await ledger.records([txid]))[txid] is not RecordedDecision.COMMIT:
                await asyncio.sleep(0.01)


async def test_a_backup_carries_the_version(tmp_path: Path) -> None:
    """What it holds is not for a release that does not know it; an older one's is for all."""
    async with mixed(tmp_path) as cluster:
        await agreed(cluster, NEWEST)
        _, _, image = await admin.image(cluster.settings)
    with pytest.raises(LedgerUnusable, match=f"version {NEWEST}"):
        restored(image, {1: "a:1"}, V1)
    _, _, snapshot = restored(image, {1: "a:1"})
    again = NodeStateMachine(Machine(""), {})
    again.restore(snapshot.image)
    assert again.version == NEWEST
    old = NodeStateMachine(Machine(CLUSTER), {1: "a:1"}).image()
    _, _, snapshot = restored(old, {1: "a:1"}, V1)
    again.restore(snapshot.image)
    assert again.version == 1


SOME = TxId(1, "0" * 16, 1)
TAGGED = (BranchRecord(1, "orders", tag="0" * 20),)
WITH_A_HISTORY = (BranchRecord(1, "orders", 11, 22, "00000001", history="some", position=7),)
SEEN = Heuristic(
    Gid("abcdefghij", Protocol.TWO_PHASE, SOME, 1, "orders"), Settled.HEURISTIC_HAZARD, None, 0.0
)
NEW: list[tuple[int, LogCommand]] = [
    (2, OpenSession("0" * 16, "shop", 1000, "", (1, 2, 3))),
    (2, Decide(SOME, Protocol.PAXOS, Decision.COMMIT, BRANCHES, 0.0)),
    (3, Decide(SOME, Protocol.LAST, Decision.COMMIT, BRANCHES, 0.0)),
    (2, Agree(2)),
    (3, DrawSecret(b"secret")),
    (3, OpenSession("0" * 16, "shop", 1000, tagged=True)),
    (3, OpenSession("0" * 16, "shop", 1000, agent=AgentBinding("orders", 1, "history"))),
    (3, Decide(SOME, Protocol.TWO_PHASE, Decision.COMMIT, TAGGED, 0.0)),
    (3, Decide(SOME, Protocol.TWO_PHASE, Decision.COMMIT, WITH_A_HISTORY, 0.0)),
    (3, Decide(SOME, Protocol.TWO_PHASE, Decision.ABORT, BRANCHES, 0.0, "because")),
    (3, Precommit(SOME, Protocol.THREE_PHASE, TAGGED, 0.0)),
    (3, Doom(SOME, "because")),
    (3, Restore(1, 7)),
    (3, RecordAct(Act("1", "indoubt commit", "some", 0.0, "eve"), 10)),
    (3, RecordHeuristic(SEEN, final=True)),
    (3, AskLock(LockRequest("job", 1, "0" * 16, 1), True)),
    (3, EndLock(LockRequest("job", 1, "0" * 16, 1))),
    (3, RevokeLock("job", 1)),
    (3, ClaimKey(SOME, "key")),
    (3, CommitKey(SOME, "key", b"jtrue", BRANCHES, 0.0)),
    (3, FreeKey(SOME, "key")),
    (3, SealLedger(MoveMark("1", "sqlite:///there", 0.0, MovePhase.SEALED))),
    (3, SettleMove("1", MovePhase.MOVED)),
    (3, ReceiveState(MoveMark("1", "sqlite:///there", 0.0, MovePhase.ARRIVING), "abcdefghij", 0, b"")),
    (3, Agree(3)),
]


@pytest.mark.parametrize(("version", "command"), NEW)
def test_a_node_stops_at_what_it_does_not_know(version: int, command: LogCommand) -> None:
    """Also where it could read it and would only miss a field: else it would go on with another state than
    the others."""
    entry = Entry.make(7, 1, encode_batch([msgspec.Raw(msgspec.msgpack.encode(command))]))
    former = NodeStateMachine(Machine(CLUSTER), {1: "a:1"}, supported=Versions(1, version - 1))
    before = former.image()
    with pytest.raises(LedgerUnusable, match="newer release"):
        former.apply(entry)
    assert former.image() == before
    NodeStateMachine(Machine(CLUSTER), {1: "a:1"}).apply(entry)


def test_a_command_of_a_version_that_does_not_exist_yet() -> None:
    """This release is the former one some day."""
    entry = Entry.make(7, 1, msgspec.msgpack.encode([["tomorrow", 1]]))
    with pytest.raises(LedgerUnusable, match=r"entry 7 of the log .*newer release"):
        NodeStateMachine(Machine(CLUSTER), {1: "a:1"}).apply(entry)


async def test_nobody_who_does_not_lead_tells_what_is_agreed_on(tmp_path: Path) -> None:
    """It may not have applied it yet: the leader is asked."""
    async with mixed(tmp_path, 3) as cluster:
        leader = await cluster.leader()
        other = next(node for node in cluster.nodes.values() if node is not leader)
        with pytest.raises(LedgerUnavailable, match="the leader is"):
            await other.ledger.open_session("shop", 300.0, bind=True)
