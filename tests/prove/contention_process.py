"""A coordinator's process whose transactions lock few hot rows and locks of the ledger, always in one order.

Arguments: settings as JSON, the number of tasks, and a seed. It tells the
number of waits now and then, each transaction that did not commit, and goes on until its input is closed."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from contextlib import AsyncExitStack
from random import Random

import undoubt
from tests.prove.trap import tell
from undoubt.coordinator.errors import DistributedDeadlock

ROWS = 2
ORDER = (
    ("lock", "first"),
    *(("inventory", str(row)) for row in range(ROWS)),
    *(("orders", str(row)) for row in range(ROWS)),
    ("lock", "second"),
    ("shared", "third"),
    *(("payments", str(row)) for row in range(ROWS)),
    ("lock", "fourth"),
)
"""All resources, in the order in which everybody takes them."""
TAKEN = 4
TIMEOUT_S = 60.0
FREE = "select id from item where id = $1 for update skip locked"
UPDATE = "update item set n = n + 1 where id = $1"

_ended = threading.Event()


def _wait_for_end() -> None:
    sys.stdin.read()
    _ended.set()


async def take(
    coordinator: undoubt.Coordinator,
    tx: undoubt.Transaction,
    kind: str,
    name: str,
    random: Random,
    stack: AsyncExitStack,
) -> bool:
    """Returns whether it had to wait for somebody else."""
    if kind in {"lock", "shared"}:
        shared = kind == "shared" and random.random() < 0.7
        lock = coordinator.lock(name, tx=tx, shared=shared)
        if waits := not await lock.try_acquire():
            await lock.acquire()
        stack.push_async_callback(lock.release)
        return waits
    branch = await tx.branch(kind)
    waits = not await branch.fetch(FREE, int(name))
    await branch.execute(UPDATE, int(name))
    return waits


async def work(coordinator: undoubt.Coordinator, random: Random, counts: dict[str, int]) -> None:
    while not _ended.is_set():
        chosen = sorted(random.sample(range(len(ORDER)), TAKEN))
        try:
            async with coordinator.transaction(timeout=TIMEOUT_S) as tx, AsyncExitStack() as stack:
                for place in chosen:
                    kind, name = ORDER[place]
                    waited = await take(coordinator, tx, kind, name, random, stack)
                    counts["lock_waits" if kind in {"lock", "shared"} else "row_waits"] += waited
        except undoubt.UndoubtError as error:
            victim = isinstance(getattr(error, "cause", None), DistributedDeadlock)
            tell(victim=victim, why=f"{type(error).__name__}: {error}")
        else:
            counts["committed"] += 1


async def main(settings: str, tasks: str, seed: str) -> None:
    threading.Thread(target=_wait_for_end, daemon=True).start()
    counts = {"lock_waits": 0, "row_waits": 0, "committed": 0}
    async with undoubt.connect(json.loads(settings)) as coordinator:
        tell(ready=True)
        randoms = [Random(f"{seed} {task}") for task in range(int(tasks))]  # noqa: S311 - a seed replays it
        working = asyncio.gather(*(work(coordinator, random, counts) for random in randoms))
        while not working.done():
            await asyncio.wait([working], timeout=0.5)
            tell(counts=counts)
        await working


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
