"""Where tests get PostgreSQL servers from: one provider, three ways.

``UNDOUBT_TEST_DSN`` names an existing server (a superuser's DSN; max_prepared_transactions must be set).
Else the embedded wheel, or Debian's server, starts one. Else testcontainers, where Docker answers. Tests that
kill servers always start their own.
"""

from __future__ import annotations

import abc
import asyncio
import functools
import os
import secrets
import socket
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import psycopg

from undoubt.embedded import BinariesMissing, EmbeddedServer
from undoubt.embedded.binaries import bin_folder

ENV_DSN = "UNDOUBT_TEST_DSN"
_T = TypeVar("_T")


async def column(dsn: str, statement: str) -> list[Any]:
    """The first column of what a SELECT gives, on a connection of its own; of other statements nothing."""
    connection = await asyncpg.connect(dsn)
    try:
        if not statement.startswith("select"):
            await connection.execute(statement)
            return []
        return [row[0] for row in await connection.fetch(statement)]
    finally:
        await connection.close()


class Control:
    """Makes and drops databases on one connection that is kept: to connect for each costs more than the drop.

    ``loses_data``: a crash of the server may lose its data. Such a server copies the files of template1, with
    the relation cache that a first session has left there: a third of the work of writing each page to the
    WAL (CREATE DATABASE, STRATEGY). A durable server would have to sync 300 files.
    """

    def __init__(self, dsn: str, template1: str, *, loses_data: bool) -> None:
        self._connection = psycopg.connect(dsn, autocommit=True)
        copied = loses_data and self._connection.info.server_version >= 150000
        self._strategy = " strategy file_copy" if copied else ""
        psycopg.connect(template1).close()

    def create(self, name: str, template: str = "template1") -> None:
        """A copy of ``template``, to which nobody may be connected."""
        self._execute(f'create database "{name}" template "{template}"{self._strategy}')

    def prepared(self, name: str) -> list[str]:
        """The gids that are prepared in database ``name``."""
        rows = self._execute("select gid from pg_prepared_xacts where database = %s order by gid", name)
        return [row[0] for row in rows.fetchall()]

    def drop(self, name: str) -> None:
        self._execute(f'drop database "{name}" with (force)')

    def close(self) -> None:
        self._connection.close()

    def _execute(self, statement: str, *parameters: str) -> psycopg.Cursor[tuple[Any, ...]]:
        return self._connection.execute(statement.encode(), parameters or None)


class Server(abc.ABC):
    """A running server with max_prepared_transactions of at least 20."""

    loses_data = False

    @abc.abstractmethod
    def dsn(self, database: str = "postgres") -> str:
        """A superuser's."""

    @functools.cached_property
    def control(self) -> Control:
        return Control(self.dsn(), self.dsn("template1"), loses_data=self.loses_data)

    def close(self) -> None:
        """Also end the server, if it is ours to end."""
        if "control" in vars(self):
            self.control.close()


class Embedded(Server):
    loses_data = True

    def __init__(self) -> None:
        self.server = EmbeddedServer(durable=False)
        run_apart(self.server.start())

    def dsn(self, database: str = "postgres") -> str:
        return self.server.dsn(database)

    def close(self) -> None:
        super().close()
        run_apart(self.server.close())


def run_apart(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """``asyncio.run`` would take the loop away that pytest-asyncio has set for this thread."""
    loop = asyncio.new_event_loop()
    try:
        result = loop.run_until_complete(coroutine)
        loop.run_until_complete(loop.shutdown_default_executor())
        return result
    finally:
        loop.close()


class Existing(Server):
    def __init__(self, dsn: str) -> None:
        self._parts = urlsplit(dsn)

    def dsn(self, database: str = "postgres") -> str:
        return urlunsplit(self._parts._replace(path=f"/{database}"))


class Container(Existing):
    def __init__(self) -> None:
        from testcontainers.community.postgres import PostgresContainer  # noqa: PLC0415 - needs Docker

        self._container = PostgresContainer("postgres:18", driver=None).with_command(
            "postgres -c max_prepared_transactions=100"
        )
        self._container.start()
        super().__init__(self._container.get_connection_url())

    def close(self) -> None:
        super().close()
        self._container.stop()


def why_no_docker() -> str | None:
    """None where a Docker engine answers, else the reason why testcontainers cannot be used."""
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if host.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as door:  # first, since docker's client leaks its socket here
            try:
                door.connect(host.removeprefix("unix://"))
            except OSError as error:
                return f"no Docker engine answers on {host}: {error}"
    import docker  # noqa: PLC0415 - comes with testcontainers

    try:
        client = docker.from_env()
        client.ping()
        client.close()
    except docker.errors.DockerException as error:
        return f"no Docker engine answers: {error}"
    return None


def new_server() -> Server:
    if dsn := os.environ.get(ENV_DSN):
        return Existing(dsn)
    try:
        bin_folder()
    except BinariesMissing:
        return Container()
    return Embedded()


@asynccontextmanager
async def fresh_database(server: Server, stem: str) -> AsyncIterator[str]:
    """The DSN of a new, empty database; at the end nothing may be left prepared in it, and it is dropped."""
    name = f"{stem}_{secrets.token_hex(4)}"
    server.control.create(name)
    yield server.dsn(name)
    left = server.control.prepared(name)
    if left:
        await _roll_back(server.dsn(name), left)
    server.control.drop(name)
    assert not left, f"left prepared in {stem}: {left}"


async def _roll_back(dsn: str, gids: list[str]) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        for gid in gids:
            await connection.execute(f"rollback prepared '{gid}'")
    finally:
        await connection.close()


async def prepared(dsn: str) -> list[str]:
    """The gids of that database's prepared transactions."""
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch(
            "select gid from pg_prepared_xacts where database = current_database() order by gid"
        )
        return [row["gid"] for row in rows]
    finally:
        await connection.close()


async def execute(dsn: str, sql: str) -> None:
    """Run ``sql`` on a connection of its own."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


async def fetch(dsn: str, sql: str) -> list[tuple[Any, ...]]:
    """The rows of ``sql``, on a connection of its own."""
    connection = await asyncpg.connect(dsn)
    try:
        return [tuple(row) for row in await connection.fetch(sql)]
    finally:
        await connection.close()
