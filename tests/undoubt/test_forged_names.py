"""Sessions take the names of others, which everybody can read: no transaction ends because of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import undoubt
from tests.undoubt.test_end_to_end import TABLE, run, source
from undoubt.coordinator.errors import DistributedDeadlock
from undoubt.recovery.deadlocks import DeadlockDetector

TIMEOUT_S = 60


@pytest.fixture(params=["asyncpg", "psycopg"])
async def coordinator(
    request: pytest.FixtureRequest, tmp_path: Path, databases: dict[str, str]
) -> AsyncIterator[undoubt.Coordinator]:
    made = source(tmp_path, databases)
    for name, dsn in databases.items():
        await run(dsn, TABLE)
        made["participants"][name]["driver"] = request.param
    async with undoubt.connect(made, recover=False) as connected:
        yield connected


async def names_of(databases: dict[str, str], txid: str) -> dict[str, str]:
    """The application_names under which a transaction's sessions are seen by everybody, by participant."""
    session, seq = txid.partition("-")[0], txid.rpartition(".")[2]
    told = {}
    for name, dsn in databases.items():
        rows = await run(
            dsn,
            "select application_name as name from pg_stat_activity where datname = current_database()"
            f" and (application_name like 'undoubt:%:{txid}'"
            f" or application_name like 'undoubt:%:{session}.{seq}~%')",
        )
        [told[name]] = [row["name"] for row in rows]
    return told


async def test_a_transaction_that_waits_for_nobody_goes_on(
    coordinator: undoubt.Coordinator, databases: dict[str, str]
) -> None:
    """Broken if two sessions that wait for each other's locks under copied names are a deadlock of the
    transactions whose names those are."""
    looking = DeadlockDetector(coordinator.ledger, coordinator.participants, coordinator.cancel)
    async with (
        coordinator.transaction(timeout=TIMEOUT_S) as old,
        coordinator.transaction(timeout=TIMEOUT_S) as young,
        AsyncExitStack() as stack,
    ):
        for number, tx in enumerate((old, young), 1):
            for name in databases:
                await (await tx.branch(name)).execute(f"insert into note (id) values ({number})")
        first, second = [await names_of(databases, str(tx.id)) for tx in (old, young)]
        blocked = []
        for name, waiter, holder in (("orders", first, second), ("payments", second, first)):
            holding = await forger(stack, databases[name], holder[name])
            await holding.execute("select pg_advisory_lock(7)")
            waiting = await forger(stack, databases[name], waiter[name])
            blocked.append(asyncio.create_task(waiting.execute("select pg_advisory_lock(7)")))
        async with asyncio.timeout(TIMEOUT_S):
            while not all([await run(dsn, WAITS) for dsn in databases.values()]):
                await asyncio.sleep(0.005)
        found: list[DistributedDeadlock] = []
        for _ in range(3):
            found += await looking.look()
        assert found == []
        for tx in (old, young):
            await tx.commit()
        await stack.aclose()
        await asyncio.gather(*blocked, return_exceptions=True)
    for dsn in databases.values():
        assert len(await run(dsn, "select id from note")) == 2


WAITS = "select pid from pg_locks where locktype = 'advisory' and not granted and database = (" + (
    "select oid from pg_database where datname = current_database())"
)


async def forger(stack: AsyncExitStack, dsn: str, name: str) -> Any:
    connection = await asyncpg.connect(dsn, server_settings={"application_name": name})

    async def close() -> None:
        connection.terminate()

    stack.push_async_callback(close)
    return connection
