"""Tasks that cancelling does not stop.

Once PREPARE has been sent, a commit must run to its end, whatever happens to its caller: a ``wait_for`` that
times out, a request that is closed, ``asyncio.run``, which cancels all tasks of its loop before it returns. A
task of this kind ignores ``cancel()``; the shutdown of the loop then waits for the task. Only
:meth:`Uncancellable.abandon` stops it, and the coordinator calls that once its drain time is over.

``asyncio.timeout`` works by cancelling its own task. Drivers and clients use it inside such a task, and it
has to work there; otherwise a server that does not answer would be waited for without limit.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


_ON_TIMEOUT = asyncio.Timeout._on_timeout.__code__  # type: ignore[attr-defined]


class Uncancellable(asyncio.Task[T]):
    """A task whose ``cancel()`` does nothing, unless an ``asyncio.timeout`` inside it calls it."""

    def cancel(self, msg: Any | None = None) -> bool:
        caller = sys._getframe(1)
        # A timeout of another task, which awaits this one, calls this too, with its own task as ``_task``.
        if caller.f_code is _ON_TIMEOUT and caller.f_locals["self"]._task is self:
            return super().cancel(msg)
        return False

    def abandon(self) -> None:
        """Cancel the task nevertheless."""
        super().cancel()


def uncancellable(coroutine: Coroutine[Any, Any, T], *, name: str | None = None) -> Uncancellable[T]:
    """Start ``coroutine`` in the running loop as a task that cannot be cancelled."""
    return Uncancellable(coroutine, loop=asyncio.get_running_loop(), name=name)


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
    timer = None if timeout_s is None else loop.call_later(timeout_s, _release, waiter)
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


async def all_of(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T | BaseException]:
    """Run ``coroutines`` concurrently, and ignore cancellation; returns results or exceptions in the given
    order.

    If the caller itself is abandoned, the coroutines are abandoned too, and their ends are awaited.
    """
    return await _ends([uncancellable(coroutine) for coroutine in coroutines], None)


async def all_within(
    coroutines: Iterable[Coroutine[Any, Any, T]], timeout_s: float
) -> list[T | BaseException]:
    """Like :func:`all_of`, but the coroutines that are not done after ``timeout_s`` seconds are cancelled.
    Their results are what they return or raise then: usually ``CancelledError``."""
    return await _ends([uncancellable(coroutine) for coroutine in coroutines], max(timeout_s, 0))


async def _ends(tasks: Sequence[Uncancellable[T]], timeout_s: float | None) -> list[T | BaseException]:
    try:
        await all_done(tasks, timeout_s)
        if timeout_s is not None:
            await _abandoned(tasks)
    except asyncio.CancelledError:
        await _abandoned(tasks)
        for task in tasks:
            _result(task)  # otherwise the loop would log the exception as never retrieved
        raise
    return [_result(task) for task in tasks]


async def _abandoned(tasks: Sequence[Uncancellable[T]]) -> None:
    """Cancel the tasks that are not done, and wait for their ends."""
    late = [task for task in tasks if not task.done()]
    for task in late:
        task.abandon()
    await all_done(late)


def _result(task: asyncio.Task[T]) -> T | BaseException:
    if task.cancelled():
        return asyncio.CancelledError()
    return task.exception() or task.result()
