"""What tests of the PostgreSQL ledger share: ledgers that are opened, and statements that are held."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import psycopg

from tests.coordinator.ledger.signing import Signing
from undoubt.coordinator.ledger.contract import ABORTS_BY_ABSENCE, TERMINATES_BY_ITSELF, BranchRecord
from undoubt.coordinator.ledger.postgres.decisions import encode_branches
from undoubt.coordinator.ledger.postgres.ledger import PostgresLedger
from undoubt.coordinator.ledger.postgres.sql import query
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.ids import TxId

BRANCHES = (BranchRecord(1, "orders", 7, 8, "00000001"), BranchRecord(2, "payments"))


class Clock:
    """A monotonic clock that moves when told."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def settings_for(dsn: str, **more: Any) -> LedgerSettings:
    url = dsn.replace("postgresql://", "postgresql+psycopg://")
    return LedgerSettings(**{"url": url, "request_timeout_s": 20.0, **more})


@contextlib.asynccontextmanager
async def opened(
    settings: LedgerSettings, clock: Clock | None = None, *, upkeep: bool = False
) -> AsyncIterator[Signing]:
    """Without ``upkeep`` nothing happens in the background: the test moves time itself."""
    ledger = await PostgresLedger.open(settings, clock=clock or Clock())
    if not upkeep:
        await ledger.upkeep.loop.stop()
    try:
        yield Signing(ledger)
    finally:
        await ledger.close()


class Held:
    """A connection whose transactions stay open until told."""

    def __init__(self, connection: psycopg.AsyncConnection[Any], dsn: str) -> None:
        self.connection = connection
        self._dsn = dsn

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(cls, dsn: str) -> AsyncIterator[Held]:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            yield cls(connection, dsn)

    async def run(self, statement: str, **parameters: Any) -> list[Any]:
        cursor = await self.connection.execute(statement, parameters or None)
        return await cursor.fetchall() if cursor.description is not None else []

    async def decide(self, txid: TxId, decision: str) -> list[Any]:
        """The ledger's own statement, in a transaction that is left open."""
        await self.run("begin")
        return await self.run(
            query("decide"),
            session=[txid.session],
            nonce=[txid.nonce],
            seq=[txid.seq],
            protocol=["2"],
            decision=[decision],
            branches=[encode_branches(BRANCHES)],
            decided_at=[1.0],
            cause=[""],
            by_itself=sorted(TERMINATES_BY_ITSELF),
            by_absence=sorted(ABORTS_BY_ABSENCE),
        )

    async def somebody_waits(self) -> None:
        """Return once a statement of another connection waits for a lock that this one holds."""
        pid = self.connection.info.backend_pid
        async with await psycopg.AsyncConnection.connect(self._dsn, autocommit=True) as observer:
            while True:
                cursor = await observer.execute(
                    "select count(*) from pg_stat_activity where %s = any(pg_blocking_pids(pid))", [pid]
                )
                row = await cursor.fetchone()
                if row is not None and row[0]:
                    return
                await asyncio.sleep(0.01)
