"""A cluster of nodes in this process: real TCP, real SQLite files, a clock that tests move."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from random import SystemRandom

from coordinator.errors import LedgerUnavailable
from coordinator.ledger.cluster.ledger import ClusterLedger
from coordinator.node.bootstrap import beginning
from coordinator.node.node import Node
from coordinator.node.settings import NodeSettings
from coordinator.node.sqlite.storage import SqliteStorage, create
from coordinator.node.storage import Identity
from coordinator.settings import LedgerSettings
from coordinator.wire import Address, WireSettings

CLUSTER = "abcdefghij"
QUICK = NodeSettings(heartbeat_s=0.02, election_timeout_s=0.2)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at present."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Cluster:
    """``now_s`` is what sessions expire by, on all nodes."""

    def __init__(self, folder: Path, count: int, *, retention_s: float = 3600.0) -> None:
        self.folder = folder
        self.addresses = {number: f"127.0.0.1:{port}" for number, port in enumerate(free_ports(count), 1)}
        url = "raft://" + ",".join(self.addresses.values())
        self.settings = LedgerSettings(url=url, retention_s=retention_s)
        self.nodes: dict[int, Node] = {}
        self.now_s = 1000.0
        for number in self.addresses:
            identity = Identity(CLUSTER, number, f"disk-{number}")
            create(self.place(number), identity, *beginning(CLUSTER, self.addresses))

    def place(self, number: int) -> Path:
        return self.folder / f"node-{number}"

    async def start(self, *numbers: int) -> None:
        for number in numbers or self.addresses:
            storage, stored = await SqliteStorage.open(self.place(number))
            node = Node(
                storage,
                stored,
                QUICK,
                self.settings,
                WireSettings(),
                random=SystemRandom(),
                clock=lambda: self.now_s,
            )
            self.nodes[number] = node
            await node.start(Address.parse(self.addresses[number]))

    async def stop(self, *numbers: int) -> None:
        for number in numbers or list(self.nodes):
            await self.nodes.pop(number).stop()

    async def leader(self) -> Node:
        """Once somebody leads."""
        while not (leading := [node for node in self.nodes.values() if node.leads]):
            await asyncio.sleep(0.01)
        return max(leading, key=lambda node: node.replica.raft.term)

    async def elapse(self, seconds: float) -> None:
        """Let ledger time pass, and what is due then happen, whoever leads meanwhile."""
        leader = await self.leader()
        await leader.ledger.expire_due()  # begins the lifetimes that nobody has seen yet
        self.now_s += seconds
        while True:
            leader = await self.leader()
            with contextlib.suppress(LedgerUnavailable):
                await leader.ledger.expire_due()
                await leader.ledger.advance_time()
                return


@contextlib.asynccontextmanager
async def running(folder: Path, count: int = 3) -> AsyncIterator[Cluster]:
    cluster = Cluster(folder, count)
    await cluster.start()
    try:
        yield cluster
    finally:
        await cluster.stop()


@contextlib.asynccontextmanager
async def client(cluster: Cluster, timeout_s: float = 30.0) -> AsyncIterator[ClusterLedger]:
    ledger = await ClusterLedger.open(LedgerSettings(url=cluster.settings.url, request_timeout_s=timeout_s))
    try:
        yield ledger
    finally:
        await ledger.close()
