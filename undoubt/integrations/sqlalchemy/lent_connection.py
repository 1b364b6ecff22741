"""Lends a session's connection to the engine until the branch has ended.

A :class:`LentConnection` has no reference to the session, to its transaction or to SQLAlchemy's connection:
the engine and the pool refer to it while the branch is open, and a session that is dropped without
``close()`` must be collected nevertheless, like SQLAlchemy's own. Its connections then go back to their
pools, which roll them back.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import threading
import weakref
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any

from undoubt.coordinator.transaction import Transaction
from undoubt.integrations.sqlalchemy.adopted import Adopted
from undoubt.participants.contract import Branch
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import Gid, SessionKey
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.postgres.pool import Slot
from undoubt.participants.postgres.session import (
    FATAL,
    NoAnswer,
    NotSent,
    ServerError,
    ServerParameters,
    close_in_background,
)
from undoubt.participants.postgres.sqlstate import lost, with_setting
from undoubt.participants.sql import literal

LOST_GRACE_S = 0.5
"""How long the abort of a transaction waits after its session was dropped, which drops all its connections:
meanwhile the pools roll them back undisturbed."""


RELEASE_GRACE_S = 1.0
"""How long commit and rollback wait for connections that the engine still uses, before they leave them to the
engine."""
_INTRODUCED = "undoubt.introduced"
Introductions = weakref.WeakKeyDictionary[PostgresParticipant, ServerParameters]
"""What the participants that have checked a connection know of its server."""

OnLost = Callable[[float, ServerError | None], None]
"""Its arguments are the seconds after which the transaction has to abort, and the last error that the
application got on the connection."""


class LoanState(enum.Enum):
    """Which side may use the connection."""

    OURS = "ours"
    """The engine may send something through the connection at any time."""
    READY = "ready"
    """The engine no longer uses the connection, and has left it clean."""
    BROKEN = "broken"
    """The engine no longer uses the connection, and it must not be used again."""
    GONE = "gone"
    """The session has taken the connection back, or has left it to the engine."""


class LentConnection:
    """A connection on loan to the engine, made in the engine's loop. ``timeout_s``: how long one of undoubt's
    statements may take."""

    def __init__(self, adopted: Adopted, timeout_s: float) -> None:
        self._adopted = adopted
        self._timeout_s = timeout_s
        self._application_name = adopted.session.application_name
        self._state = LoanState.OURS
        self._lock = threading.Lock()
        """Protects ``_state``, which the engine's thread and the session's thread change."""
        self.done = asyncio.Event()
        """Set in the engine's loop once it has done with the connection."""
        self.on_lost: OnLost | None = None
        """Called, in any thread, if the connection goes back to its pool before the transaction's end, or if
        the session was collected."""
        self._dropped = False

    # In the engine's loop.

    async def branch(
        self,
        participant: PostgresParticipant,
        info: MutableMapping[Any, Any],
        gid: Gid,
        *,
        timeout_s: float,
        key: SessionKey,
    ) -> Branch:
        """Begin branch ``gid`` of ``participant`` on the connection. ``info`` keeps what is known of the
        connection as long as it is open: for each participant that has found that the connection leads to
        its database, and to no other participant's."""
        session = self._adopted.session
        try:
            known: Introductions = info.setdefault(_INTRODUCED, weakref.WeakKeyDictionary())
            if (intro := known.get(participant)) is None:
                await participant.introduce(session)
                known[participant] = intro = session.intro
            session.intro = intro
            return await participant.adopt(
                Slot(session, fresh=False),
                self._adopted,
                gid,
                timeout_s=timeout_s,
                key=key,
                begin=self._adopted.begin(gid),
                give_back=self.given_back,
            )
        except BaseException:
            self.fail()
            raise

    def fail(self) -> None:
        """The connection could not become a branch: discard it."""
        self._adopted.session.discard()
        self._state = LoanState.BROKEN
        self.done.set()

    def given_back(self, slot: Slot[Any]) -> None:
        if not self.done.is_set():
            close_in_background(self._tidy(slot))

    async def _tidy(self, slot: Slot[Any]) -> None:
        """Restore application_name, in which PREPARE has left its report, and end the loan."""
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

    # In the session's thread, or in the thread that collects the session.

    def finish(self) -> LoanState:
        """Take the connection back for the session, or leave it to the engine. Returns the state before."""
        before = self._end()
        if before is LoanState.READY:
            self._adopted.restore()
        elif before is not LoanState.GONE:
            self._adopted.steal()
        return before

    def lost(self) -> None:
        """The connection is back in its pool, which has rolled it back, before the end of the transaction."""
        if self._end() is LoanState.GONE:
            return
        # If it is stolen, the pool has a closed object, and the engine closes the connection.
        stolen = self._adopted.stolen
        if not stolen:
            self._adopted.restore()
        if self.on_lost is not None:
            self.on_lost(0.0 if stolen else LOST_GRACE_S, self._adopted.undoubt_failure)

    def dropped(self) -> None:
        """The session was collected. Its connection goes back to the pool, or is lost (with psycopg in
        asyncio's pools)."""
        self._dropped = True
        if self.on_lost is not None:
            self.on_lost(LOST_GRACE_S, None)

    def note_failure(self, error: Exception) -> None:
        """Note that a statement of the application failed. The server's reason for ending the session, which
        asyncpg's error does not contain, becomes a note of ``error``."""
        ended = getattr(self._adopted.session, "ended", None)
        if isinstance(ended, ServerError):
            error.add_note(with_setting(ended.sqlstate, ended.message))
        failure = ended or _server_error(error)
        self._adopted.undoubt_failure = failure or self._adopted.undoubt_failure

    @property
    def closed(self) -> bool:
        """Whether the engine has closed the connection, which its pool still considers usable."""
        return self._adopted.closed

    def _end(self) -> LoanState:
        with self._lock:
            before, self._state = self._state, LoanState.GONE
        return before


