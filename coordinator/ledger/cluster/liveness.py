"""How long a node that was asked something has said nothing.

One that works says something every moment while it owes an answer (``undoubt.coordinator.node.clients``).
Counted is from the first question that it has not followed by anything: not from the last one, or whoever is
asked all the time could be silent for ever."""

from __future__ import annotations

SILENCE_S = 1.0
"""Who says nothing for so long while it is asked something is taken for gone: paused, or cut off."""


class Liveness:
    """Times are the loop's, in seconds."""

    def __init__(self) -> None:
        self._heard_at = self._asked_at = 0.0

    def asked(self, now: float) -> None:
        if self._asked_at <= self._heard_at:
            self._asked_at = now

    def heard(self, now: float) -> None:
        self._heard_at = now

    def seconds(self, now: float) -> float:
        """As long as nothing is owed it means nothing."""
        return now - max(self._heard_at, self._asked_at)
