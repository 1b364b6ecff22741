"""A node whose disk was lost is not let in under its old number, by whomever it is met."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest
from msgspec.structs import replace

from tests.coordinator.node.cluster import CLUSTER, Cluster, client, running
from tests.coordinator.node.test_members import added
from tests.coordinator.wire.support import Side
from undoubt.coordinator.errors import LedgerUnavailable
from undoubt.coordinator.ledger.cluster import admin
from undoubt.coordinator.ledger.cluster.ledger import ClusterLedger
from undoubt.coordinator.ledger.contract import BranchRecord
from undoubt.coordinator.node.bootstrap import beginning
from undoubt.coordinator.node.storage.contract import DiskIdentity
from undoubt.coordinator.node.storage.node_storage import create
from undoubt.coordinator.raft import Heartbeat, LogSetBack, Raft, RaftSettings, bootstrap
from undoubt.coordinator.wire import (
    Address,
    HandshakeRefusal,
    HandshakeRefused,
    PeerRole,
    WireSettings,
    connect,
)
from undoubt.coordinator.wire import PeerIdentity as Named
from undoubt.participants.contract import Decision

COMMIT = Decision.COMMIT
BRANCHES = (BranchRecord(1, "orders"), BranchRecord(2, "payments"))


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running(tmp_path) as found:
        yield found


async def test_a_node_that_comes_back_with_another_disk_is_not_spoken_with(cluster: Cluster) -> None:
    """Begun anew under its number it has forgotten what it promised: with its vote a leader could be elected
    that misses what is committed. The others remember its disk, also after a restart of their own."""
    async with client(cluster) as ledger:
        session = await ledger.open_session("test", 60.0)
        await cluster.settled()
        lost = next(number for number, node in cluster.nodes.items() if not node.leads)
        await cluster.stop(*cluster.nodes)
        cluster.place(lost).rename(cluster.folder / "lost")
        create(
            cluster.place(lost),
            DiskIdentity(CLUSTER, lost, "another-disk"),
            *beginning(CLUSTER, cluster.addresses),
        )
        one, other = (number for number in cluster.addresses if number != lost)
        await cluster.start(lost, one)
        reborn = cluster.nodes[lost]
        with pytest.raises(HandshakeRefused, match=f"node {lost} came back with another disk"):
            await connect(
                Address.parse(cluster.addresses[one]),
                reborn._me,
                lambda _: pytest.fail("it was let in"),
                WireSettings(),
                timeout_s=10.0,
            )
        await cluster.start(other)
        await cluster.leader()
        assert await ledger.decide(session.txid(1), COMMIT, BRANCHES) is COMMIT
        assert reborn.replica.raft.last_index == 1
        assert not reborn.leads


async def test_who_joins_is_told_of_the_disks_that_it_has_not_met(cluster: Cluster) -> None:
    """A node dies, another joins, the dead one is made anew with its number. Broken if the one that joined
    takes it for the former, having met neither: they would be a majority without the votes of Raft and of
    Paxos Commit that were lost with the disk."""
    leader = await cluster.leader()
    await cluster.settled()
    dead, other = (number for number in cluster.addresses if number != leader.identity.node)
    await cluster.stop(dead)
    await added(cluster, 4)
    await cluster.settled()
    for number in (leader.identity.node, other, dead):
        with pytest.raises(HandshakeRefused, match=f"node {number} came back with another disk"):
            await met(cluster, 4, number, "another-disk")
        await met(cluster, 4, number, f"disk-{number}")
    await admin.snapshot(cluster.settings, cluster.addresses[4])
    await cluster.stop(4)
    await cluster.start(4)
    with pytest.raises(HandshakeRefused, match=f"node {dead} came back with another disk"):
        await met(cluster, 4, dead, "another-disk")


async def met(cluster: Cluster, by: int, number: int, disk: str) -> None:
    """Node ``by`` is spoken with as node ``number``."""
    connection = await connect(
        Address.parse(cluster.addresses[by]),
        Named(PeerRole.NODE, CLUSTER, number, disk=disk),
        Side(),
        WireSettings(),
        timeout_s=10.0,
    )
    connection.abort()


async def test_a_node_whose_whole_folder_was_set_back_stops_and_says_so(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Its anchor was set back with it, so its disk is sound in itself. Who leads has its acknowledgement of
    more, and what it has forgotten may have been counted on."""
    async with client(cluster) as ledger:
        session = await ledger.open_session("test", 60.0)
        await cluster.settled()
        leader = await cluster.leader()
        back = next(number for number, node in cluster.nodes.items() if not node.leads)
        await cluster.stop(back)
        copied = shutil.copytree(cluster.place(back), cluster.folder / "copy")
        await cluster.start(back)
        await ledger.decide(session.txid(1), COMMIT, BRANCHES)
        await cluster.settled()
        leader.replica.note_acknowledged()
        await cluster.stop(back)
        cluster.place(back).rename(cluster.folder / "taken away")
        copied.rename(cluster.place(back))
        await cluster.start(back)
        error = await asyncio.wait_for(asyncio.shield(cluster.nodes[back].failed), 20)
        assert f"the disk of node {back} was set back" in str(error)
        assert f"undoubt cluster remove {back}" in str(error)
        assert "has its acknowledgement of entry" in str(error)
        assert not any(record.exc_info for record in caplog.records), "no traceback"
        assert await ledger.decide(session.txid(2), COMMIT, BRANCHES) is COMMIT


