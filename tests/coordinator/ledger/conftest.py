"""The backends that the conformance suite runs on. A new one joins by adding itself to ``BACKENDS``."""

from __future__ import annotations

import abc
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from tests.coordinator.ledger.signing import Signing
from tests.coordinator.node.cluster import Cluster, steps_of_time
from tests.etcd import EtcdCluster
from tests.servers import Server, fresh_database
from undoubt.coordinator.ledger import maintenance
from undoubt.coordinator.ledger.cluster.ledger import ClusterLedger
from undoubt.coordinator.ledger.contract import Ledger
from undoubt.coordinator.ledger.etcd.client import EtcdClient
from undoubt.coordinator.ledger.etcd.ledger import EtcdLedger
from undoubt.coordinator.ledger.etcd.messages import Granted, Renewal
from undoubt.coordinator.ledger.memory import MemoryLedger
from undoubt.coordinator.ledger.postgres.ledger import PostgresLedger
from undoubt.coordinator.ledger.sqlite.ledger import SqliteLedger
from undoubt.coordinator.settings import LedgerSettings


class Backend(abc.ABC):
    """One ledger under test. ``durable``: it outlives :meth:`reopen`."""

    durable = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.retention_s = 3600.0
        self._signing: Signing | None = None

    @property
    def ledger(self) -> Signing:
        assert self._signing is not None
        return self._signing

    @ledger.setter
    def ledger(self, opened: Ledger) -> None:
        self._signing = Signing(opened)

    @abc.abstractmethod
    async def open(self) -> None: ...

    @abc.abstractmethod
    async def elapse(self, seconds: float) -> None:
        """Let ledger time pass and what is due happen."""

    @abc.abstractmethod
    def secret(self) -> bytes:
        """Which no call of the contract tells."""

    async def reopen(self) -> None:
        await self.close()
        await self.open()

    async def close(self) -> None:
        await self.ledger.close()

    async def remove(self) -> None:  # noqa: B027 - most leave nothing
        """After the last ``close``: what it has beside its folder."""


class Memory(Backend):
    durable = False

    async def open(self) -> None:
        self.memory = MemoryLedger(settings=LedgerSettings(url="memory://", retention_s=self.retention_s))
        self.ledger = self.memory

    async def elapse(self, seconds: float) -> None:
        await self.memory.elapse(seconds)

    def secret(self) -> bytes:
        return self.memory.machine.state.secret


class Sqlite(Backend):
    """In the process that owns the file."""

    now_s = 1000.0

    async def open(self) -> None:
        path = self.folder / "ledger.db"
        settings = LedgerSettings(url=f"sqlite:///{path}", retention_s=self.retention_s)
        self.owner = await SqliteLedger.open(path, settings, clock=lambda: self.now_s)
        self.ledger = self.owner

    async def elapse(self, seconds: float) -> None:
        owned = self.owner.owned
        assert owned is not None
        await owned.expire_due()
        for step_s in steps_of_time(seconds):
            self.now_s += step_s
            await owned.expire_due()
            await owned.advance_time()

    def secret(self) -> bytes:
        owned = self.owner.owned
        assert owned is not None
        return owned.machine.state.secret


class SqliteClient(Sqlite):
    """Through the owner's socket."""

    async def open(self) -> None:
        await super().open()
        self.ledger = await SqliteLedger.open(self.owner.path, self.owner.settings)
        assert not self.ledger.ledger.leads

    async def close(self) -> None:
        await super().close()
        await self.owner.close()


class Raft(Backend):
    """A client of one node."""

    count = 1

    async def open(self) -> None:
        if not hasattr(self, "cluster"):
            self.cluster = Cluster(self.folder, self.count, retention_s=self.retention_s)
        await self.cluster.start()
        self.client = await ClusterLedger.open(
            msgspec.structs.replace(self.cluster.settings, request_timeout_s=30.0)
        )
        self.ledger = self.client

    async def elapse(self, seconds: float) -> None:
        await self.cluster.elapse(seconds)

    def secret(self) -> bytes:
        [node] = {node.ledger.machine.state.secret for node in self.cluster.nodes.values() if node.leads}
        return node

    async def close(self) -> None:
        await super().close()
        await self.cluster.stop()


