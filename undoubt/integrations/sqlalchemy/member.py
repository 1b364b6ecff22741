"""One connection of a session as a branch: in the place of SQLAlchemy's own transaction on it."""

from __future__ import annotations

import asyncio
import enum
import threading
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from participants.contract import Branch
from participants.errors import UsageError
from participants.ids import NO_KEY, Gid, SessionKey
from participants.postgres import PostgresParticipant
from participants.postgres.closing import close_in_background
from participants.postgres.pool import Slot
from participants.postgres.session import NoAnswer, NotSent, ServerError
from participants.postgres.sql import literal
from undoubt.integrations.sqlalchemy.adopted import Adopted
from undoubt.integrations.sqlalchemy.asyncpg_driver import AsyncpgAdopted
from undoubt.integrations.sqlalchemy.psycopg_driver import PsycopgAdopted

if TYPE_CHECKING:
    from undoubt.integrations.sqlalchemy.unit import Unit

_INTRODUCED = "undoubt.introduced"
_MEMBER = "undoubt.member"


class _State(enum.Enum):
    OURS = "ours"
    """The engine may send something through the connection at any time."""
    READY = "ready"
    """The engine has done with it and left it as it was."""
    BROKEN = "broken"
    """The engine has done with it, and nobody else may use it."""
    GONE = "gone"
    """The session has taken it back, or left it to the engine for good."""


class Member:
    """What a ``SessionTransaction`` keeps for one of its connections, and what the engine opens the branch
    with. ``root`` is SQLAlchemy's transaction on the connection: it is told what became of it at the end,
    when there is nothing left for it to do.
    """

    def __init__(self, unit: Unit, connection: sa.Connection, root: sa.RootTransaction, name: str) -> None:
        self._unit = unit
        self._connection = connection
        self._root = root
        self._info = connection.info
        self.name = name
        self.done = asyncio.Event()
        """Set in the engine's loop once it has done with the connection."""
        self._adopted: Adopted | None = None
        self._application_name = ""
        self._timeout_s = 0.0
        self._state = _State.READY
        self._lock = threading.Lock()
        """Over ``_state``: the engine's thread and the session's may want it at once."""

    # What SQLAlchemy's session asks of a transaction.

    @property
    def is_active(self) -> bool:
        return self._state is not _State.GONE

    def commit(self) -> None:
        self._unit.commit()

    def rollback(self) -> None:
        self._unit.rollback()

    def close(self) -> None:
        self._unit.rollback()

    @property
    def begun(self) -> bool:
        """The engine may have something to do with the connection."""
        return self._adopted is not None

    # What the engine asks of who opens a branch.

    async def begin(self, gid: Gid, *, timeout_s: float, key: SessionKey = NO_KEY) -> Branch:
        participant = self._unit.participant(self.name)
        self._adopted = adopted = _taken_over(self._connection)
        session = adopted.session
        self._application_name = session.application_name
        self._timeout_s = participant.settings.statement_timeout_s
        self._state = _State.OURS
        self._info[_MEMBER] = self
        try:
            if _INTRODUCED not in self._info:
                await participant.introduce(session)
                self._info[_INTRODUCED] = session.intro
            session.intro = self._info[_INTRODUCED]
            return await participant.adopt(
                Slot(session, fresh=False),
                adopted,
                gid,
                timeout_s=timeout_s,
                key=key,
                begin=adopted.begin(gid),
                give_back=self._given_back,
            )
        except BaseException:
            session.discard()
            self._state = _State.BROKEN
            self.done.set()
            raise

    def _given_back(self, slot: Slot[Any]) -> None:
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
            if self._state is _State.OURS:
                self._state = _State.READY if clean else _State.BROKEN
            if self._state is not _State.READY:
                session.discard()
        self.done.set()

    # What the unit of work says at the end, in the session's thread.

    def finish(self, *, committed: bool) -> None:
        """Give the connection back, or leave it to the engine. May be repeated."""
        with self._lock:
            before, self._state = self._state, _State.GONE
        if before is _State.GONE:
            return
        self._info.pop(_MEMBER, None)
        if before is _State.READY:
            if self._adopted is not None:
                self._adopted.restore()
            if committed:
                self._root.commit()
                return
        else:
            if self._adopted is not None:
                self._adopted.steal()
            self._connection.invalidate()
        self._root.rollback()

    def lost(self) -> None:
        """The connection is back in its pool, which has rolled it back, and we were not asked."""
        with self._lock:
            before, self._state = self._state, _State.GONE
        if before is not _State.GONE and self._adopted is not None:
            self._adopted.restore()


def checked_in(_: object, record: Any) -> None:
    """The pool's event: a connection comes back."""
    member = record.info.pop(_MEMBER, None)
    if isinstance(member, Member):
        member.lost()


def _taken_over(connection: sa.Connection) -> Adopted:
    driver = connection.dialect.driver
    proxied = connection.connection
    if driver in {"psycopg", "psycopg_async"}:
        raw: Any = proxied.driver_connection
        return PsycopgAdopted(raw)
    if driver == "asyncpg":
        return AsyncpgAdopted(proxied.dbapi_connection)
    raise UsageError(
        f"the engine {connection.engine!r} works with {connection.dialect.name}+{driver}, and undoubt with"
        " postgresql+psycopg and postgresql+asyncpg alone: name one of these in its URL"
    )


def checked(participant: object, name: str) -> PostgresParticipant:
    """``participant``, if branches of it can be on other people's connections."""
    if not isinstance(participant, PostgresParticipant):
        raise UsageError(f"participant {name!r} is no PostgreSQL database that an engine could lead to")
    return participant
