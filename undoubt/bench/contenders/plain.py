"""Hand-written commits on asyncpg. Each worker has its own connections, so that there is no cost of a
pool."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator
from typing import Any

import asyncpg

from undoubt.bench.contract import UPDATE, AsyncContender, Places


class Local:
    """Two unrelated commits in parallel: not atomic, and the lower bound of the cost."""

    def __init__(self, pairs: list[tuple[Any, Any]], first_row: int) -> None:
        self._pairs = pairs
        self._first_row = first_row

    async def transfer(self, worker: int) -> None:
        row = self._first_row + worker
        await asyncio.gather(*(connection.execute(UPDATE, row) for connection in self._pairs[worker]))


class Naive:
    """``begin``, the update, ``prepare transaction``, ``commit prepared``: in both databases in parallel,
    without a record, and without a check of the answers. A crash between the last two leaves the transaction
    in doubt for ever."""

    def __init__(self, pairs: list[tuple[Any, Any]], first_row: int) -> None:
        self._pairs = pairs
        self._first_row = first_row
        self._numbers = itertools.count()
        self._name = f"naive-{os.getpid()}"

    async def transfer(self, worker: int) -> None:
        row = self._first_row + worker
        name = f"{self._name}-{next(self._numbers)}"
        pair = self._pairs[worker]
        await asyncio.gather(*(self._prepare(connection, row, name) for connection in pair))
        await asyncio.gather(*(connection.execute(f"commit prepared '{name}'") for connection in pair))

    async def _prepare(self, connection: Any, row: int, name: str) -> None:
        await connection.execute("begin")
        await connection.execute(UPDATE, row)
        await connection.execute(f"prepare transaction '{name}'")


@contextlib.asynccontextmanager
async def _connected(places: Places) -> AsyncIterator[list[tuple[Any, Any]]]:
    async with contextlib.AsyncExitStack() as stack:
        pairs = []
        for _ in range(places.workers):
            one, other = [await asyncpg.connect(dsn) for dsn in places.dsns]
            stack.push_async_callback(one.close)
            stack.push_async_callback(other.close)
            pairs.append((one, other))
        yield pairs


@contextlib.asynccontextmanager
async def local(places: Places) -> AsyncIterator[AsyncContender]:
    async with _connected(places) as pairs:
        yield Local(pairs, places.first_row)


@contextlib.asynccontextmanager
async def naive(places: Places) -> AsyncIterator[AsyncContender]:
    async with _connected(places) as pairs:
        yield Naive(pairs, places.first_row)
