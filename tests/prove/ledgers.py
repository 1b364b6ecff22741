"""The ledgers that a proof can run on: what their URL is, and which server of theirs can be killed."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

from coordinator.ledger import maintenance
from coordinator.settings import LedgerSettings
from undoubt.embedded import EmbeddedServer


class SqliteLedgers:
    """One file a case."""

    server: EmbeddedServer | None = None
    session_ttl_s = 10.0
    passes = 1
    """How often recovery may have to look until it is known that a coordinator has died."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def build(self, stack: AsyncExitStack) -> None:
        """Nothing needs to run."""

    async def fresh(self, name: str) -> str:
        """The URL of a new ledger."""
        return f"sqlite:///{self._folder}/{name}.db"


class PostgresLedgers(SqliteLedgers):
    """One database a case, on a server of its own."""

    session_ttl_s = 1.5
    """Nothing tells that a coordinator has died but its silence; the proof need not wait for long."""
    passes = 600

    async def build(self, stack: AsyncExitStack) -> None:
        self.server = await stack.enter_async_context(EmbeddedServer())

    async def fresh(self, name: str) -> str:
        if self.server is None:
            raise RuntimeError("build comes first")
        dsn = await self.server.create_database(name)
        url = dsn.replace("postgresql://", "postgresql+psycopg://")
        await maintenance.init(LedgerSettings(url=url, request_timeout_s=60.0))
        return url


LEDGERS: dict[str, type[SqliteLedgers]] = {"sqlite": SqliteLedgers, "postgresql": PostgresLedgers}
