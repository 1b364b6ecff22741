"""Where a relay delivers to."""

from __future__ import annotations

from typing import Protocol

from undoubt.participants.errors import UndoubtError
from undoubt.participants.outbox import Message

DEDUPE_ID = "undoubt-dedupe-id"
"""The name of the header in which a webhook, or a consumer of Kafka, gets a message's dedupe id."""


class Undelivered(UndoubtError):
    """A sink has not acknowledged a message. It may have got the message; it will get it again."""


class Sink(Protocol):
    """Where messages go."""

    async def deliver(self, message: Message) -> None:
        """Return once the message is acknowledged: it is removed then, and never delivered again. Any
        exception means that it is not. Called for one message of a lane at a time."""
        ...

    async def close(self) -> None:
        """Close connections. Never fails."""
        ...
