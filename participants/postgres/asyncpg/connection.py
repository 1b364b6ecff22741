"""The application's connection in a branch: an asyncpg connection without the calls that would end the
branch."""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

import asyncpg

from undoubt.participants.errors import UsageError, WrongLoop
from undoubt.participants.ids import Gid
from undoubt.participants.postgres.connection_proxy import (
    LISTEN_REFUSED,
    ApplicationSide,
    after_branch,
    changed_rows,
    may_commit,
    may_replace_statements,
    outlives_reset,
)
from undoubt.participants.postgres.session import FATAL, ServerError
from undoubt.participants.postgres.sqlstate import participant_error
from undoubt.participants.postgres.tags import leaves_nothing

if TYPE_CHECKING:
    from undoubt.participants.postgres.asyncpg.line import Line

    Connection = asyncpg.Connection[asyncpg.Record]

_REFUSED = {
    "close": "commit or roll back the transaction instead",
    "terminate": "roll back the transaction instead",
    "reset": "roll back the transaction instead",
    "add_listener": LISTEN_REFUSED,
    "remove_listener": LISTEN_REFUSED,
}
_STAYS = frozenset(
    {
        "set_type_codec",
        "reset_type_codec",
        "set_builtin_type_codec",
        "add_log_listener",
        "add_termination_listener",
        "add_query_logger",
    }
)
"""These change the connection object itself, so that it cannot be lent to the next branch."""

_LEAVES_NOTHING = frozenset(
    {
        "cursor",
        "executemany",
        "fetchmany",
        "fetchval",
        "get_server_pid",
        "get_server_version",
        "get_settings",
        "is_closed",
        "is_in_transaction",
        "prepare",
    }
)
"""These leave nothing in the session, unless their statement does."""

_FORGETS = re.compile(r"\b(?:deallocate|discard)\b", re.IGNORECASE)
"""Matches commands that make the server drop statements that asyncpg still has in its cache, among them
undoubt's own."""
_STALE = (
    asyncpg.InvalidCachedStatementError,
    asyncpg.OutdatedSchemaCacheError,
    asyncpg.InvalidSQLStatementNameError,
)
"""The errors if a prepared statement, or asyncpg's knowledge of types, is older than a change of the
schema."""
_LOST = (asyncpg.InterfaceError, asyncpg.ConnectionDoesNotExistError, asyncpg.InternalClientError)
"""asyncpg's errors of a connection that has ended, or is ending: the last is raised for a statement between
the server's last message and the end of the connection ("cannot switch to state …")."""
_WRITES = re.compile(r"\s*(?:insert|update|delete|merge)\b", re.IGNORECASE)


