"""A cluster of nodes in this process: real TCP, real SQLite files, a clock that tests move."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import SystemRandom

from tests.coordinator.ledger.signing import Signing
from tests.ports import free_ports
from undoubt.coordinator.errors import LedgerUnavailable
from undoubt.coordinator.ledger.cluster.ledger import ClusterLedger
from undoubt.coordinator.ledger.state_machine_ledger import TIME_STEP_S
from undoubt.coordinator.node.bootstrap import beginning
from undoubt.coordinator.node.node import Node
from undoubt.coordinator.node.settings import NodeSettings
from undoubt.coordinator.node.storage.contract import DiskIdentity
from undoubt.coordinator.node.storage.node_storage import NodeStorage, create
from undoubt.coordinator.settings import LedgerSettings
from undoubt.coordinator.wire import VERSIONS, Address, WireSettings

CLUSTER = "abcdefghij"
QUICK = NodeSettings(heartbeat_s=0.02, election_timeout_s=0.2)


class Cluster:
    """``now_s`` is what sessions expire by, on all nodes."""

    def __init__(
        self,
        folder: Path,
        count: int,
        *,
        retention_s: float = 3600.0,
        node_settings: NodeSettings = QUICK,
        version: int = VERSIONS.highest,
    ) -> None:
        """``version`` is what it begins with."""
        self.folder = folder
        self.node_settings = node_settings
        self.own_settings: dict[int, NodeSettings] = {}
        """Of nodes that differ."""
        self.storages: dict[int, NodeStorage] = {}
        self.addresses = {number: f"127.0.0.1:{port}" for number, port in enumerate(free_ports(count), 1)}
        url = "raft://" + ",".join(self.addresses.values())
        self.settings = LedgerSettings(url=url, retention_s=retention_s)
        self.nodes: dict[int, Node] = {}
        self.wire = WireSettings()
        """Of the nodes."""
        self.now_s = 1000.0
        for number in self.addresses:
            identity = DiskIdentity(CLUSTER, number, f"disk-{number}")
            create(self.place(number), identity, *beginning(CLUSTER, self.addresses, version))

    def place(self, number: int) -> Path:
        return self.folder / f"node-{number}"

    async def start(self, *numbers: int) -> None:
        for number in numbers or self.addresses:
            storage, stored = await NodeStorage.open(self.place(number))
            try:
                node = Node(
                    storage,
                    stored,
                    self.own_settings.get(number, self.node_settings),
                    self.settings,
                    self.wire,
                    random=SystemRandom(),
                    clock=lambda: self.now_s,
                )
            except BaseException:
                await storage.close()
                raise
            self.nodes[number], self.storages[number] = node, storage
            await node.start(Address.parse(self.addresses[number]))

    async def stop(self, *numbers: int) -> None:
        for number in numbers or list(self.nodes):
            await self.nodes.pop(number).stop()

    async def leader(self, *, but: int = 0) -> Node:
        """Once somebody leads, other than ``but``."""
        while True:
            leading = [node for number, node in self.nodes.items() if node.leads and number != but]
            if leading:
                return max(leading, key=lambda node: node.replica.raft.term)
            await asyncio.sleep(0.01)

    def cut(self, number: int) -> None:
        """Nothing goes to that node or comes from it; its clients still reach it."""
        replica = self.nodes[number].replica
        replica.driver.send = lambda message: None
        replica.raft.step = lambda message: None  # type: ignore[method-assign]

    def heal(self, number: int) -> None:
        node = self.nodes[number]
        node.replica.driver.send = node.peers.send
        del node.replica.raft.step

    async def settled(self) -> None:
        """Once every running node has applied what the leader has committed, what a leader adds by itself
        included."""
        while True:
            leader = await self.leader()
            with contextlib.suppress(LedgerUnavailable):
                await leader.ledger.draw_secret()
                await leader.ledger.agree_on_rules()
            index = leader.replica.raft.commit_index
            applied = {node.replica.raft.applied_index for node in self.nodes.values()}
            if applied == {index}:
                return
            await asyncio.sleep(0.01)

    def images(self) -> set[bytes]:
        """Of all running nodes' state machines."""
        return {node.replica.replicated.image() for node in self.nodes.values()}

    async def elapse(self, seconds: float) -> None:
        """Let ledger time pass, and what is due then happen, whoever leads meanwhile."""
        leader = await self.leader()
        await leader.ledger.expire_due()  # begins the lifetimes that nobody has seen yet
        for step_s in steps_of_time(seconds):
            self.now_s += step_s
            await self._look_at_time()

    async def _look_at_time(self) -> None:
        while True:
            leader = await self.leader()
            with contextlib.suppress(LedgerUnavailable):
                await leader.ledger.expire_due()
                await leader.ledger.advance_time()
                return


def steps_of_time(seconds: float) -> Iterator[float]:
    """``seconds`` in the steps in which a ledger may count them."""
    while seconds > TIME_STEP_S:
        yield TIME_STEP_S
        seconds -= TIME_STEP_S
    yield seconds


@contextlib.asynccontextmanager
async def running(
    folder: Path, count: int = 3, node_settings: NodeSettings = QUICK
) -> AsyncIterator[Cluster]:
    cluster = Cluster(folder, count, node_settings=node_settings)
    await cluster.start()
    try:
        yield cluster
    finally:
        await cluster.stop()


class SigningClient(Signing):
    """``client``: the client itself, for what it takes with tags."""

    def __init__(self, client: ClusterLedger) -> None:
        super().__init__(client)
        self.client = client


@contextlib.asynccontextmanager
async def client(cluster: Cluster, timeout_s: float = 30.0) -> AsyncIterator[SigningClient]:
    await cluster.leader()
    ledger = await ClusterLedger.open(LedgerSettings(url=cluster.settings.url, request_timeout_s=timeout_s))
    try:
        yield SigningClient(ledger)
    finally:
        await ledger.close()