class RaftOfThree(Raft):
    """A client of three nodes."""

    count = 3


class Postgres(Backend):
    """On a database of its own."""

    server: Server

    async def open(self) -> None:
        if not hasattr(self, "dsn"):
            self.place = fresh_database(self.server, "ledger")
            self.dsn = await self.place.__aenter__()
        self.settings = LedgerSettings(
            url=self.dsn.replace("postgresql://", "postgresql+psycopg://"),
            retention_s=self.retention_s,
            request_timeout_s=30.0,
        )
        await maintenance.init(self.settings)
        self.opened = await PostgresLedger.open(self.settings, clock=lambda: 0.0)
        self.ledger = self.opened

    async def elapse(self, seconds: float) -> None:
        upkeep = self.opened.upkeep
        await upkeep.move(round(seconds * 1000))
        assert upkeep.leads
        await upkeep.expire()
        await upkeep.retire()

    def secret(self) -> bytes:
        return self.opened.secret

    async def remove(self) -> None:
        await self.place.__aexit__(None, None, None)


class Etcd(Backend):
    """Under a prefix of its own. Time does not pass at etcd: its leases are long, and are revoked, as etcd
    does when they expire, when they would have expired."""

    fixture = "etcd"
    cluster: EtcdCluster
    now_s = 1000.0

    async def open(self) -> None:
        if not hasattr(self, "prefix"):
            self.prefix = f"test-{secrets.token_hex(4)}"
            self.leases: dict[int, tuple[float, float]] = {}
        self.settings = LedgerSettings(
            url=f"{self.cluster.url}/{self.prefix}", retention_s=self.retention_s, request_timeout_s=30.0
        )
        await maintenance.init(self.settings)
        self.opened = await EtcdLedger.open(self.settings, clock=lambda: 0.0)
        await self.opened.upkeep.stop()  # a beat of it would be in the way of those in elapse
        self._watch(self.opened.client, self.opened.renewing)
        self.ledger = self.opened

    def _watch(self, client: EtcdClient, renewing: EtcdClient) -> None:
        grant, renew = client.grant, renewing.renew

        async def granted(ttl_s: int) -> Granted:
            answer = await grant(3600)
            self.leases[answer.ID] = (float(ttl_s), self.now_s)
            return answer

        async def renewed(lease: int) -> Renewal:
            if lease in self.leases:
                self.leases[lease] = (self.leases[lease][0], self.now_s)
            return await renew(lease)

        client.grant, renewing.renew = granted, renewed  # type: ignore[method-assign]

    async def elapse(self, seconds: float) -> None:
        upkeep = self.opened.upkeep
        await upkeep.note_ends()
        self.now_s += seconds
        for lease, (ttl_s, at) in list(self.leases.items()):
            if at + ttl_s < self.now_s:
                del self.leases[lease]
                await self.opened.client.revoke(lease)
        await upkeep.move(round(seconds * 1000))
        assert upkeep.leads
        await upkeep.retire()
        await upkeep.summaries.summarize(0.0, most=0)  # all that can be: answers are the same

    def secret(self) -> bytes:
        return self.opened.secret


class DisturbedEtcd(Etcd):
    """While its members are killed, stopped and compacted."""

    fixture = "disturbed_etcd"


BACKENDS: dict[str, Callable[[Path], Backend]] = {
    "memory": Memory,
    "sqlite": Sqlite,
    "sqlite-client": SqliteClient,
    "postgresql": Postgres,
    "etcd": Etcd,
    "disturbed-etcd": DisturbedEtcd,
    "raft": Raft,
    "raft-of-three": RaftOfThree,
}


CI_ONLY = {"disturbed-etcd"}
"""Backends of CI's own tier."""


@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.slow if name in CI_ONLY else ()) for name in BACKENDS]
)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    found = BACKENDS[request.param](tmp_path)
    if isinstance(found, Postgres):
        found.server = request.getfixturevalue("postgres")
    if isinstance(found, Etcd):
        found.cluster = request.getfixturevalue(found.fixture)
    return found


@pytest.fixture
async def backend(made: Backend) -> AsyncIterator[Backend]:
    await made.open()
    yield made
    await made.close()
    await made.remove()


@pytest.fixture
def ledger(backend: Backend) -> Signing:
    return backend.ledger
