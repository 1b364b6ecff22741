"""The settings of undoubt's own sessions in a database that another role owns.

The owner of a database, or of a role, can choose the initial settings of its sessions, and can create
functions, operators and tables there. A session that looked up names along its ``search_path`` would run
these objects with its own rights, perhaps a superuser's (CVE-2018-1058). So every statement of undoubt is
qualified (the ``queries.sql`` of two rooms), a session that only undoubt uses sets everything that it relies
on, and a schema of undoubt is believed only if all roles that can change its meaning are trusted
(:mod:`undoubt.participants.schema_trust`).

https://www.postgresql.org/docs/current/ddl-schemas.html#DDL-SCHEMAS-PATTERNS, and
runtime-config-client.html of that manual.
"""

from __future__ import annotations

ALONE = "begin transaction isolation level read committed, read only, not deferrable"
"""Begins a read-only transaction, whatever the role's defaults: with ``serializable``, ``read only`` and
``deferrable`` a SELECT waits for a safe snapshot, also for prepared transactions. This statement itself takes
no snapshot."""
ALONE_WRITING = "begin transaction isolation level read committed, read write, not deferrable"
"""Begins a transaction that may write, otherwise like :data:`ALONE`."""

_SETTINGS = (
    # If pg_temp is not named, it comes first (and may contain tables that shadow the system's).
    ("search_path", "pg_catalog, pg_temp"),
    ("role", "none"),
    ("default_transaction_isolation", "'read committed'"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_deferrable", "off"),
    ("standard_conforming_strings", "on"),
    ("client_encoding", "'UTF8'"),
    # With 'error' the server would not send the warning that a synchronous standby has not confirmed a
    # COMMIT.
    ("client_min_messages", "'warning'"),
    # A policy that would hide a row of ours causes an error; the row does not silently disappear.
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
    """Options for the startup message of a session that turn all timeouts off; they have precedence over the
    settings of the database's owner. They are for a server of ``version`` that ended a session before its
    first statement could set anything: a server refuses unknown options, and poolers refuse all of these.
    https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-OPTIONS."""
    names = ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"]
    names += [name for since, name in _SINCE if version >= since]
    return " ".join(f"-c {name}=0" for name in names)


def session_settings(version: int, *, idle_in_transaction_s: float = 0.0) -> str:
    """One script that sets up a session that only undoubt uses, at a server of ``version``
    (server_version_num).

    It has no SELECT, so that it works under any defaults. Timeouts are off, since each statement of ours has
    a timeout in the client; ``idle_in_transaction_s`` is for sessions that hold locks between two statements.
    """
    return _script("set", version, idle_in_transaction_s)


def transaction_settings(version: int) -> str:
    """The first statements of a transaction in a session that other clients use as well: the settings of
    :func:`session_settings`, for this transaction only."""
    return f"{_BEGINNING}; {_script('set local', version, 0.0)}"


def _script(how: str, version: int, idle_in_transaction_s: float) -> str:
    settings = [
        *_SETTINGS,
        ("idle_in_transaction_session_timeout", f"'{round(idle_in_transaction_s * 1000)}ms'"),
        *((name, "0") for since, name in _SINCE if version >= since),
    ]
    return "; ".join(f"{how} {name} = {value}" for name, value in settings)