async def test_a_peer_refuses_a_log_that_is_shorter_than_what_it_saw_acknowledged(cluster: Cluster) -> None:
    """Also once it does not lead any more."""
    async with client(cluster) as ledger:
        await ledger.open_session("test", 60.0)
    await cluster.settled()
    leader = await cluster.leader()
    other = next(number for number in cluster.nodes if number != leader.identity.node)
    leader.replica.note_acknowledged()
    last = leader.replica.acknowledged(other)
    assert last > 1
    await cluster.stop(other)
    me = Named(PeerRole.NODE, CLUSTER, other, disk=f"disk-{other}")
    for led in (True, False):
        if not led:
            leader.replica.raft.step_down()
            leader.replica.turns.wake()
        address = Address.parse(cluster.addresses[leader.identity.node])
        with pytest.raises(HandshakeRefused, match=f"acknowledgement of entry {last}") as refused:
            await connect(address, replace(me, log_index=last - 1), Side(), WireSettings(), timeout_s=10.0)
        assert refused.value.refusal is HandshakeRefusal.SET_BACK
        connection = await connect(
            address, replace(me, log_index=last), Side(), WireSettings(), timeout_s=10.0
        )
        connection.abort()


def test_a_heartbeat_that_names_more_than_was_kept_is_no_bug() -> None:
    """A follower that was set back under a leader that leads on."""
    restored = bootstrap([1, 2, 3])
    raft = Raft(2, RaftSettings(), Random(1), restored)
    with pytest.raises(LogSetBack, match="acknowledgement of entry 7, and its log ends at 1"):
        raft.step(Heartbeat(2, 1, 1, 7, 1))


async def test_the_first_nodes_begin_once_each_has_met_all_others(tmp_path: Path) -> None:
    """Two of three that begin alone do not know the third one's disk. If it is lost, made anew by ``cluster
    init`` and met by the one of them that holds least, these two are a majority without what is recorded."""
    cluster = Cluster(tmp_path, 3)
    one_request = replace(cluster.settings, request_timeout_s=1.0)
    try:
        await cluster.start(1, 2)
        with pytest.raises(LedgerUnavailable):
            await ClusterLedger.open(one_request)
        assert {node.replica.raft.term for node in cluster.nodes.values()} == {1}
        assert [node._unmet for node in cluster.nodes.values()] == [{3}, {3}]
        await cluster.stop(1)
        await cluster.start(1, 3)
        await cluster.leader()
        async with client(cluster) as ledger:
            await ledger.open_session("test", 60.0)
            await cluster.settled()
        await cluster.stop()
        await cluster.start(1, 3)
        await cluster.leader()
    finally:
        await cluster.stop()