class BranchConnection(ApplicationSide):
    """An ``asyncpg.Connection`` with two differences: ``transaction()`` is a savepoint, and ``UsageError`` is
    raised by calls that would end or outlive the branch, and by every call after the branch's end.
    """

    undoubt_keeps = True

    def __init__(
        self,
        connection: Connection,
        gid: Gid,
        ended: Callable[[], ServerError | None] = lambda: None,
        line: Line | None = None,
    ) -> None:
        """``ended`` returns the server's reason for ending the session. ``line`` may hold back what begins
        the branch, until the first statement."""
        self._undoubt_line = line
        self._undoubt_connection = connection
        self._undoubt_gid = gid
        self._undoubt_session_end = ended
        self._undoubt_ended = False
        self._undoubt_running = 0
        self.undoubt_why: Callable[[], Exception] | None = None
        self.undoubt_used = False
        """Whether the application has sent a statement: then the session must be reset before its next
        use."""

    def undoubt_end(self) -> bool:
        """End the application's use: from now on every use raises ``UsageError``, or ``undoubt_why()``;
        prepared statements and cursors of the connection fail as well. True if a statement of the application
        is running."""
        if not self._undoubt_ended:
            self._undoubt_ended = True
            # asyncpg's own pool invalidates prepared statements and cursors of an earlier user in this way
            # (connresource.py): otherwise a statement that the application kept would run in the next branch.
            self._undoubt_connection._pool_release_ctr += 1  # type: ignore[attr-defined]
        return self._undoubt_running > 0

    @property
    def undoubt_has_ended(self) -> bool:
        return self._undoubt_ended

    def transaction(self, **options: Any) -> Savepoint:
        """A savepoint: ``async with connection.transaction():`` undoes only the block if the block raises."""
        self._undoubt_check("transaction")
        if any(options.values()):
            raise UsageError(
                "a savepoint inside a branch cannot choose isolation, readonly or deferrable; execute 'set"
                " transaction isolation level …' as the first statement of the branch instead"
            )
        return Savepoint(self)

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        with self._undoubt_call("execute", query):
            tag: str = await self._undoubt_connection.execute(query, *args, timeout=timeout)
        if tag and outlives_reset(tag):
            self.undoubt_reusable = False
        if not self.undoubt_leaves and not leaves_nothing(query, tag):
            self.undoubt_leaves = True
        if not self.undoubt_wrote and tag and changed_rows(tag):
            self.undoubt_wrote = True
        return tag

    async def fetch(self, query: str, *args: Any, **options: Any) -> list[Any]:
        with self._undoubt_call("fetch", query):
            rows: list[Any] = await self._undoubt_connection.fetch(query, *args, **options)
        self._undoubt_note(query, bool(rows))
        return rows

    async def fetchrow(self, query: str, *args: Any, **options: Any) -> Any:
        with self._undoubt_call("fetchrow", query):
            row = await self._undoubt_connection.fetchrow(query, *args, **options)
        self._undoubt_note(query, row is not None)
        return row

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        self._undoubt_check(name)
        if name in _REFUSED:
            raise UsageError(f"connection.{name}() cannot be used inside a branch: {_REFUSED[name]}")
        found = getattr(self._undoubt_connection, name)
        if name in _STAYS:
            self.undoubt_reusable = False
        if name not in _LEAVES_NOTHING:
            self.undoubt_leaves = True
        self.undoubt_used = True
        if inspect.iscoroutinefunction(found):
            return functools.partial(self._undoubt_run, name, found)
        return functools.partial(self._undoubt_plain, name, found) if callable(found) else found

    def __repr__(self) -> str:
        state = "ended" if self._undoubt_ended else "open"
        return f"<connection of branch {self._undoubt_gid}, {state}>"

    async def _undoubt_run(self, name: str, method: Any, *args: Any, **options: Any) -> Any:
        if not args:
            self.undoubt_leaves = True  # its statement has a name, or it has none
        with self._undoubt_call(name, *args[:1]):
            return await method(*args, **options)

    def _undoubt_plain(self, name: str, method: Any, *args: Any, **options: Any) -> Any:
        self._undoubt_check(name)
        if name == "cursor" and args:
            self._undoubt_look_at(args[0])
        elif name == "cursor":
            self.undoubt_leaves = True
        if self._undoubt_line is not None:
            self._undoubt_line.send_held()  # a cursor sends its statements by itself
        return method(*args, **options)

    @contextmanager
    def _undoubt_call(self, name: str, query: object = None) -> Iterator[None]:
        self._undoubt_check(name)
        self.undoubt_used = True
        forgets = isinstance(query, str) and self._undoubt_look_at(query)
        self._undoubt_running += 1
        if self._undoubt_line is not None:
            self._undoubt_line.send_held()
        try:
            yield
        except Exception as error:
            if isinstance(error, _STALE):
                self.undoubt_stale = True
            if self._undoubt_line is not None and (failed := self._undoubt_line.failed_begin) is not None:
                raise participant_error(self._undoubt_gid.participant, failed) from error
            reason = self._undoubt_reason(error)
            if isinstance(reason, asyncpg.PostgresError):
                self.undoubt_failure = as_failure(reason)
            if self._undoubt_ended and self.undoubt_why is not None:
                raise self.undoubt_why() from error
            if reason is not error:
                raise reason from error
            raise
        finally:
            self._undoubt_running -= 1
            if forgets:
                self._undoubt_connection._drop_local_statement_cache()  # type: ignore[attr-defined]

    def _undoubt_reason(self, error: Exception) -> Exception:
        """``error``, or the server's reason for ending the session, if asyncpg reports only that it has
        ended."""
        if not isinstance(error, _LOST):
            return error
        if (end := self._undoubt_session_end()) is not None:
            fields = {"C": end.sqlstate, "M": end.message, "S": "FATAL", "V": "FATAL"}
            return asyncpg.PostgresError.new(fields)
        return error

    def _undoubt_look_at(self, query: str) -> bool:
        """Note the effects of ``query`` on the session, which the end of the branch does not undo. True if
        the server may have dropped statements that asyncpg has prepared."""
        if not self.undoubt_leaves and not leaves_nothing(query, None):
            self.undoubt_leaves = True
        if self.undoubt_keeps and may_replace_statements(query):
            self.undoubt_keeps = False
        forgets = _FORGETS.search(query) is not None
        if forgets or outlives_reset(query):
            self.undoubt_reusable = False
        if may_commit(query):
            self.undoubt_committed = True
        return forgets

    def _undoubt_check(self, name: str) -> None:
        if self._undoubt_ended:
            if self.undoubt_why is not None:
                raise self.undoubt_why()
            raise after_branch(f"connection.{name}()", self._undoubt_gid)
        if asyncio._get_running_loop() is not self._undoubt_connection._loop:  # type: ignore[attr-defined]
            raise WrongLoop(
                f"connection.{name}() in an event loop other than that of branch {self._undoubt_gid}"
            )

    def _undoubt_note(self, query: str, rows: bool) -> None:
        if rows and not self.undoubt_wrote and _WRITES.match(query):
            self.undoubt_wrote = True


