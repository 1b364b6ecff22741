"""Translates the errors of statements and connections into the errors of the contract.

SQLSTATEs: https://www.postgresql.org/docs/current/errcodes-appendix.html.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from undoubt.coordinator.errors import (
    LedgerError,
    LedgerMisconfigured,
    LedgerMissing,
    LedgerUnavailable,
    LedgerUnusable,
)
from undoubt.participants.redact import redact
from undoubt.participants.schema_trust import Mend

AGAIN = frozenset({"40001", "40P01"})
"""SQLSTATEs of a conflict with another transaction: rolled back, nothing was recorded."""

_STARTING = frozenset({"57P01", "57P02", "57P03", "53300"})
_IDLE = frozenset({"57P05"})
"""The server has ended an idle session (idle_session_timeout): nothing was recorded."""
_NO_ROOM = frozenset({"53100", "53200", "54000"})
_STANDBY = frozenset({"25006", "55000"})
_MISSING = frozenset({"3F000", "42P01"})
_REFUSED = ("22", "23", "28", "3D", "42")
_REFUSALS = (
    *("authentication failed", "does not exist", "no pg_hba.conf entry", "not permitted to log in"),
    *("certificate", "does not support SSL", "private key file", "invalid connection option"),
)
"""Parts of messages: for a failed connection libpq reports no SQLSTATE, only the server's message."""

_INVALID = re.compile(r"invalid \w+ value: ")
"""libpq refuses the value of a parameter of the URL (src/interfaces/libpq/fe-connect.c)."""
UNCONFIRMED = frozenset({"01000", "57P01"})
"""SQLSTATEs of the warnings if the wait of a COMMIT for a synchronous standby was cancelled
(src/backend/replication/syncrep.c)."""


class Unconfirmed(Exception):  # noqa: N818 - not reported as an error, caught in this room
    """The transaction is committed at the server, and perhaps on no standby: this is not an answer."""


class Standby(Exception):  # noqa: N818 - likewise
    """The server answers and cannot write now: a failover may be under way."""


class Unsuitable(Exception):  # noqa: N818 - likewise
    """The server answers, and must not be used for a ledger."""


class Unbelieved(Unsuitable):
    """Roles other than its owners could change the meaning of the ledger's schema. ``mends`` is not empty."""

    def __init__(self, words: str, mends: Sequence[Mend]) -> None:
        super().__init__("; ".join((words, f"{mends[0].how}: {mends[0].line}".removesuffix(": "))))
        self.mends = tuple(mends)


def may_repeat(error: Exception) -> bool:
    """Whether a repetition may succeed soon: a lost connection, a server that starts, a conflict."""
    state = _state(error)
    if state is None:
        told = str(_original(error))
        return not (_INVALID.search(told) or any(words in told for words in _REFUSALS))
    return state in AGAIN | _STARTING | _IDLE or state.startswith("08") or is_stale(error)


def is_stale(error: BaseException) -> bool:
    """Whether the statement failed because the connection prepared it before a change of the ledger's tables:
    then nothing was recorded. The server's message is translated, so the name of the function in its source
    is compared (src/backend/utils/cache/plancache.c)."""
    diagnosis = getattr(_original(error), "diag", None)
    return _state(error) == "26000" or getattr(diagnosis, "source_function", None) == "RevalidateCachedQuery"


def as_ledger_error(error: Exception, url: str) -> LedgerError:  # noqa: PLR0911 - one line per meaning
    """The contract's error for ``error`` of the driver or of this room. ``url`` is without its password."""
    state, words = _state(error), words_of(error)
    if isinstance(error, Unsuitable):
        unusable = LedgerUnusable(f"ledger {url} cannot be used: {words}")
        unusable.mends = error.mends if isinstance(error, Unbelieved) else ()
        return unusable
    if isinstance(error, Standby):
        return LedgerUnavailable(
            f"ledger {url} accepts no commands: {words}; name the primary, or all hosts of its cluster"
        )
    if state in _NO_ROOM:
        return LedgerUnavailable(f"no room at ledger {url}: nothing was recorded ({words})")
    if state in _STANDBY:
        return LedgerUnavailable(f"the server of ledger {url} accepts no writes: {words}. Is it a standby?")
    if state in _MISSING:
        return missing(url)
    if state == "42501":
        return LedgerUnusable(
            f"the role of ledger {url} lacks a right: {words}. Its owner can grant: usage on schema"
            " undoubt_ledger; select, insert, update, delete on all tables in schema undoubt_ledger. It can"
            " then read the secret and record decisions: name it in ledger.schema_owners"
        )
    if state is None and _INVALID.search(words):
        return LedgerMisconfigured(f"ledger {url} cannot be used: {words}")
    if (state or "").startswith(_REFUSED) or (state is None and any(text in words for text in _REFUSALS)):
        return LedgerUnusable(f"ledger {url} cannot be used: {words}")
    return LedgerUnavailable(f"no answer from ledger {url}: {words}")


def is_missing(error: Exception) -> bool:
    """Whether a table of the ledger is missing: there is no ledger, or it does not live there."""
    return _state(error) in _MISSING


def missing(url: str) -> LedgerMissing:
    """The error to raise if there are no tables at ``url``."""
    return LedgerMissing(f"no ledger at {url}; to make a new one: undoubt ledger init")


def words_of(error: Exception) -> str:
    """The first line of the message of the driver or the server. Redacted, since libpq quotes the parts of a
    connection string that it does not understand, which may be a password."""
    return redact((str(_original(error)).strip().splitlines() or [repr(error)])[0])


def _state(error: BaseException) -> str | None:
    state = getattr(_original(error), "sqlstate", None)
    return state if isinstance(state, str) else None


def _original(error: BaseException) -> BaseException:
    """The error of the driver, if SQLAlchemy has wrapped it in its own."""
    return getattr(error, "orig", None) or error
