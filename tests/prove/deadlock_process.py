"""A coordinator's process whose transactions join in circles of waits, as it is told on stdin.

Arguments: settings as JSON, and the timeout of each transaction in seconds. A line of stdin is
``{"id": …, "has": resource, "wants": resource}``: a transaction begins, takes the first one, and tells that;
or ``{"id": …, "go": true}``: it asks for the second one, and ends. A resource is
``["row", database, number]``, ``["lock", name, 0]``, or ``["deferred", database, number]``: a row that a
deferred trigger updates when the branch is being prepared.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import AsyncExitStack
from typing import Any

import undoubt
from tests.prove.trap import tell
from undoubt.coordinator.errors import DistributedDeadlock

Resource = list[Any]

UPDATE = "update item set n = n + 1 where id = $1"
DEFER = "insert into later (item) values ($1)"


async def take(
    coordinator: undoubt.Coordinator, tx: undoubt.Transaction, resource: Resource, stack: AsyncExitStack
) -> None:
    kind, place, number = resource
    if kind == "lock":
        await stack.enter_async_context(coordinator.lock(place, tx=tx))
    else:
        branch = await tx.branch(place)
        await branch.execute(UPDATE if kind == "row" else DEFER, number)


async def join(
    coordinator: undoubt.Coordinator, asked: dict[str, Any], go: asyncio.Event, timeout: float
) -> None:
    name = asked["id"]
    try:
        async with coordinator.transaction(timeout=timeout) as tx, AsyncExitStack() as stack:
            await take(coordinator, tx, asked["has"], stack)
            tell(has=name, txid=str(tx.id))
            await go.wait()
            await take(coordinator, tx, asked["wants"], stack)
    except undoubt.TransactionAborted as error:
        outcome = "victim" if isinstance(error.cause, DistributedDeadlock) else "failed"
        tell(id=name, outcome=outcome, why=str(error), at=time.monotonic())
    except undoubt.UndoubtError as error:
        tell(id=name, outcome="failed", why=f"{type(error).__name__}: {error}", at=time.monotonic())
    else:
        tell(id=name, outcome="committed", why="", at=time.monotonic())


async def main(settings: str, timeout: str) -> None:
    loop = asyncio.get_running_loop()
    tasks: dict[str, tuple[asyncio.Task[None], asyncio.Event]] = {}
    async with undoubt.connect(json.loads(settings)) as coordinator:
        tell(ready=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            asked = json.loads(line)
            if "go" in asked:
                tasks[asked["id"]][1].set()
                continue
            go = asyncio.Event()
            task = asyncio.create_task(join(coordinator, asked, go, float(timeout)))
            tasks[asked["id"]] = (task, go)
        await asyncio.gather(*(task for task, _ in tasks.values()))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
