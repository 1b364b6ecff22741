"""The programs beside ``undoubt bench`` run, and tell what their page shows."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from benchmarks import etcd
from tests.docs.pages import ROOT
from undoubt.bench.figures import FigureRow, Figures, Ratio


def told(*arguments: str, text: str = "") -> str:
    ended = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, input=text, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_coordinators_own_time() -> None:
    assert "µs at best" in told("benchmarks.engine", "--transactions", "5", "--rounds", "2")


def test_the_nodes_own_time() -> None:
    shown = told("benchmarks.node", "--count", "100", "--rounds", "2")
    assert shown.count("µs at best") == 3


def test_where_the_time_goes() -> None:
    """On real servers: every step and every layer of the page."""
    shown = told("benchmarks.where", "--seconds", "0.3", "--workers", "2")
    page = (ROOT / "docs/performance-background.md").read_text()
    for step in ("begin", "update", "PREPARE", "the decision on disk", "COMMIT PREPARED", "all of it"):
        assert f"\n{step} " in shown
        assert f"| {step} |" in page
    assert "the coordinator" in shown


def test_decisions_a_second() -> None:
    """It ends with an error if anything that was counted is not in the ledger."""
    shown = told("benchmarks.ledger", "--alone", "--seconds", "0", "--callers", "2")
    assert "\n| 2 | " in shown


@pytest.mark.slow
@pytest.mark.skipif(bool(etcd.missing()), reason=etcd.missing() or "it is there")
def test_decisions_a_second_beside_etcd() -> None:
    """Broken if what etcd is asked for were not recorded, each once: its figures would be of nothing."""
    shown = told("benchmarks.ledger", "--seconds", "0", "--callers", "2")
    assert "| at once | undoubt/s | p50 µs | etcd/s | p50 µs | ratio" in shown


def test_a_second_decision_is_no_news_to_etcd() -> None:
    """A ``TxnResponse`` whose comparison failed, behind a header that must be skipped."""
    header = b"\x0a\x04\x08\x81\x01\x20"
    assert etcd.succeeded(header + b"\x10\x01")
    assert not etcd.succeeded(header)


@pytest.mark.slow
def test_losing_the_leader() -> None:
    """It ends with an error if a commit that was counted is missing in a database."""
    shown = told("benchmarks.leader", "--kills", "1", "--stops", "1")
    assert shown.count("\n| `2pc` | ") == shown.count("\n| `paxos` | ") == 2


def test_recovery_beside_a_bare_loop() -> None:
    """On real servers; it fails by itself if anything is left in doubt."""
    assert "recovery ÷ by hand" in told("benchmarks.in_doubt", "--branches", "40", "--rounds", "1")


def test_the_tables() -> None:
    """Broken if the page's figures could not be made from what the command prints."""
    figures = Figures(
        rows=[FigureRow("undoubt-sqlite", 32, 1234.5, 1.234, 5.67, 321.0)],
        ratios=[Ratio("undoubt-sqlite", "naive", 32, 0.912, (0.8, 1.0), 1.1, 1.5)],
        seconds=30.0,
        rounds=6,
        cores=4,
        python="3.13.0",
        postgresql="18.0",
        event_loop="uvloop",
    )
    lines = told("benchmarks.table", text=msgspec.json.encode(figures).decode()).splitlines()
    assert "| `undoubt-sqlite` | 32 | 1,234 | 1.23 | 5.7 | 321 |" in lines
    assert "| `undoubt-sqlite` ÷ `naive` | 32 | 0.91 (0.80, 1.00) | 1.10 | 1.50 | tps ≥ 0.9 |" in lines
