"""What becomes of commits when the ledger's leader is lost: killed, or stopped for two seconds.

Transfers between two servers begin at fixed moments, whether or not those before have ended, in two-phase
commit or in Paxos Commit, on the same three nodes. A wait counts from the moment at which the transfer was
due, so that nobody who is held up hides those behind him. The two have their turns one after the other: what
one has to catch up with would hold up the other's. Afterwards both databases must hold what was counted.

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
from collections.abc import AsyncIterator
from pathlib import Path

import undoubt
from undoubt.bench.audit import audit
from undoubt.bench.cluster import cluster
from undoubt.bench.contenders.product import Product, configuration
from undoubt.bench.contract import ROWS, Places
from undoubt.bench.field import Field, own_servers, set_up
from undoubt.bench.figures import percentile
from undoubt.serve.local.nodes import Nodes
from undoubt.serve.loop import fastest_loop

ELECTION_TIMEOUT_S = 1.0
"""A node's own default."""
PROTOCOLS = ("2pc", "paxos")
PERIOD_S = 0.04
"""Between two transfers."""
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
        began = time.perf_counter()
        for number in itertools.count():
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
    """One protocol's troubles, each with calm before it. Moments are of ``time.perf_counter``."""

    def __init__(self, nodes: Nodes, load: Load) -> None:
        self.load = load
        self._nodes = nodes
        self._calm: list[tuple[float, float]] = []
        self._stops: list[tuple[float, float]] = []
        self._kills: list[float] = []

    async def kill(self) -> None:
        async with self._working() as leader:
            self._kills.append(time.perf_counter())
            await self._nodes.kill(leader)
            await asyncio.sleep(CALM_S)
            await self._nodes.run(leader)

    async def stop(self) -> None:
        async with self._working() as leader:
            began, pid = time.perf_counter(), self._nodes.pids[leader]
            os.kill(pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(STOP_S)
            finally:
                os.kill(pid, signal.SIGCONT)
            self._stops.append((began, time.perf_counter()))

    @contextlib.asynccontextmanager
    async def _working(self) -> AsyncIterator[int]:
        """Calm, then who leads; until everything that was begun has ended."""
        running = asyncio.create_task(self.load.run())
        try:
            await asyncio.sleep(LATE_S)
            await self.load.caught_up()
            began = time.perf_counter()
            await asyncio.sleep(CALM_S)
            self._calm.append((began, time.perf_counter()))
            yield await self._nodes.leader()
            await asyncio.sleep(LATE_S)
            await self.load.caught_up()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await self.load.drain()

    def told_of_kills(self) -> str:
        gaps = [self.load.next_after(event) for event in self._kills]
        median = statistics.median(gaps)
        return f"{median:.2f} ({min(gaps):.2f}, {max(gaps):.2f}) | {median / ELECTION_TIMEOUT_S:.2f}"

    def told_of_stops(self) -> str:
        before = [wait for span in self._calm for wait in self.load.waits_ms(*span)]
        meanwhile = [wait for span in self._stops for wait in self.load.waits_ms(*span)]
        ratio = percentile(meanwhile, 0.99) / percentile(before, 0.99)
        return f"{_two(before)} | {_two(meanwhile)} | {ratio:.1f}"


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
        stories = {name: Story(field.nodes, load) for name, load in loads.items()}
        for _ in range(kills):
            for story in stories.values():
                await story.kill()
        for _ in range(stops):
            for story in stories.values():
                await story.stop()
        await audit(field, {name: len(load.ended) for name, load in loads.items()})
    if kills:
        print("| leader killed | until the next commit, s: median (from, to) | ÷ election timeout |")
        print("|---|---|---|")
        for name, story in stories.items():
            print(f"| `{name}` | {story.told_of_kills()} |")
        print()
    if stops:
        print(f"| leader stopped for {STOP_S:g} s | p50, p99 ms before | meanwhile | p99 ÷ p99 before |")
        print("|---|---|---|---|")
        for name, story in stories.items():
            print(f"| `{name}` | {story.told_of_stops()} |")
        print()
    load_average = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    print(
        f"{kills} kills, {stops} stops of each; {len(os.sched_getaffinity(0))} cores,"
        f" load average afterwards {load_average}."
    )


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
