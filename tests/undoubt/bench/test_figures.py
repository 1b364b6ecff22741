"""Ratios decide what is said about speed: they must be those of neighbouring turns, and the right way up."""

from __future__ import annotations

import pytest

from undoubt.bench import figures
from undoubt.bench.contract import Turn
from undoubt.bench.rounds import rounds_of


def turn(transfers: int, *, cpu_s: float = 0.5, latency_us: int = 100) -> Turn:
    return Turn(transfers, 1.0, cpu_s, (latency_us,) * transfers)


def test_a_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    """Ratios of means or of medians would let one fast round of one side decide."""
    rounds = {
        8: [
            {"naive": turn(100), "ours": turn(90)},  # 0.9
            {"naive": turn(1000), "ours": turn(500)},  # 0.5: a fast moment of the machine
            {"naive": turn(10), "ours": turn(8)},  # 0.8
        ]
    }
    [ratio] = figures.ratios(rounds)
    assert (ratio.contender, ratio.baseline, ratio.concurrency) == ("ours", "naive", 8)
    assert ratio.tps == 0.8
    assert ratio.tps_range == (0.5, 0.9)


def test_what_is_built_upon_another_is_compared_with_it() -> None:
    """Paxos Commit has to be told apart from two-phase commit on the same nodes, not from SQLAlchemy."""
    turns = {"naive": turn(100), "undoubt-raft": turn(80), "undoubt-raft-paxos": turn(88)}
    pairs = [(ratio.contender, ratio.baseline, ratio.tps) for ratio in figures.ratios({1: [turns]})]
    assert pairs == [
        ("undoubt-raft", "naive", 0.8),
        ("undoubt-raft-paxos", "naive", 0.88),
        ("undoubt-raft-paxos", "undoubt-raft", 1.1),
    ]


def test_latency_and_cpu_are_contender_over_baseline() -> None:
    """The other way round a slow contender would look fast."""
    slow = turn(100, cpu_s=0.6, latency_us=300)
    rounds = {1: [{"naive": turn(100, cpu_s=0.2, latency_us=100), "ours": slow}]}
    [ratio] = figures.ratios(rounds)
    assert ratio.p50 == 3.0
    assert ratio.client_cpu == 3.0


def test_rows_are_per_transfer() -> None:
    """CPU per turn instead of per transfer would make the fastest contender look the most expensive."""
    slow = Turn(100, 2.0, 0.5, tuple(range(1000, 1100)))
    [row] = figures.rows({32: [{"ours": slow}]})
    assert row.tps == 50.0
    assert row.client_cpu_us_per_tx == 5000.0
    assert (row.p50_ms, row.p99_ms) == (1.05, 1.099)


def test_without_a_baseline_there_is_no_ratio() -> None:
    assert figures.ratios({1: [{"ours": turn(1)}]}) == []


@pytest.mark.parametrize(
    ("seconds", "contenders", "rounds", "turn_s"), [(30.0, 5, 6, 1.0), (3.0, 2, 3, 0.5), (100.0, 4, 25, 1.0)]
)
def test_turns_are_about_a_second_and_three_at_least(
    seconds: float, contenders: int, rounds: int, turn_s: float
) -> None:
    """With one long turn each, a drift of the machine would be taken for a difference."""
    assert rounds_of(seconds, contenders) == (rounds, turn_s)
