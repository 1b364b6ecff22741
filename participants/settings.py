"""The settings of one participant. ``undoubt.config`` loads them; nothing here reads files."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from undoubt.participants.bounds import (
    ROLE_BYTES_MAX,
    SERVER_TIMEOUT_S_MAX,
    OutOfBounds,
    choice,
    count,
    path,
    seconds,
    text,
    texts,
)
from undoubt.participants.ids import InvalidName, check_ledger_id, check_participant_name
from undoubt.participants.redact import redact

DRIVERS = ("asyncpg", "psycopg")
RESETS = ("always", "tags")
DSN_BYTES_MAX = 100_000
_INIT = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class SidecarAccess(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ``undoubt sidecar`` may do in a participant for its clients, besides looking up branches that the
    clients run themselves."""

    sql: bool = False
    """Whether the sidecar runs SQL statements of its clients, as the role of the participant's dsn."""


class ParticipantSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The settings of one PostgreSQL database.

    ``dsn`` is a libpq URI or keyword string; it need not have a password (then the password comes from
    the environment, ``.pgpass``, or the first line of ``password_file``). Times are in seconds.
    """

    dsn: str
    driver: str = "asyncpg"
    """The driver that opens its sessions: one of :data:`DRIVERS`."""
    password_file: str | None = None
    connections_max: int = 64
    """The most connections of the application's branches at one time; undoubt opens a few more for itself."""
    connections_idle_s: float = 300.0
    """A connection that was not used for this time is closed; 0: never."""
    init: str | None = None
    """``module:function``, called with each new connection of branches before its first branch."""
    connect_timeout_s: float = 10.0
    statement_timeout_s: float = 10.0
    """How long one of undoubt's own statements (begin, prepare, second phase, lists) may take to answer."""
    schema_owners: tuple[str, ...] = ()
    """Roles that may own schema ``undoubt`` in its database, besides superusers and the login role."""
    pooler: bool = False
    """A transaction pooler (PgBouncer) is between undoubt and the database: do not rely on session-level
    settings."""
    pipeline: bool = True
    """Undoubt's own statements of a branch are pipelined wherever the driver's connection turns out to allow
    it; behind a pooler they never are."""
    reset: str = "always"
    """When a session is reset behind the end of a branch: one of :data:`RESETS`. ``tags``: not if commands
    and their tags show that the application has left nothing (:mod:`undoubt.participants.postgres.tags`)."""
    owners: tuple[str, ...] = ()
    """Roles that prepare branches there, besides the login role and the roles that were granted to it. A
    transaction that any other role has prepared is not a branch of ours, whatever its name."""
    was: tuple[str, ...] = ()
    """Former names of this participant: branches with a former name in their gid belong to it."""
    sidecar: SidecarAccess = SidecarAccess()
    """What ``undoubt sidecar`` may do in this participant for its clients."""
    other_ledgers: tuple[str, ...] = ()
    """Ids of the ledgers of other installations that prepare branches in its database under its name and by
    its roles. Such branches of any other ledger are taken for branches of a lost ledger."""
    temporary: bool = False
    """Its data may be lost in a crash of the machine, as in tests: settings of the server that risk that are
    no problem."""

    def __post_init__(self) -> None:
        text("dsn", self.dsn, most=DSN_BYTES_MAX)
        if self.password_file is not None:
            path("password_file", self.password_file)
        texts("schema_owners", self.schema_owners, most=ROLE_BYTES_MAX)
        texts("owners", self.owners, most=ROLE_BYTES_MAX)
        count("connections_max", self.connections_max, least=1)
        seconds("connections_idle_s", self.connections_idle_s)
        seconds("connect_timeout_s", self.connect_timeout_s, zero=False)
        # The value is also used as a lock_timeout.
        seconds("statement_timeout_s", self.statement_timeout_s, zero=False, most=SERVER_TIMEOUT_S_MAX)
        if self.init is not None and not _INIT.fullmatch(text("init", self.init)):
            raise OutOfBounds("init", f"must name a function as 'module:function', not {self.init!r}")
        if text("driver", self.driver) not in DRIVERS:
            raise OutOfBounds("driver", f"{self.driver!r} is not one of: {', '.join(DRIVERS)}")
        choice("reset", self.reset, RESETS)
        _names("was", self.was, check_participant_name)
        _names("other_ledgers", self.other_ledgers, check_ledger_id)

    def __repr__(self) -> str:
        return f"ParticipantSettings(dsn={redact(self.dsn)!r}, driver={self.driver!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("dsn", redact(self.dsn))]


def _names(setting: str, given: tuple[str, ...], check: Callable[[str], str]) -> None:
    for name in texts(setting, given):
        try:
            check(name)
        except InvalidName as error:
            raise OutOfBounds(setting, f"has a name that cannot be: {error}") from None
