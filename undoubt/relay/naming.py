"""Finds the sink that a command line names."""

from __future__ import annotations

from urllib.parse import urlsplit

from undoubt.participants.bounds import OutOfBounds
from undoubt.participants.errors import UsageError
from undoubt.relay.function import FunctionSink
from undoubt.relay.sink import Sink


def sink_of(to: str) -> Sink:
    """The sink that ``to`` names: ``https://…`` or ``http://…``, ``kafka://host:port,…`` or
    ``kafka+ssl://…``, else ``module:function``. Raises ``UsageError``."""
    scheme, separator, _ = to.partition("://")
    if not separator:
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
