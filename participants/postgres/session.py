"""What this room requires of a driver: a database session that sends statements and returns their answers.

The modules above it (branches, settling, evidence, wait graphs) are written once for both drivers, against
:class:`ServerSession`; each driver implements it. A session whose call was cancelled, timed out or lost is
*broken*: its state is not known, so it is closed and never used again."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from undoubt.participants.tasks import Continued

FATAL = frozenset({"FATAL", "PANIC"})
"""The severities of errors that end the session."""


class ServerError(Exception):
    """The server answered with an error. ``fatal``: the error ended the session."""

    def __init__(
        self, sqlstate: str, message: str, *, detail: str = "", hint: str = "", fatal: bool = False
    ) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.message = message
        self.detail = detail
        self.hint = hint
        self.fatal = fatal


class NoAnswer(Exception):
    """The session was lost, or the answer did not come in time: what was sent may have happened. ``sqlstate``
    is the server's reason for ending the session, None if it gave no reason."""

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class AnswerTimedOut(NoAnswer):
    """The answer did not come in time: an immediate retry would only double the wait."""


class NotSent(Exception):
    """Nothing was sent: the session is closed, or another statement is running in it. ``sqlstate`` is as in
    :class:`NoAnswer`."""

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


NOTICES_KEPT_MAX = 100
"""The most notices that are kept of one script, since a trigger may raise one per row. A notice about a
standby is kept even if there are more."""


@dataclass(frozen=True, slots=True)
class Notice:
    """A warning or notice. ``source_file`` is the C file of the server that raised it, None if not
    reported."""

    severity: str
    sqlstate: str
    message: str
    source_file: str | None

    @property
    def of_standby(self) -> bool:
        """Whether this is the warning that the server did not wait for a synchronous standby's confirmation.

        The server raises this warning in ``src/backend/replication/syncrep.c`` with code 01000 (the wait was
        cancelled) or 57P01 (the server shuts down). Triggers raise 01000 as well, but from other files.
        """
        return self.sqlstate in {"01000", "57P01"} and self.source_file in {None, "syncrep.c"}


def keep(notices: list[Notice], notice: Notice) -> None:
    """Add ``notice``, unless :data:`NOTICES_KEPT_MAX` are kept already. A warning about a standby, which the
    server sends last, replaces the last notice then: notices of triggers must not hide it."""
    if len(notices) < NOTICES_KEPT_MAX:
        notices.append(notice)
    elif notice.of_standby:
        notices[-1] = notice


def standby_warning(notices: Sequence[Notice]) -> Notice | None:
    """The first of ``notices`` that is a warning about a synchronous standby; None if there is none."""
    return next((notice for notice in notices if notice.of_standby), None)


@dataclass(frozen=True, slots=True)
class CommandResult:
    """The answer to a script: the last command's tag, and the warning that the server did not wait for a
    synchronous standby's confirmation, None if there was no such warning."""

    tag: str
    unconfirmed: Notice | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One statement, its parameters ``$1 …`` as text. ``keep``: the session may keep it prepared, under a
    name that it draws at random."""

    sql: str
    values: tuple[str, ...] = field(default=(), repr=False)
    keep: bool = False


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers to a pipeline: for each step its command tag and its rows, as text; and the notices that
    the server sent in between."""

    tags: list[str]
    rows: list[list[tuple[str | None, ...]]]
    notices: list[Notice]


@dataclass(frozen=True, slots=True)
class ServerParameters:
    """What the server reported about itself when the session was opened. Times are in seconds, 0 for no
    limit.

    ``pooler``: another process than the server answers (a connection pooler), because the process id in the
    startup message differs from the one in the answer to a query. ``pooled``: ``pooler`` is true, or the
    settings say that there is a pooler. Then the next transaction of this session may be in another server
    process, or on another server, and of these values only ``role``, ``superuser``, ``database``,
    ``notes_commits`` and ``reports_history`` are valid for it.

    ``role`` is the role in which branches begin; ``login`` is the role that logged in. ``role_owned``:
    ``role`` prepares branches of ours. ``role_of_database``: a setting of the database, which its owner can
    change, chose ``role``. ``strays``: the session may change to roles that prepare no branches of ours.
    ``as_login``: branches begin by changing to ``login``
    (:func:`undoubt.participants.postgres.roles.beginning`).

    ``reports_history``: the database has undoubt's tables, and reports its history; ``history`` is its id,
    None while it is unknown. ``reports_position``: every role may read the position in the WAL.

    ``schema`` is the number (oid) of schema ``undoubt`` if the schema exists and is to be believed; if it is
    None, nothing in the schema is used.

    ``prepares``: ``max_prepared_transactions`` is not 0.
    """

    version: int
    synchronous_commit: str
    lock_timeout_s: float
    idle_timeout_s: float
    notes_commits: bool
    system: int | None
    timeline: str | None
    backend_start: str
    pooler: bool = False
    pooled: bool = False
    role: str = ""
    login: str = ""
    role_owned: bool = True
    strays: bool = False
    role_of_database: bool = False
    as_login: bool = False
    superuser: bool = False
    database: str = ""
    reports_history: bool = False
    history: str | None = None
    reports_position: bool = False
    schema: int | None = None
    prepares: bool = True


