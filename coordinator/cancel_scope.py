"""Cancels the task inside an ``async with`` block, if the cancellation passes the block.

``task.cancel()`` is right only if the ``CancelledError`` passes the block's ``__aexit__``, which takes the
request back and raises the reason instead. It passes if a coroutine that the task runs contains the block. It
does not pass if an async generator yielded inside the block, or if a fixture or an exit stack entered the
block: the error would then reach code outside the block, which would take it for a cancellation by its own
caller (PEP 789 describes these cases). No scope is made in these cases, and the owner of the block has to
report the reason by other means.
"""

from __future__ import annotations

import asyncio
import contextlib
import dis
import inspect
from functools import lru_cache
from types import CodeType, FrameType

_WRAPPER = contextlib._AsyncGeneratorContextManager.__aenter__.__code__
"""The code of ``__aenter__`` of ``@contextlib.asynccontextmanager``, whose block throws into the generator
what is raised inside the block."""

_FROM_ASYNC_WITH = 1
"""The argument of GET_AWAITABLE if the awaitable was returned by ``__aenter__`` of an ``async with``
(CPython's documentation of ``dis``, since 3.11)."""


class CancelScope:
    """One block and the task inside it. Call ``cancel`` at most once, then ``leave`` from the block's
    ``__aexit__``."""

    def __init__(self, task: asyncio.Task[object]) -> None:
        self._task = task
        self._before = task.cancelling()
        """The number of earlier requests that the task has not taken back; the block must not take these
        back."""
        self._requested = False

    @classmethod
    def entered_from(cls, frame: FrameType | None) -> CancelScope | None:
        """Return a scope for the current task; call it in ``__aenter__``, before its first ``await``.
        ``frame`` is the frame that awaits ``__aenter__``. None if a cancellation might not pass the block."""
        task = asyncio.current_task()
        return cls(task) if task is not None and _in_a_coroutines_block(frame) else None

    def cancel(self) -> bool:
        """Cancel the task. Returns False if the task has ended or cannot be cancelled."""
        self._requested = self._task.cancel()
        return self._requested

    async def leave(self, error: BaseException | None) -> bool:
        """Take the request back; ``error`` is what the block raised. Returns True if a ``CancelledError`` has
        to leave the block nevertheless: the task was cancelled by other code too, and would not be cancelled
        again."""
        delivered = isinstance(error, asyncio.CancelledError)
        if not self._requested:
            return delivered
        if not delivered:
            # The request is not delivered yet, or was swallowed in the block. A request that is still pending
            # must not reach the code after the block.
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                delivered = True
        return self._task.uncancel() > self._before and delivered


def _in_a_coroutines_block(frame: FrameType | None) -> bool:
    while frame is not None and _awaits_aenter(frame):
        if frame.f_code.co_flags & inspect.CO_COROUTINE:
            return True
        # A generator: look at the block around the generator, if there is one.
        frame = frame.f_back
        if frame is None or frame.f_code is not _WRAPPER:
            return False
        frame = frame.f_back
    return False


def _awaits_aenter(frame: FrameType) -> bool:
    return any(first <= frame.f_lasti < behind for first, behind in _awaited_aenters(frame.f_code))


@lru_cache(maxsize=1024)
def _awaited_aenters(code: CodeType) -> tuple[tuple[int, int], ...]:
    """The ranges of bytecode in which ``code`` awaits the ``__aenter__`` of an ``async with``: first offset,
    and the offset after the last."""
    found = []
    first: int | None = None
    sent = False
    for instruction in dis.get_instructions(code):
        if sent and first is not None:
            found.append((first, instruction.offset))
            first = None
        if instruction.opname == "GET_AWAITABLE":
            first = instruction.offset if instruction.arg == _FROM_ASYNC_WITH else None
        sent = instruction.opname == "SEND"
    return tuple(found)
