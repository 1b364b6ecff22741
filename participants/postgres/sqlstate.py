"""Translates SQLSTATEs into errors and advice, and names the timeout behind them.

https://www.postgresql.org/docs/current/errcodes-appendix.html. An error after which the session continues is
a refusal: every error of ``PREPARE TRANSACTION`` and ``COMMIT`` is raised before their point of no return,
which runs with interrupts disabled (``PrepareTransaction`` and ``CommitTransaction`` in
``src/backend/access/transam/xact.c``). An error that ends the session (FATAL, PANIC) may come after that
point, and does not show the outcome."""

from __future__ import annotations

import re

from undoubt.participants.errors import (
    BranchFailed,
    ParticipantError,
    ParticipantRefused,
    ParticipantUnavailable,
    StaleLock,
)
from undoubt.participants.postgres.session import NoAnswer, Notice, NotSent, ServerError

MARKER_TEXT = "undoubt marker"
SCHEMA_TEXT = "undoubt schema"
NOTE_TEXT = "undoubt note"
LOCK_TEXT = "undoubt lock"
_ROLE = re.compile(r"undoubt role <(.*)>", re.DOTALL)

UNDEFINED_OBJECT = "42704"
IN_USE = "55000"
LOCK_NOT_AVAILABLE = "55P03"
NO_RIGHT = "42501"
OTHER_DATABASE = "0A000"
NOT_SUPPORTED = "0A000"
POOLER = "08P01"
NO_STATEMENT = "26000"
FUTURE_XID = "22023"
FAILED_TRANSACTION = "25P02"
READ_ONLY_TRANSACTION = "25006"
UNDEFINED_FUNCTION = "42883"
CANNOT_BE_SET = "55P02"
STALE_LOCK = "UL001"
"""Raised by ``undoubt.guard_lock``. Class UL is not one of the server's (manual, appendix A)."""

IDLE_IN_TRANSACTION = "25P03"
"""Ends only a session that waits for its next statement, never a session that has received it
(``PostgresMain`` in ``src/backend/tcop/postgres.c``)."""

_SETTINGS = {
    IDLE_IN_TRANSACTION: ("idle_in_transaction_session_timeout", ""),
    "25P04": ("transaction_timeout", ""),
    "57P05": ("idle_session_timeout", ""),
    "57014": ("statement_timeout", "statement timeout"),
    "55P03": ("lock_timeout", "lock timeout"),
}
"""The setting behind a code, and the words without which the code may mean something else. If the server's
messages are not in English, these words are missing, and only the server's text is shown."""

ENDED_BY_APPLICATION = (
    "the branch was ended by the application (a COMMIT, ROLLBACK or PREPARE TRANSACTION), or its marker was"
    " reset (RESET ALL, DISCARD ALL). If the branch was ended, its earlier changes may be committed, and"
    " undoubt cannot undo them: leave COMMIT to the transaction, and reset single settings by name"
)
SWALLOWED = (
    "an SQL error in this branch was swallowed: PostgreSQL has rolled it back, so everything aborts;"
    " use a savepoint for statements that may fail, and roll back to it"
)
UNNOTICED = (
    "a statement of this branch failed or was cancelled (for example by a timeout of the application's own),"
    " and the application went on: PostgreSQL has rolled the branch back, so everything aborts"
)
"""What is said where no error of a statement is known: a driver that is cancelled raises none."""

NOTE_IMPOSSIBLE = (
    "its transaction was made read only after it had changed something: it cannot note its commit, which"
    " three-phase commit needs. Leave out SET TRANSACTION READ ONLY there, or use protocol 2pc"
)

SCHEMA_CHANGED = (
    "schema undoubt of its database was created or replaced after this connection was opened, or was not"
    " trusted then: run the transaction again, on a new connection"
)

GUARD_UNDONE = (
    "a guard of a lock has failed, or was undone when a savepoint was rolled back: another holder may have"
    " been in this database since. Guard before the savepoint, or again behind it, before anything is read"
)

STILL_RUNNING = (
    "a statement of the application is still running in this branch (or a pipeline, stream or COPY is open):"
    " finish it before commit"
)

GUARD_REPLACED = "a prepared statement of undoubt in its session was replaced by the application"

POOL_USED_UP = (
    "participant %r: the second phase of %s got no answer within %g s through the pooler; if all servers"
    " of its pool are used by branches that wait for this branch, only timeouts end the wait: give the pool"
    " more servers than connections_max of all processes together, or lower connections_max"
)

