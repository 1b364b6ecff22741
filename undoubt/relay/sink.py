"""Where a relay delivers to."""

from __future__ import annotations

from typing import Protocol
from urllib.parse import urlsplit

from undoubt.participants.bounds import OutOfBounds
from undoubt.participants.errors import UndoubtError, UsageError
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


def sink_of(to: str) -> Sink:
    """The sink that ``to`` names: ``https://…`` or ``http://…``, ``kafka://host:port,…`` or
    ``kafka+ssl://…``, else ``module:function``. Raises ``UsageError``."""
    scheme, separator, _ = to.partition("://")
    if not separator:
        from undoubt.relay.function import FunctionSink  # noqa: PLC0415 - it imports this module

        return FunctionSink.named(to)
    if scheme in {"http", "https"}:
        if not urlsplit(to).hostname:
            raise OutOfBounds("--to", f"names no host: {to!r}")
        try:
            from undoubt.relay.webhook import WebhookSink  # noqa: PLC0415 - of an extra
        except ImportError as error:
            raise UsageError("a webhook needs the extra: pip install 'undoubt[relay]'") from error
        return WebhookSink(to)
    if scheme in {"kafka", "kafka+ssl"}:
        try:
            from undoubt.relay.kafka import KafkaSink  # noqa: PLC0415 - of an extra
        except ImportError as error:
            raise UsageError("Kafka needs the extra: pip install 'undoubt[kafka]'") from error
        return KafkaSink(to.removeprefix(f"{scheme}://"), tls=scheme == "kafka+ssl")
    raise OutOfBounds("--to", "must be http://…, https://…, kafka://…, kafka+ssl://…, or module:function")
