"""What a failed statement or connection means to whoever asked the ledger.

SQLSTATEs: https://www.postgresql.org/docs/current/errcodes-appendix.html.
"""

from __future__ import annotations

from collections.abc import Sequence

from undoubt.coordinator.errors import LedgerError, LedgerMissing, LedgerUnavailable, LedgerUnusable
from undoubt.participants.believed import Mend
from undoubt.participants.redact import redact

AGAIN = frozenset({"40001", "40P01"})
"""Rolled back in favour of somebody else: nothing happened."""

_STARTING = frozenset({"57P01", "57P02", "57P03", "53300"})
_IDLE = frozenset({"57P05"})
"""The server has ended an idle session (idle_session_timeout): nothing happened."""
_NO_ROOM = frozenset({"53100", "53200", "54000"})
_STANDBY = frozenset({"25006", "55000"})
_MISSING = frozenset({"3F000", "42P01"})
_REFUSED = ("22", "23", "28", "3D", "42")
_REFUSALS = (
    *("authentication failed", "does not exist", "no pg_hba.conf entry", "not permitted to log in"),
    *("certificate", "does not support SSL", "private key file", "invalid connection option"),
)
"""libpq tells no SQLSTATE of a failed connection, only the server's words."""

UNCONFIRMED = frozenset({"01000", "57P01"})
"""Warnings of a COMMIT that waited for a synchronous standby and was told not to wait
(src/backend/replication/syncrep.c)."""


class Unconfirmed(Exception):  # noqa: N818 - not an error of anybody's, and caught in this room
    """Committed at the server, and perhaps on no standby: not an answer."""


class Standby(Exception):  # noqa: N818 - likewise
    """The server answers, and decides nothing now: a failover may be under way."""


class Unsuitable(Exception):  # noqa: N818 - likewise
    """The server answers, and is none that a ledger may be kept on."""


class Unbelieved(Unsuitable):
    """Others than its owners could change what the ledger's schema means. ``mends`` is not empty."""

    def __init__(self, words: str, mends: Sequence[Mend]) -> None:
        super().__init__("; ".join((words, f"{mends[0].how}: {mends[0].line}".removesuffix(": "))))
        self.mends = tuple(mends)


def may_repeat(error: Exception) -> bool:
    """Whether asking again soon may succeed: a connection that is gone, a server that starts, a conflict."""
    state = _state(error)
    if state is None:
        return not any(words in str(_original(error)) for words in _REFUSALS)
    return state in AGAIN | _STARTING | _IDLE or state.startswith("08") or is_stale(error)


def is_stale(error: BaseException) -> bool:
    """Whether what its connection has prepared is from before a change of the ledger's tables: then nothing
    has happened. The server's text says so in its own language, the function of its source is the same in all
    (src/backend/utils/cache/plancache.c)."""
    diagnosis = getattr(_original(error), "diag", None)
    return _state(error) == "26000" or getattr(diagnosis, "source_function", None) == "RevalidateCachedQuery"


def told(error: Exception, url: str) -> LedgerError:  # noqa: PLR0911 - one line per meaning
    """``error``, of the driver or of this room, as the contract has it. ``url`` is without its password."""
    state, words = _state(error), words_of(error)
    if isinstance(error, Unsuitable):
        unusable = LedgerUnusable(f"ledger {url} cannot be used: {words}")
        unusable.mends = error.mends if isinstance(error, Unbelieved) else ()
        return unusable
    if isinstance(error, Standby):
        return LedgerUnavailable(
            f"ledger {url} takes no commands: {words}; name the primary, or all hosts of its cluster"
        )
    if state in _NO_ROOM:
        return LedgerUnavailable(f"no room at ledger {url}: nothing was recorded ({words})")
    if state in _STANDBY:
        return LedgerUnavailable(f"the server of ledger {url} takes no writes: {words}. Is it a standby?")
    if state in _MISSING:
        return missing(url)
    if state == "42501":
        return LedgerUnusable(
            f"the role of ledger {url} lacks a right: {words}. Its owner can grant: usage on schema"
            " undoubt_ledger; select, insert, update, delete on all tables in schema undoubt_ledger. It can"
            " read the secret then, and decide: name it in ledger.schema_owners"
        )
    if (state or "").startswith(_REFUSED) or (state is None and any(text in words for text in _REFUSALS)):
        return LedgerUnusable(f"ledger {url} cannot be used: {words}")
    return LedgerUnavailable(f"no answer from ledger {url}: {words}")


def missing(url: str) -> LedgerMissing:
    return LedgerMissing(f"no ledger at {url}; if it is to be a new one: undoubt ledger init")


def words_of(error: Exception) -> str:
    """The driver's or the server's own words, on one line. libpq quotes what it does not understand of a
    connection string, and it may be a password."""
    return redact((str(_original(error)).strip().splitlines() or [repr(error)])[0])


def _state(error: BaseException) -> str | None:
    state = getattr(_original(error), "sqlstate", None)
    return state if isinstance(state, str) else None


def _original(error: BaseException) -> BaseException:
    """The driver's, where SQLAlchemy has put one of its own around it."""
    return getattr(error, "orig", None) or error
