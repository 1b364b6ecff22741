"""A distributed lock for threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, TypeVar, cast

from undoubt.coordinator.locks import Lock as EngineLock
from undoubt.participants.errors import UndoubtError
from undoubt.sync.portal import Portal

T = TypeVar("T")


class Lock:
    """``with coordinator.lock(name) as lock``, or :meth:`acquire` and :meth:`release`; made by
    :meth:`undoubt.sync.Coordinator.lock`. One thread at a time may use it."""

    def __init__(self, portal: Portal, engine: EngineLock) -> None:
        self._portal = portal
        self._engine = engine
        self._turn = asyncio.Lock()
        """In the loop: held while the lock is asked for, or given back after an interruption."""
        self._asking: set[asyncio.Task[Any]] = set()
        """The calls in the loop that ask for the lock, or are about to."""

    @property
    def engine(self) -> EngineLock:
        """The lock that works in the portal's loop."""
        return self._engine

    @property
    def name(self) -> str:
        return self._engine.name

    @property
    def token(self) -> int:
        """The fencing token: higher than the tokens of all earlier holders. Raises ``UsageError`` if the lock
        was not acquired."""
        return self._engine.token

    @property
    def held(self) -> bool:
        """Whether it is certain at this moment that no other process has the lock."""
        return self._portal.call(self._held)

    def check(self) -> None:
        """Raise ``LockLost`` unless the lock is :attr:`held`."""
        self._portal.call(self._check)

    def acquire(self) -> Lock:
        """Wait for the lock. Raises ``LockTimeout``, and what :meth:`undoubt.coordinator.locks.Lock.acquire`
        raises. If the handler of a signal raises meanwhile (``KeyboardInterrupt``, a time limit), the wait
        ends, and a lock that was granted is given back."""
        self._take(self._engine.acquire)
        return self

    def try_acquire(self) -> bool:
        """Take the lock if it is free now; returns whether it was. Raises as :meth:`acquire` does."""
        return self._take(self._engine.try_acquire)

    def _take(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        try:
            taken: T = self._portal.call(self._ask, function)
        except UndoubtError:
            raise
        except BaseException:  # an interruption: the call goes on in the loop, and no caller would release
            self._portal.post(self._give_up)
            raise
        return taken

    def release(self) -> bool:
        """Give the lock back; returns whether it is certain that it was held until then. Does nothing, and
        returns False, if it is not acquired."""
        return self._portal.call(self._engine.release)

    def guard(self, connection: object) -> None:
        """Have the database of a branch refuse a stale holder: the branch's first statement. ``connection``
        is what ``tx.branch`` returned. Raises ``StaleLock``, ``LockLost``, ``ParticipantRefused``."""
        self._portal.call(self._engine.guard, connection)

    def __enter__(self) -> Lock:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._portal.call(self._engine.__aexit__, kind, error, trace)

    # In the loop.

    async def _ask(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._asking.add(task)
        try:
            async with self._turn:
                return await function()
        finally:
            self._asking.discard(task)

    async def _give_up(self) -> None:
        for task in self._asking:
            task.cancel()
        async with self._turn:
            await self._engine.release()

    async def _held(self) -> bool:
        return self._engine.held

    async def _check(self) -> None:
        self._engine.check()
