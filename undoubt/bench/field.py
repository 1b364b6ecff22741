"""Starts the servers of a comparison, and the process of each contender."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

import asyncpg
import msgspec

from undoubt.bench import distance, worker
from undoubt.bench.cluster import cluster
from undoubt.bench.contenders import CONTENDERS
from undoubt.bench.contract import DATABASES, ROWS, Places, Turn
from undoubt.embedded import EmbeddedServer
from undoubt.participants.errors import UndoubtError
from undoubt.serve.local.nodes import COUNT, Nodes
from undoubt.serve.local.ports import free_ports

ANSWER_LINE_MAX = 1 << 26
"""The limit of an answer, in bytes: all latencies of a turn are one line."""
POSTGRES_PORT = 5432
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
async def field(
    names: Sequence[str], workers: int, dsns: tuple[str, str] | None, rtt_ms: float | None = None
) -> AsyncIterator[Field]:
    """All contenders, connected for up to ``workers`` workers each; without ``dsns`` on two new servers.
    ``rtt_ms``: the round-trip time between any two of the contenders, the servers and the nodes; ``None``:
    they are connected without a proxy. The ``dsns`` of the result lead to the servers themselves.

    Raises ``ServerFailed``, ``BinariesMissing``, ``NodeFailed``, :class:`ContenderFailed`.
    """
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="undoubt-bench-"))
        if dsns is None:
            dsns = await own_servers(stack, len(names) * (workers + 8) + 40)
        for dsn in dsns:
            await set_up(dsn, len(names) * ROWS)
        reached = dsns if rtt_ms is None else await _at_a_distance(stack, dsns, rtt_ms)
        nodes = None
        if any(CONTENDERS[name].cluster for name in names):
            nodes = await stack.enter_async_context(_nodes(Path(folder), reached, rtt_ms))
        contenders: dict[str, Contender] = {}
        first_rows: dict[str, int] = {}
        for number, name in enumerate(names):
            first_rows[name] = number * ROWS
            url = nodes.url if nodes is not None and CONTENDERS[name].cluster else ""
            places = Places(name, reached, first_rows[name], folder, workers, url)
            contenders[name] = await _started(name, places)
            stack.push_async_callback(contenders[name].end)
        for contender in contenders.values():
            await contender.ready()
        yield Field(dsns, contenders, first_rows, nodes)


async def own_servers(
    stack: contextlib.AsyncExitStack, connections: int, prepared: int | None = None
) -> tuple[str, str]:
    """The DSNs of a database on each of two new servers. ``prepared``: how many transactions may be prepared
    in each; as many as connections unless given."""
    settings = {
        "max_connections": str(connections),
        "max_prepared_transactions": str(connections if prepared is None else prepared),
        "shared_buffers": "128MB",
    }
    servers = [EmbeddedServer(settings) for _ in DATABASES]
    for server in servers:
        await stack.enter_async_context(server)
    one, other = [await server.create_database(name) for server, name in zip(servers, DATABASES, strict=True)]
    return one, other


@contextlib.asynccontextmanager
async def _nodes(folder: Path, dsns: tuple[str, str], rtt_ms: float | None) -> AsyncIterator[Nodes]:
    async with contextlib.AsyncExitStack() as stack:
        if rtt_ms is None:
            ports = reached_at = None
        else:
            ports = free_ports(COUNT)
            reached_at = [await _proxy(stack, port, rtt_ms) for port in ports]
        yield await stack.enter_async_context(cluster(folder, dsns, ports, reached_at))


async def _at_a_distance(
    stack: contextlib.AsyncExitStack, dsns: tuple[str, str], rtt_ms: float
) -> tuple[str, str]:
    one, other = [urlsplit(dsn) for dsn in dsns]
    ports = [await _proxy(stack, each.port or POSTGRES_PORT, rtt_ms) for each in (one, other)]
    return _with_port(one, ports[0]), _with_port(other, ports[1])


def _with_port(url: SplitResult, port: int) -> str:
    return url._replace(netloc=f"{url.netloc.rpartition(':')[0]}:{port}").geturl()


async def _proxy(stack: contextlib.AsyncExitStack, port: int, rtt_ms: float) -> int:
    """Start a proxy in front of ``port`` of this machine; return its own port."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", distance.__name__, str(port), str(round(rtt_ms * 500)),
        stdout=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    stack.push_async_callback(process.wait)
    stack.callback(process.kill)
    if process.stdout is None:
        raise ContenderFailed("a proxy has no stdout")
    return int(await process.stdout.readline())


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
