"""The process of one contender, which runs a turn on each command.

``python -m undoubt.bench.worker PLACES`` (JSON) connects and prints ``ready``. For each line ``WORKERS
SECONDS`` on stdin it works for that time with that number of concurrent workers, and answers with one line: a
:class:`Turn` as JSON. It ends at the end of its stdin.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from undoubt.bench.contenders import CONTENDERS
from undoubt.bench.contract import AsyncContender, Places, Style, SyncContender, Turn
from undoubt.serve.local.parent import die_with_parent
from undoubt.serve.loop import fastest_loop


class Clock:
    """Measures one turn. Latencies are in microseconds."""

    def __init__(self, seconds: float) -> None:
        self.latencies_us: list[int] = []
        self._cpu_s = time.process_time()
        self._started_s = time.perf_counter()
        self.ends_s = self._started_s + seconds

    def turn(self) -> Turn:
        return Turn(
            transfers=len(self.latencies_us),
            elapsed_s=time.perf_counter() - self._started_s,
            cpu_s=time.process_time() - self._cpu_s,
            latencies_us=tuple(self.latencies_us),
        )


async def take_turn(contender: AsyncContender, workers: int, seconds: float) -> Turn:
    """Run one turn with all workers as tasks."""
    clock = Clock(seconds)

    async def work(worker: int) -> None:
        while (began_s := time.perf_counter()) < clock.ends_s:
            await contender.transfer(worker)
            clock.latencies_us.append(round((time.perf_counter() - began_s) * 1e6))

    async with asyncio.TaskGroup() as group:
        for worker in range(workers):
            group.create_task(work(worker))
    return clock.turn()


def take_turn_in_threads(
    contender: SyncContender, pool: ThreadPoolExecutor, workers: int, seconds: float
) -> Turn:
    """Run one turn with all workers as threads, which start together."""
    together = threading.Barrier(workers)
    clock = Clock(seconds)

    def work(worker: int) -> None:
        together.wait()
        while (began_s := time.perf_counter()) < clock.ends_s:
            contender.transfer(worker)
            clock.latencies_us.append(round((time.perf_counter() - began_s) * 1e6))

    for done in [pool.submit(work, worker) for worker in range(workers)]:
        done.result()
    return clock.turn()


def _answer(turn: Turn | None) -> None:
    sys.stdout.write("ready\n" if turn is None else msgspec.json.encode(turn).decode() + "\n")
    sys.stdout.flush()


def _command(line: str) -> tuple[int, float]:
    workers, seconds = line.split()
    return int(workers), float(seconds)


async def _serve_tasks(make: Callable[[Places], Any], places: Places) -> None:
    async with make(places) as contender:
        _answer(None)
        while line := await asyncio.to_thread(sys.stdin.readline):
            _answer(await take_turn(contender, *_command(line)))


def _serve_threads(make: Callable[[Places], Any], places: Places) -> None:
    with make(places) as contender, ThreadPoolExecutor(places.workers) as pool:
        _answer(None)
        while line := sys.stdin.readline():
            _answer(take_turn_in_threads(contender, pool, *_command(line)))


def main(text: str) -> None:
    places = msgspec.json.decode(text, type=Places)
    entry = CONTENDERS[places.contender]
    make = getattr(importlib.import_module(entry.module), entry.attribute)
    if entry.style is Style.THREADS:
        _serve_threads(make, places)
        return
    with asyncio.Runner(loop_factory=fastest_loop()) as runner:
        runner.run(_serve_tasks(make, places))


if __name__ == "__main__":
    die_with_parent()
    main(sys.argv[1])
