"""Measures each request, writes it to the access log, and continues its trace.

A line of the log contains no token, no capability, no SQL and no value. ``traceparent`` (W3C Trace Context)
joins the request to its caller's trace: its id is in the log and, where OpenTelemetry is installed, in a
span."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

log = logging.getLogger("undoubt.sidecar.access")

_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?"
)


@dataclass(slots=True)
class Access:
    """The values of one request for its line in the log."""

    method: str
    operation: str
    """The path with placeholders, as in the table of operations: ids are no labels of metrics."""
    trace: str = ""
    client: str = ""
    transaction: str = ""
    status: int = 0
    replayed: bool = False
    problem: str = ""
    sent_bytes: int = 0
    began_s: float = field(default_factory=time.perf_counter)

    def write(self) -> None:
        """Write the line to the log."""
        took_ms = (time.perf_counter() - self.began_s) * 1000
        extra: dict[str, object] = {
            "method": self.method,
            "operation": self.operation,
            "status": self.status,
            "took_ms": round(took_ms, 3),
            "sent_bytes": self.sent_bytes,
        }
        for name in ("client", "transaction", "trace", "problem"):
            if value := getattr(self, name):
                extra[name] = value
        if self.replayed:
            extra["replayed"] = True
        log.info("%s %s %d", self.method, self.operation, self.status, extra=extra)


def trace_of(header: str | None) -> str:
    """The id of the trace in a ``traceparent``, or an empty string (https://www.w3.org/TR/trace-context/)."""
    match = None if header is None else _TRACEPARENT.fullmatch(header.strip())
    return "" if match is None else match[1]


@cache
def traces() -> bool:
    """Whether OpenTelemetry is installed."""
    return importlib.util.find_spec("opentelemetry") is not None


@contextlib.contextmanager
def span(operation: str, headers: Mapping[str, str]) -> Iterator[None]:
    """A span of OpenTelemetry within the caller's trace; does nothing if OpenTelemetry is not installed, or
    no exporter is set up."""
    if not traces():
        yield
        return
    trace: Any = importlib.import_module("opentelemetry.trace")
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        yield
        return
    propagate: Any = importlib.import_module("opentelemetry.propagate")
    tracer = trace.get_tracer("undoubt.sidecar")
    parent = propagate.extract(dict(headers))
    with tracer.start_as_current_span(operation, context=parent, kind=trace.SpanKind.SERVER):
        yield
