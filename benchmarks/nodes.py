"""CPU time of three real nodes for a decision, with one, eight or sixteen decisions in a frame.

The nodes are processes of their own, with real sockets and disks. One client sends its decisions in frames of
a given size, one frame after the other, and waits for each. What is counted is the time that the kernel has
charged to the three nodes meanwhile, and the median wait for a frame. What is not measured: the finishing of
the transactions between two turns.

    python -m benchmarks.nodes --seconds 3 --rounds 5
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.ledger import Ours, ours
from benchmarks.machine import machine
from undoubt.bench.figures import percentile
from undoubt.serve.local.nodes import Nodes
from undoubt.serve.loop import fastest_loop

SIZES = (1, 8, 16)
AIMS_US = {1: 600, 8: 110}
TICKS_S = 1 / os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """What a process has used, user and system time together: fields 14 and 15 of ``/proc/PID/stat``, and for
    more than hundredths of a second the scheduler's own count where the kernel has one."""
    with contextlib.suppress(OSError):
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICKS_S


class Turn:
    """What one size of frames has cost: µs of CPU for a decision by node, and waits in µs, by round."""

    def __init__(self) -> None:
        self.cpu_us: list[dict[int, float]] = []
        self.p50_us: list[float] = []


async def take(client: Ours, nodes: Nodes, size: int, first: int, *, seconds: float, turn: Turn) -> int:
    """Returns the next free number."""
    number = first
    waits: list[float] = []
    before = {node: cpu_s(pid) for node, pid in nodes.pids.items()}
    ends = time.perf_counter() + seconds
    while (began := time.perf_counter()) < ends:
        some = range(number, number + size)
        number += size
        if not all(await asyncio.gather(*map(client.decide, some))):
            raise ArithmeticError("a decision that nobody had recorded was there already")
        waits.append(time.perf_counter() - began)
    turn.cpu_us.append(
        {node: (cpu_s(pid) - before[node]) * 1e6 / (number - first) for node, pid in nodes.pids.items()}
    )
    turn.p50_us.append(percentile(waits, 0.5) * 1e6)
    await client.between(range(first, number))
    return number


async def run(seconds: float, rounds: int) -> None:
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="undoubt-bench-")))
        nodes = Nodes(folder, keep=False, more="")
        stack.push_async_callback(nodes.close)
        await nodes.start()
        client = await ours(stack, nodes)
        turns = {size: Turn() for size in SIZES}
        number = await take(client, nodes, 8, 1, seconds=seconds, turn=Turn())  # warm up
        for _ in range(rounds):
            for size, turn in turns.items():
                number = await take(client, nodes, size, number, seconds=seconds, turn=turn)
        leader = await nodes.leader()
    print(
        "| in a frame | leader µs | followers µs | all three µs | aim | p50 µs |\n|---|---|---|---|---|---|"
    )
    for size, turn in turns.items():
        leads = statistics.median(used[leader] for used in turn.cpu_us)
        follow = [
            statistics.median(used[node] for used in turn.cpu_us) for node in nodes.children if node != leader
        ]
        every = statistics.median(sum(used.values()) for used in turn.cpu_us)
        followers = " + ".join(f"{each:,.0f}" for each in sorted(follow, reverse=True))
        aim = f"≤ {AIMS_US[size]}" if size in AIMS_US else ""
        p50 = statistics.median(turn.p50_us)
        print(f"| {size} | {leads:,.0f} | {followers} | {every:,.0f} | {aim} | {p50:,.0f} |")
    print(f"\n{machine()}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="for each size, in each round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=fastest_loop()) as runner:
        runner.run(run(options.seconds, options.rounds))


if __name__ == "__main__":
    main()
