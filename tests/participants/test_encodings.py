"""Gids that cannot be told in UTF-8: whoever may connect prepares them where the encoding is another one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import psycopg
import pytest
import pytest_asyncio

from tests.participants.hands import at
from tests.participants.support import WRITE, Database, new_gid, participant_at
from undoubt.embedded import EmbeddedServer
from undoubt.participants.contract import Decision, Settled, Vote
from undoubt.participants.ids import Foreign

WAYS = ("",)

JUNK = {"SQL_ASCII": b"\xff", "WIN1252": b"\x81", "EUC_JP": b"\xad\xa1"}
"""Bytes that clients may send there; the first has no meaning in UTF-8, the second is no character."""


@pytest_asyncio.fixture(params=list(JUNK))
async def elsewhere(server: EmbeddedServer, request: pytest.FixtureRequest) -> AsyncIterator[tuple[str, str]]:
    """A database of that encoding: its DSN, and the encoding."""
    name = f"other_{request.param.lower()}"
    admin = await asyncpg.connect(server.dsn())
    await admin.execute(f"create database {name} encoding '{request.param}' template template0 locale 'C'")
    yield server.dsn(name), request.param
    await admin.execute(f"drop database {name} with (force)")
    await admin.close()


def run(connection: psycopg.Connection[object], *statements: bytes) -> None:
    for statement in statements:
        result = connection.pgconn.exec_(statement)
        assert not result.error_message, result.error_message


def forge(dsn: str, encoding: str, *before: bytes) -> psycopg.Connection[object]:
    """Prepares junk; what it gives ends it with ``rollback``."""
    connection = psycopg.connect(dsn, autocommit=True, client_encoding=encoding)
    gid = b"'undoubt:" + JUNK[encoding] + b"'"
    run(connection, b"begin", b"select pg_current_xact_id()", *before, b"prepare transaction " + gid)
    return connection


def rollback(connection: psycopg.Connection[object], encoding: str) -> None:
    run(connection, b"rollback prepared 'undoubt:" + JUNK[encoding] + b"'")
    connection.close()


async def test_the_others_are_listed_and_finished(elsewhere: tuple[str, str]) -> None:
    """Broken if one PREPARE of anybody's keeps every branch of that database in doubt."""
    dsn, encoding = elsewhere
    admin = await asyncpg.connect(dsn)
    await admin.execute("create table account (id int, balance int); insert into account values (1, 100)")
    participant, gid = participant_at(dsn), new_gid()
    branch = await participant.begin(gid, timeout_s=30)
    await at(branch).execute(WRITE)
    assert (await branch.prepare()).vote is Vote.PREPARED
    await branch.release()
    forger = forge(dsn, encoding)
    listed = await participant.in_doubt()
    shown = "".join(f"\\{byte:03o}" for byte in JUNK[encoding])
    assert [one.gid for one in listed] == [gid, Foreign(f"undoubt:{shown}")]
    assert await participant.settle(gid, Decision.COMMIT, None) is Settled.APPLIED
    assert await admin.fetchval("select balance from account") == 90
    rollback(forger, encoding)
    await participant.close()
    await admin.close()


async def test_the_waits_are_seen(elsewhere: tuple[str, str]) -> None:
    """Broken if one PREPARE of anybody's keeps every deadlock of that database from being seen."""
    dsn, encoding = elsewhere
    participant = participant_at(dsn)
    forger = forge(dsn, encoding, b"select pg_advisory_xact_lock(7)")
    waiter = await asyncpg.connect(dsn)
    waiting = asyncio.create_task(waiter.execute("select pg_advisory_lock(7)"))
    async with asyncio.timeout(20):
        while not (edges := await participant.waits()):
            await asyncio.sleep(0.01)
    assert [edge.pid for edge in edges] == [waiter.get_server_pid()]
    rollback(forger, encoding)
    await waiting
    await waiter.close()
    await participant.close()


async def test_a_holder_in_a_database_of_another_encoding(
    database: Database, elsewhere: tuple[str, str]
) -> None:
    """Broken if that is so as well where only another database of the server lets such bytes pass."""
    dsn, encoding = elsewhere
    participant = participant_at(database.dsn)
    await database.admin.execute("create role anybody")
    forger = forge(dsn, encoding, b"alter role anybody set work_mem = '1MB'")
    waiting = asyncio.create_task(database.admin.execute("alter role anybody set work_mem = '2MB'"))
    async with asyncio.timeout(20):
        while not (edges := await participant.waits()):
            await asyncio.sleep(0.01)
    assert "of another database" in str(edges[0].holder)
    rollback(forger, encoding)
    await waiting
    await database.admin.execute("drop role anybody")
    await participant.close()
