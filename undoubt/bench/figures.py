"""Computes rows and ratios from the turns.

A ratio is computed for each round, and its median is reported: a change of the machine's speed changes both
turns of a round alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence

import msgspec

from undoubt.bench.contract import Turn
from undoubt.bench.rounds import Rounds

BASELINES = ("naive", "sqlalchemy", "local", "undoubt-raft")
"""``undoubt-raft`` is a baseline only for the contenders whose names begin with it, and for sidecars."""
SIDECAR = "undoubt-sidecar"
"""How the names of contenders with a sidecar begin."""


class FigureRow(msgspec.Struct, frozen=True):
    """The figures of one contender at one concurrency. ``tps`` is the median of its turns; the percentiles
    are of the latencies of all turns."""

    contender: str
    concurrency: int
    tps: float
    p50_ms: float
    p99_ms: float
    client_cpu_us_per_tx: float


class Ratio(msgspec.Struct, frozen=True):
    """``contender`` ÷ ``baseline``: medians over the rounds, and the range of the rounds' own ratios."""

    contender: str
    baseline: str
    concurrency: int
    tps: float
    tps_range: tuple[float, float]
    p50: float
    client_cpu: float


class Figures(msgspec.Struct, frozen=True):
    """All results that ``undoubt bench`` prints."""

    rows: list[FigureRow]
    ratios: list[Ratio]
    seconds: float
    rounds: int
    cores: int
    python: str
    postgresql: str
    event_loop: str


def percentile(values: Sequence[float], share: float) -> float:
    """The percentile of ``values`` by nearest rank, for a ``share`` of 0 to 1. ``values`` must not be
    empty."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def tps(turn: Turn) -> float:
    return turn.transfers / turn.elapsed_s


def p50_us(turn: Turn) -> float:
    return percentile(turn.latencies_us, 0.5)


def cpu_us(turn: Turn) -> float:
    return turn.cpu_s * 1e6 / turn.transfers


def rows(rounds: Rounds) -> list[FigureRow]:
    return [
        _row(name, concurrency, [turns[name] for turns in played])
        for concurrency, played in rounds.items()
        for name in played[0]
    ]


def _row(name: str, concurrency: int, turns: list[Turn]) -> FigureRow:
    latencies = [latency for turn in turns for latency in turn.latencies_us]
    return FigureRow(
        contender=name,
        concurrency=concurrency,
        tps=round(statistics.median(map(tps, turns)), 1),
        p50_ms=round(percentile(latencies, 0.5) / 1e3, 3),
        p99_ms=round(percentile(latencies, 0.99) / 1e3, 3),
        client_cpu_us_per_tx=round(statistics.median(map(cpu_us, turns)), 1),
    )


def ratios(rounds: Rounds) -> list[Ratio]:
    """The ratio of each contender to each of :data:`BASELINES` that takes part and applies to that
    contender."""
    return [
        _ratio(name, baseline, concurrency, played)
        for baseline in BASELINES
        for concurrency, played in rounds.items()
        if baseline in played[0]
        for name in played[0]
        if name != baseline and (name.startswith((baseline, SIDECAR)) or not baseline.startswith("undoubt"))
    ]


def _ratio(name: str, baseline: str, concurrency: int, played: Iterable[dict[str, Turn]]) -> Ratio:
    pairs = [(turns[name], turns[baseline]) for turns in played]

    def of(figure: Callable[[Turn], float]) -> list[float]:
        return [figure(one) / figure(other) for one, other in pairs]

    speeds = of(tps)
    return Ratio(
        contender=name,
        baseline=baseline,
        concurrency=concurrency,
        tps=round(statistics.median(speeds), 3),
        tps_range=(round(min(speeds), 3), round(max(speeds), 3)),
        p50=round(statistics.median(of(p50_us)), 3),
        client_cpu=round(statistics.median(of(cpu_us)), 3),
    )
