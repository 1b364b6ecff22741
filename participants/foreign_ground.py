"""Databases belong to somebody else: what undoubt's own sessions set.

Whoever owns a database, or a role, sets what a session of it begins with, and may create functions,
operators and tables there. A session that looked for names along its ``search_path`` would run them with its
own rights, a superuser's maybe (CVE-2018-1058). So every statement of ours is qualified (the ``queries.sql``
of two rooms), a session that is ours alone sets what it relies on, and a schema of ours is believed only if
those who can change what it means are trusted (:mod:`undoubt.participants.believed`).

https://www.postgresql.org/docs/current/ddl-schemas.html#DDL-SCHEMAS-PATTERNS, and
runtime-config-client.html of that manual.
"""

from __future__ import annotations

ALONE = "begin transaction isolation level read committed, read only, not deferrable"
"""Begins a transaction that only looks, whatever the role's defaults: with ``serializable``, ``read only``
and ``deferrable`` a SELECT waits for a safe snapshot, behind prepared transactions too. Takes none itself."""
ALONE_WRITING = "begin transaction isolation level read committed, read write, not deferrable"
"""The same for one that writes."""

_SETTINGS = (
    # pg_temp would come first if it were not named (and may hold tables that shadow the system's).
    ("search_path", "pg_catalog, pg_temp"),
    ("role", "none"),
    ("default_transaction_isolation", "'read committed'"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_deferrable", "off"),
    ("standard_conforming_strings", "on"),
    ("client_encoding", "'UTF8'"),
    # With error, no warning would say that a synchronous standby has not confirmed a COMMIT.
    ("client_min_messages", "'warning'"),
    # A policy that hides a row of ours from us is an error, and not a row that is not there.
    ("row_security", "off"),
    ("datestyle", "'ISO, MDY'"),
    ("intervalstyle", "'postgres'"),
    ("timezone", "'UTC'"),
    ("bytea_output", "'hex'"),
    ("extra_float_digits", "1"),
    ("array_nulls", "on"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
)
_BEGINNING = "set transaction isolation level read committed, read write, not deferrable"
_SINCE = ((140000, "idle_session_timeout"), (170000, "transaction_timeout"))


def startup_timeouts(version: int) -> str:
    """The timeouts, off, as options of the message that opens a session (which count more than what the
    database's owner has set). For a server of ``version`` that ended one before its first statement could set
    anything: an unknown option would be refused, and so do poolers refuse all of them.
    https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-OPTIONS."""
    names = ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"]
    names += [name for since, name in _SINCE if version >= since]
    return " ".join(f"-c {name}=0" for name in names)


def session_settings(version: int, *, idle_in_transaction_s: float = 0.0) -> str:
    """One script for a session that nobody else uses, at a server of ``version`` (server_version_num).

    No SELECT is in it: it works under any defaults. Timeouts are off, since each statement of ours has one
    of the client's own; ``idle_in_transaction_s`` is for sessions that hold locks between two statements.
    """
    return _script("set", version, idle_in_transaction_s)


def transaction_settings(version: int) -> str:
    """The same for one transaction, as its first statements, in a session that others use as well."""
    return f"{_BEGINNING}; {_script('set local', version, 0.0)}"


def _script(how: str, version: int, idle_in_transaction_s: float) -> str:
    settings = [
        *_SETTINGS,
        ("idle_in_transaction_session_timeout", f"'{round(idle_in_transaction_s * 1000)}ms'"),
        *((name, "0") for since, name in _SINCE if version >= since),
    ]
    return "; ".join(f"{how} {name} = {value}" for name, value in settings)
