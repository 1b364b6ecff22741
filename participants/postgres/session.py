"""What this room needs of a driver: one database session that sends statements and tells what came back.

Everything above it (branches, settling, evidence, wait graphs) is written once against
:class:`ServerSession`; a driver brings one implementation. A session whose call was cancelled, timed out or
lost is *broken*: nobody knows what it is doing, so it is closed and never used again."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

FATAL = frozenset({"FATAL", "PANIC"})
"""Severities of an error with which its session ends."""


class ServerError(Exception):
    """The server answered with an error. ``fatal``: it ended the session with it."""

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
    is the server's reason for ending the session, where it gave one."""

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class AnswerTimedOut(NoAnswer):
    """The answer did not come in time: trying again at once would only double the wait."""


class NotSent(Exception):
    """Nothing was sent: the session is closed, or another statement is running in it. ``sqlstate`` as of
    :class:`NoAnswer`."""

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


NOTICES_KEPT_MAX = 100
"""Of one script, and the last that tells of a standby: a trigger may raise one per row."""


@dataclass(frozen=True, slots=True)
class Notice:
    """A warning or notice. ``source_file`` is the C file of the server that it came from, if told."""

    severity: str
    sqlstate: str
    message: str
    source_file: str | None

    @property
    def of_standby(self) -> bool:
        """That a synchronous standby's confirmation was not waited for.

        The server raises it in ``src/backend/replication/syncrep.c`` with code 01000 (the wait was
        cancelled) or 57P01 (the server shuts down). Triggers raise 01000 too, but from other files.
        """
        return self.sqlstate in {"01000", "57P01"} and self.source_file in {None, "syncrep.c"}


def keep(notices: list[Notice], notice: Notice) -> None:
    """Add ``notice``, unless there are enough. What the server says last must not be lost in what triggers
    say before."""
    if len(notices) < NOTICES_KEPT_MAX:
        notices.append(notice)
    elif notice.of_standby:
        notices[-1] = notice


def standby_warning(notices: Sequence[Notice]) -> Notice | None:
    """The first of ``notices`` that tells of a synchronous standby."""
    return next((notice for notice in notices if notice.of_standby), None)


@dataclass(frozen=True, slots=True)
class CommandResult:
    """The answer to a script: the last command's tag, and the warning that a synchronous standby's
    confirmation was not waited for, if there was one."""

    tag: str
    unconfirmed: Notice | None = None


@dataclass(frozen=True, slots=True)
class ServerParameters:
    """What the server said about itself when the session was opened. Times are in seconds, 0 for none.

    ``pooler`` is true where another process than the server answers (a connection pooler), as is seen by the
    process ids that the two of them tell. ``pooled``: so it is, or the settings say so; then the next
    transaction of this session may be in another server process, or on another server, and nothing that was
    said here holds for it but ``role``, ``superuser``, ``database``, ``notes_commits`` and ``tells_history``.

    ``role`` is the one that branches begin with. ``login`` is the one that logged in; ``role_owned``:
    ``role`` prepares branches of ours; ``role_of_database``: the database sets it, as its owner may.
    ``strays``: the session may become roles that prepare no branches of ours. ``as_login``: branches begin by
    becoming ``login`` (:func:`undoubt.participants.postgres.roles.beginning`).

    ``tells_history``: the database has undoubt's tables, and names its history; ``history`` is its id, None
    while that is unknown. ``tells_position``: whatever role asks is told the place in the WAL.

    ``schema`` is the number of schema ``undoubt`` if it is there and to be believed; else nothing in
    it is used.
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
    tells_history: bool = False
    history: str | None = None
    tells_position: bool = False
    schema: int | None = None


class Row(Protocol):
    """One row of a result, by the columns' names."""

    def __getitem__(self, key: str, /) -> Any: ...


class ServerSession(Protocol):
    """One database session. Not for concurrent use."""

    intro: ServerParameters
    pid: int

    @property
    def broken(self) -> bool:
        """Closed, or in an unknown state: only ``discard`` is left."""
        ...

    @property
    def in_transaction(self) -> bool: ...

    @property
    def application_name(self) -> str:
        """As last reported by the server."""
        ...

    async def script(self, sql: str, *, timeout_s: float) -> CommandResult:
        """Send ``sql``, one or several statements, as one simple query: one round trip."""
        ...

    async def rows(self, sql: str, *args: object, timeout_s: float) -> Sequence[Row]:
        """One statement with parameters."""
        ...

    def keep_statements(self) -> None:
        """A server process of its own answers this session: statements may be prepared there under names."""
        ...

    def discard(self) -> None:
        """Close it, in the background if that needs time. Never fails; may be repeated."""
        ...


CLOSE_TIMEOUT_S = 2.0
"""How long a session that is thrown away may take to cancel what runs in it and to say goodbye."""

_closing: set[asyncio.Task[None]] = set()


def close_in_background(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run ``coroutine``, which closes a session and does not raise, in a task of the running loop."""
    task = asyncio.get_running_loop().create_task(coroutine)
    _closing.add(task)
    task.add_done_callback(_closing.discard)


async def drain_discarded() -> None:
    """Wait until sessions that were thrown away in this event loop are closed."""
    loop = asyncio.get_running_loop()
    tasks = [task for task in list(_closing) if task.get_loop() is loop]
    if tasks:
        await asyncio.wait(tasks)
