"""The application's connection of a branch, used alike whatever the driver: tests of the engine say what they
want done, not in whose words."""

from __future__ import annotations

import abc
import asyncio
import select
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from undoubt.participants.contract import Branch
from undoubt.participants.postgres.participant import PostgresParticipant
from undoubt.participants.postgres.session import Step


def at(branch: Branch) -> Any:
    """Something with ``execute``, ``fetch``, ``fetchrow``, ``fetchval`` and ``get_server_pid``, as asyncpg
    has them; synchronous connections are used in a thread of their own."""
    connection = branch.connection
    if isinstance(connection, psycopg.AsyncConnection):
        return _Async(connection)
    if isinstance(connection, psycopg.Connection):
        return _Sync(connection)
    return connection


class _Hands(abc.ABC):
    def __init__(self, connection: Any) -> None:
        self.connection = connection

    @abc.abstractmethod
    async def _run(self, sql: str, args: tuple[object, ...], *, rows: bool) -> Any: ...

    async def execute(self, sql: str, *args: object) -> str:
        return str(await self._run(sql, args, rows=False))

    async def fetch(self, sql: str, *args: object) -> list[dict[str, Any]]:
        return list(await self._run(sql, args, rows=True))

    async def fetchrow(self, sql: str, *args: object) -> dict[str, Any] | None:
        rows = await self.fetch(sql, *args)
        return rows[0] if rows else None

    async def fetchval(self, sql: str, *args: object) -> Any:
        row = await self.fetchrow(sql, *args)
        return None if row is None else next(iter(row.values()))

    def get_server_pid(self) -> int:
        return int(self.connection.info.backend_pid)


class _Async(_Hands):
    async def _run(self, sql: str, args: tuple[object, ...], *, rows: bool) -> Any:
        self.connection.row_factory = dict_row
        cursor = await self.connection.execute(_placed(sql, args), args or None)
        return await cursor.fetchall() if rows else cursor.statusmessage


class _Sync(_Hands):
    async def _run(self, sql: str, args: tuple[object, ...], *, rows: bool) -> Any:
        return await asyncio.to_thread(self._run_there, sql, args, rows)

    def _run_there(self, sql: str, args: tuple[object, ...], rows: bool) -> Any:
        self.connection.row_factory = dict_row
        cursor = self.connection.execute(_placed(sql, args), args or None)
        return cursor.fetchall() if rows else cursor.statusmessage


def _placed(sql: str, args: tuple[object, ...]) -> str:
    for number in range(1, len(args) + 1):
        sql = sql.replace(f"${number}", "%s")
    return sql


async def is_lost(branch: Branch) -> None:
    """Once the client's side of the branch's connection could know that it is lost."""
    connection = branch.connection
    if isinstance(connection, psycopg.Connection | psycopg.AsyncConnection):
        # libpq looks when it is asked, and there is something to be read from then on.
        while not select.select([connection.fileno()], [], [], 0)[0]:
            await asyncio.sleep(0.005)
    else:
        while not connection.is_closed():
            await asyncio.sleep(0.005)


async def cleaned(participant: PostgresParticipant) -> None:
    """Return once every session that was given back is reset and can be lent."""
    pool = participant.pool
    while pool.cleaning or any(slot.used for slot in pool.idle):
        await asyncio.sleep(0)


def only_the_last(session: Any) -> None:
    """From now on a round trip of ``session`` sends only its last statement."""
    script, pipeline = session.script, session.pipeline

    async def shorter_script(sql: str, *, timeout_s: float) -> Any:
        return await script(sql.rpartition(";")[2], timeout_s=timeout_s)

    def shorter_pipeline(steps: Sequence[Step], *, behind: Sequence[Step] = (), timeout_s: float) -> Any:
        return pipeline(steps[-1:], behind=behind, timeout_s=timeout_s)

    session.script, session.pipeline = shorter_script, shorter_pipeline


def spoil(session: Any) -> None:
    """From now on each script of ``session`` fails, and what goes behind a pipeline."""
    script, pipeline = session.script, session.pipeline

    async def spoilt_script(sql: str, *, timeout_s: float) -> Any:
        return await script(f"select 1/0; {sql}", timeout_s=timeout_s)

    def spoilt_pipeline(steps: Sequence[Step], *, behind: Sequence[Step] = (), timeout_s: float) -> Any:
        spoilt = (Step("select 1/0"), *behind) if behind else ()
        return pipeline(steps, behind=spoilt, timeout_s=timeout_s)

    session.script, session.pipeline = spoilt_script, spoilt_pipeline


@contextmanager
def sql_error(sqlstate: str) -> Iterator[None]:
    """The block raises an SQL error of that code, in whichever driver's class."""
    with pytest.raises(Exception) as raised:
        yield
    assert getattr(raised.value, "sqlstate", None) == sqlstate, raised.value
