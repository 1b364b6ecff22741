"""Invariants that stay on in production: ``python -O`` removes ``assert``, but not these."""

from __future__ import annotations


class InvariantViolation(AssertionError):
    """The program has a bug. The state that was found must not be used."""


def invariant(condition: bool, message: str) -> None:
    """Raise :class:`InvariantViolation` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise InvariantViolation(message)