def _server_error(error: BaseException) -> ServerError | None:
    """The server's error behind an error of SQLAlchemy's adapters or of the driver, None if there is none."""
    found = None
    each: BaseException | None = error
    while each is not None:
        sqlstate = getattr(each, "sqlstate", None)
        # asyncpg reports a lost connection with class 08; the server's error is then the cause of that error.
        if isinstance(sqlstate, str) and (found is None or not sqlstate.startswith("08")):
            diag = getattr(each, "diag", None)
            names = ("severity_nonlocalized", "severity_en", "severity")
            severity = {getattr(of, name, None) for of in (diag, each) for name in names}
            words = getattr(diag, "message_primary", None) or str(each).partition("\n")[0]
            found = ServerError(sqlstate, words, fatal=not FATAL.isdisjoint(severity))
        each = each.__cause__
    return found


def abort_later(loop: asyncio.AbstractEventLoop, transaction: Transaction, name: str) -> OnLost:
    """A function for ``on_lost`` that aborts ``transaction`` in its ``loop``. Without it the other branches
    would wait for the transaction's timeout."""
    dropped = UsageError(
        f"the connection of branch {name!r} went back to its pool before the end of its transaction: the"
        " session was dropped, or the connection closed, and the pool has rolled it back"
    )

    def post(delay_s: float, failure: ServerError | None) -> None:
        # SQLAlchemy itself returns a connection to the pool if the server has ended its session.
        cause = dropped if failure is None or not failure.fatal else lost(name, "", failure, None)
        with contextlib.suppress(RuntimeError):  # the loop is closed, and all transactions with it
            if delay_s:
                loop.call_soon_threadsafe(loop.call_later, delay_s, transaction.doom, cause)
            elif asyncio._get_running_loop() is loop:
                transaction.doom(cause)  # before the application's next call
            else:
                loop.call_soon_threadsafe(transaction.doom, cause)

    return post


async def settle(lent: Iterable[LentConnection]) -> None:
    """Wait until the engine has done with the connections, at most ``RELEASE_GRACE_S``."""
    waiting = [asyncio.ensure_future(each.done.wait()) for each in lent]
    if waiting:
        _, late = await asyncio.wait(waiting, timeout=RELEASE_GRACE_S)
        for each in late:
            each.cancel()
