"""The programs beside ``undoubt bench`` run, and tell what their page shows."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from benchmarks import etcd, growth, page
from benchmarks.plot import Curve
from benchmarks.soak import Measure
from benchmarks.table import tables
from tests.docs.pages import ROOT
from undoubt.bench.figures import FigureRow, Figures, Ratio, RoundTrips


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
    there = (ROOT / "docs/performance-background.md").read_text()
    for step in ("begin", "update", "PREPARE", "the decision on disk", "COMMIT PREPARED", "all of it"):
        assert f"\n| {step} | " in shown
        assert f"\n| {step} | " in there
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
    shown = told("benchmarks.in_doubt", "--branches", "40", "--rounds", "1")
    assert "| by hand | " in shown
    assert "| recovery | " in shown
    assert "| ratio (rounds from, to) | " in shown


@pytest.mark.slow
def test_each_curve_has_a_value_for_every_point() -> None:
    """On real servers and nodes; counted transfers and decisions must be there."""

    async def measure() -> list[Curve]:
        return [
            await growth.concurrency(0.9, (1, 2)),
            await growth.branches(0.0, (2, 3)),
            await growth.backlog(0.0, (10, 20)),
            await growth.finished(0.0, (500, 1_500)),
            await growth.nodes(0.0, (1, 5)),
        ]

    curves = asyncio.run(measure())
    assert [curve.name for curve in curves] == list(growth.CURVES)
    for curve in curves:
        assert {len(values) for values in curve.series.values()} == {len(curve.x)}
        assert all(value > 0 for values in curve.series.values() for value in values)


def test_a_curve_is_a_table_and_a_plot(tmp_path: Path) -> None:
    curve = Curve("nodes", "nodes", "decisions/s", (1, 3), {"1 at once": (1000.4, 900.0)})
    assert curve.markdown().splitlines() == [
        "![decisions/s by nodes](plots/nodes.svg)",
        "",
        "| nodes | 1 at once: decisions/s |",
        "|---|---|",
        "| 1 | 1,000 |",
        "| 3 | 900 |",
    ]
    drawn = curve.draw(tmp_path).read_bytes()
    for text in (b"<svg", b"decisions/s", b"1 at once"):
        assert text in drawn
    assert curve.draw(tmp_path).read_bytes() == drawn


@pytest.mark.slow
def test_a_soak_counts_everything() -> None:
    found = json.loads(told("benchmarks.soak", "--seconds", "4", "--every", "0.5", "--tolerance", "10"))
    assert found["transfers"] > 0
    of_nodes = [f"node {number}: {what}" for number in (1, 2, 3) for what in ("memory", "files", "disk")]
    of_servers = [f"server {number}: {what}" for number in (1, 2) for what in ("connections", "tables")]
    expected = {"client: memory", "client: files", *of_nodes, *of_servers}
    assert set(found["measures"]) == expected
    assert all(each["samples"] for each in found["measures"].values())


@pytest.mark.parametrize(
    ("kind", "samples", "level"),
    [
        ("files", [10, 20, 90, 90, 91, 90], True),  # it warms up, then stays
        ("files", [10, 20, 30, 40, 50, 60], False),
        ("files", [3, 3, 3, 3, 6, 6], True),  # few
        ("bytes", [1e8, 1e8, 1e8, 1e8, 1.2e8, 1.2e8], False),
        ("bytes", [1e8, 1e8, 1e8, 1e8, 1.05e8, 1.05e8], True),
    ],
)
def test_what_is_level(kind: str, samples: list[float], level: bool) -> None:  # noqa: FBT001 - a column
    measure = Measure(kind, samples)
    measure.judge(0.1)
    assert measure.level is level


def test_every_block_of_the_pages_says_which_command_printed_it() -> None:
    """Broken if figures were written by hand, or their command were no longer known."""
    blocks = [match for name in page.PAGES for match in page.BLOCK.finditer((page.DOCS / name).read_text())]
    assert len(blocks) >= 5
    for block in blocks:
        assert block["text"].startswith(page.heading(block["name"]) + "\n"), block["name"]


def test_a_block_is_replaced_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in page.PAGES:
        (tmp_path / name).write_text((page.DOCS / name).read_text())
    monkeypatch.setattr(page, "DOCS", tmp_path)
    before = (tmp_path / "performance.md").read_text()
    old = next(match["text"] for match in page.BLOCK.finditer(before) if match["name"] == "raft")
    page.write("raft", "new\n")
    assert (tmp_path / "performance.md").read_text() == before.replace(old, "new\n")


def test_the_tables() -> None:
    """Broken if the page's figures could not be made from what the command prints."""
    figures = Figures(
        rows=[FigureRow("undoubt-sqlite", 32, 1234.5, 1.234, 5.67, 321.0)],
        ratios=[Ratio("undoubt-sqlite", "naive", 32, 0.912, (0.8, 1.0), 1.1, 1.5)],
        rtt_ms=0.0,
        round_trips=[],
        seconds=30.0,
        rounds=6,
        cores=4,
        python="3.13.0",
        postgresql="18.0",
        event_loop="uvloop",
    )
    lines = told("benchmarks.table", text=msgspec.json.encode(figures).decode()).splitlines()
    assert "| `undoubt-sqlite` | 32 | 1,234 | 1.23 | 5.7 | 321 |" in lines
    assert "| `undoubt-sqlite` ÷ `naive` | 32 | 0.91 (0.80, 1.00) | 1.10 | 1.50 | tps ≥ 0.75 |" in lines


def test_the_table_of_round_trips() -> None:
    figures = Figures(
        rows=[],
        ratios=[Ratio("undoubt-raft", "naive", 1, 0.9, (0.8, 1.0), 1.123, 1.5)],
        rtt_ms=1.0,
        round_trips=[RoundTrips("undoubt-raft", 1, 2.5, 7.5, 5.0)],
        seconds=30.0,
        rounds=6,
        cores=4,
        python="3.13.0",
        postgresql="18.0",
        event_loop="uvloop",
    )
    lines = tables(figures).splitlines()
    assert "| `undoubt-raft` ÷ `naive` | 1 | 0.90 (0.80, 1.00) | 1.12 | 1.50 | p50 ≤ 1.15 |" in lines
    assert "| contender | at once | p50 ms near | p50 ms at 1 ms | round trips |" in lines
    assert "| `undoubt-raft` | 1 | 2.50 | 7.50 | 5.0 |" in lines
