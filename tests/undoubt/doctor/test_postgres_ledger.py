"""What doctor says of a PostgreSQL ledger: whose its schema is, and who reads its secret."""

from __future__ import annotations

from collections.abc import AsyncIterator

import psycopg
import pytest

from tests.coordinator.ledger.postgres_stage import settings_for
from undoubt.config import Settings, load
from undoubt.coordinator.ledger import maintenance
from undoubt.doctor import examine
from undoubt.participants.findings import Finding, Severity

ROLE = "ledger_reader"


@pytest.fixture
async def settings(database: str) -> AsyncIterator[Settings]:
    ledger = settings_for(database)
    await maintenance.init(ledger)
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as admin:
        await admin.execute(f"drop role if exists {ROLE}")
        await admin.execute(f"create role {ROLE}")
        yield load({"ledger": {"url": ledger.url}})
        await admin.execute(f"drop owned by {ROLE} cascade")
        await admin.execute(f"drop role {ROLE}")


async def execute(database: str, statement: str) -> None:
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as admin:
        await admin.execute(statement)


async def found(settings: Settings) -> dict[str, Finding]:
    told = await examine(settings, older_than_s=0.0)
    return {one.check: one for one in told if one.check.startswith("ledger")}


async def test_the_secret_of_the_ledger(settings: Settings, database: str) -> None:
    """Broken if a role that reads the secret, and can forge every name, is not told, or not how to stop
    it."""
    told = await found(settings)
    assert (told["ledger_schema"].severity, told["ledger_secret"].severity) == (Severity.OK, Severity.OK)
    await execute(database, f"grant select on undoubt_ledger.secret to {ROLE}")
    told = await found(settings)
    assert told["ledger_secret"].severity is Severity.PROBLEM
    assert told["ledger_secret"].what.startswith(f"role {ROLE} can read the ledger's secret")
    assert told["ledger_secret"].fix == f'REVOKE ALL ON undoubt_ledger.secret FROM "{ROLE}";'
    await execute(database, told["ledger_secret"].fix)
    assert (await found(settings))["ledger_secret"].severity is Severity.OK


async def test_the_schema_of_the_ledger(settings: Settings, database: str) -> None:
    """Broken if doctor works with what others may have put there, or does not tell each reason and its
    line."""
    await execute(
        database,
        f"grant create on schema undoubt_ledger to {ROLE};alter table undoubt_ledger.clock owner to {ROLE}",
    )
    told = [one for one in await examine(settings, older_than_s=0.0) if one.check.startswith("ledger")]
    assert {(one.check, one.severity, one.fix) for one in told} == {
        ("ledger_schema", Severity.PROBLEM, f'schema_owners = ["{ROLE}"]'),
        ("ledger_schema", Severity.PROBLEM, f'REVOKE CREATE ON SCHEMA undoubt_ledger FROM "{ROLE}";'),
    }
    assert "it is not used: nothing can be decided" in told[0].why
