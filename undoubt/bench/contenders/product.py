"""undoubt as an application uses it: as the library's documentation shows, without optimisations."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import undoubt
import undoubt.sync
from undoubt.bench.contract import DATABASES, UPDATE, AsyncContender, Places, SyncContender

UPDATE_IN_THREADS = UPDATE.replace("$1", "%s")
"""The update with psycopg's placeholder."""


class Product:
    """undoubt with asyncio: both branches in parallel, like the naive contender."""

    def __init__(self, coordinator: undoubt.Coordinator, first_row: int) -> None:
        self._coordinator = coordinator
        self._first_row = first_row

    async def transfer(self, worker: int) -> None:
        async with self._coordinator.transaction() as tx:
            await asyncio.gather(*(self._add(tx, name, self._first_row + worker) for name in DATABASES))

    async def _add(self, tx: undoubt.Transaction, name: str, row: int) -> None:
        connection = await tx.branch(name)
        await connection.execute(UPDATE, row)


def configuration(places: Places, ledger: Mapping[str, Any], protocol: str = "2pc") -> dict[str, Any]:
    """The settings, as in ``undoubt.toml``, with pools as large as the number of workers."""
    participants = {
        name: {"dsn": dsn, "connections_max": places.workers}
        for name, dsn in zip(DATABASES, places.dsns, strict=True)
    }
    chosen = {"protocol": protocol} | ({"agent": DATABASES[-1]} if protocol == "last" else {})
    return {"ledger": dict(ledger), "participants": participants, "coordinator": chosen}


class ProductInThreads:
    """undoubt.sync, with a thread for each worker."""

    def __init__(self, coordinator: undoubt.sync.Coordinator, first_row: int) -> None:
        self._coordinator = coordinator
        self._first_row = first_row

    def transfer(self, worker: int) -> None:
        with self._coordinator.transaction() as tx:
            for connection in tx.branches(*DATABASES):
                connection.execute(UPDATE_IN_THREADS, (self._first_row + worker,))


@contextlib.asynccontextmanager
async def sqlite(places: Places) -> AsyncIterator[AsyncContender]:
    async with undoubt.connect(configuration(places, _in_a_file(places))) as coordinator:
        yield Product(coordinator, places.first_row)


@contextlib.contextmanager
def sqlite_sync(places: Places) -> Iterator[SyncContender]:
    with undoubt.sync.connect(configuration(places, _in_a_file(places))) as coordinator:
        yield ProductInThreads(coordinator, places.first_row)


def _in_a_file(places: Places) -> dict[str, str]:
    return {"url": f"sqlite:///{places.folder}/{places.contender}.db"}
