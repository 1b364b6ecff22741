"""Tasks that cancelling does not stop.

Once PREPARE has been sent a commit must go to its end whatever becomes of the caller: an impatient
``wait_for``, a closed request, ``asyncio.run`` that cancels every task of its loop on the way out. A task of
this kind ignores ``cancel()``; the loop's shutdown then waits for it, which drains it. Only
:meth:`Uncancellable.abandon` stops it, and the coordinator does that when its drain time is over.

``asyncio.timeout`` works by cancelling its own task. Drivers and clients use it inside such a task, and it
has to work there, or a server that is silent would be waited for without end.
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
        # That of whoever awaits this task comes here too, on behalf of its own task.
        if caller.f_code is _ON_TIMEOUT and caller.f_locals["self"]._task is self:
            return super().cancel(msg)
        return False

    def abandon(self) -> None:
        """Cancel it after all."""
        super().cancel()


def uncancellable(coroutine: Coroutine[Any, Any, T], *, name: str | None = None) -> Uncancellable[T]:
    """Start ``coroutine`` in the running loop as a task that cannot be cancelled."""
    return Uncancellable(coroutine, loop=asyncio.get_running_loop(), name=name)


async def all_done(futures: Sequence[asyncio.Future[Any]], timeout_s: float | None = None) -> None:
    """Return once all of them are done, or the time is over. Cancels none, also if the caller is cancelled.

    ``asyncio.wait`` with less work: this is on every transaction's way, several times.
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
    """Run them side by side, whatever is cancelled; results or exceptions in the order given.

    If the caller itself is abandoned, so are they, and their ends are awaited.
    """
    return await _ends([uncancellable(coroutine) for coroutine in coroutines], None)


async def all_within(
    coroutines: Iterable[Coroutine[Any, Any, T]], timeout_s: float
) -> list[T | BaseException]:
    """Like :func:`all_of`, but those not done after ``timeout_s`` seconds are cancelled, and give
    whatever they make of that (``CancelledError`` unless they say otherwise)."""
    return await _ends([uncancellable(coroutine) for coroutine in coroutines], max(timeout_s, 0))


async def _ends(tasks: Sequence[Uncancellable[T]], timeout_s: float | None) -> list[T | BaseException]:
    try:
        await all_done(tasks, timeout_s)
        if timeout_s is not None:
            await _abandoned(tasks)
    except asyncio.CancelledError:
        await _abandoned(tasks)
        for task in tasks:
            _result(task)  # nobody will ask: without this the loop would log what failed as forgotten
        raise
    return [_result(task) for task in tasks]


async def _abandoned(tasks: Sequence[Uncancellable[T]]) -> None:
    """Those that are not done are cancelled, and waited for."""
    late = [task for task in tasks if not task.done()]
    for task in late:
        task.abandon()
    await all_done(late)


def _result(task: asyncio.Task[T]) -> T | BaseException:
    if task.cancelled():
        return asyncio.CancelledError()
    return task.exception() or task.result()
