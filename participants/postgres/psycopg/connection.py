"""The application's connection in a branch: a psycopg connection without the calls that would end the branch.

The classes are subclasses of ``psycopg.AsyncConnection`` and ``psycopg.Connection``; each branch gets a new
object over the libpq connection of the session. All operations of a connection, its cursors and pipelines
take its ``lock``, which is a gate here (:mod:`undoubt.participants.postgres.psycopg.gate`). ``transaction()``
is a savepoint by psycopg's own rules, since a transaction is open already."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import psycopg
from psycopg.pq import PipelineStatus, TransactionStatus

from undoubt.participants.errors import UndoubtError, UsageError
from undoubt.participants.ids import Gid
from undoubt.participants.postgres.connection_proxy import (
    LISTEN_REFUSED,
    ApplicationSide,
    changed_rows,
    may_commit,
    outlives_reset,
)
from undoubt.participants.postgres.psycopg.gate import AsyncGate, SyncGate
from undoubt.participants.postgres.session import FATAL, ServerError
from undoubt.participants.postgres.tags import leaves_nothing

if TYPE_CHECKING:
    from psycopg._preparing import PrepareManager
    from psycopg.pq.abc import PGconn

_COMMIT = "commit the transaction instead"
_ROLLBACK = "roll back the transaction instead; 'with connection.transaction()' is a savepoint"
_TPC = "the transaction does it, in every database"
_BEGUN = (
    "the branch has begun; execute 'set transaction isolation level …', or 'set transaction read only', as"
    " its first statement instead"
)
_WITH = "the branch ends with its transaction, not with a block; use the connection as it is"


def _refused(name: str, why: str) -> Callable[..., NoReturn]:
    def refuse(self: object, *_: Any, **__: Any) -> NoReturn:
        raise UsageError(f"connection.{name}() cannot be used inside a branch: {why}")

    return refuse


class _Exits(ApplicationSide):
    """Refuses the calls that would end or outlive the branch, in both kinds of connection. All other changes
    that an application can make to a psycopg connection affect only this object."""

    commit = _refused("commit", _COMMIT)
    rollback = _refused("rollback", _ROLLBACK)
    close = _refused("close", "commit or roll back the transaction instead")
    tpc_begin = _refused("tpc_begin", _TPC)
    tpc_prepare = _refused("tpc_prepare", _TPC)
    tpc_commit = _refused("tpc_commit", _TPC)
    tpc_rollback = _refused("tpc_rollback", _TPC)
    tpc_recover = _refused("tpc_recover", "undoubt indoubt list shows prepared transactions")
    set_autocommit = _refused("set_autocommit", "a branch is one transaction")
    set_isolation_level = _refused("set_isolation_level", _BEGUN)
    set_read_only = _refused("set_read_only", _BEGUN)
    set_deferrable = _refused("set_deferrable", _BEGUN)
    notifies = _refused("notifies", LISTEN_REFUSED)
    add_notify_handler = _refused("add_notify_handler", LISTEN_REFUSED)
    __enter__ = _refused("__enter__", _WITH)
    __aenter__ = _refused("__aenter__", _WITH)

    pgconn: PGconn
    lock: Any
    _undoubt_plain: int | None = None
    """The number of operations that were statements which leave nothing in the session; None once there was
    another one. Operations that are no such statements (COPY, pipelines, savepoints) are only counted by the
    gate."""

    def _undoubt_begin(self, gid: Gid, prepared: PrepareManager) -> None:
        self._undoubt_gid = gid
        # Prepared statements live in the session and so outlive this object; psycopg has no public API for
        # that.
        self._prepared = prepared

    @property
    def undoubt_used(self) -> bool:
        return bool(self.lock.uses)

    @property
    def undoubt_leaves(self) -> bool:
        return self._undoubt_plain is None or self._undoubt_plain != self.lock.uses

    @undoubt_leaves.setter
    def undoubt_leaves(self, leaves: bool) -> None:
        self._undoubt_plain = None if leaves else 0

    @property
    def undoubt_why(self) -> Callable[[], Exception] | None:
        why: Callable[[], Exception] | None = self.lock.why
        return why

    @undoubt_why.setter
    def undoubt_why(self, why: Callable[[], Exception] | None) -> None:
        self.lock.why = why

    @contextmanager
    def _undoubt_reporting(self) -> Iterator[None]:
        """Note errors of a statement, and raise the error of ``undoubt_why`` for a statement that was broken
        off."""
        try:
            yield
        except psycopg.Error as error:
            if _is_stale(error):
                self.undoubt_stale = True
            if error.sqlstate:
                self.undoubt_failure = as_failure(error)
            if self.undoubt_has_ended and (why := self.undoubt_why) is not None:
                raise why() from error
            raise

    @property
    def undoubt_has_ended(self) -> bool:
        return bool(self.lock.is_shut)

    def undoubt_end(self) -> bool:
        # The gate first, then libpq: otherwise a caller could pass the gate after libpq's state was read.
        return (
            self.lock.shut()
            or self.pgconn.pipeline_status != PipelineStatus.OFF
            or self.pgconn.transaction_status == TransactionStatus.ACTIVE
        )

    def undoubt_note(self, statement: object, tag: str | None, rows: int) -> None:
        if isinstance(statement, bytes):
            statement = statement.decode("utf-8", "replace")
        for text in (statement, tag):
            if isinstance(text, str) and outlives_reset(text):
                self.undoubt_reusable = False
            if isinstance(text, str) and may_commit(text):
                self.undoubt_committed = True
        if self._undoubt_plain is not None:
            self._undoubt_plain = self._undoubt_plain + 1 if leaves_nothing(statement, tag) else None
        if rows > 0 and tag and changed_rows(tag):
            self.undoubt_wrote = True

    @property
    def closed(self) -> bool:
        return self.undoubt_has_ended or self.pgconn.status != psycopg.pq.ConnStatus.OK

    def _undoubt_savepoint(self) -> None:
        self.lock.check()
        if self.pgconn.transaction_status == TransactionStatus.IDLE:
            raise UsageError(
                "connection.transaction() after the application has ended the branch by COMMIT or ROLLBACK:"
                " leave these to the transaction"
            )

    def __del__(self) -> None:
        """Does nothing: psycopg's own method warns of connections that were not closed; the session closes
        this one."""

    def __repr__(self) -> str:
        state = "ended" if self.undoubt_has_ended else "open"
        return f"<connection of branch {self._undoubt_gid}, {state}>"


def as_failure(error: psycopg.Error) -> ServerError:
    """The error of a statement of the application as a ``ServerError``, to be reported if its branch
    fails."""
    diag = error.diag
    severity = diag.severity_nonlocalized or diag.severity or ""
    return ServerError(error.sqlstate or "", diag.message_primary or str(error), fatal=severity in FATAL)


def _is_stale(error: psycopg.Error) -> bool:
    """Whether a prepared statement is older than a change of the schema. The server's message is translated,
    but the name of its source function is not (src/backend/utils/cache/plancache.c)."""
    return (
        isinstance(error, psycopg.errors.InvalidSqlStatementName)
        or error.diag.source_function == "RevalidateCachedQuery"
    )


class AsyncBranchCursor(psycopg.AsyncCursor[Any]):
    async def execute(self, *args: Any, **options: Any) -> AsyncBranchCursor:
        try:
            await super().execute(*args, **options)
        finally:
            _note(self, args, options)
        return self

    async def executemany(self, *args: Any, **options: Any) -> None:
        await super().executemany(*args, **options)
        _note(self, args, options)


class BranchCursor(psycopg.Cursor[Any]):
    def execute(self, *args: Any, **options: Any) -> BranchCursor:
        try:
            super().execute(*args, **options)
        finally:
            _note(self, args, options)
        return self

    def executemany(self, *args: Any, **options: Any) -> None:
        super().executemany(*args, **options)
        _note(self, args, options)


def _note(
    cursor: AsyncBranchCursor | BranchCursor, args: tuple[Any, ...], options: Mapping[str, Any]
) -> None:
    connection: Any = cursor.connection
    statement = args[0] if args else options.get("query")
    connection.undoubt_note(statement, cursor.statusmessage, cursor.rowcount)


class AsyncBranchServerCursor(psycopg.AsyncServerCursor[Any]):
    async def close(self) -> None:
        """Close the cursor, but only in the client if the end of its branch has closed it on the server."""
        if _closed_with_its_branch(self):
            await psycopg.AsyncCursor.close(self)
        else:
            await super().close()


class BranchServerCursor(psycopg.ServerCursor[Any]):
    def close(self) -> None:
        """Close the cursor, but only in the client if the end of its branch has closed it on the server."""
        if _closed_with_its_branch(self):
            psycopg.Cursor.close(self)
        else:
            super().close()


def _closed_with_its_branch(cursor: AsyncBranchServerCursor | BranchServerCursor) -> bool:
    connection: Any = cursor.connection
    return bool(connection.undoubt_has_ended)


class AsyncBranchConnection(_Exits, psycopg.AsyncConnection[Any]):  # type: ignore[misc]
    def __init__(self, pgconn: PGconn, gid: Gid, prepared: PrepareManager) -> None:
        super().__init__(pgconn)
        self._undoubt_begin(gid, prepared)
        self.lock = AsyncGate(gid)
        self.cursor_factory = AsyncBranchCursor
        self.server_cursor_factory = AsyncBranchServerCursor

    async def wait(self, *args: Any, **options: Any) -> Any:
        with self._undoubt_reporting():
            return await super().wait(*args, **options)

    def cursor(self, *args: Any, **options: Any) -> Any:
        self.lock.check()
        return super().cursor(*args, **options)

    @asynccontextmanager
    async def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> AsyncIterator[psycopg.AsyncTransaction]:
        """A savepoint: ``async with connection.transaction():`` undoes only the block if the block raises."""
        self._undoubt_savepoint()
        failure: BaseException | None = None
        try:
            async with super().transaction(savepoint_name, force_rollback) as savepoint:
                try:
                    yield savepoint
                except BaseException as error:
                    failure = error
                    raise
        except UndoubtError:
            if not self.undoubt_has_ended or (failure is None and self.undoubt_why is not None):
                raise
            # The whole branch has ended, with this savepoint. The first error, if any, is the one to report.
            if failure is not None:
                raise failure from failure.__cause__


class BranchConnection(_Exits, psycopg.Connection[Any]):  # type: ignore[misc]
    def __init__(self, pgconn: PGconn, gid: Gid, prepared: PrepareManager) -> None:
        super().__init__(pgconn)
        self._undoubt_begin(gid, prepared)
        self.lock = SyncGate(gid)
        self.cursor_factory = BranchCursor
        self.server_cursor_factory = BranchServerCursor

    def wait(self, *args: Any, **options: Any) -> Any:
        with self._undoubt_reporting():
            return super().wait(*args, **options)

    def cursor(self, *args: Any, **options: Any) -> Any:
        self.lock.check()
        return super().cursor(*args, **options)

    @contextmanager
    def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> Iterator[psycopg.Transaction]:
        """A savepoint: ``with connection.transaction():`` undoes only the block if the block raises."""
        self._undoubt_savepoint()
        failure: BaseException | None = None
        try:
            with super().transaction(savepoint_name, force_rollback) as savepoint:
                try:
                    yield savepoint
                except BaseException as error:
                    failure = error
                    raise
        except UndoubtError:  # as above
            if not self.undoubt_has_ended or (failure is None and self.undoubt_why is not None):
                raise
            if failure is not None:
                raise failure from failure.__cause__


class _ForSetUp:
    """The connection that the application's hook gets: it can be used until the hook returns."""

    def _undoubt_lend(self, gate: AsyncGate | SyncGate) -> None:
        gate.why = _hook_has_ended
        this: Any = self
        this.lock = gate
        this._autocommit = True

    def __del__(self) -> None:
        """Does nothing: psycopg's own method warns of connections that were not closed; the session closes
        this one."""


class AsyncConnectionForSetUp(_ForSetUp, psycopg.AsyncConnection[Any]):  # type: ignore[misc]
    def __init__(self, pgconn: PGconn) -> None:
        super().__init__(pgconn)
        self._undoubt_lend(AsyncGate("of a hook"))


class ConnectionForSetUp(_ForSetUp, psycopg.Connection[Any]):  # type: ignore[misc]
    def __init__(self, pgconn: PGconn) -> None:
        super().__init__(pgconn)
        self._undoubt_lend(SyncGate("of a hook"))


def _hook_has_ended() -> Exception:
    return UsageError("the connection was used after the end of the hook that it was lent to")