_numbers = itertools.count(1)


class Savepoint:
    """The result of ``connection.transaction()``: asyncpg's own ``Transaction`` refuses to work inside a
    transaction that a plain BEGIN has begun. It is used in the same way: ``async with``, or ``start`` and
    ``commit`` or ``rollback``."""

    def __init__(self, connection: BranchConnection) -> None:
        self._connection = connection
        self._name = f"undoubt_{next(_numbers)}"
        self._open = False
        self._used = False

    async def start(self) -> None:
        """SAVEPOINT: begin the savepoint."""
        if self._used:
            raise UsageError("this savepoint was used already; call connection.transaction() again")
        self._used = True
        await self._connection.execute(f"savepoint {self._name}")
        self._open = True

    async def commit(self) -> None:
        """RELEASE SAVEPOINT: the changes since then become part of the surrounding transaction."""
        self._end("commit")
        await self._connection.execute(f"release savepoint {self._name}")

    async def rollback(self) -> None:
        """ROLLBACK TO SAVEPOINT: the changes since then are undone, also after an SQL error."""
        self._end("rollback")
        await self._connection.execute(f"rollback to savepoint {self._name}; release savepoint {self._name}")

    def _end(self, what: str) -> None:
        if not self._open:
            raise UsageError(f"{what}() of a savepoint that is not open")
        self._open = False

    async def __aenter__(self) -> Savepoint:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        connection = self._connection
        if not self._open or (
            connection.undoubt_has_ended and (error is not None or not connection.undoubt_why)
        ):
            return  # the whole branch has ended, with this savepoint; the first error is the one to report
        if error is None:
            await self.commit()
        else:
            await self.rollback()


def as_failure(error: asyncpg.PostgresError) -> ServerError:
    """The error of a statement of the application as a ``ServerError``, to be reported if its branch
    fails."""
    return ServerError(str(error.sqlstate), str(error), fatal=severity_of(error) in FATAL)


def severity_of(message: Any) -> str:
    """The severity of an error or notice, in English if the server sends that (since version 9.6)."""
    return str(getattr(message, "severity_en", None) or getattr(message, "severity", ""))


class LentForSetUp:
    """The connection that the application's hook gets: it can be used without limits until the hook
    returns."""

    def __init__(self, connection: Connection) -> None:
        self._undoubt_connection = connection
        self._undoubt_ended = False

    def undoubt_end(self) -> None:
        self._undoubt_ended = True
        self._undoubt_connection._pool_release_ctr += 1  # type: ignore[attr-defined] # as above

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if self._undoubt_ended:
            raise UsageError(f"connection.{name} after the end of the hook that it was lent to")
        return getattr(self._undoubt_connection, name)