class Row(Protocol):
    """One row of a result; a key is the name of a column."""

    def __getitem__(self, key: str, /) -> Any: ...


class ServerSession(Protocol):
    """One database session. It must not be used concurrently."""

    intro: ServerParameters
    pid: int

    @property
    def broken(self) -> bool:
        """Whether the session is closed, or in an unknown state: only ``discard`` may be called then."""
        ...

    @property
    def in_transaction(self) -> bool: ...

    @property
    def application_name(self) -> str:
        """The application_name that the server reported last."""
        ...

    async def script(self, sql: str, *, timeout_s: float) -> CommandResult:
        """Send ``sql``, one or several statements, as one simple query, in one round trip. Raises
        ``ServerError``, ``NoAnswer``, ``NotSent``."""
        ...

    async def rows(self, sql: str, *args: object, timeout_s: float) -> Sequence[Row]:
        """The rows of one statement with parameters. Raises as :meth:`script` does."""
        ...

    @property
    def pipelines(self) -> bool:
        """Whether :meth:`pipeline` can be used now."""
        ...

    def pipeline(
        self, steps: Sequence[Step], *, behind: Sequence[Step] = (), timeout_s: float
    ) -> Continued[Answers]:
        """Send ``steps``; returns their answers: a step runs only if all steps before it have succeeded.
        ``behind`` is sent in the same piece as a pipeline of its own, which runs whatever became of the
        first; whether it succeeds shows in ``self.behind``. Raises the first ``ServerError`` of a step,
        ``NoAnswer``, ``NotSent``."""
        ...

    behind: asyncio.Future[Answers] | None
    """What became of what the last :meth:`pipeline` sent behind its steps, None if it sent nothing; the
    answers may be empty."""

    def drop_ahead(self) -> None:
        """Drop the steps that wait for the next statement, if any: nothing of them was sent."""
        ...

    def keep_statements(self) -> None:
        """Allow named prepared statements: one server process, not shared through a pooler, answers this
        session."""
        ...

    def discard(self) -> None:
        """Close the session, in the background if that needs time. Never fails; may be repeated."""
        ...


class PipelinedSession(ServerSession, Protocol):
    """A session that can have several statements without an answer."""

    async def each(
        self, statements: Sequence[str], *, timeout_s: float
    ) -> list[CommandResult | ServerError | NoAnswer]:
        """The answer to each of ``statements``, in their order. Each is a transaction of its own: an error of
        one does not concern the others. ``timeout_s`` is for each answer. If the connection is lost or an
        answer does not come in time, the session is broken, and the statements without an answer, which may
        have been executed, have ``NoAnswer``. Raises ``NotSent`` if nothing was sent."""
        ...


PROBE_S = 3.0
"""How long a session may take to begin a branch, if it is not known that its connection still works: a
firewall may have dropped the connection without notice."""
CLOSE_TIMEOUT_S = 2.0
"""How long a discarded session may take to cancel its running statement and to close its connection."""

_closing: set[asyncio.Task[None]] = set()


def close_in_background(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run ``coroutine``, which closes a session and does not raise, in a task of the running loop."""
    task = asyncio.get_running_loop().create_task(coroutine)
    _closing.add(task)
    task.add_done_callback(_closing.discard)


async def drain_discarded() -> None:
    """Wait until all sessions that were discarded in this event loop are closed."""
    loop = asyncio.get_running_loop()
    tasks = [task for task in list(_closing) if task.get_loop() is loop]
    if tasks:
        await asyncio.wait(tasks)
