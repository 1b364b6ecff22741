"""Whether, and when, a transaction is run again."""

from __future__ import annotations

import random

from undoubt.coordinator.errors import HeuristicOutcome, OutcomeUnknown, TransactionAborted
from undoubt.participants.backoff import limit_s

RETRYABLE_SQLSTATES = frozenset({"40001", "40P01"})
"""serialization_failure and deadlock_detected (PostgreSQL manual, appendix A)."""


def retryable(error: BaseException) -> bool:
    """Whether running the transaction again may help, and can do no harm.

    True for a deadlock or a serialization failure, of one database or across several (an error with a true
    attribute ``retryable``), also as the cause of ``TransactionAborted``; never where the outcome is unknown.
    """
    if isinstance(error, OutcomeUnknown | HeuristicOutcome):
        return False
    if isinstance(error, TransactionAborted):
        return isinstance(error.cause, BaseException) and retryable(error.cause)
    return getattr(error, "sqlstate", None) in RETRYABLE_SQLSTATES or bool(getattr(error, "retryable", False))


def pause_before_retry(error: BaseException, attempt: int, retries: int) -> float | None:
    """Seconds to wait before trying again, random under a growing limit; None: give up. ``attempt`` counts
    from 0."""
    if attempt >= retries or not retryable(error):
        return None
    return random.uniform(0, limit_s(0.01, 1.0, attempt))  # noqa: S311 - jitter
