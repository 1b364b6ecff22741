"""The application's side of a session, whatever the driver: what a branch asks of the connection that the
application holds, and what both drivers' connections have in common."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Protocol

from undoubt.participants.errors import UsageError
from undoubt.participants.ids import Gid
from undoubt.participants.postgres.session import ServerError, ServerSession

_BLANK = r"(?:\s|--[^\n]*\n|/\*.*?\*/)*"
_OUTLIVES = re.compile(rf"(?:^|;){_BLANK}(?:(?:prepare|load)\b|do\b.*\bload\b)", re.IGNORECASE | re.DOTALL)


def outlives_reset(statement: str) -> bool:
    """Whether it leaves something in its session that nothing but the session's end takes away: a statement
    that was prepared by SQL, a library that was loaded.

    False does not say that it leaves nothing. The server tells of prepared statements when the session is
    reset; of a library that a function has loaded nobody tells."""
    return _OUTLIVES.search(statement) is not None


_CHANGED = re.compile(r"(?:INSERT \d+|UPDATE|DELETE|MERGE) [1-9]")

LISTEN_REFUSED = "LISTEN belongs on a connection of its own: PostgreSQL cannot prepare a branch with it"


def changed_rows(tag: str) -> bool:
    """Whether ``tag``, a statement's, reports a changed row."""
    return _CHANGED.match(tag) is not None


def after_branch(use: str, gid: Gid | str) -> UsageError:
    """What ``use`` of the connection raises once its branch has ended."""
    return UsageError(
        f"{use} after the end of its branch {gid}:"
        " a branch's connection serves until commit or rollback is called, and no longer"
    )


class Handle(Protocol):
    """The application's side of a branch: the driver's connection with the exits locked."""

    undoubt_why: Callable[[], Exception] | None
    """What every use raises after ``undoubt_end``, in the place of ``UsageError``: the transaction was
    aborted while the application worked."""
    undoubt_failure: ServerError | None
    """The last error that a statement of the application got, as far as that is known."""

    @property
    def undoubt_used(self) -> bool:
        """The application has sent something: the session must be reset before its next use."""
        ...

    @property
    def undoubt_wrote(self) -> bool:
        """Some statement is known to have changed something."""
        ...

    @property
    def undoubt_reusable(self) -> bool:
        """The session may be lent to another branch."""
        ...

    @property
    def undoubt_stale(self) -> bool:
        """A statement failed since what was prepared for it is not valid any more."""
        ...

    def undoubt_end(self) -> bool:
        """From now on every use raises ``UsageError``, or what ``undoubt_why`` gives. True if the application
        is in the middle of something all the same (a statement that runs, a pipeline, a COPY): then nobody
        else may speak on the session, and it has to be discarded. May be repeated."""
        ...


class ApplicationSide:
    """What a handle has noticed of its application's statements: at first nothing."""

    undoubt_wrote: bool = False
    """Some statement reported a changed row. Then there is a transaction id (also if a savepoint undid it),
    or PREPARE fails (rows of postgres_fdw), or preparing an empty branch does no harm (a view whose INSTEAD
    OF trigger did nothing)."""
    undoubt_reusable: bool = True
    undoubt_stale: bool = False
    undoubt_failure: ServerError | None = None


class LendingSession(ServerSession, Protocol):
    """A session of undoubt's own, which lends its connection to the applications of branches."""

    async def set_up(self, hook: Callable[[Any], Any]) -> None:
        """Call the application's hook with the driver's connection, which it may use until it returns. Raises
        what the hook raises, and ``NotSent`` if it still uses the connection then."""
        ...

    def handle(self, gid: Gid) -> Handle:
        """What the application of a branch that has begun in this session works with."""
        ...
