"""Starts the servers of a comparison, and the process of each contender."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NamedTuple

import asyncpg
import msgspec

from undoubt.bench import worker
from undoubt.bench.cluster import cluster
from undoubt.bench.contenders import CONTENDERS
from undoubt.bench.contract import DATABASES, ROWS, Places, Turn
from undoubt.embedded import EmbeddedServer
from undoubt.participants.errors import UndoubtError
from undoubt.serve.local.nodes import Nodes

ANSWER_LINE_MAX = 1 << 26
"""The limit of an answer, in bytes: all latencies of a turn are one line."""
GRACE_S = 60.0
"""How much longer than its turn a contender may take until it answers."""

SCHEMA = """
create table if not exists account (id int primary key, balance bigint not null) with (fillfactor = 50);
truncate account;
insert into account select id, 0 from generate_series(0, $1 - 1) id
"""


class ContenderFailed(UndoubtError):
    """A contender's process ended, or hangs; it has written its errors to stderr."""


class Field(NamedTuple):
    """Both databases, the contenders by name, and the nodes if a contender needs them."""

    dsns: tuple[str, str]
    contenders: dict[str, Contender]
    first_rows: dict[str, int]
    nodes: Nodes | None


class Contender:
    """The process of a contender, connected and waiting for its turns."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self._process = process

    async def ready(self) -> None:
        """Wait until the process is connected. Raises :class:`ContenderFailed`."""
        await self._line(0)

    async def turn(self, workers: int, seconds: float) -> Turn:
        """Run one turn and return its result. Raises :class:`ContenderFailed`."""
        if self._process.stdin is None:
            raise ContenderFailed(f"{self.name}: its process has no stdin")
        self._process.stdin.write(f"{workers} {seconds}\n".encode())
        return msgspec.json.decode(await self._line(seconds), type=Turn)

    async def end(self) -> None:
        """Wait until the process has disconnected and ended; kill it after :data:`GRACE_S` seconds."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(GRACE_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def _line(self, seconds: float) -> bytes:
        if self._process.stdout is None:
            raise ContenderFailed(f"{self.name}: its process has no stdout")
        try:
            async with asyncio.timeout(seconds + GRACE_S):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise ContenderFailed(f"{self.name}: no answer within {seconds + GRACE_S:g} s") from None
        if not line:
            status = await self._process.wait()
            raise ContenderFailed(f"{self.name}: its process ended with status {status}")
        return line


@contextlib.asynccontextmanager
async def field(names: Sequence[str], workers: int, dsns: tuple[str, str] | None) -> AsyncIterator[Field]:
    """All contenders, connected for up to ``workers`` workers each; without ``dsns`` on two new servers.

    Raises ``ServerFailed``, ``BinariesMissing``, ``NodeFailed``, :class:`ContenderFailed`.
    """
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="undoubt-bench-"))
        if dsns is None:
            dsns = await own_servers(stack, len(names) * (workers + 8) + 40)
        for dsn in dsns:
            await set_up(dsn, len(names) * ROWS)
        nodes = None
        if any(CONTENDERS[name].cluster for name in names):
            nodes = await stack.enter_async_context(cluster(Path(folder), dsns))
        contenders: dict[str, Contender] = {}
        first_rows: dict[str, int] = {}
        for number, name in enumerate(names):
            first_rows[name] = number * ROWS
            url = nodes.url if nodes is not None and CONTENDERS[name].cluster else ""
            places = Places(name, dsns, first_rows[name], folder, workers, url)
            contenders[name] = await _started(name, places)
            stack.push_async_callback(contenders[name].end)
        for contender in contenders.values():
            await contender.ready()
        yield Field(dsns, contenders, first_rows, nodes)


async def own_servers(stack: contextlib.AsyncExitStack, connections: int) -> tuple[str, str]:
    settings = {
        "max_connections": str(connections),
        "max_prepared_transactions": str(connections),
        "shared_buffers": "128MB",
    }
    servers = [EmbeddedServer(settings) for _ in DATABASES]
    for server in servers:
        await stack.enter_async_context(server)
    one, other = [await server.create_database(name) for server, name in zip(servers, DATABASES, strict=True)]
    return one, other


async def set_up(dsn: str, rows: int) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        *before, insert = SCHEMA.split(";")
        await connection.execute(";".join(before))
        await connection.execute(insert, rows)
        await connection.execute("checkpoint")
    finally:
        await connection.close()


async def _started(name: str, places: Places) -> Contender:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", worker.__name__, msgspec.json.encode(places).decode(),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=ANSWER_LINE_MAX,
        start_new_session=True,  # Ctrl-C must reach only the parent, which ends all in order
    )  # fmt: skip
    return Contender(name, process)
