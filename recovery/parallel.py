"""Work on several branches at once, up to a limit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def each(items: Iterable[T], work: Callable[[T], Awaitable[None]], *, parallel: int) -> None:
    """Call ``work`` on every item, ``parallel`` at a time, in the order of ``items``.

    After the first exception no further item is begun, the running ones are cancelled, and the exception is
    raised. If this call is cancelled, it waits until all running ones have ended.
    """
    listed = list(items)
    waiting = iter(listed)

    async def consume() -> None:
        for item in waiting:
            await work(item)

    tasks = [
        asyncio.create_task(consume(), name="undoubt-recovery branches")
        for _ in range(min(parallel, len(listed)))
    ]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
