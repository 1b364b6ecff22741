"""Invariants that stay on in production: ``python -O`` removes ``assert``, but not these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

StateT = TypeVar("StateT")
EventT = TypeVar("EventT")


class InvariantViolation(AssertionError):
    """The program has a bug. The state that was found must not be used."""


def invariant(condition: bool, message: str) -> None:
    """Raise :class:`InvariantViolation` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise InvariantViolation(message)


def state_after(
    transitions: Mapping[tuple[StateT, EventT], StateT], state: StateT, event: EventT, machine: str
) -> StateT:
    """The state that follows ``state`` on ``event`` in the table ``transitions``. Raises
    :class:`InvariantViolation`, with the name of the ``machine``, if the table has no such transition."""
    try:
        return transitions[state, event]
    except KeyError:
        raise InvariantViolation(f"{machine}: event {event!s} in state {state!s}") from None
