"""Defines refusals, and maps each error of undoubt to a problem document of RFC 9457.

``name`` is the class of the error, as a Python application would see it; problems that exist only in HTTP
have other names. An unexpected error is logged, and reported without its text."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus

import msgspec

from undoubt import errors
from undoubt.coordinator.errors import (
    CoordinatorClosed,
    HeuristicOutcome,
    KeyInUse,
    LedgerError,
    LedgerUnavailable,
    LockLost,
    NotPermitted,
    OutcomeUnknown,
    TransactionAborted,
    TransactionEnded,
)
from undoubt.participants.errors import (
    BranchFailed,
    ParticipantError,
    ParticipantUnavailable,
    UndoubtError,
    UnknownParticipant,
    UsageError,
)
from undoubt.participants.redact import redact
from undoubt.recovery.errors import Conflict, NotAllSeen, NotPrepared, StillBusy
from undoubt.serve.sidecar.types import Problem

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1

_STATUS: tuple[tuple[type[BaseException], int], ...] = (
    (UnknownParticipant, 404),
    (TransactionAborted, 409),
    (TransactionEnded, 409),
    (HeuristicOutcome, 409),
    (KeyInUse, 409),
    (LockLost, 409),
    (OutcomeUnknown, 503),
    (CoordinatorClosed, 503),
    (LedgerUnavailable, 503),
    (NotPermitted, 502),
    (LedgerError, 503),
    (ParticipantUnavailable, 503),
    (BranchFailed, 409),
    (ParticipantError, 502),
    (TimeoutError, 503),
    (UsageError, 422),
    (NotPrepared, 404),
    (NotAllSeen, 503),
    (Conflict, 409),
    (StillBusy, 409),
    (UndoubtError, 500),
)
"""The status for each class of error. The first match counts: subclasses precede their base classes."""


class RequestRefused(Exception):
    """An error that becomes an answer with a problem document and ``headers``."""

    def __init__(
        self,
        status: int,
        name: str,
        detail: str = "",
        *,
        headers: Mapping[str, str] | None = None,
        **members: object,
    ) -> None:
        super().__init__(detail or name)
        self.problem = Problem(
            type=f"urn:undoubt:problem:{name}",
            title=HTTPStatus(status).phrase,
            status=status,
            name=name,
            detail=detail,
            **members,  # type: ignore[arg-type]
        )
        self.headers = {**(headers or {})}

    @property
    def status(self) -> int:
        return self.problem.status

    def body(self) -> bytes:
        return msgspec.json.encode(self.problem)


def busy(name: str, detail: str, *, status: int = 429) -> RequestRefused:
    """A refusal of a request that may be repeated soon."""
    return RequestRefused(status, name, detail, headers={"Retry-After": str(RETRY_AFTER_S)})


def refusal_of(error: BaseException) -> RequestRefused:
    """The answer to a request that ended with ``error``."""
    if isinstance(error, RequestRefused):
        return error
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), None)
    if status is None:
        log.error("a request failed unexpectedly", exc_info=error)
        return RequestRefused(500, "InternalError", "unexpected: the sidecar's log has the error")
    again = status == 503 or isinstance(error, KeyInUse)
    headers = {"Retry-After": str(RETRY_AFTER_S)} if again else {}
    return RequestRefused(status, name_of(error), redact(str(error)), headers=headers, **members_of(error))


def name_of(error: BaseException) -> str:
    """The name of the error's class, or of its nearest base class that is public. Clients know a value beyond
    its bounds as ``UsageError``."""
    if isinstance(error, errors.OutOfBounds):
        return errors.UsageError.__name__
    known = (kind.__name__ for kind in type(error).__mro__ if kind.__name__ in errors.__all__)
    return next(known, type(error).__name__)


def members_of(error: BaseException) -> dict[str, object]:
    """The attributes of an error of undoubt that belong in the problem document."""
    found: dict[str, object] = {}
    match error:
        case TransactionAborted():
            found = {
                "outcome": "aborted",
                "reason": reason_of(error.cause),
                "transaction": str(error.txid),
                "votes": {label: str(vote) for label, vote in error.votes.items()},
            }
            found |= {name: value for name, value in _of_cause(error.cause).items() if value}
        case HeuristicOutcome():
            found = {
                "outcome": str(error.kind),
                "transaction": str(error.txid),
                "branches": {str(gid): str(kind) for gid, kind in error.branches.items()},
            }
        case OutcomeUnknown():
            found = {"outcome": "unknown", "reason": error.why, "transaction": str(error.txid)}
        case KeyInUse():
            found = {"transaction": str(error.txid)}
        case ParticipantError():
            found = _of_cause(error)
        case _:
            pass
    return found


def reason_of(cause: BaseException | str) -> str:
    """The cause of an abort as text that begins with the name of the error."""
    if isinstance(cause, BaseException):
        return redact(f"{name_of(cause)}: {cause}")
    return redact(cause)


def _of_cause(cause: BaseException | str) -> dict[str, object]:
    if isinstance(cause, ParticipantError):
        return {"participant": cause.participant, "sqlstate": cause.sqlstate or ""}
    return {}
