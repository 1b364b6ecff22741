"""Several branches at once, but never more than so many."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def each(items: Iterable[T], work: Callable[[T], Awaitable[None]], *, parallel: int) -> None:
    """``work`` on every item, ``parallel`` at a time, begun in their order.

    The first exception ends it: nothing further is begun, what is under way is cancelled, and that exception
    is raised. Cancelled itself, it waits until all of it has ended.
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
