"""Waits for several tasks and futures together, and cancels none of them with the caller
(:mod:`undoubt.participants.tasks`)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

from undoubt.participants.deadlines import deadlines
from undoubt.participants.tasks import Uncancellable, uncancellable

T = TypeVar("T")


async def all_done(futures: Sequence[asyncio.Future[Any]], timeout_s: float | None = None) -> None:
    """Return once all ``futures`` are done, or the time is over. Cancels none of them, also if the caller is
    cancelled.

    The same as ``asyncio.wait`` with less work: every transaction calls this several times.
    """
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()
    left = 0

    def done(_: asyncio.Future[Any]) -> None:
        nonlocal left
        left -= 1
        if not left:
            _release(waiter)

    for future in futures:
        if not future.done():
            left += 1
            future.add_done_callback(done)
    if not left:
        return
    timer = None
    if timeout_s is not None:
        timer = deadlines().call_at(loop.time() + timeout_s, partial(_release, waiter))
    try:
        await waiter
    finally:
        if timer is not None:
            timer.cancel()
        if left:
            for future in futures:
                future.remove_done_callback(done)


def _release(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def all_of(awaitables: Iterable[Awaitable[T]]) -> list[T | BaseException]:
    """Wait for ``awaitables``, which run concurrently, and ignore cancellation; returns results or exceptions
    in the given order. A future costs no task.

    If the caller itself is abandoned, the awaitables are abandoned too, and their ends are awaited.
    """
    return await _ends([_future(each) for each in awaitables], None)


async def all_within(awaitables: Iterable[Awaitable[T]], timeout_s: float) -> list[T | BaseException]:
    """Like :func:`all_of`, but what is not done after ``timeout_s`` seconds is cancelled. Its results are
    what it returns or raises then: usually ``CancelledError``."""
    return await _ends([_future(each) for each in awaitables], max(timeout_s, 0))


def _future(each: Awaitable[T]) -> asyncio.Future[T]:
    if isinstance(each, asyncio.Future):
        return each
    return uncancellable(each if asyncio.iscoroutine(each) else _awaited(each))


async def _awaited(each: Awaitable[T]) -> T:
    return await each


async def _ends(futures: Sequence[asyncio.Future[T]], timeout_s: float | None) -> list[T | BaseException]:
    try:
        await all_done(futures, timeout_s)
        if timeout_s is not None:
            await _abandoned(futures)
    except asyncio.CancelledError:
        await _abandoned(futures)
        for future in futures:
            _result(future)  # otherwise the loop would log the exception as never retrieved
        raise
    ends: list[T | BaseException] = []
    for future in futures:
        end = _result(future)
        ends.append(end)
    return ends


async def _abandoned(futures: Sequence[asyncio.Future[T]]) -> None:
    """Cancel the futures that are not done, and wait for their ends."""
    late = [future for future in futures if not future.done()]
    for future in late:
        if isinstance(future, Uncancellable):
            future.abandon()
        else:
            future.cancel()
    await all_done(late)


def _result(future: asyncio.Future[T]) -> T | BaseException:
    if future.cancelled():
        return asyncio.CancelledError()
    return future.exception() or future.result()
