"""Nodes compare hashes of their states. Broken if one that has applied the log otherwise goes on answering,
or if one that has not is stopped."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.coordinator.ledger.signing import Signing
from tests.coordinator.node.cluster import Cluster, client, running
from undoubt.coordinator.errors import LedgerUnusable
from undoubt.coordinator.ledger.contract import BranchRecord, Session
from undoubt.coordinator.node import divergence, fsm
from undoubt.coordinator.node.node import Node
from undoubt.participants.contract import Decision

BRANCHES = (BranchRecord(1, "orders"), BranchRecord(2, "payments"))


@pytest.fixture
async def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    monkeypatch.setattr(fsm, "HASH_INTERVAL_ENTRIES", 8)
    monkeypatch.setattr(divergence, "COMPARE_S", 0.05)
    async with running(tmp_path) as made:
        yield made


async def decided(ledger: Signing, session: Session, first: int, count: int) -> None:
    """One entry each."""
    for seq in range(first, first + count):
        txid = session.txid(seq)
        assert await ledger.decide(txid, Decision.COMMIT, BRANCHES) is Decision.COMMIT
        await ledger.finish([txid])


async def compared(cluster: Cluster) -> None:
    for node in list(cluster.nodes.values()):
        await node.divergence_check.look()


@pytest.mark.parametrize("leads", [False, True])
async def test_a_node_with_another_state_stops(cluster: Cluster, leads: bool) -> None:
    """Follower or leader; the other two go on."""
    async with client(cluster) as ledger:
        session = await ledger.open_session("test", 600.0)
        await decided(ledger, session, 1, 10)
        leader = await cluster.leader()
        odd: Node = leader if leads else next(node for node in cluster.nodes.values() if node is not leader)
        odd.replica.replicated.machine.state.time_ms += 1  # a bit that has flipped
        await decided(ledger, session, 11, 20)
        async with asyncio.timeout(30):
            error = await asyncio.shield(odd.failed)
        assert isinstance(error, LedgerUnusable)
        assert "another state than the other nodes after entry" in str(error)
        await decided(ledger, session, 31, 20)
        sound = [node for node in cluster.nodes.values() if node is not odd]
        assert not any(node.failed.done() for node in sound)


async def test_sound_nodes_go_on(cluster: Cluster) -> None:
    """Also one that begins again, from a snapshot and the log behind it, or sleeps meanwhile."""
    async with client(cluster) as ledger:
        session = await ledger.open_session("test", 600.0)
        for turn in range(3):
            await decided(ledger, session, 1 + 100 * turn, 15)
            leader = await cluster.leader()
            number = next(number for number, node in cluster.nodes.items() if node is not leader)
            await cluster.nodes[number].replica.snapshot()
            await cluster.stop(number)
            await decided(ledger, session, 50 + 100 * turn, 15)
            await cluster.start(number)
        await cluster.settled()
        await compared(cluster)
        known = [node.replica.replicated.hashes.known for node in cluster.nodes.values()]
        assert all(len(each) >= 1 for each in known)
        both = set.intersection(*(set(each) for each in known))
        assert both, known
        assert all(len({each[index] for each in known}) == 1 for index in both)
        assert not any(node.failed.done() for node in cluster.nodes.values())


async def test_without_a_majority_nobody_stops(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody can tell who is right; somebody is told."""
    leader = await cluster.leader()
    one = leader.divergence_check
    one.judge(8, "a" * 64, Counter({"b" * 64: 1}), 2)
    one.judge(8, "a" * 64, Counter({"b" * 64: 1}), 2)
    one.judge(8, "a" * 64, Counter({"b" * 64: 1, "c" * 64: 1}), 2)
    one.judge(16, "a" * 64, Counter({"a" * 64: 1}), 2)
    one.judge(24, "a" * 64, Counter(), 2)
    assert not leader.failed.done()
    assert [record.message for record in caplog.records if "no majority" in record.message][1:] == []
    assert "different states after entry 8" in caplog.text
