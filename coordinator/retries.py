"""Decides whether and when a transaction is run again."""

from __future__ import annotations

import random

from undoubt.coordinator.errors import HeuristicOutcome, OutcomeUnknown, TransactionAborted
from undoubt.participants.backoff import limit_s

RETRYABLE_SQLSTATES = frozenset({"40001", "40P01"})
"""serialization_failure and deadlock_detected (PostgreSQL manual, appendix A)."""


def retryable(error: BaseException) -> bool:
    """Whether running the transaction again may succeed, and is safe.

    True for a deadlock or a serialization failure, of one database or across several (an error with a true
    attribute ``retryable``), also if that is the cause of ``TransactionAborted``; always False if the outcome
    is unknown.
    """
    if isinstance(error, OutcomeUnknown | HeuristicOutcome):
        return False
    if isinstance(error, TransactionAborted):
        return isinstance(error.cause, BaseException) and retryable(error.cause)
    return getattr(error, "sqlstate", None) in RETRYABLE_SQLSTATES or bool(getattr(error, "retryable", False))


def pause_before_retry(error: BaseException, attempt: int, retries: int) -> float | None:
    """Seconds to wait before the next attempt, random up to a growing limit; None if there is none.
    ``attempt`` counts from 0."""
    if attempt >= retries or not retryable(error):
        return None
    return random.uniform(0, limit_s(0.01, 1.0, attempt))  # noqa: S311 - jitter
