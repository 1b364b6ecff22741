"""The tables of ``docs/performance.md`` from what ``undoubt bench --output json`` printed, on stdin."""

from __future__ import annotations

import sys

import msgspec

from undoubt.bench.figures import Figures

AIMS = {
    ("undoubt-sqlite", "naive", 32): "tps ≥ 0.9",
    ("undoubt-sqlite", "naive", 1): "p50 ≤ 1.3",
    ("undoubt-sqlite-sync", "sqlalchemy", 32): "tps ≥ 1.2",
    ("undoubt-raft", "naive", 32): "tps ≥ 0.75",
    ("undoubt-raft", "naive", 1): "p50 ≤ 1.25",
    ("undoubt-raft-sync", "sqlalchemy", 32): "tps ≥ 1.5",
    ("undoubt-raft-paxos", "undoubt-raft", 1): "p50 ≤ 1",
}


def main() -> None:
    figures = msgspec.json.decode(sys.stdin.buffer.read(), type=Figures)
    print("| contender | at once | transfers/s | p50 ms | p99 ms | client CPU µs |")
    print("|---|---|---|---|---|---|")
    for row in figures.rows:
        print(
            f"| `{row.contender}` | {row.concurrency} | {row.tps:,.0f} | {row.p50_ms:.2f} | {row.p99_ms:.1f}"
            f" | {row.client_cpu_us_per_tx:,.0f} |"
        )
    print()
    print("| ratio | at once | transfers/s (rounds from, to) | p50 | client CPU | aim |")
    print("|---|---|---|---|---|---|")
    for ratio in figures.ratios:
        if "undoubt" in ratio.contender and ratio.baseline != "local":
            low, high = ratio.tps_range
            aim = AIMS.get((ratio.contender, ratio.baseline, ratio.concurrency), "")
            print(
                f"| `{ratio.contender}` ÷ `{ratio.baseline}` | {ratio.concurrency} | {ratio.tps:.2f}"
                f" ({low:.2f}, {high:.2f}) | {ratio.p50:.2f} | {ratio.client_cpu:.2f} | {aim} |"
            )
    print()
    print(
        f"{figures.cores} cores, Python {figures.python}, PostgreSQL {figures.postgresql},"
        f" {figures.event_loop}, {figures.rounds} rounds, {figures.seconds:g} s at each concurrency."
    )


if __name__ == "__main__":
    main()