_ROLE_LEFT = (
    "it ends in role '{role}', which would own the prepared branch, but recovery does not finish branches of"
    " that role: execute 'reset role' at the end of the branch, or name the role in the participant's"
    " 'owners'. Behind a pooler only a superuser can finish the branches of another role: connect to the"
    " server itself there"
)
_PREPARED_MAX = (
    "max_prepared_transactions is {what} on the server: put 'max_prepared_transactions = {value}' into"
    " postgresql.conf (at least max_connections is a good value) and restart it"
)
_UNAVAILABLE_CLASSES = frozenset({"08", "53", "57", "58"})
_STARTUP_CLASSES = frozenset({"0A", "22", "28", "42"})
"""A session that is refused with a code of these classes is refused again, until something is changed."""
_STARTUP = (
    "the server refuses what is asked of it as the session begins; look at the options of the dsn, and at"
    " PGOPTIONS, PGTZ, PGDATESTYLE and PGGEQO in the environment"
)
_REFUSED = {
    "28P01": "the password was not accepted; check the dsn's user, and where the password comes from"
    " (dsn, password_file, PGPASSWORD, .pgpass)",
    "28000": "the server does not let this user in; look at its pg_hba.conf and at the dsn",
    "3D000": "there is no such database; check the dsn, or create it",
    "42501": "the user of the dsn may not do this",
    READ_ONLY_TRANSACTION: "the server takes no writes (a standby, or default_transaction_read_only);"
    " name the primary in the dsn, or all hosts of the cluster",
}

_POOLER = {
    "statement pooling": (
        POOLER,
        "the pooler can send every statement to another server, so that transactions are impossible; set"
        " pool_mode = transaction (or session) for this database in pgbouncer.ini",
    ),
    "unsupported startup parameter": (
        POOLER,
        "the pooler does not accept this setting; remove it from the dsn, or name it in"
        " ignore_startup_parameters of pgbouncer.ini",
    ),
    "password authentication failed": ("28P01", _REFUSED["28P01"]),
    "SASL authentication failed": ("28P01", _REFUSED["28P01"]),
    "no such user": ("28000", "the pooler does not know this user; look at its auth_file or auth_query"),
    "no such database": (
        "3D000",
        "the pooler does not know this database; look at [databases] in pgbouncer.ini",
    ),
    'database ".*" does not exist': ("3D000", _REFUSED["3D000"]),
}

CHECK_BY_SQLSTATE = {
    "28P01": "password",
    "28000": "access",
    "3D000": "database",
    NOT_SUPPORTED: "version",
    POOLER: "pooler",
    READ_ONLY_TRANSACTION: "standby",
}
"""The name of the check that fails if a session is refused with that code."""


def setting_behind(sqlstate: str | None, message: str) -> str:
    """The name of the server's timeout that caused the error; empty if it was no timeout."""
    setting, words = _SETTINGS.get(sqlstate or "", ("", ""))
    return setting if words in message else ""


def with_setting(sqlstate: str | None, message: str) -> str:
    """``message``, with the name of the timeout that caused it, if any."""
    setting = setting_behind(sqlstate, message)
    return f"{message} ({setting})" if setting else message


def branch_failure(participant: str, error: ServerError, failure: ServerError | None = None) -> BranchFailed:
    """The reason why a branch cannot continue, as the application reads it in ``TransactionAborted``.
    ``failure`` is the last error that the application got."""
    if error.sqlstate == FAILED_TRANSACTION:
        return swallowed(participant, failure)
    if error.fatal:
        return lost(participant, "", error, failure)
    if error.sqlstate == STALE_LOCK:
        return StaleLock(participant, error.message, sqlstate=error.sqlstate)
    return BranchFailed(participant, _explain(error), sqlstate=error.sqlstate)


def marker_lost(error: ServerError) -> bool:
    """Whether a guard of ``queries.sql`` raised ``error`` because the marker is missing."""
    return error.sqlstate == "22P02" and MARKER_TEXT in error.message


def note_impossible(error: ServerError) -> bool:
    """Whether ``note_certain`` or ``note_of_changes`` of ``queries.sql`` raised ``error``."""
    return error.sqlstate == "22P02" and NOTE_TEXT in error.message


def schema_changed(error: ServerError) -> bool:
    """Whether ``same_schema`` of ``queries.sql`` raised ``error``."""
    return error.sqlstate == "22P02" and SCHEMA_TEXT in error.message


def guard_undone(error: ServerError) -> bool:
    """Whether ``still_locked`` of ``queries.sql`` raised ``error``."""
    return error.sqlstate == "22P02" and LOCK_TEXT in error.message


_RAISED_BY_GUARDS = (
    (marker_lost, ENDED_BY_APPLICATION),
    (schema_changed, SCHEMA_CHANGED),
    (note_impossible, NOTE_IMPOSSIBLE),
    (guard_undone, GUARD_UNDONE),
)


