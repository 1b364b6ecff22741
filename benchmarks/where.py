"""Where each microsecond of a commit goes: transfers on two servers of its own, as in ``undoubt bench``.

Two tables. *Wait*: one transfer at a time, the median of each step, beside the same steps written by hand on
asyncpg without any log. *CPU*: many at once, the client's CPU time per transfer, layer by layer: the ledger
on disk, with it in memory, by hand, in turns of a second; and the coordinator's own by ``engine.py``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import itertools
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

import asyncpg

import undoubt
from benchmarks.engine import measure
from benchmarks.machine import machine
from undoubt.bench.contenders.plain import naive
from undoubt.bench.contenders.product import Product, configuration, sqlite
from undoubt.bench.contract import DATABASES, ROWS, UPDATE, Places
from undoubt.bench.field import own_servers, set_up
from undoubt.bench.worker import take_turn
from undoubt.coordinator.ledger.memory import MemoryLedger
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.registry import Registry
from undoubt.participants.settings import ParticipantSettings


class Steps:
    """Collects durations by step; also what ``undoubt.connect`` is given to tell phases to."""

    def __init__(self) -> None:
        self.spent_s: dict[str, list[float]] = defaultdict(list)

    def phase(self, _: object, phase: str, seconds: float) -> None:
        self.spent_s[phase].append(seconds)

    def ended(self, *_: object) -> None: ...
    def passed(self, *_: object) -> None: ...
    def gone(self, *_: object) -> None: ...
    def deadlocks(self, _: int) -> None: ...

    def timed(self, ledger: Any) -> Any:
        return ledger

    @contextlib.contextmanager
    def step(self, name: str) -> Any:
        began_s = time.perf_counter()
        yield
        self.spent_s[name].append(time.perf_counter() - began_s)

    def median_us(self, name: str) -> float:
        return statistics.median(self.spent_s[name]) * 1e6


@contextlib.asynccontextmanager
async def servers() -> AsyncIterator[tuple[str, str]]:
    async with contextlib.AsyncExitStack() as stack:
        dsns = await own_servers(stack, 200)
        for dsn in dsns:
            await set_up(dsn, 2 * ROWS)
        yield dsns


async def by_hand(dsns: tuple[str, str], seconds: float) -> Steps:
    """The naive contender, step by step."""
    steps = Steps()
    pair = [await asyncpg.connect(dsn) for dsn in dsns]
    numbers = itertools.count()

    async def both(name: str, *call: Any) -> None:
        with steps.step(name):
            await asyncio.gather(*(connection.execute(*call) for connection in pair))

    ends_s = time.perf_counter() + seconds
    while time.perf_counter() < ends_s:
        number = next(numbers)
        with steps.step("all of it"):
            await both("begin", "begin")
            await both("update", UPDATE, ROWS)
            await both("vote", f"prepare transaction 'where-{number}'")
            await both("apply", f"commit prepared 'where-{number}'")
    for connection in pair:
        await connection.close()
    return steps


async def by_undoubt(places: Places, seconds: float) -> Steps:
    """The same through undoubt."""
    steps = Steps()
    ledger = {"url": f"sqlite:///{places.folder}/wait.db"}
    async with undoubt.connect(configuration(places, ledger), metrics=steps) as coordinator:  # type: ignore[arg-type]
        ends_s = time.perf_counter() + seconds
        while time.perf_counter() < ends_s:
            with steps.step("all of it"):
                async with coordinator.transaction() as tx:
                    with steps.step("begin"):
                        pair = await asyncio.gather(*(tx.branch(name) for name in DATABASES))
                    with steps.step("update"):
                        await asyncio.gather(*(one.execute(UPDATE, places.first_row) for one in pair))
    return steps


def tell_wait(hand: Steps, ours: Steps) -> None:
    print("| wait at 1, µs | by hand | undoubt |\n|---|---|---|")
    for name, about in (
        ("begin", "begin"),
        ("update", "update"),
        ("vote", "PREPARE"),
        ("decide", "the decision on disk"),
        ("apply", "COMMIT PREPARED"),
        ("all of it", "all of it"),
    ):
        hand_us = f"{hand.median_us(name):,.0f}" if hand.spent_s[name] else ""
        print(f"| {about} | {hand_us} | {ours.median_us(name):,.0f} |")


async def tell_cpu(places: Places, seconds: float) -> None:
    """By leaving out: what a layer costs is the difference between with it and without."""
    async with contextlib.AsyncExitStack() as stack:
        in_memory = undoubt.Coordinator(ledger := MemoryLedger(), registry := Registry())
        for name, dsn in zip(DATABASES, places.dsns, strict=True):
            settings = ParticipantSettings(dsn=dsn, connections_max=places.workers)
            registry.add(PostgresParticipant(name, settings, ledger_id=ledger.ledger_id))
        stack.push_async_callback(registry.close)
        await stack.enter_async_context(in_memory)
        contenders = {
            "by hand": await stack.enter_async_context(naive(places)),
            "in memory": Product(in_memory, places.first_row),
            "on disk": await stack.enter_async_context(sqlite(places)),
        }
        used_us: dict[str, list[float]] = defaultdict(list)
        for contender in contenders.values():
            await take_turn(contender, places.workers, 1.0)
        for _ in range(max(1, round(seconds))):
            for name, contender in contenders.items():
                turn = await take_turn(contender, places.workers, 1.0)
                used_us[name].append(turn.cpu_s * 1e6 / turn.transfers)
    engine_us = statistics.median(await measure(500, 5))
    hand_us, memory_us, disk_us = (statistics.median(used_us[name]) for name in contenders)
    print(f"\n| client CPU at {places.workers}, by leaving out | µs |\n|---|---|")
    for about, us in (
        ("driver and event loop: all of it by hand", hand_us),
        ("the coordinator", engine_us),
        ("participants: marker, guard, evidence", memory_us - hand_us - engine_us),
        ("the ledger and its thread; recovery", disk_us - memory_us),
        ("all of it", disk_us),
    ):
        print(f"| {about} | {us:,.0f} |")
    print(f"\n{machine()}")


async def run(seconds: float, workers: int) -> None:
    async with servers() as dsns:
        with tempfile.TemporaryDirectory() as folder:
            tell_wait(
                await by_hand(dsns, seconds),
                await by_undoubt(Places("where", dsns, 0, folder, 1), seconds),
            )
            await tell_cpu(Places("where", dsns, 0, folder, workers), seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="for each of the three measurements")
    parser.add_argument("--workers", type=int, default=32, help="transfers at once, for the CPU time")
    options = parser.parse_args()
    loop_factory = None
    with contextlib.suppress(ImportError):
        loop_factory = importlib.import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(run(options.seconds, options.workers))


if __name__ == "__main__":
    main()
