"""Log records as JSON: a log store must find every line about one transaction."""

from __future__ import annotations

import json
import logging
import logging.config
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.coordinator.node.processes import Processes
from undoubt.coordinator.errors import OutcomeUnknown, TransactionAborted
from undoubt.logs import JsonFormatter
from undoubt.participants.errors import ParticipantUnavailable
from undoubt.participants.ids import Gid, Protocol, TxId

TXID = TxId(7, "abcdefgh", 42)
GID = Gid("abcdefghij", Protocol.TWO_PHASE, TXID, 2, "payments")


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        assert "\n" not in text
        self.lines.append(json.loads(text))


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    log.setLevel(logging.DEBUG)  # whatever the root logger's is
    monkeypatch.setattr(log, "disabled", False)
    handler = Lines()
    handler.setFormatter(JsonFormatter())
    log.addHandler(handler)
    log.propagate = False
    yield handler.lines
    log.removeHandler(handler)
    log.propagate = True


log = logging.getLogger("tests.logs")


def test_a_line(lines: list[dict[str, Any]]) -> None:
    log.warning(
        "nothing of %s ours: %d%%", "it", 7, extra={"order": 12, "at": datetime(2026, 1, 1, tzinfo=UTC)}
    )
    [line] = lines
    assert datetime.fromisoformat(line.pop("time")).tzinfo is not None
    assert line == {
        "level": "WARNING",
        "logger": "tests.logs",
        "message": "nothing of it ours: 7%",
        "order": 12,
        "at": "2026-01-01 00:00:00+00:00",
    }


@pytest.mark.parametrize(
    ("about", "fields"),
    [
        (TXID, {"transaction": str(TXID)}),
        (GID, {"transaction": str(TXID), "gid": str(GID), "participant": "payments"}),
        (OutcomeUnknown(TXID, "as told"), {"transaction": str(TXID)}),
        (ParticipantUnavailable("orders", "down"), {"participant": "orders"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whose_transaction_it_is_about(
    lines: list[dict[str, Any]], about: object, fields: dict[str, str]
) -> None:
    """Broken if a line can be found by its text alone."""
    log.warning("something happened: %s", about)
    log.warning("something happened: %(what)s", {"what": about})
    assert len(lines) == 2
    for line in lines:
        assert {name: line[name] for name in ("transaction", "gid", "participant") if name in line} == fields


def test_an_error_and_what_caused_it(lines: list[dict[str, Any]]) -> None:
    """The application's own record, in whose error ours is the cause of the cause."""
    try:
        try:
            cause = ParticipantUnavailable("orders", "down")
            raise TransactionAborted(TXID, cause) from cause
        except TransactionAborted as error:
            raise RuntimeError("not paid") from error
    except RuntimeError:
        log.exception("an order was lost")
    [line] = lines
    assert (line["transaction"], line["participant"]) == (str(TXID), "orders")
    assert "RuntimeError: not paid" in line["error"]
    assert "TransactionAborted" in line["error"]


def test_what_the_caller_says_wins(lines: list[dict[str, Any]]) -> None:
    log.warning("%s", GID, extra={"participant": "ledger"})
    assert lines[0]["participant"] == "ledger"
    assert lines[0]["transaction"] == str(TXID)


def test_it_is_configured_by_name() -> None:
    """As the documentation shows it."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"json": {"()": "undoubt.logs.JsonFormatter"}},
            "handlers": {"tests": {"class": "logging.StreamHandler", "formatter": "json"}},
            "loggers": {"tests.logs.configured": {"handlers": ["tests"]}},
        }
    )
    [handler] = logging.getLogger("tests.logs.configured").handlers
    assert isinstance(handler.formatter, JsonFormatter)


async def test_a_node_writes_json(tmp_path: Path) -> None:
    """A log store reads every line of it, the one that says it is ready among them."""
    nodes = Processes(tmp_path, count=1)
    try:
        await nodes.start(arguments=("--log-format", "json"))
        await nodes.leader()
        assert await nodes.end(1, signal.SIGTERM) == 0
    finally:
        await nodes.kill()
    lines = [json.loads(line) for line in nodes.log(1).splitlines()]
    assert [line["logger"] for line in lines if "is ready at" in line["message"]] == ["undoubt.cli.node"]
    assert any("leads in term" in line["message"] for line in lines)
    assert {"time", "level", "logger", "message"} <= set(lines[0])
