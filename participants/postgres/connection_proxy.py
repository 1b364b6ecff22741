"""The application's side of a session with either driver: the calls of a branch to the connection that the
application uses, and the code that both drivers' connections share."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from undoubt.participants.errors import UsageError
from undoubt.participants.ids import Gid
from undoubt.participants.postgres.session import ServerError, ServerSession, Step

_BLANK = r"(?:\s|--[^\n]*\n|/\*.*?\*/)*"
_COMMITS = re.compile(
    rf"(?:^|;){_BLANK}(?:commit\b|prepare\b{_BLANK}transaction\b"
    # In a block of PL/pgSQL the last "end" is mostly followed by a quote.
    rf"|end\b(?:{_BLANK}\b(?:work|transaction|and|no|chain)\b)*{_BLANK}(?:;|$))",
    re.IGNORECASE | re.DOTALL,
)
_OUTLIVES = re.compile(rf"(?:^|;){_BLANK}(?:(?:prepare|load)\b|do\b.*\bload\b)", re.IGNORECASE | re.DOTALL)


def outlives_reset(statement: str) -> bool:
    """Whether ``statement`` leaves something in its session that only the end of the session removes: a
    statement that was prepared by SQL, a library that was loaded.

    False does not prove that it leaves nothing. The reset of a session fails if a prepared statement is left;
    a library that a function has loaded is not detected."""
    return _OUTLIVES.search(statement) is not None


_REPLACES = re.compile(
    r"\b(?:prepare|deallocate|discard|call|do(?!\s+(?:nothing|update)\b))\b", re.IGNORECASE
)


def may_replace_statements(statement: str) -> bool:
    """Whether ``statement``, of an application, may remove or replace prepared statements of its session."""
    return _REPLACES.search(statement) is not None


_CHANGED = re.compile(r"(?:INSERT \d+|UPDATE|DELETE|MERGE) [1-9]")

LISTEN_REFUSED = "LISTEN needs a separate connection: PostgreSQL cannot prepare a branch with it"


def may_commit(statement: str) -> bool:
    """Whether ``statement`` may end its transaction with a commit; true also if it only looks so."""
    return _COMMITS.search(statement) is not None


def changed_rows(tag: str) -> bool:
    """Whether the command tag ``tag`` reports a changed row."""
    return _CHANGED.match(tag) is not None


def after_branch(use: str, gid: Gid | str) -> UsageError:
    """The error of a ``use`` of the connection after the end of its branch."""
    return UsageError(
        f"{use} after the end of its branch {gid}:"
        " a branch's connection can be used only until commit or rollback is called"
    )


class Handle(Protocol):
    """The application's side of a branch: the driver's connection without the calls that would end the
    branch."""

    undoubt_why: Callable[[], Exception] | None
    """Makes the error that every use raises after ``undoubt_end`` in place of ``UsageError``, if the
    transaction was aborted while the application worked."""
    undoubt_failure: ServerError | None
    """The last error of a statement of the application, None if no error is known."""

    undoubt_leaves: bool
    """Whether the application may have left something in the session. True from the beginning, unless it is
    set to False: then as far as the statements and their command tags show
    (:mod:`undoubt.participants.postgres.tags`)."""

    @property
    def undoubt_used(self) -> bool:
        """Whether the application has sent a statement: then the session must be reset before its next
        use."""
        ...

    @property
    def undoubt_wrote(self) -> bool:
        """Whether a statement is known to have changed something."""
        ...

    @property
    def undoubt_committed(self) -> bool:
        """Whether a statement may have ended the transaction, and committed what came before it."""
        ...

    @property
    def undoubt_reusable(self) -> bool:
        """Whether the session may be lent to another branch."""
        ...

    @property
    def undoubt_keeps(self) -> bool:
        """Whether the statements that the engine keeps prepared in the session are still there, as far as the
        application's statements show."""
        ...

    @property
    def undoubt_stale(self) -> bool:
        """Whether a statement failed because its prepared statement is no longer valid."""
        ...

    def undoubt_end(self) -> bool:
        """End the application's use: from now on every use raises ``UsageError``, or the error of
        ``undoubt_why``. True if the application is still using the connection (a running statement, a
        pipeline, a COPY): then nothing else may be sent on the session, and it must be discarded. May be
        repeated."""
        ...


class ApplicationSide:
    """What a handle has noticed about the statements of its application; these are the initial values."""

    undoubt_wrote: bool = False
    """A statement reported a changed row. Then there is a transaction id (also if the change was rolled back
    to a savepoint), or PREPARE fails (rows of postgres_fdw), or it does no harm to prepare an empty branch (a
    view whose INSTEAD OF trigger did nothing). It does not prove that there is an id."""
    undoubt_committed: bool = False
    """A statement may have ended the transaction, and committed what came before it. Also true of statements
    that only look like one, such as the body of a function."""
    undoubt_reusable: bool = True
    undoubt_leaves: bool = True
    undoubt_stale: bool = False
    undoubt_keeps: bool = False
    undoubt_failure: ServerError | None = None


class LendingSession(ServerSession, Protocol):
    """A session that undoubt has opened, and whose connection it lends to the applications of branches."""

    async def set_up(self, hook: Callable[[Any], Any]) -> None:
        """Call the application's hook with the driver's connection, which the hook may use until it returns.
        Raises the errors of the hook, and ``NotSent`` if the hook leaves a statement running."""
        ...

    def keep_own_statements(self) -> None:
        """Allow named prepared statements for the engine's own statements: the session is never lent, and
        one server process answers it."""
        ...

    @property
    def begins_ahead(self) -> bool:
        """Whether :meth:`ahead` can be used now."""
        ...

    def ahead(self, steps: Sequence[Step]) -> None:
        """Send ``steps`` immediately before the next statement of the application, or of this session,
        whichever comes first, without waiting for their answers. If they fail, the session is closed; the
        application's statement does not run, and raises the error."""
        ...

    async def find_pipeline(self, timeout_s: float) -> bool:
        """Find out by trying whether this session can pipeline; sessions behind a pooler are not asked.
        False: it cannot, and has been closed. Raises ``ServerError``, ``NoAnswer``, ``NotSent`` if it is
        lost."""
        ...

    def handle(self, gid: Gid) -> Handle:
        """The connection for the application of a branch that has begun in this session."""
        ...
