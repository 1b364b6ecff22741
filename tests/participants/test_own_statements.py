"""undoubt's own sessions over psycopg prepare what they ask again: PostgreSQL manual, PREPARE, and the
extended query protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio

from tests.participants.support import Database
from tests.pgbouncer import PgBouncer
from undoubt.participants.postgres.admin_pool import Management
from undoubt.participants.postgres.psycopg.connector import PsycopgConnector
from undoubt.participants.settings import ParticipantSettings

NAMES = "select coalesce(array_agg(name), '{}') as names from pg_catalog.pg_prepared_statements"
KINDS = ["psycopg"]
ASKED = "select a.* from public.account as a where a.id = $1::int"


def management_at(dsn: str) -> Management:
    connector = PsycopgConnector("p", ParticipantSettings(dsn=dsn), "undoubt", "async")
    return Management("p", connector.connect_own, 10.0)


@pytest_asyncio.fixture
async def management(database: Database) -> AsyncIterator[Management]:
    made = management_at(database.dsn)
    yield made
    made.close()


async def ask(management: Management, times: int = 1) -> dict[str, Any]:
    rows = [await management.read(ASKED, 1) for _ in range(times)]
    row: Any = rows[-1][0]
    return dict(row)


async def names(management: Management) -> list[str]:
    async with management.session() as session:
        [row] = await session.rows(NAMES, timeout_s=10)
    return list(row["names"])


async def test_what_is_asked_again_is_prepared_once(management: Management) -> None:
    """Broken if each look at a branch is planned anew, which takes longer than the look itself."""
    assert await ask(management) == {"id": 1, "balance": 100}
    before = len(await names(management))
    assert await ask(management, 3) == {"id": 1, "balance": 100}
    prepared = await names(management)
    assert len(prepared) == before + 2, "the statement, and the list itself"
    assert all(name.startswith("undoubt_") for name in prepared)


async def test_a_statement_that_the_server_has_forgotten(management: Management) -> None:
    """Broken if DEALLOCATE ALL, in a function of the database for example, ends undoubt's sight of it."""
    await ask(management, 3)
    async with management.session() as session:
        await session.script("deallocate all", timeout_s=10)
    assert await ask(management, 3) == {"id": 1, "balance": 100}


async def test_a_statement_whose_columns_have_changed(management: Management, database: Database) -> None:
    """Broken if "cached plan must not change result type" leaves undoubt."""
    await ask(management, 3)
    await database.admin.execute("alter table account add note text")
    assert await ask(management, 3) == {"id": 1, "balance": 100, "note": None}


async def test_nothing_is_prepared_behind_a_pooler(pooler: PgBouncer, database: Database) -> None:
    """Another server process may answer the next statement, and does not know the name."""
    made = management_at(pooler.dsn(database.name))
    try:
        await ask(made, 5)
        assert await names(made) == []
    finally:
        made.close()
