"""What an application holds while it works in a branch: an asyncpg connection with the exits locked."""

from __future__ import annotations

import asyncio
import functools
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import asyncpg

from undoubt.participants.errors import UsageError, WrongLoop
from undoubt.participants.ids import Gid
from undoubt.participants.postgres.asyncpg_savepoint import Savepoint
from undoubt.participants.postgres.connection_proxy import outlives_reset
from undoubt.participants.postgres.session import ServerError
from undoubt.participants.postgres.session_end import FATAL

if TYPE_CHECKING:
    from undoubt.participants.postgres.asyncpg_session import Connection

_LISTEN = "LISTEN belongs on a connection of its own: PostgreSQL cannot prepare a branch with it"
_REFUSED = {
    "close": "commit or roll back the transaction instead",
    "terminate": "roll back the transaction instead",
    "reset": "roll back the transaction instead",
    "add_listener": _LISTEN,
    "remove_listener": _LISTEN,
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

_FORGETS = re.compile(r"\b(?:deallocate|discard)\b", re.IGNORECASE)
"""The server forgets statements that asyncpg still has in its cache, undoubt's own among them."""
_STALE = (
    asyncpg.InvalidCachedStatementError,
    asyncpg.OutdatedSchemaCacheError,
    asyncpg.InvalidSQLStatementNameError,
)
"""What the server has prepared, or asyncpg knows of its types, is from before a change of the schema."""
_WROTE = re.compile(r"(?:INSERT \d+|UPDATE|DELETE|MERGE) [1-9]")
_WRITES = re.compile(r"\s*(?:insert|update|delete|merge)\b", re.IGNORECASE)


class BranchConnection:
    """Everything of ``asyncpg.Connection``, except that ``transaction()`` is a savepoint, that what would end
    or outlive the branch raises ``UsageError``, and so does every call after the branch's end.
    """

    def __init__(
        self, connection: Connection, gid: Gid, ended: Callable[[], ServerError | None] = lambda: None
    ) -> None:
        """``ended`` tells why the server has ended the session."""
        self._undoubt_connection = connection
        self._undoubt_gid = gid
        self._undoubt_session_end = ended
        self.undoubt_failure: ServerError | None = None
        self._undoubt_ended = False
        self._undoubt_running = 0
        self.undoubt_why: Callable[[], Exception] | None = None
        self.undoubt_used = False
        """The application has sent something: the session must be reset before its next use."""
        self.undoubt_wrote = False
        """Some statement reported a changed row. Then there is a transaction id (also if a savepoint undid
        it), or PREPARE fails (rows of postgres_fdw), or preparing an empty branch does no harm (a view whose
        INSTEAD OF trigger did nothing)."""
        self.undoubt_reusable = True
        self.undoubt_stale = False

    def undoubt_end(self) -> bool:
        """From now on every use raises ``UsageError``, or ``undoubt_why()``; statements and cursors got from
        it fail as well. True if a statement of the application is running."""
        if not self._undoubt_ended:
            self._undoubt_ended = True
            # How asyncpg's own pool cuts off prepared statements and cursors of an earlier holder
            # (connresource.py): without it, one that was kept would work inside the next branch.
            self._undoubt_connection._pool_release_ctr += 1  # type: ignore[attr-defined]
        return self._undoubt_running > 0

    @property
    def undoubt_has_ended(self) -> bool:
        return self._undoubt_ended

    def transaction(self, **options: Any) -> Savepoint:
        """A savepoint: ``async with connection.transaction():`` undoes the block alone if it raises."""
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
        if not self.undoubt_wrote and tag and _WROTE.match(tag):
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
        self.undoubt_used = True
        if inspect.iscoroutinefunction(found):
            return functools.partial(self._undoubt_run, name, found)
        return functools.partial(self._undoubt_plain, name, found) if callable(found) else found

    def __repr__(self) -> str:
        state = "ended" if self._undoubt_ended else "open"
        return f"<connection of branch {self._undoubt_gid}, {state}>"

    async def _undoubt_run(self, name: str, method: Any, *args: Any, **options: Any) -> Any:
        with self._undoubt_call(name, *args[:1]):
            return await method(*args, **options)

    def _undoubt_plain(self, name: str, method: Any, *args: Any, **options: Any) -> Any:
        self._undoubt_check(name)
        return method(*args, **options)

    @contextmanager
    def _undoubt_call(self, name: str, query: object = None) -> Iterator[None]:
        self._undoubt_check(name)
        self.undoubt_used = True
        forgets = isinstance(query, str) and self._undoubt_look_at(query)
        self._undoubt_running += 1
        try:
            yield
        except Exception as error:
            if isinstance(error, _STALE):
                self.undoubt_stale = True
            told = self._undoubt_told(error)
            if isinstance(told, asyncpg.PostgresError):
                self.undoubt_failure = failure_told(told)
            if self._undoubt_ended and self.undoubt_why is not None:
                raise self.undoubt_why() from error
            if told is not error:
                raise told from error
            raise
        finally:
            self._undoubt_running -= 1
            if forgets:
                self._undoubt_connection._drop_local_statement_cache()  # type: ignore[attr-defined]

    def _undoubt_told(self, error: Exception) -> Exception:
        """``error``, or the server's reason for ending the session, where asyncpg says only that it has."""
        if not isinstance(error, asyncpg.InterfaceError | asyncpg.ConnectionDoesNotExistError):
            return error
        if (reason := session_end(error)) is not None:
            return reason
        if (end := self._undoubt_session_end()) is not None:
            fields = {"C": end.sqlstate, "M": end.message, "S": "FATAL", "V": "FATAL"}
            return asyncpg.PostgresError.new(fields)
        return error

    def _undoubt_look_at(self, query: str) -> bool:
        """What it does to the session, whatever becomes of the branch. True if the server may have forgotten
        what asyncpg has prepared."""
        forgets = _FORGETS.search(query) is not None
        if forgets or outlives_reset(query):
            self.undoubt_reusable = False
        return forgets

    def _undoubt_check(self, name: str) -> None:
        if self._undoubt_ended:
            if self.undoubt_why is not None:
                raise self.undoubt_why()
            raise UsageError(
                f"connection.{name}() after the end of its branch {self._undoubt_gid}:"
                " a branch's connection serves until commit or rollback is called, and no longer"
            )
        if asyncio._get_running_loop() is not self._undoubt_connection._loop:  # type: ignore[attr-defined]
            raise WrongLoop(
                f"connection.{name}() in another event loop than that of branch {self._undoubt_gid}"
            )

    def _undoubt_note(self, query: str, rows: bool) -> None:
        if rows and not self.undoubt_wrote and _WRITES.match(query):
            self.undoubt_wrote = True


def failure_told(error: asyncpg.PostgresError) -> ServerError:
    """What a statement of the application was answered, to be told again when its branch fails."""
    severity = getattr(error, "severity_en", None) or getattr(error, "severity", "")
    return ServerError(str(error.sqlstate), str(error), fatal=severity in FATAL)


def session_end(error: BaseException) -> asyncpg.PostgresError | None:
    """The server's reason for ending the session during a statement: asyncpg tells that the connection was
    lost, and has the reason as the cause."""
    cause = error.__cause__
    lost = isinstance(error, asyncpg.ConnectionDoesNotExistError)
    return cause if lost and isinstance(cause, asyncpg.PostgresError) else None


class LentForSetUp:
    """The connection in the hands of the application's hook: all of it, until the hook returns."""

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
