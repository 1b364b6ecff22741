"""What can be set about a participant. ``undoubt.config`` loads it; nothing here reads files."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from undoubt.participants.bounds import (
    ROLE_BYTES_MAX,
    SERVER_TIMEOUT_S_MAX,
    OutOfBounds,
    count,
    path,
    seconds,
    text,
    texts,
)
from undoubt.participants.ids import InvalidName, check_ledger_id, check_participant_name
from undoubt.participants.redact import redact

DRIVERS = ("asyncpg", "psycopg")
DSN_BYTES_MAX = 100_000
_INIT = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class SidecarAccess(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ``undoubt sidecar`` does in a participant for its clients, besides looking at branches that they
    run themselves."""

    sql: bool = False
    """It runs their statements, as the role of the participant's dsn."""


class ParticipantSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One PostgreSQL database.

    ``dsn`` is a libpq URI or keyword string; a password may be left out of it (environment, ``.pgpass``,
    or ``password_file``, whose first line it is). Times are in seconds.
    """

    dsn: str
    driver: str = "asyncpg"
    """What its sessions are opened with: one of :data:`DRIVERS`."""
    password_file: str | None = None
    connections_max: int = 64
    """Connections of the application's branches at once; recovery uses one more of its own."""
    connections_idle_s: float = 300.0
    """A connection that nobody has used for so long is closed; 0: never."""
    init: str | None = None
    """``module:function``, called with each new connection of branches, before the first of them."""
    connect_timeout_s: float = 10.0
    statement_timeout_s: float = 10.0
    """How long one of undoubt's own statements (begin, prepare, second phase, lists) may take to answer."""
    schema_owners: tuple[str, ...] = ()
    """Roles that may own schema ``undoubt`` in its database besides superusers and the role that logs in."""
    pooler: bool = False
    """A transaction pooler (PgBouncer) stands before the database: rely on no session-level setting."""
    owners: tuple[str, ...] = ()
    """Roles that prepare branches there, besides the one that logs in and those that were granted to it. What
    any other role has prepared is no branch of ours, whatever its name."""
    was: tuple[str, ...] = ()
    """Names that this participant had before: branches that name one of them are its own."""
    sidecar: SidecarAccess = SidecarAccess()
    """For clients of ``undoubt sidecar``."""
    other_ledgers: tuple[str, ...] = ()
    """Ids of ledgers of other installations that prepare branches in its database under its name and by its
    roles. Any other ledger's branches of that kind are those of a ledger that was lost."""

    def __post_init__(self) -> None:
        text("dsn", self.dsn, most=DSN_BYTES_MAX)
        if self.password_file is not None:
            path("password_file", self.password_file)
        texts("schema_owners", self.schema_owners, most=ROLE_BYTES_MAX)
        texts("owners", self.owners, most=ROLE_BYTES_MAX)
        count("connections_max", self.connections_max, least=1)
        seconds("connections_idle_s", self.connections_idle_s)
        seconds("connect_timeout_s", self.connect_timeout_s, zero=False)
        # It becomes a lock_timeout as well.
        seconds("statement_timeout_s", self.statement_timeout_s, zero=False, most=SERVER_TIMEOUT_S_MAX)
        if self.init is not None and not _INIT.fullmatch(text("init", self.init)):
            raise OutOfBounds("init", f"must name a function as 'module:function', not {self.init!r}")
        if text("driver", self.driver) not in DRIVERS:
            raise OutOfBounds("driver", f"{self.driver!r} is not one of: {', '.join(DRIVERS)}")
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
