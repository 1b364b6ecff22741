"""The answer of a web application to a request whose transaction did not commit, or may have.

The body is a problem (RFC 9457) that says what became of the transaction, and so does the header
``Undoubt-Outcome``: ``aborted``, ``unknown``, ``heuristic`` or ``committed``. ``unknown`` is never answered
as ``aborted``: a client that repeats a request whose outcome is unknown may do its work twice. Messages of
databases are not in the body; they are logged."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from undoubt.coordinator.errors import (
    CoordinatorClosed,
    HeuristicOutcome,
    LedgerError,
    OutcomeUnknown,
    TransactionAborted,
)
from undoubt.participants.errors import ParticipantError, ParticipantUnavailable, UndoubtError
from undoubt.participants.ids import TxId

OUTCOME_HEADER = "Undoubt-Outcome"
ID_HEADER = "Undoubt-Transaction-Id"

log = logging.getLogger(__name__)

OUTCOMES = (TransactionAborted, OutcomeUnknown, HeuristicOutcome)
"""The errors that tell what became of a transaction."""
BEFORE_COMMIT = (LedgerError, CoordinatorClosed, ParticipantError)
"""Errors of a transaction whose commit has not begun."""
_LATER = (CoordinatorClosed, LedgerError, ParticipantUnavailable, TimeoutError)
"""Causes of an abort that lie with the service, not with the request: the answer is 503 instead of 409."""


@dataclass(frozen=True, slots=True)
class WebAnswer:
    """A whole response. ``headers``: names and values."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


WebAnswering = Callable[[BaseException], WebAnswer]
"""Makes the answer of what a commit has raised. An application may bring one of its own."""


def answer(error: BaseException) -> WebAnswer:
    """The answer to a request whose commit has raised ``error``, and has not begun unless ``error`` is one of
    the errors that tell an outcome (:data:`OUTCOMES`)."""
    match error:
        case TransactionAborted(cause=cause):
            status = 503 if isinstance(cause, _LATER) else 409
            return problem(status, "TransactionAborted", "aborted", error.txid)
        case OutcomeUnknown():
            return problem(500, "OutcomeUnknown", "unknown", error.txid)
        case HeuristicOutcome():
            return problem(500, "HeuristicOutcome", "heuristic", error.txid)
        case _:
            return problem(500, "InternalError", "aborted", None)


_DETAILS = {
    "aborted": "The request has changed nothing.",
    "unknown": "It is not known yet whether the request has changed anything: ask before you repeat it.",
    "heuristic": "The request was carried out in part: an operator has to resolve it.",
    "committed": "The request was carried out, and failed afterwards: do not repeat it.",
}


def problem(status: int, name: str, outcome: str, txid: TxId | None) -> WebAnswer:
    """A problem with ``outcome``."""
    body: dict[str, object] = {
        "type": f"urn:undoubt:problem:{name}",
        "status": status,
        "name": name,
        "detail": _DETAILS[outcome],
        "outcome": outcome,
    }
    if txid is not None:
        body["transaction"] = str(txid)
    headers = (("content-type", "application/problem+json"), *marks(outcome, txid))
    return WebAnswer(status, msgspec.json.encode(body), headers)


def marks(outcome: str, txid: TxId | None) -> tuple[tuple[str, str], ...]:
    """The headers that tell a transaction's outcome."""
    named = () if txid is None else ((ID_HEADER, str(txid)),)
    return ((OUTCOME_HEADER, outcome), *named)


def failed_after_commit(outcome: str, txid: TxId | None) -> WebAnswer:
    """The answer to a request that failed after the commit of its transaction had begun."""
    return problem(500, "InternalError", outcome, txid)


def note(error: BaseException) -> None:
    """Log an error that is answered here and raised nowhere."""
    aborted = isinstance(error, TransactionAborted)
    bug = None if isinstance(error, UndoubtError) else error
    level = logging.WARNING if aborted else logging.ERROR
    log.log(level, "a request was not committed: %s", error, exc_info=bug)
