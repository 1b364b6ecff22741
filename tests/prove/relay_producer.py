"""A process that publishes in transactions over two databases, until its stdin is closed.

Arguments: settings as JSON, and the number of keys. Each transaction publishes two messages of one key, and
notes in both databases that it has; some roll back. The note in the outbox's database is written behind
``publish``, which waits for the turn of the key: so the notes of a key have the order in which the messages
of the key are published."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import threading

import undoubt
from tests.prove.trap import tell
from undoubt.coordinator.errors import LedgerError

TASKS = 4
PARTS = 2
TIMEOUT_S = 30.0
ROLLED_BACK = 0.15
_ended = threading.Event()


class Regretted(Exception):
    """The application rolls back."""


def _wait_for_end() -> None:
    sys.stdin.read()
    _ended.set()


async def place(coordinator: undoubt.Coordinator, key: str) -> None:
    async with coordinator.transaction(timeout=TIMEOUT_S) as tx:
        txid = str(tx.id)
        for part in range(PARTS):
            await tx.publish("orders", {"txid": txid, "part": part}, key=key)
        orders, payments = await tx.branch("orders"), await tx.branch("payments")
        await orders.execute("insert into placed (key, txid) values ($1, $2)", key, txid)
        await payments.execute("insert into placed (key, txid) values ($1, $2)", key, txid)
        if random.random() < ROLLED_BACK:
            raise Regretted
    tell(committed=txid)


async def work(coordinator: undoubt.Coordinator, keys: int) -> None:
    while not _ended.is_set():
        try:
            await place(coordinator, f"key {random.randrange(keys)}")
        except Regretted:
            tell(rolled_back=True)
        except undoubt.UndoubtError as error:
            tell(trouble=f"{type(error).__name__}: {error}")
            await asyncio.sleep(0.1)


async def main(settings: str, keys: int) -> None:
    threading.Thread(target=_wait_for_end, daemon=True).start()
    while not _ended.is_set():
        try:
            async with undoubt.connect(json.loads(settings)) as coordinator:
                await asyncio.gather(*(work(coordinator, keys) for _ in range(TASKS)))
        except LedgerError as error:  # the process that owned the ledger has just been killed
            tell(trouble=f"{type(error).__name__}: {error}")
            await asyncio.sleep(0.1)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
