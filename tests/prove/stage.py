"""What the cases of one lane run on, one after another: databases, poolers, ledgers."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from tests.pgbouncer import PgBouncer
from tests.prove.bank import NAMES
from tests.prove.ledgers import SqliteLedgers
from undoubt.embedded import EmbeddedServer


@dataclass(slots=True)
class Stage:
    """Two servers, the pooler before one of them, and the ledgers."""

    driver: str
    ledgers: SqliteLedgers
    servers: dict[str, EmbeddedServer] = field(default_factory=dict)
    poolers: dict[str, PgBouncer] = field(default_factory=dict)

    async def build(self, stack: AsyncExitStack, pooled: str | None) -> None:
        await self.ledgers.build(stack)
        for name in NAMES:
            self.servers[name] = await stack.enter_async_context(EmbeddedServer())
        if pooled is not None:
            pooler = PgBouncer(self.servers[pooled].socket_dsn())
            self.poolers[pooled] = await stack.enter_async_context(pooler)

    def participants(self, database: str, *, declared: bool) -> dict[str, dict[str, object]]:
        """Their settings; ``declared``: undoubt is told of the pooler, and need not find out by itself."""
        direct = {name: {"dsn": server.dsn(database)} for name, server in self.servers.items()}
        pooled = {
            name: {"dsn": pooler.dsn(database), "pooler": declared} for name, pooler in self.poolers.items()
        }
        return {name: {"driver": self.driver, **one} for name, one in (direct | pooled).items()}

    @property
    def logins(self) -> int:
        return sum(pooler.logins for pooler in self.poolers.values())
