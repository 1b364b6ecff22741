"""Replaces the lock of the application's psycopg connection, and refuses its use after the end of the branch.

Every operation of psycopg holds its connection's ``lock`` as long as it uses libpq: during a statement, a
fetch of a server-side cursor, and a whole COPY, ``stream()`` or ``notifies()``. The gate takes the place of
that lock. After the gate is shut, no operation can begin, and it is known whether an operation is still
running."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Protocol

from undoubt.participants.errors import WrongLoop
from undoubt.participants.ids import Gid
from undoubt.participants.postgres.connection_proxy import after_branch


class Gate(Protocol):
    uses: int
    """How many operations have taken the lock."""
    why: Callable[[], Exception] | None
    """Makes the error that operations after ``shut`` raise in place of ``UsageError``."""

    @property
    def busy(self) -> bool: ...

    @property
    def is_shut(self) -> bool: ...

    def shut(self) -> bool:
        """Shut the gate: from now on every operation raises ``UsageError``, or the error of ``why``. True if
        an operation is still running."""
        ...

    def when_free(self, leave: Callable[[], None]) -> None:
        """Call ``leave`` when no operation is running, immediately if none is. The gate must be shut."""
        ...


def _ended(gid: Gid | str, why: Callable[[], Exception] | None) -> Exception:
    if why is not None:
        return why()
    return after_branch("the connection was used", gid)


class AsyncGate(asyncio.Lock):
    """The gate of an ``AsyncConnection``, used in one event loop."""

    def __init__(self, gid: Gid | str) -> None:
        super().__init__()
        self.uses = 0
        self.why: Callable[[], Exception] | None = None
        self._gid = gid
        self._shut = False
        self._leave: Callable[[], None] | None = None
        self._of = asyncio.get_running_loop()

    @property
    def busy(self) -> bool:
        return self.locked()

    @property
    def is_shut(self) -> bool:
        return self._shut

    def shut(self) -> bool:
        self._shut = True
        return self.locked()

    def when_free(self, leave: Callable[[], None]) -> None:
        if self.locked():
            self._leave = leave
        else:
            leave()

    async def acquire(self) -> Literal[True]:
        self.check()
        await super().acquire()
        if self._shut:
            super().release()
            raise _ended(self._gid, self.why)
        self.uses += 1
        return True

    def release(self) -> None:
        super().release()
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()

    def check(self) -> None:
        if self._shut:
            raise _ended(self._gid, self.why)
        if asyncio._get_running_loop() is not self._of:
            raise WrongLoop(
                f"a connection was used in an event loop other than that of its branch {self._gid}"
            )


class SyncGate:
    """The gate of a ``Connection``: the application's threads run operations, the engine's event loop shuts
    it."""

    def __init__(self, gid: Gid | str) -> None:
        self.uses = 0
        self.why: Callable[[], Exception] | None = None
        self._gid = gid
        self._lock = threading.Lock()
        self._shut = False
        self._leave: Callable[[], None] | None = None

    @property
    def busy(self) -> bool:
        return self._lock.locked()

    @property
    def is_shut(self) -> bool:
        return self._shut

    def shut(self) -> bool:
        # The flag first, then the check: an operation that begins after the check sees the flag.
        self._shut = True
        return self._lock.locked()

    def when_free(self, leave: Callable[[], None]) -> None:
        self._leave = leave
        if self._lock.acquire(blocking=False):
            self.release()

    def acquire(self) -> bool:
        self.check()
        self._lock.acquire()
        if self._shut:
            self.release()
            raise _ended(self._gid, self.why)
        self.uses += 1
        return True

    def release(self) -> None:
        # Release first, then check: either this call or when_free() sees that the lock is free.
        self._lock.release()
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()

    def check(self) -> None:
        if self._shut:
            raise _ended(self._gid, self.why)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
