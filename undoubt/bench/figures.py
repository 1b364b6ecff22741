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


class RoundTrips(msgspec.Struct, frozen=True):
    """How many round trips follow one another in a transfer of ``contender``: by how much p50 grows with the
    round-trip time. ``p50_near_ms`` is measured over the same proxies without a delay. Each round gives one
    value; ``trips`` is their median."""

    contender: str
    concurrency: int
    p50_near_ms: float
    p50_ms: float
    trips: float


class Figures(msgspec.Struct, frozen=True):
    """All results that ``undoubt bench`` prints. ``rtt_ms``: the round-trip time that was added; 0: none."""

    rows: list[FigureRow]
    ratios: list[Ratio]
    rtt_ms: float
    round_trips: list[RoundTrips]
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


def round_trips(far: Rounds, near: Rounds, rtt_ms: float) -> list[RoundTrips]:
    """``far`` and ``near``: the same contenders in the same rounds, with and without ``rtt_ms``."""
    return [
        RoundTrips(
            contender=name,
            concurrency=concurrency,
            p50_near_ms=round(statistics.median(p50_us(turns[name]) for turns in near[concurrency]) / 1e3, 3),
            p50_ms=round(statistics.median(p50_us(turns[name]) for turns in played) / 1e3, 3),
            trips=round(
                statistics.median(
                    (p50_us(there[name]) - p50_us(here[name])) / 1e3 / rtt_ms
                    for there, here in zip(played, near[concurrency], strict=True)
                ),
                1,
            ),
        )
        for concurrency, played in far.items()
        for name in played[0]
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
