"""The ledgers that a proof can run on: what their URL is, and what of theirs can be killed."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from tests.etcd import EtcdCluster, Majority
from tests.prove.nodes import Nodes
from tests.prove.processes import ROOT, within
from undoubt.coordinator.ledger import maintenance
from undoubt.coordinator.settings import LedgerSettings
from undoubt.embedded import EmbeddedServer


class SqliteLedgers:
    """One file a case."""

    server: EmbeddedServer | Majority | None = None
    """What of the ledger a case may kill."""
    nodes: Nodes | None = None
    session_ttl_s = 10.0
    lanes = 2
    """How many cases at once keep two cores busy."""
    passes = 1
    """How often recovery may have to look until it is known that a coordinator has died."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def build(self, stack: AsyncExitStack) -> None:
        """Nothing needs to run."""

    async def caught_up(self) -> bool:
        """Return once no decision is on its way into the ledger: whether recovery has to look once more, at
        what came there late."""
        return False

    async def watched(self, stack: AsyncExitStack, settings: Mapping[str, Any]) -> None:
        """Have recovery, with its detector of deadlocks, run beside the coordinators with these settings. It
        runs in the process that owns or leads the ledger, if that is a coordinator's."""

    async def fresh(self, name: str) -> dict[str, object]:
        """The settings of a new ledger."""
        return {"url": f"sqlite:///{self.folder}/{name}.db"}


class PostgresLedgers(SqliteLedgers):
    """One database a case, on a server of its own."""

    session_ttl_s = 1.5
    """Nothing tells that a coordinator has died but its silence; the proof need not wait for long."""
    lanes = 4
    passes = 600

    async def build(self, stack: AsyncExitStack) -> None:
        self.server = await stack.enter_async_context(EmbeddedServer())

    async def fresh(self, name: str) -> dict[str, object]:
        if not isinstance(self.server, EmbeddedServer):
            raise TypeError("build comes first")
        dsn = await self.server.create_database(name)
        url = dsn.replace("postgresql://", "postgresql+psycopg://")
        await maintenance.init(LedgerSettings(url=url, request_timeout_s=60.0))
        return {"url": url}


class RaftLedgers(SqliteLedgers):
    """Three nodes for many cases: each leaves nothing unfinished, or it has failed. The next case has other
    databases of the same names: a decision that the ledger learns then can be proved by none of them, and is
    rightly recorded as a hazard."""

    session_ttl_s = 1.5
    lanes = 4
    passes = 600

    async def build(self, stack: AsyncExitStack) -> None:
        folder = self.folder / f"nodes-{id(self)}"
        folder.mkdir()
        self.nodes = Nodes(folder, election_s=1.0, trapped=True)
        stack.push_async_callback(self.nodes.close)
        await self.nodes.begin()
        await self.nodes.start(*self.nodes.addresses)

    async def caught_up(self) -> bool:
        """Paxos Commit's acceptors know an outcome before the ledger does. What a dead coordinator has not
        told it, the leader does, some time after that coordinator's session has ended."""
        if self.nodes is None:
            raise RuntimeError("build comes first")
        async with within("the ledger's copy of what its acceptors hold"):
            while await self.nodes.held():
                await asyncio.sleep(0.1)
        # It may also have come between recovery's last look and this one.
        return await self.nodes.has_unfinished()

    async def fresh(self, name: str) -> dict[str, object]:
        if self.nodes is None:
            raise RuntimeError("build comes first")
        self.nodes.disarm()
        await self.nodes.start(*(self.nodes.addresses.keys() - self.nodes.running.keys()))
        await self.nodes.leading()
        return {"url": f"raft://{self.nodes.url}", "request_timeout_s": 30.0}

    async def watched(self, stack: AsyncExitStack, settings: Mapping[str, Any]) -> None:
        """The proof's nodes know no databases."""
        ledger = settings["ledger"]
        lines = [f'[ledger]\nurl = "{ledger["url"]}"\nrequest_timeout_s = {ledger["request_timeout_s"]}']
        lines += ["[recovery]", *(f"{key} = {value}" for key, value in settings.get("recovery", {}).items())]
        lines += [
            f'[participants.{name}]\ndsn = "{of["dsn"]}"' for name, of in settings["participants"].items()
        ]
        config = self.folder / "recover.toml"
        config.write_text("\n".join(lines))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "undoubt", "recover", "--config", str(config),
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip

        async def ended() -> None:
            process.kill()
            await process.wait()

        stack.push_async_callback(ended)


class EtcdLedgers(SqliteLedgers):
    """A prefix a case, in an etcd of three members."""

    session_ttl_s = 1.5
    lanes = 4
    passes = 600

    async def build(self, stack: AsyncExitStack) -> None:
        self.cluster = EtcdCluster(self.folder / f"etcd-{id(self)}", heartbeat_ms=100)
        stack.callback(self.cluster.close)
        await asyncio.to_thread(self.cluster.start)
        self.server = Majority(self.cluster)

    async def fresh(self, name: str) -> dict[str, object]:
        url = f"{self.cluster.url}/{name}"
        await maintenance.init(LedgerSettings(url=url, request_timeout_s=60.0))
        return {"url": url, "request_timeout_s": 30.0}


LEDGERS: dict[str, type[SqliteLedgers]] = {
    "sqlite": SqliteLedgers,
    "postgresql": PostgresLedgers,
    "raft": RaftLedgers,
    "etcd": EtcdLedgers,
}
