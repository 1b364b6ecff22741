"""What becomes of commits when the ledger's leader is lost: killed, or stopped for two seconds.

Transfers between two servers begin at fixed moments, whether or not those before have ended, half of them in
two-phase commit and half in Paxos Commit, on the same three nodes. A wait counts from the moment at which the
transfer was due, so that nobody who is held up hides those behind him. Afterwards both databases must hold
what was counted.

    python -m benchmarks.leader --kills 10 --stops 10
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import signal
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import undoubt
from undoubt.bench.audit import audit
from undoubt.bench.cluster import cluster
from undoubt.bench.contenders.product import Product, configuration
from undoubt.bench.contract import ROWS, Places
from undoubt.bench.field import Field, own_servers, set_up
from undoubt.bench.figures import percentile
from undoubt.demo.nodes import Nodes
from undoubt.serve.loop import fastest_loop

ELECTION_TIMEOUT_S = 1.0
"""A node's own default."""
PROTOCOLS = ("2pc", "paxos")
PERIOD_S = 0.04
"""Between two transfers of one protocol."""
STOP_S = 2.0
CALM_S = 2.0
"""Before each trouble."""
LATE_S = 0.5
"""Things are as before once no transfer has been late for longer."""


class Load:
    """One protocol's transfers. ``ended`` maps the moment at which each was due to the one at which it was
    committed."""

    def __init__(self, contender: Product) -> None:
        self.ended: dict[float, float] = {}
        self._contender = contender
        self._rows = itertools.cycle(range(ROWS))
        self._running: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until cancelled."""
        for number in itertools.count():
            if number == 0:
                began = time.perf_counter()
            due = began + number * PERIOD_S
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            task = asyncio.create_task(self._one(due))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _one(self, due: float) -> None:
        await self._contender.transfer(next(self._rows))
        self.ended[due] = time.perf_counter()

    async def caught_up(self) -> None:
        """Once everything that was due some time ago has ended."""
        while len(self._running) * PERIOD_S > LATE_S:
            await asyncio.sleep(PERIOD_S)

    async def drain(self) -> None:
        await asyncio.gather(*self._running)

    def waits_ms(self, since: float, until: float) -> list[float]:
        """Of those that were due in between."""
        return [(ended - due) * 1e3 for due, ended in self.ended.items() if since <= due < until]

    def next_after(self, event: float) -> float:
        """Seconds until the first commit of a transfer that was due after ``event``."""
        return min(ended for due, ended in self.ended.items() if due >= event) - event


class Story:
    """Troubles, one after the other, each with calm before it."""

    def __init__(self, nodes: Nodes, loads: Mapping[str, Load]) -> None:
        self._nodes = nodes
        self._loads = loads
        self.calm: list[tuple[float, float]] = []
        self.stops: list[tuple[float, float]] = []
        self.kills: list[float] = []

    async def tell(self, kills: int, stops: int) -> None:
        running = [asyncio.create_task(load.run()) for load in self._loads.values()]
        await asyncio.sleep(CALM_S)
        for _ in range(kills):
            leader = await self._calm()
            self.kills.append(time.perf_counter())
            await self._nodes.kill(leader)
            await asyncio.sleep(CALM_S)
            await self._nodes.run(leader)
        for _ in range(stops):
            pid = self._nodes.pids[await self._calm()]
            began = time.perf_counter()
            os.kill(pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(STOP_S)
            finally:
                os.kill(pid, signal.SIGCONT)
            self.stops.append((began, time.perf_counter()))
        for each in running:
            each.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for load in self._loads.values():
            await load.drain()

    async def _calm(self) -> int:
        """Who leads after it."""
        await asyncio.sleep(LATE_S)
        for load in self._loads.values():
            await load.caught_up()
        began = time.perf_counter()
        await asyncio.sleep(CALM_S)
        self.calm.append((began, time.perf_counter()))
        return await self._nodes.leader()

    def show(self) -> None:
        if self.kills:
            print("| leader killed | until the next commit, s: median (from, to) | ÷ election timeout |")
            print("|---|---|---|")
            for name, load in self._loads.items():
                gaps = [load.next_after(event) for event in self.kills]
                median = statistics.median(gaps)
                spread = f"{median:.2f} ({min(gaps):.2f}, {max(gaps):.2f})"
                print(f"| `{name}` | {spread} | {median / ELECTION_TIMEOUT_S:.2f} |")
            print()
        if self.stops:
            print(f"| leader stopped for {STOP_S:g} s | p50, p99 ms before | meanwhile | p99 ÷ p99 before |")
            print("|---|---|---|---|")
            for name, load in self._loads.items():
                before = [wait for span in self.calm for wait in load.waits_ms(*span)]
                meanwhile = [wait for span in self.stops for wait in load.waits_ms(*span)]
                ratio = percentile(meanwhile, 0.99) / percentile(before, 0.99)
                print(f"| `{name}` | {_two(before)} | {_two(meanwhile)} | {ratio:.1f} |")
            print()
        load_average = ", ".join(f"{each:.1f}" for each in os.getloadavg())
        print(
            f"{len(self.kills)} kills, {len(self.stops)} stops;"
            f" {len(os.sched_getaffinity(0))} cores, load average afterwards {load_average}."
        )


def _two(waits_ms: list[float]) -> str:
    return f"{percentile(waits_ms, 0.5):.0f}, {percentile(waits_ms, 0.99):.0f}"


@contextlib.asynccontextmanager
async def stage() -> AsyncIterator[tuple[Field, dict[str, Load]]]:
    """Servers, nodes, and a coordinator for each protocol."""
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="undoubt-bench-"))
        dsns = await own_servers(stack, 2 * ROWS + 40)
        for dsn in dsns:
            await set_up(dsn, len(PROTOCOLS) * ROWS)
        nodes = await stack.enter_async_context(cluster(Path(folder), dsns))
        loads, first_rows = {}, {}
        for number, protocol in enumerate(PROTOCOLS):
            first_rows[protocol] = number * ROWS
            places = Places(protocol, dsns, first_rows[protocol], folder, ROWS, nodes.url)
            settings = configuration(places, {"url": places.cluster}, protocol)
            coordinator = await stack.enter_async_context(undoubt.connect(settings))
            loads[protocol] = Load(Product(coordinator, places.first_row))
        yield Field(dsns, {}, first_rows, nodes), loads


async def run(kills: int, stops: int) -> None:
    async with stage() as (field, loads):
        if field.nodes is None:
            raise LookupError("no nodes")
        story = Story(field.nodes, loads)
        await story.tell(kills, stops)
        await audit(field, {name: len(load.ended) for name, load in loads.items()})
        story.show()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--stops", type=int, default=10)
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=fastest_loop()) as runner:
        runner.run(run(options.kills, options.stops))


if __name__ == "__main__":
    main()
