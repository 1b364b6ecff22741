"""The session is ended by an administrator (FATAL, 57P01) while its only COMMIT is on the way, in each
driver: what became of it is unknown, unless something proves it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import undoubt
import undoubt.sync
from tests.participants.support import WRITE, Database, unreachable_standby
from undoubt import OutcomeUnknown, TransactionAborted
from undoubt.embedded import EmbeddedServer
from undoubt.participants.postgres.schema import migrate
from undoubt.participants.settings import ParticipantSettings

DRIVERS = ("asyncpg", "psycopg", "threads")
SLOW = """
    create function slow() returns trigger language plpgsql
        as 'begin perform pg_sleep(600); return null; end';
    create constraint trigger slow after update on account deferrable initially deferred
        for each row execute function slow()
"""


@pytest.fixture
async def server() -> AsyncIterator[EmbeddedServer]:
    async with EmbeddedServer(durable=False) as found:
        yield found


@pytest.fixture
async def database(server: EmbeddedServer) -> AsyncIterator[Database]:
    dsn = await server.create_database("orders")
    admin = await asyncpg.connect(dsn)
    await admin.execute(
        "create table account (id int primary key, balance int not null);"
        "insert into account values (1, 100), (2, 100)"
    )
    yield Database("orders", dsn, admin)
    admin.terminate()


async def transact(driver: str, made: dict[str, Any]) -> None:
    """One write in one database: its COMMIT is a plain one."""
    if driver == "threads":

        def work() -> None:
            with undoubt.sync.connect(made) as coordinator, coordinator.transaction(timeout=60) as tx:
                tx.branch("orders").execute(WRITE)

        await asyncio.to_thread(work)
        return
    made["participants"]["orders"]["driver"] = driver
    async with undoubt.connect(made) as coordinator, coordinator.transaction(timeout=60) as tx:
        await (await tx.branch("orders")).execute(WRITE)


async def in_commit(database: Database, wait: str) -> int:
    """The process of the session whose COMMIT waits for that."""
    while True:
        pid = await database.admin.fetchval(
            "select pid from pg_stat_activity where wait_event = $1 and pid <> pg_backend_pid()", wait
        )
        if pid is not None:
            return int(pid)
        await asyncio.sleep(0.005)


def settings_of(folder: Path, dsn: str) -> dict[str, Any]:
    return {
        "ledger": {"url": f"sqlite:///{folder}/ledger.db"},
        "participants": {"orders": {"dsn": dsn, "statement_timeout_s": 20.0}},
    }


@pytest.mark.parametrize("driver", DRIVERS)
async def test_before_it_was_done_and_its_note_tells(database: Database, tmp_path: Path, driver: str) -> None:
    """Broken if a transaction whose session is over, and whose note is not there, is called unknown: it is
    not tried again."""
    await migrate("orders", ParticipantSettings(dsn=database.dsn))
    await database.admin.execute(SLOW)
    work = asyncio.create_task(transact(driver, settings_of(tmp_path, database.dsn)))
    await database.admin.execute("select pg_terminate_backend($1)", await in_commit(database, "PgSleep"))
    with pytest.raises(TransactionAborted, match="administrator"):
        await work
    assert await database.balance() == 100


@pytest.mark.parametrize("driver", DRIVERS)
async def test_before_it_was_done_and_nothing_tells(database: Database, tmp_path: Path, driver: str) -> None:
    """Broken if the error that ended the session is taken for the answer to COMMIT."""
    await database.admin.execute(SLOW)
    work = asyncio.create_task(transact(driver, settings_of(tmp_path, database.dsn)))
    await database.admin.execute("select pg_terminate_backend($1)", await in_commit(database, "PgSleep"))
    with pytest.raises(OutcomeUnknown):
        await work
    assert await database.balance() == 100


@pytest.mark.parametrize("driver", DRIVERS)
async def test_the_whole_server_is_shut_down(
    server: EmbeddedServer, database: Database, tmp_path: Path, driver: str
) -> None:
    """Broken if "terminating connection due to administrator command" of a server that nobody can ask any
    more is an abort."""
    await database.admin.execute(SLOW)
    work = asyncio.create_task(transact(driver, settings_of(tmp_path, database.dsn)))
    await in_commit(database, "PgSleep")
    await server.stop()
    with pytest.raises(OutcomeUnknown):
        await work


@pytest.mark.parametrize("noted", [True, False], ids=["with a note", "without"])
@pytest.mark.parametrize("driver", DRIVERS)
async def test_after_it_was_done(database: Database, tmp_path: Path, driver: str, noted: bool) -> None:
    """Broken if a transaction that has committed is called aborted, and done twice; or unknown although its
    note is there."""
    if noted:
        await migrate("orders", ParticipantSettings(dsn=database.dsn))
    async with unreachable_standby(database):
        work = asyncio.create_task(transact(driver, settings_of(tmp_path, database.dsn)))
        await database.admin.execute("select pg_terminate_backend($1)", await in_commit(database, "SyncRep"))
        if noted:
            await work
        else:
            with pytest.raises(OutcomeUnknown):
                await work
    assert await database.balance() == 90
