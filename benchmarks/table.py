"""The tables of ``docs/performance.md`` from what ``undoubt bench --output json`` printed, on stdin."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import msgspec

from undoubt.bench.figures import Figures

AIMS = {
    ("undoubt-sqlite", "naive", 32): "tps ≥ 0.75",
    ("undoubt-sqlite", "naive", 1): "p50 ≤ 1.4",
    ("undoubt-sqlite-sync", "sqlalchemy", 32): "tps ≥ 1.6",
    ("undoubt-raft", "naive", 32): "tps ≥ 0.7",
    ("undoubt-raft", "naive", 1): "p50 ≤ 2",
    ("undoubt-raft-sync", "sqlalchemy", 32): "tps ≥ 1.25",
    ("undoubt-raft-paxos", "undoubt-raft", 1): "p50 ≤ 1",
    ("undoubt-sidecar", "undoubt-raft", 32): "tps ≥ 0.5",
}
FAR_AIMS = {("undoubt-raft", "naive", 1): "p50 ≤ 1.15"}
"""With a round-trip time of 1 ms."""


def tables(figures: Figures) -> str:
    """Markdown: the rows, the ratios, the round trips if they were measured, and the machine."""
    return "\n".join(_lines(figures)) + "\n"


def _lines(figures: Figures) -> Iterator[str]:
    yield "| contender | at once | transfers/s | p50 ms | p99 ms | client CPU µs |"
    yield "|---|---|---|---|---|---|"
    for row in figures.rows:
        yield (
            f"| `{row.contender}` | {row.concurrency} | {row.tps:,.0f} | {row.p50_ms:.2f} | {row.p99_ms:.1f}"
            f" | {row.client_cpu_us_per_tx:,.0f} |"
        )
    yield ""
    yield "| ratio | at once | transfers/s (rounds from, to) | p50 | client CPU | aim |"
    yield "|---|---|---|---|---|---|"
    aims = FAR_AIMS if figures.rtt_ms else AIMS
    for ratio in figures.ratios:
        if "undoubt" in ratio.contender and ratio.baseline != "local":
            low, high = ratio.tps_range
            aim = aims.get((ratio.contender, ratio.baseline, ratio.concurrency), "")
            yield (
                f"| `{ratio.contender}` ÷ `{ratio.baseline}` | {ratio.concurrency} | {ratio.tps:.2f}"
                f" ({low:.2f}, {high:.2f}) | {ratio.p50:.2f} | {ratio.client_cpu:.2f} | {aim} |"
            )
    yield ""
    if figures.round_trips:
        yield f"| contender | at once | p50 ms near | p50 ms at {figures.rtt_ms:g} ms | round trips |"
        yield "|---|---|---|---|---|"
        for each in figures.round_trips:
            yield (
                f"| `{each.contender}` | {each.concurrency} | {each.p50_near_ms:.2f} | {each.p50_ms:.2f} |"
                f" {each.trips:.1f} |"
            )
        yield ""
    yield (
        f"{figures.cores} cores, Python {figures.python}, PostgreSQL {figures.postgresql},"
        f" {figures.event_loop}, {figures.rounds} rounds, {figures.seconds:g} s at each concurrency."
    )


def main() -> None:
    print(tables(msgspec.json.decode(sys.stdin.buffer.read(), type=Figures)), end="")


if __name__ == "__main__":
    main()
