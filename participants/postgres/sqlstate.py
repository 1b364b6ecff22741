"""What an answer of PostgreSQL means, by SQLSTATE.

https://www.postgresql.org/docs/current/errcodes-appendix.html. An error that leaves the session alive is a
"no": every error of ``PREPARE TRANSACTION`` and ``COMMIT`` is raised before their point of no return, which
runs with interrupts held off (``PrepareTransaction`` and ``CommitTransaction`` in
``src/backend/access/transam/xact.c``). An error that ends the session (FATAL, PANIC) may come from
after it, and says nothing.
"""

from __future__ import annotations

import re

from undoubt.participants.errors import (
    BranchFailed,
    ParticipantError,
    ParticipantRefused,
    ParticipantUnavailable,
)
from undoubt.participants.postgres.session import NoAnswer, NotSent, ServerError

MARKER_TEXT = "undoubt marker"
SCHEMA_TEXT = "undoubt schema"
_ROLE = re.compile(r"undoubt role <(.*)>", re.DOTALL)

UNDEFINED_OBJECT = "42704"
IN_USE = "55000"
NO_RIGHT = "42501"
OTHER_DATABASE = "0A000"
NOT_SUPPORTED = "0A000"
POOLER = "08P01"
NO_STATEMENT = "26000"
FUTURE_XID = "22023"
FAILED_TRANSACTION = "25P02"
READ_ONLY_TRANSACTION = "25006"

IDLE_IN_TRANSACTION = "25P03"
"""Ends a session that waits for its next statement, and never one that has received it
(``PostgresMain`` in ``src/backend/tcop/postgres.c``)."""

_SETTINGS = {
    IDLE_IN_TRANSACTION: ("idle_in_transaction_session_timeout", ""),
    "25P04": ("transaction_timeout", ""),
    "57P05": ("idle_session_timeout", ""),
    "57014": ("statement_timeout", "statement timeout"),
    "55P03": ("lock_timeout", "lock timeout"),
}
"""The setting behind a code, and the words without which the code may mean something else. Where the server
speaks another language than English these words are missing, and only its own text is told."""

ENDED_BY_APPLICATION = (
    "the branch was ended by the application (a COMMIT, ROLLBACK or PREPARE TRANSACTION of its own), or its"
    " marker was reset (RESET ALL, DISCARD ALL). If it was ended, what it did before that may be committed,"
    " and undoubt cannot take it back: leave COMMIT to the transaction, and reset single settings by name"
)
SWALLOWED = (
    "an SQL error in this branch was swallowed: PostgreSQL has rolled it back, so everything aborts;"
    " use 'async with connection.transaction()' around statements that may fail"
)

SCHEMA_CHANGED = (
    "schema undoubt of its database was made, or made anew, since this connection was opened, or was not to"
    " be believed then: run the transaction again, on a new connection"
)

_ROLE_LEFT = (
    "it ends in role '{role}', which would own the prepared branch, and is none of those whose branches"
    " recovery finishes: execute 'reset role' at the end of the branch, or name the role in the"
    " participant's 'owners'. Behind a pooler only a superuser can finish another role's: connect to the"
    " server itself there"
)
_PREPARED_MAX = (
    "max_prepared_transactions is {what} on the server: put 'max_prepared_transactions = {value}' into"
    " postgresql.conf (at least max_connections is a good value) and restart it"
)
_UNAVAILABLE_CLASSES = frozenset({"08", "53", "57", "58"})
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
        "the pooler gives every statement to another server, so that nothing can be a transaction; set"
        " pool_mode = transaction (or session) for this database in pgbouncer.ini",
    ),
    "unsupported startup parameter": (
        POOLER,
        "the pooler takes no such setting; leave it out of the dsn, or name it in"
        " ignore_startup_parameters of pgbouncer.ini",
    ),
    "password authentication failed": ("28P01", _REFUSED["28P01"]),
    "SASL authentication failed": ("28P01", _REFUSED["28P01"]),
    "no such user": ("28000", "the pooler does not know this user; look at its auth_file or auth_query"),
    "no such database": ("3D000", "the pooler does not know it; look at [databases] in pgbouncer.ini"),
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
"""The name of the check that fails where a session is refused with that code."""


def setting_behind(sqlstate: str | None, message: str) -> str:
    """The name of the timeout that the server has applied; empty if it was none."""
    setting, words = _SETTINGS.get(sqlstate or "", ("", ""))
    return setting if words in message else ""


