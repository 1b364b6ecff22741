"""Whether, and how, the task inside an ``async with`` block is cancelled so that the block itself hears of
it.

``task.cancel()`` is right only if the ``CancelledError`` passes the ``__aexit__`` of the block, which takes
it back and tells the reason. It does where a coroutine that the task runs stands in the block. It does not
where an async generator yielded inside the block, or a fixture or an exit stack entered it: the error would
then hit code that is outside, as if somebody else had cancelled that task (PEP 789 describes these cases).
There is no scope in these cases, and the block's owner has to tell the reason by other means.
"""

from __future__ import annotations

import asyncio
import contextlib
import dis
import inspect
from functools import lru_cache
from types import CodeType, FrameType

_WRAPPER = contextlib._AsyncGeneratorContextManager.__aenter__.__code__
"""Of ``@contextlib.asynccontextmanager``: its block throws into the generator what is raised in it."""

_FROM_ASYNC_WITH = 1
"""The argument of GET_AWAITABLE for what ``__aenter__`` of an ``async with`` returned (CPython's
documentation of ``dis``, since 3.11)."""


class CancelScope:
    """One block and the task in it. ``cancel`` at most once, then ``leave`` from the block's
    ``__aexit__``."""

    def __init__(self, task: asyncio.Task[object]) -> None:
        self._task = task
        self._before = task.cancelling()
        """Requests that the task has not taken back: of these the block must not speak."""
        self._requested = False

    @classmethod
    def entered_from(cls, frame: FrameType | None) -> CancelScope | None:
        """For ``__aenter__``, before its first ``await``; ``frame`` is the one that awaits it. None where a
        cancellation might miss the block."""
        task = asyncio.current_task()
        return cls(task) if task is not None and _in_a_coroutines_block(frame) else None

    def cancel(self) -> bool:
        """Cancel the task. False if it has ended, or cannot be cancelled."""
        self._requested = self._task.cancel()
        return self._requested

    async def leave(self, error: BaseException | None) -> bool:
        """Take the request back; ``error`` is what the block raised. True if a ``CancelledError`` has to
        leave the block all the same: somebody else has cancelled the task, and nothing else will tell it."""
        delivered = isinstance(error, asyncio.CancelledError)
        if not self._requested:
            return delivered
        if not delivered:
            # Not delivered yet, or swallowed in the block. What still comes must not hit the code behind it.
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                delivered = True
        return self._task.uncancel() > self._before and delivered


def _in_a_coroutines_block(frame: FrameType | None) -> bool:
    while frame is not None and _awaits_aenter(frame):
        if frame.f_code.co_flags & inspect.CO_COROUTINE:
            return True
        # A generator: what counts is the block around it, if one is there.
        frame = frame.f_back
        if frame is None or frame.f_code is not _WRAPPER:
            return False
        frame = frame.f_back
    return False


def _awaits_aenter(frame: FrameType) -> bool:
    return any(first <= frame.f_lasti < behind for first, behind in _awaited_aenters(frame.f_code))


@lru_cache(maxsize=1024)
def _awaited_aenters(code: CodeType) -> tuple[tuple[int, int], ...]:
    """Where in ``code`` an ``async with`` awaits its ``__aenter__``: first offset, and the one behind."""
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
