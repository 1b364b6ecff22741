"""Makes one connection of a session a branch, in place of SQLAlchemy's transaction on that connection."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from undoubt.integrations.sqlalchemy.adopted import Adopted
from undoubt.integrations.sqlalchemy.asyncpg_driver import AsyncpgAdopted
from undoubt.integrations.sqlalchemy.lent_connection import LentConnection, LoanState
from undoubt.integrations.sqlalchemy.psycopg_driver import PsycopgAdopted
from undoubt.participants.contract import Branch
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import NO_KEY, Gid, SessionKey
from undoubt.participants.postgres import PostgresParticipant

if TYPE_CHECKING:
    from undoubt.integrations.sqlalchemy.unit_of_work import Unit

_TAKEN = "undoubt.taken"
_UNIT = "undoubt.unit"


class EnlistedConnection:
    """The transaction object that a ``SessionTransaction`` keeps for one of its connections, and with which
    the engine opens the branch. ``root`` is SQLAlchemy's transaction on the connection: its ``commit`` or
    ``rollback`` is called after the end of the branch, when they have no effect on the server.
    """

    def __init__(self, unit: Unit, connection: sa.Connection, root: sa.RootTransaction, name: str) -> None:
        self._unit = unit
        self._connection = connection
        self._root = root
        self._info = connection.info
        self.name = name
        self._taken: LentConnection | None = None
        self._drop: weakref.finalize[..., Any] | None = None
        self._over = False

    # The interface of a transaction, for SQLAlchemy's session.

    @property
    def is_active(self) -> bool:
        return not self._over

    def commit(self) -> None:
        self._unit.commit()

    def rollback(self) -> None:
        self._unit.rollback()

    def close(self) -> None:
        self._unit.rollback()

    @property
    def engine(self) -> sa.Engine:
        return self._connection.engine

    @property
    def taken(self) -> LentConnection | None:
        """The connection as the engine uses it, None before the engine has it."""
        return self._taken

    # The interface for opening a branch, for the engine.

    async def begin(self, gid: Gid, *, timeout_s: float, key: SessionKey = NO_KEY) -> Branch:
        participant = self._unit.participant(self.name)
        adopted = _taken_over(self._connection)
        self._taken = taken = LentConnection(adopted, participant.settings.statement_timeout_s)
        self._info[_TAKEN] = taken
        # A weak reference: a session that is dropped must be collected together with its connections.
        self._info[_UNIT] = weakref.ref(self._unit)
        self._drop = weakref.finalize(self, taken.dropped)
        self._drop.atexit = False
        return await taken.branch(participant, self._info, gid, timeout_s=timeout_s, key=key)

    # Called by the unit of work at the end, in the session's thread.

    def finish(self, *, committed: bool) -> None:
        """Give the connection back, or leave it to the engine. May be repeated."""
        if self._over:
            return
        self._over = True
        if self._drop is not None:
            self._drop.detach()
        self._info.pop(_TAKEN, None)
        self._info.pop(_UNIT, None)
        before = LoanState.READY if self._taken is None else self._taken.finish()
        if before is LoanState.GONE:
            return
        if before is not LoanState.READY:
            self._connection.invalidate()
        elif committed:
            self._root.commit()
            return
        if self._connection.get_transaction() is self._root:  # else the application has ended it
            self._root.rollback()


def checked_in(_: object, record: Any) -> None:
    """Handler of the pool's event ``checkin``: a connection returns to the pool."""
    taken = record.info.pop(_TAKEN, None)
    record.info.pop(_UNIT, None)
    if isinstance(taken, LentConnection):
        taken.lost()
        if taken.closed and record.dbapi_connection is not None:
            record.invalidate()


def failed(context: sa.engine.ExceptionContext) -> None:
    """Handler of the engine's event ``handle_error``: a statement has failed. Raises ``TransactionAborted``
    if the transaction was aborted."""
    connection, error = context.connection, context.original_exception
    if connection is None or connection.closed or connection.invalidated or not isinstance(error, Exception):
        return
    found = connection.info.get(_UNIT)
    unit: Unit | None = None if found is None else found()
    taken = connection.info.get(_TAKEN)
    if isinstance(taken, LentConnection):
        taken.note_failure(error)
    if unit is not None:
        unit.failed(error)


def _taken_over(connection: sa.Connection) -> Adopted:
    driver = connection.dialect.driver
    proxied = connection.connection
    if driver in {"psycopg", "psycopg_async"}:
        raw: Any = proxied.driver_connection
        return PsycopgAdopted(raw)
    if driver == "asyncpg":
        return AsyncpgAdopted(proxied.dbapi_connection)
    raise UsageError(
        f"the engine {connection.engine!r} uses {connection.dialect.name}+{driver}, but undoubt supports only"
        " postgresql+psycopg and postgresql+asyncpg: name one of these in its URL"
    )


def checked(participant: object, name: str) -> PostgresParticipant:
    """``participant``, if its branches can be on connections of the application. Raises ``UsageError``."""
    if not isinstance(participant, PostgresParticipant):
        raise UsageError(f"participant {name!r} is not a PostgreSQL database, so no engine can connect to it")
    return participant
