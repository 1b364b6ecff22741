"""Invariants that stay on in production: ``assert`` vanishes under ``python -O``, these do not."""

from __future__ import annotations


class InvariantViolation(AssertionError):
    """The program is wrong. Nothing may be done on the strength of the state that was found."""


def invariant(condition: bool, message: str) -> None:
    """Raise :class:`InvariantViolation` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise InvariantViolation(message)
