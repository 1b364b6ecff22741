"""Streaming standbys of embedded servers: they are copied, promoted, and follow each other."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from tests.prove.bank import set_up
from undoubt.embedded import EmbeddedServer
from undoubt.embedded.binaries import bin_folder
from undoubt.embedded.server import run_program
from undoubt.participants.postgres.schema import migrate
from undoubt.participants.settings import ParticipantSettings

WITHIN_S = 120.0
REPLICATION = ["host replication all 127.0.0.1/32 scram-sha-256"]
"""The line of ``pg_hba.conf`` that a primary needs."""


@asynccontextmanager
async def standby_of(primary: EmbeddedServer) -> AsyncIterator[EmbeddedServer]:
    """A streaming standby, copied from ``primary``, which is stopped now."""
    if primary.folder is None:
        raise RuntimeError("the primary was never started")
    folder = Path(tempfile.mkdtemp(prefix="undoubt-standby-"))
    await asyncio.to_thread(shutil.copytree, primary.folder / "data", folder / "data", symlinks=True)
    owner = primary.folder.stat()
    for place in (folder, *folder.rglob("*")):
        os.chown(place, owner.st_uid, owner.st_gid)
    folder.chmod(0o700)
    standby = EmbeddedServer(dict(primary.settings))
    standby.folder = folder
    _follow(standby, primary)
    async with standby:
        yield standby


async def bank_with_standby(
    stack: AsyncExitStack, database: str, settings: dict[str, str] | None = None
) -> tuple[dict[str, str], EmbeddedServer, EmbeddedServer]:
    """The databases of :mod:`.bank` on servers that end with ``stack``: their dsns, the primary of
    ``payments``, which is stopped, and its standby."""
    orders = await stack.enter_async_context(EmbeddedServer())
    primary = await stack.enter_async_context(EmbeddedServer(settings, hba=REPLICATION))
    dsns = {
        "orders": await orders.create_database(database),
        "payments": await primary.create_database(database),
    }
    await set_up(dsns)
    for name, dsn in dsns.items():
        await migrate(name, ParticipantSettings(dsn=dsn))
    await primary.stop()
    return dsns, primary, await stack.enter_async_context(standby_of(primary))


async def rewound(server: EmbeddedServer, primary: EmbeddedServer) -> None:
    """Start ``server``, a former primary that was killed, as a standby of ``primary``, as Patroni does it:
    ``pg_rewind`` (https://www.postgresql.org/docs/current/app-pgrewind.html), then streaming."""
    if server.folder is None:
        raise RuntimeError("the server was never started")
    for each in (server, primary):
        _configure(each)
    command = [str(bin_folder() / "pg_rewind"), f"--target-pgdata={server.folder / 'data'}"]
    command += [f"--source-server={_source(primary)} dbname=postgres", "--no-sync"]
    await asyncio.to_thread(run_program, command)
    _follow(server, primary)
    await server.start()


async def promote(standby: EmbeddedServer, *, by_program: bool) -> None:
    """Promote it by ``pg_ctl promote``, or by a statement."""
    if by_program and standby.folder is not None:
        command = [str(bin_folder() / "pg_ctl"), "promote", "-w", "-D", str(standby.folder / "data")]
        await asyncio.to_thread(run_program, command)
    else:
        await ask(standby, "select pg_promote()")


def either(dsn: str, port: int) -> str:
    """``dsn`` with a second host, on that port; the driver looks for the one that can be written."""
    parts = urlsplit(dsn)
    user, _, address = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user}@{address},127.0.0.1:{port}"))


async def ask(server: EmbeddedServer, sql: str) -> Any:
    """The first value of the first row; None if there is none."""
    connection = await asyncpg.connect(server.socket_dsn())
    try:
        rows = await connection.fetch(sql)
        return rows[0][0] if rows else None
    finally:
        with suppress(OSError, asyncpg.PostgresError):
            await connection.close()


async def until(server: EmbeddedServer, sql: str) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not await ask(server, sql):
            await asyncio.sleep(0.02)


async def streaming(primary: EmbeddedServer) -> None:
    """Wait until a standby has received everything."""
    await until(
        primary,
        "select exists (select from pg_stat_replication"
        " where state = 'streaming' and flush_lsn >= pg_current_wal_lsn())",
    )


def _follow(standby: EmbeddedServer, primary: EmbeddedServer) -> None:
    if standby.folder is None:
        raise RuntimeError("the standby has no data")
    signal = standby.folder / "data" / "standby.signal"
    signal.touch()
    owner = standby.folder.stat()
    os.chown(signal, owner.st_uid, owner.st_gid)
    standby.settings |= {"primary_conninfo": _source(primary), "wal_retrieve_retry_interval": "100ms"}


def _configure(server: EmbeddedServer) -> None:
    """``pg_rewind`` starts the server for its crash recovery, which reads this setting from the file only;
    and it copies the file of the other one."""
    if server.folder is not None:
        line = f"max_prepared_transactions = {server.settings['max_prepared_transactions']}\n"
        file = server.folder / "data" / "postgresql.conf"
        if not file.read_text().endswith(line):
            with file.open("a") as configuration:
                configuration.write(line)


def _source(primary: EmbeddedServer) -> str:
    return f"host=127.0.0.1 port={primary.port} user=postgres password={primary.password}"
