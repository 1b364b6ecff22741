"""The methods that a relay calls for metrics."""

from __future__ import annotations

from typing import Protocol

from undoubt.participants.outbox import Backlog


class RelayMeter(Protocol):
    """Its methods are called in the event loop; they return at once and do not raise."""

    def delivered(self, topic: str, seconds: float) -> None:
        """A message was acknowledged, so long after its delivery began."""
        ...

    def failed(self, topic: str) -> None:
        """A message was not acknowledged, and will be delivered again."""
        ...

    def outbox(self, backlog: Backlog, *, blocked: int) -> None:
        """What the outbox holds now. ``blocked``: the number of lanes whose last delivery has failed."""
        ...

    def outbox_failed(self) -> None:
        """The database of the outbox has not answered a call."""
        ...
