"""The access log and traces: W3C Trace Context, and OpenTelemetry where it is installed."""

from __future__ import annotations

import importlib.util

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from undoubt.serve.sidecar.access import span, trace_of, traces

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADER = f"00-{TRACE}-{PARENT}-01"


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (HEADER, TRACE),
        (f"01-{TRACE}-{PARENT}-01-more", TRACE),
        (f" {HEADER} ", TRACE),
        (None, ""),
        ("", ""),
        (f"ff-{TRACE}-{PARENT}-01", ""),
        (f"00-{'0' * 32}-{PARENT}-01", ""),
        (f"00-{TRACE}-{'0' * 16}-01", ""),
        (HEADER.upper(), ""),
        (HEADER + "x" * 1000, ""),
        ('"} {"status": 200', ""),
    ],
)
def test_traceparent(header: str | None, found: str) -> None:
    """What is none must not get into the log."""
    assert trace_of(header) == found


def test_a_span_is_in_its_callers_trace() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    with span("POST /v1/transactions", {"traceparent": HEADER}):
        pass
    [made] = exporter.get_finished_spans()
    assert made.name == "POST /v1/transactions"
    assert made.context is not None
    assert made.parent is not None
    assert f"{made.context.trace_id:032x}" == TRACE
    assert f"{made.parent.span_id:016x}" == PARENT


def test_without_opentelemetry_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    traces.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with span("POST /v1/transactions", {"traceparent": HEADER}):
        assert not trace.get_current_span().get_span_context().is_valid
    traces.cache_clear()
