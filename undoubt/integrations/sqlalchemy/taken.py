"""A connection of a session's as the engine has it.

It knows nothing of the session, of its transaction or of SQLAlchemy's connection: the engine and the pool
hold on to it for as long as the branch is open, and a session that is dropped without ``close()`` must be
collected all the same, as SQLAlchemy's own is. Its connections then go back to their pools, which roll them
back.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import threading
from collections.abc import Callable
from typing import Any

from undoubt.coordinator.transaction import Transaction
from undoubt.integrations.sqlalchemy.adopted import Adopted
from undoubt.participants.errors import UsageError
from undoubt.participants.postgres.pool import Slot
from undoubt.participants.postgres.session import FATAL, NoAnswer, NotSent, ServerError, close_in_background
from undoubt.participants.postgres.sqlstate import lost, with_setting
from undoubt.participants.sql import literal

LOST_GRACE_S = 0.5
"""A session that is dropped drops all of its connections; while pools roll them back, nobody interrupts."""


OnLost = Callable[[float, ServerError | None], None]
"""Is given the seconds after which the transaction has to abort, and the last error that the application got
there."""


class LoanState(enum.Enum):
    OURS = "ours"
    """The engine may send something through the connection at any time."""
    READY = "ready"
    """The engine has done with it and left it as it was."""
    BROKEN = "broken"
    """The engine has done with it, and nobody else may use it."""
    GONE = "gone"
    """The session has taken it back, or left it to the engine for good."""


class Taken:
    """Made in the engine's loop. ``timeout_s``: how long one of undoubt's own statements may take."""

    def __init__(self, adopted: Adopted, timeout_s: float) -> None:
        self._adopted = adopted
        self._timeout_s = timeout_s
        self._application_name = adopted.session.application_name
        self._state = LoanState.OURS
        self._lock = threading.Lock()
        """Over ``_state``: the engine's thread and the session's may want it at once."""
        self.done = asyncio.Event()
        """Set in the engine's loop once it has done with the connection."""
        self.on_lost: OnLost | None = None
        """Called, in any thread, if the connection goes back to its pool before the transaction's end, or
        nobody is left who could give it back."""
        self._dropped = False

    # In the engine's loop.

    def fail(self) -> None:
        """It could not become a branch."""
        self._adopted.session.discard()
        self._state = LoanState.BROKEN
        self.done.set()

    def given_back(self, slot: Slot[Any]) -> None:
        if not self.done.is_set():
            close_in_background(self._tidy(slot))

    async def _tidy(self, slot: Slot[Any]) -> None:
        """PREPARE has left its report in application_name."""
        session = slot.session
        clean = not (session.broken or session.in_transaction)
        if clean and session.application_name != self._application_name:
            try:
                name = literal(self._application_name)
                await session.script(f"set application_name = {name}", timeout_s=self._timeout_s)
            except (ServerError, NoAnswer, NotSent):
                clean = False
        with self._lock:
            if self._state is LoanState.OURS:
                self._state = LoanState.READY if clean else LoanState.BROKEN
            if self._dropped:
                self._state = LoanState.GONE
            if self._state is not LoanState.READY:
                session.discard()
        self.done.set()

    # In the session's thread, or in whichever collects it.

    def finish(self) -> LoanState:
        """The session takes it back, or leaves it to the engine: what it was until now."""
        before = self._end()
        if before is LoanState.READY:
            self._adopted.restore()
        elif before is not LoanState.GONE:
            self._adopted.steal()
        return before

    def lost(self) -> None:
        """The connection is back in its pool, which has rolled it back, and we were not asked."""
        if self._end() is LoanState.GONE:
            return
        stolen = self._adopted.stolen  # then the pool has a closed one, and this is the engine's to close
        if not stolen:
            self._adopted.restore()
        if self.on_lost is not None:
            self.on_lost(0.0 if stolen else LOST_GRACE_S, self._adopted.undoubt_failure)

    def dropped(self) -> None:
        """The session was collected. Its connection may go back to the pool, or be forgotten (asyncio's pools
        do that with psycopg's)."""
        self._dropped = True
        if self.on_lost is not None:
            self.on_lost(LOST_GRACE_S, None)

    def note_failure(self, error: Exception) -> None:
        """A statement of the application failed. The server's reason for ending the session, which asyncpg
        does not tell, becomes a note of ``error``."""
        ended = getattr(self._adopted.session, "ended", None)
        if isinstance(ended, ServerError):
            error.add_note(with_setting(ended.sqlstate, ended.message))
        failure = ended or _told_by_server(error)
        self._adopted.undoubt_failure = failure or self._adopted.undoubt_failure

    @property
    def closed(self) -> bool:
        """The engine has closed it, while its pool took it for sound."""
        return self._adopted.closed

    def _end(self) -> LoanState:
        with self._lock:
            before, self._state = self._state, LoanState.GONE
        return before


def _told_by_server(error: BaseException) -> ServerError | None:
    """What the server said, of an error of SQLAlchemy's adapters, or of the driver's that is behind it."""
    found = None
    each: BaseException | None = error
    while each is not None:
        sqlstate = getattr(each, "sqlstate", None)
        # Class 08 is how asyncpg tells that there will be no answer; the server's words are its cause.
        if isinstance(sqlstate, str) and (found is None or not sqlstate.startswith("08")):
            told = getattr(each, "diag", None)
            names = ("severity_nonlocalized", "severity_en", "severity")
            severity = {getattr(of, name, None) for of in (told, each) for name in names}
            words = getattr(told, "message_primary", None) or str(each).partition("\n")[0]
            found = ServerError(sqlstate, words, fatal=not FATAL.isdisjoint(severity))
        each = each.__cause__
    return found


def abort_later(loop: asyncio.AbstractEventLoop, transaction: Transaction, name: str) -> OnLost:
    """For ``on_lost``: aborts ``transaction`` in its ``loop``; other branches would wait for its timeout."""
    dropped = UsageError(
        f"the connection of branch {name!r} went back to its pool before the end of its transaction: the"
        " session was dropped, or the connection closed, and the pool has rolled it back"
    )

    def post(delay_s: float, failure: ServerError | None) -> None:
        # SQLAlchemy itself gives back a connection whose session the server has ended.
        cause = dropped if failure is None or not failure.fatal else lost(name, "", failure, None)
        with contextlib.suppress(RuntimeError):  # the loop is closed, and all transactions with it
            if delay_s:
                loop.call_soon_threadsafe(loop.call_later, delay_s, transaction.doom, cause)
            elif asyncio._get_running_loop() is loop:
                transaction.doom(cause)  # before the application's next call
            else:
                loop.call_soon_threadsafe(transaction.doom, cause)

    return post
