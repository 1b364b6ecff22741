"""undoubt's own sessions over psycopg prepare what they ask again: PostgreSQL manual, PREPARE, and the
extended query protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio

from tests.participants.support import Database
from tests.pgbouncer import PgBouncer
from undoubt.participants.postgres.admin_pool import AdminPool
from undoubt.participants.postgres.psycopg.connector import PsycopgConnector
from undoubt.participants.settings import ParticipantSettings

NAMES = "select coalesce(array_agg(name), '{}') as names from pg_catalog.pg_prepared_statements"
KINDS = ["psycopg"]
ASKED = "select a.* from public.account as a where a.id = $1::int"


def management_at(dsn: str) -> AdminPool:
    connector = PsycopgConnector("p", ParticipantSettings(dsn=dsn), "undoubt", "async")
    return AdminPool("p", connector.connect_own, 10.0)


@pytest_asyncio.fixture
async def admin_pool(database: Database) -> AsyncIterator[AdminPool]:
    made = management_at(database.dsn)
    yield made
    made.close()


async def ask(admin_pool: AdminPool, times: int = 1) -> dict[str, Any]:
    rows = [await admin_pool.read(ASKED, 1) for _ in range(times)]
    row: Any = rows[-1][0]
    return dict(row)


async def names(admin_pool: AdminPool) -> list[str]:
    async with admin_pool.session() as session:
        [row] = await session.rows(NAMES, timeout_s=10)
    return list(row["names"])


async def test_what_is_asked_again_is_prepared_once(admin_pool: AdminPool) -> None:
    """Broken if each look at a branch is planned anew, which takes longer than the look itself."""
    assert await ask(admin_pool) == {"id": 1, "balance": 100}
    before = len(await names(admin_pool))
    assert await ask(admin_pool, 3) == {"id": 1, "balance": 100}
    prepared = await names(admin_pool)
    assert len(prepared) == before + 2, "the statement, and the list itself"
    assert all(name.startswith("undoubt_") for name in prepared)


async def test_a_statement_that_the_server_has_forgotten(admin_pool: AdminPool) -> None:
    """Broken if DEALLOCATE ALL, in a function of the database for example, ends undoubt's sight of it."""
    await ask(admin_pool, 3)
    async with admin_pool.session() as session:
        await session.script("deallocate all", timeout_s=10)
    assert await ask(admin_pool, 3) == {"id": 1, "balance": 100}


async def test_a_statement_whose_columns_have_changed(admin_pool: AdminPool, database: Database) -> None:
    """Broken if "cached plan must not change result type" leaves undoubt."""
    await ask(admin_pool, 3)
    await database.admin.execute("alter table account add note text")
    assert await ask(admin_pool, 3) == {"id": 1, "balance": 100, "note": None}


async def test_nothing_is_prepared_behind_a_pooler(pooler: PgBouncer, database: Database) -> None:
    """Another server process may answer the next statement, and does not know the name."""
    made = management_at(pooler.dsn(database.name))
    try:
        await ask(made, 5)
        assert await names(made) == []
    finally:
        made.close()
