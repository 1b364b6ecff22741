"""undoubt, as a user writes it: nothing here is faster than the library's own documentation."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import undoubt
from undoubt.bench.contract import DATABASES, UPDATE, AsyncContender, Places


class Product:
    """Both branches in parallel, as the naive contender has them."""

    def __init__(self, coordinator: undoubt.Coordinator, first_row: int) -> None:
        self._coordinator = coordinator
        self._first_row = first_row

    async def transfer(self, worker: int) -> None:
        async with self._coordinator.transaction() as tx:
            await asyncio.gather(*(self._add(tx, name, self._first_row + worker) for name in DATABASES))

    async def _add(self, tx: undoubt.Transaction, name: str, row: int) -> None:
        connection = await tx.branch(name)
        await connection.execute(UPDATE, row)


def configuration(places: Places, ledger: Mapping[str, Any]) -> dict[str, Any]:
    """As ``undoubt.toml`` would have it; pools as large as the number of workers."""
    participants = {
        name: {"dsn": dsn, "connections_max": places.workers}
        for name, dsn in zip(DATABASES, places.dsns, strict=True)
    }
    return {"ledger": dict(ledger), "participants": participants}


@contextlib.asynccontextmanager
async def sqlite(places: Places) -> AsyncIterator[AsyncContender]:
    ledger = {"url": f"sqlite:///{places.folder}/{places.contender}.db"}
    async with undoubt.connect(configuration(places, ledger)) as coordinator:
        yield Product(coordinator, places.first_row)
