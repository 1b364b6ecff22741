"""A node whose disk was lost is not let in under its old number, by whomever it is met."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coordinator.ledger.cluster import operate
from coordinator.ledger.contract import BranchRecord, Decision
from coordinator.node.bootstrap import beginning
from coordinator.node.storage.contract import Identity
from coordinator.node.storage.node_storage import create
from coordinator.wire import Address, HandshakeRefused, Role, WireSettings, connect
from coordinator.wire import Identity as Named
from tests.coordinator.node.cluster import CLUSTER, Cluster, client, running
from tests.coordinator.node.test_members import added
from tests.coordinator.wire.support import Side

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
            Identity(CLUSTER, lost, "another-disk"),
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
    await operate.snapshot(cluster.settings, cluster.addresses[4])
    await cluster.stop(4)
    await cluster.start(4)
    with pytest.raises(HandshakeRefused, match=f"node {dead} came back with another disk"):
        await met(cluster, 4, dead, "another-disk")


async def met(cluster: Cluster, by: int, number: int, disk: str) -> None:
    """Node ``by`` is spoken with as node ``number``."""
    connection = await connect(
        Address.parse(cluster.addresses[by]),
        Named(Role.NODE, CLUSTER, number, disk=disk),
        Side(),
        WireSettings(),
        timeout_s=10.0,
    )
    connection.abort()
