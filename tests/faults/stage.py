"""Everything that a run needs, built up and let go."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.disks import mount_private, mount_small
from tests.faults.machines import Coordinator, Machine, Node
from tests.faults.network import Bridge, Loopback
from tests.faults.schedule import COORDINATORS, DATABASES
from tests.faults.told import Told
from tests.ports import free_ports
from tests.prove.bank import set_up
from undoubt.coordinator.ledger.cluster.status import survey
from undoubt.coordinator.settings import LedgerSettings
from undoubt.embedded import EmbeddedServer
from undoubt.participants.postgres.schema import migrate
from undoubt.participants.settings import ParticipantSettings

NODES = 3
SESSION_TTL_S = 3.0
SESSION_TRANSACTIONS_MAX = 500
"""Sessions follow each other quickly, as they do in days of an ordinary load."""
HBA = "host all all 198.18.77.0/24 trust"


@dataclass
class Stage:
    """``private``: in namespaces of its own, so that there can be a network, small disks and clocks."""

    folder: Path
    private: bool
    protocol: str
    network: Loopback = field(init=False)
    servers: dict[str, EmbeddedServer] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    coordinators: list[Coordinator] = field(default_factory=list)
    told: Told = field(default_factory=Told)
    url: str = ""

    def __post_init__(self) -> None:
        self.network = Bridge() if self.private else Loopback()

    @property
    def machines(self) -> dict[str, Machine]:
        return {machine.name: machine for machine in (*self.nodes, *self.coordinators)}

    @property
    def dsns(self) -> dict[str, str]:
        """The databases for whoever judges: over the loopback interface, which no fault reaches."""
        return {name: server.dsn("bank") for name, server in self.servers.items()}

    @property
    def ledger_settings(self) -> LedgerSettings:
        return LedgerSettings(url=self.url, request_timeout_s=60.0)

    async def leader(self) -> Node | None:
        """Who leads now, if anybody says so of itself."""
        seen = await survey(LedgerSettings(url=self.url, request_timeout_s=0.5))
        return self.nodes[seen.leader - 1] if seen.leader else None

    async def answers(self, node: Node) -> bool:
        """Whether it says how it is."""
        seen = await survey(LedgerSettings(url=self.url, request_timeout_s=0.5))
        return any(one.status is not None and one.status.node == node.number for one in seen.nodes)

    def check(self) -> None:
        """Raises ``MachineFailed`` if a process has ended that nobody has killed."""
        for machine in self.machines.values():
            machine.check()

    def listen(self) -> None:
        """Read what the applications have told since."""
        self.told.read(self.folder.glob("told-*"))

    async def build(self, stack: contextlib.AsyncExitStack) -> None:
        if self.private:
            await mount_private(Path("/run"), Path("/dev/shm"))
        await self.network.build()
        reached: dict[str, str] = {}
        for name in DATABASES:
            address = self.network.addresses[name]
            listen = {"listen_addresses": f"127.0.0.1,{address}"} if self.private else {}
            server = EmbeddedServer(listen, hba=[HBA])
            self.servers[name] = await stack.enter_async_context(server)
            dsn = await server.create_database("bank")
            reached[name] = dsn.replace("127.0.0.1", address)
        await set_up(self.dsns)
        for name, dsn in self.dsns.items():
            await migrate(name, ParticipantSettings(dsn=dsn))
        await self._build_nodes(reached)
        stack.push_async_callback(self._end)
        await asyncio.gather(*(node.start() for node in self.nodes))
        while await self.leader() is None:
            self.check()
            await asyncio.sleep(0.05)
        settings = {
            "ledger": {"url": self.url, "request_timeout_s": 5.0},
            "coordinator": {
                "protocol": self.protocol,
                "session_ttl_s": SESSION_TTL_S,
                "session_transactions_max": SESSION_TRANSACTIONS_MAX,
                "drain_s": 5.0,
            },
            "participants": {
                name: {"dsn": dsn, "connect_timeout_s": 3.0, "statement_timeout_s": 3.0}
                for name, dsn in reached.items()
            },
        }
        self.coordinators += [
            Coordinator(name, self.folder, self.network, settings, clocked=self.private)
            for name in COORDINATORS
        ]
        await asyncio.gather(*(coordinator.start() for coordinator in self.coordinators))

    async def _build_nodes(self, dsns: dict[str, str]) -> None:
        self.nodes += [
            Node(number, self.folder, self.network, clocked=self.private) for number in range(1, NODES + 1)
        ]
        at = zip((self.network.addresses[node.name] for node in self.nodes), free_ports(NODES), strict=True)
        self.url = "raft://" + ",".join(f"{address}:{port}" for address, port in at)
        ticket = ""
        for node in self.nodes:
            if self.private:
                await mount_small(node.disk)
            ticket = node.make(self.url, dsns, ticket)

    async def _end(self) -> None:
        """By force, whatever state they are in."""
        for machine in self.machines.values():
            if machine.process is not None and machine.process.returncode is None:
                machine.process.kill()
                await machine.process.wait()


@contextlib.asynccontextmanager
async def stage(folder: Path, *, private: bool, protocol: str) -> AsyncIterator[Stage]:
    """Everything runs, and money moves."""
    made = Stage(folder, private, protocol)
    async with contextlib.AsyncExitStack() as stack:
        await made.build(stack)
        yield made