def _explain(error: ServerError) -> str:
    for raised_it, text in _RAISED_BY_GUARDS:
        if raised_it(error):
            return text
    if error.sqlstate == "22P02" and (role := _ROLE.search(error.message)) is not None:
        return _ROLE_LEFT.format(role=role[1])
    # The hint names the setting in every language; 53200 is the server's code if all are in use.
    if error.sqlstate == IN_USE and "max_prepared_transactions" in error.hint:
        return f"{error.message}: " + _PREPARED_MAX.format(what="0", value=100)
    if error.sqlstate[:2] == "53" and "max_prepared_transactions" in error.hint:
        return f"{error.message}: " + _PREPARED_MAX.format(what="used up", value="<more than now>")
    return _plain(error)


def swallowed(participant: str, failure: ServerError | None, how: str = "") -> BranchFailed:
    """The error of a branch in a failed transaction. ``failure`` is the last error that its application got;
    ``how`` is the answer that showed it."""
    text = (UNNOTICED if failure is None else SWALLOWED) + (f" ({how})" if how else "")
    if failure is not None and failure.sqlstate != FAILED_TRANSACTION:
        text += f". The last error in it: {with_setting(failure.sqlstate, failure.message)}"
    return BranchFailed(participant, text, sqlstate=FAILED_TRANSACTION)


def lost(
    participant: str, when: str, error: ServerError | NoAnswer | NotSent, failure: ServerError | None
) -> BranchFailed:
    """The error of a branch whose session has ended, and the branch with it. ``when`` is empty or begins with
    a space. ``failure`` is the last error that its application got; it has the reason if ``error`` has
    none."""
    if error.sqlstate is None and failure is not None and failure.fatal:
        error = failure
    text = f"its connection was lost{when}: {with_setting(error.sqlstate, str(error))}"
    return BranchFailed(participant, text, sqlstate=error.sqlstate)


def _plain(error: ServerError) -> str:
    text = with_setting(error.sqlstate, error.message)
    if error.detail:
        text += f" ({error.detail.rstrip('.')})"
    if error.hint:
        text += f"; {error.hint.rstrip('.')}"
    return text


def participant_error(participant: str, error: ServerError | NoAnswer | NotSent) -> ParticipantError:
    """The error of a participant for an error of one of undoubt's own statements, outside a branch."""
    if not isinstance(error, ServerError):
        text = with_setting(error.sqlstate, str(error) or "no answer")
        return ParticipantUnavailable(participant, text, sqlstate=error.sqlstate)
    if error.sqlstate in _REFUSED:
        message = f"{_plain(error)}: {_REFUSED[error.sqlstate]}"
        return ParticipantRefused(participant, message, sqlstate=error.sqlstate)
    if error.fatal or error.sqlstate[:2] in _UNAVAILABLE_CLASSES:
        return ParticipantUnavailable(participant, _plain(error), sqlstate=error.sqlstate)
    return ParticipantRefused(participant, _plain(error), sqlstate=error.sqlstate)


def startup_error(participant: str, error: ServerError | NoAnswer | NotSent) -> ParticipantError:
    """The error of a session that the server did not let begin. Each such error is FATAL, so that only its
    code shows whether the server will answer otherwise later."""
    if not isinstance(error, ServerError) or error.sqlstate in _REFUSED:
        return participant_error(participant, error)
    if error.sqlstate[:2] in _STARTUP_CLASSES or error.sqlstate == CANNOT_BE_SET:
        message = f"no connection: {_plain(error)}: {_STARTUP}"
        return ParticipantRefused(participant, message, sqlstate=error.sqlstate)
    return participant_error(participant, error)


def unanswered(participant: str, error: ServerError | NoAnswer) -> ParticipantUnavailable:
    """The error after a COMMIT that was sent and whose session ``error`` ended: no code shows the outcome
    then."""
    text = _plain(error) if isinstance(error, ServerError) else with_setting(error.sqlstate, str(error))
    return ParticipantUnavailable(participant, text or "no answer", sqlstate=error.sqlstate)


def unconfirmed(participant: str, what: str, warning: Notice) -> ParticipantUnavailable:
    """The error after a branch was ``what`` on its server, and no synchronous standby has confirmed it."""
    return ParticipantUnavailable(
        participant,
        f"{what}, but no synchronous standby confirmed it: {warning.message}",
        sqlstate=warning.sqlstate,
    )


def pooler_refusal(participant: str, message: str) -> ParticipantRefused | None:
    """The error for a refusal of PgBouncer to let a client connect or begin; None for other messages.

    PgBouncer has one code for all refusals (08P01, which otherwise means a lost connection), so they are
    recognized by their words, which are never translated."""
    for words, (sqlstate, advice) in _POOLER.items():
        if re.search(words, message):
            return ParticipantRefused(participant, f"{message}: {advice}", sqlstate=sqlstate)
    return None


def tls_refusal(participant: str, message: str) -> ParticipantRefused:
    """The error if client and server cannot agree on TLS: a certificate, its file, or a server without
    TLS."""
    return ParticipantRefused(
        participant,
        f"no TLS connection: {message}; look at the sslmode, sslrootcert, sslcert and sslkey of its dsn, and"
        " at the server's certificate",
    )
