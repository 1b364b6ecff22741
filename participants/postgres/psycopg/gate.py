"""The gate before the application's psycopg connection: who is inside, and whether anybody may still enter.

Every operation of psycopg holds its connection's ``lock`` for as long as it uses libpq: a statement, a fetch
of a server-side cursor, and the whole of a COPY, of a ``stream()`` or of ``notifies()``. The gate takes that
lock's place. Once it is shut nobody enters any more; who is inside by then is known.
"""

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
    used: bool
    """Somebody has been inside."""
    why: Callable[[], Exception] | None
    """What whoever comes after ``shut`` gets, in the place of ``UsageError``."""

    @property
    def busy(self) -> bool: ...

    @property
    def is_shut(self) -> bool: ...

    def shut(self) -> bool:
        """From now on everybody who enters gets ``UsageError``. True if somebody is still inside."""
        ...

    def when_free(self, leave: Callable[[], None]) -> None:
        """Call ``leave`` once nobody is inside any more; at once if nobody is. The gate is shut."""
        ...


def _ended(gid: Gid | str, why: Callable[[], Exception] | None) -> Exception:
    if why is not None:
        return why()
    return after_branch("the connection was used", gid)


class AsyncGate(asyncio.Lock):
    """For ``AsyncConnection``: within one event loop."""

    def __init__(self, gid: Gid | str) -> None:
        super().__init__()
        self.used = False
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
        self.used = True
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
                f"a connection was used in another event loop than that of its branch {self._gid}"
            )


class SyncGate:
    """For ``Connection``: the application's threads are inside, the engine's event loop shuts."""

    def __init__(self, gid: Gid | str) -> None:
        self.used = False
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
        # First the flag, then the look: who gets in after the look sees the flag.
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
        self.used = True
        return True

    def release(self) -> None:
        # First out, then the look: either this or when_free() sees the other.
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