def with_setting(sqlstate: str | None, message: str) -> str:
    """``message``, and the name of the timeout behind it."""
    setting = setting_behind(sqlstate, message)
    return f"{message} ({setting})" if setting else message


def branch_failure(participant: str, error: ServerError, failure: ServerError | None = None) -> BranchFailed:
    """Why a branch cannot go on, for the person who reads ``TransactionAborted``. ``failure`` is the last
    error that its application got."""
    if error.sqlstate == FAILED_TRANSACTION:
        return swallowed(participant, failure)
    if error.fatal:
        return lost(participant, "", error, failure)
    return BranchFailed(participant, _explain(error), sqlstate=error.sqlstate)


def marker_lost(error: ServerError) -> bool:
    """True if the guard of ``queries.sql`` raised it."""
    return error.sqlstate == "22P02" and MARKER_TEXT in error.message


def schema_changed(error: ServerError) -> bool:
    """True if ``same_schema`` of ``queries.sql`` raised it."""
    return error.sqlstate == "22P02" and SCHEMA_TEXT in error.message


def _explain(error: ServerError) -> str:
    if marker_lost(error):
        return ENDED_BY_APPLICATION
    if error.sqlstate == "22P02" and (role := _ROLE.search(error.message)) is not None:
        return _ROLE_LEFT.format(role=role[1])
    if schema_changed(error):
        return SCHEMA_CHANGED
    # The hint names the setting in every language; 53200 is the server's code for "all are taken".
    if error.sqlstate == IN_USE and "max_prepared_transactions" in error.hint:
        return f"{error.message}: " + _PREPARED_MAX.format(what="0", value=100)
    if error.sqlstate[:2] == "53" and "max_prepared_transactions" in error.hint:
        return f"{error.message}: " + _PREPARED_MAX.format(what="used up", value="<more than now>")
    return _plain(error)


def swallowed(participant: str, failure: ServerError | None, how: str = "") -> BranchFailed:
    """The branch is in a failed transaction. ``failure`` is the last error that its application got."""
    text = SWALLOWED + (f" ({how})" if how else "")
    if failure is not None and failure.sqlstate != FAILED_TRANSACTION:
        text += f". The last error in it: {with_setting(failure.sqlstate, failure.message)}"
    return BranchFailed(participant, text, sqlstate=FAILED_TRANSACTION)


def lost(
    participant: str, when: str, error: ServerError | NoAnswer | NotSent, failure: ServerError | None
) -> BranchFailed:
    """The branch's session has ended, and the branch with it. ``when`` is empty or begins with a space;
    ``failure`` is the last error that its application got, which had the reason if ``error`` has none."""
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
    """An error of undoubt's own statements, outside a branch."""
    if not isinstance(error, ServerError):
        text = with_setting(error.sqlstate, str(error) or "no answer")
        return ParticipantUnavailable(participant, text, sqlstate=error.sqlstate)
    if error.sqlstate in _REFUSED:
        message = f"{_plain(error)}: {_REFUSED[error.sqlstate]}"
        return ParticipantRefused(participant, message, sqlstate=error.sqlstate)
    if error.fatal or error.sqlstate[:2] in _UNAVAILABLE_CLASSES:
        return ParticipantUnavailable(participant, _plain(error), sqlstate=error.sqlstate)
    return ParticipantRefused(participant, _plain(error), sqlstate=error.sqlstate)


def unanswered(participant: str, error: ServerError | NoAnswer) -> ParticipantUnavailable:
    """COMMIT was sent, and ``error`` ended the session: it says nothing of what became of it, whatever its
    code."""
    text = _plain(error) if isinstance(error, ServerError) else with_setting(error.sqlstate, str(error))
    return ParticipantUnavailable(participant, text or "no answer", sqlstate=error.sqlstate)


def pooler_refusal(participant: str, message: str) -> ParticipantRefused | None:
    """What PgBouncer says when it does not let a client in, or begin. It has one code for all of it (08P01,
    which else means a lost connection), so its words have to tell; they are never translated. None
    for others."""
    for words, (sqlstate, advice) in _POOLER.items():
        if re.search(words, message):
            return ParticipantRefused(participant, f"{message}: {advice}", sqlstate=sqlstate)
    return None


def tls_refusal(participant: str, message: str) -> ParticipantRefused:
    """The two sides found no TLS that both accept: a certificate, its file, or a server without any."""
    return ParticipantRefused(
        participant,
        f"no TLS connection: {message}; look at the sslmode, sslrootcert, sslcert and sslkey of its dsn, and"
        " at the server's certificate",
    )
