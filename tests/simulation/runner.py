"""Runs seeds: each in a process of its own that is forked, so that no run leaves anything to the next."""

from __future__ import annotations

import argparse
import enum
import json
import logging
import os
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import NoReturn

from tests.simulation.judge import Violation
from tests.simulation.pinned import pin
from tests.simulation.scheduler import Scheduler
from tests.simulation.world import Traced, World


class Ending(enum.IntEnum):
    """How a run ended; the exit status of its process."""

    PASSED = 0
    VIOLATION = 1
    BROKEN = 2
    """The simulation itself failed: that finds nothing out about the product."""


def simulate(
    seed: int, told: Callable[[str], None], asked: argparse.Namespace
) -> tuple[Ending, Counter[str]]:
    """One run in this process, which is of no other use afterwards; how it ended, what happened how often."""
    scheduler = Scheduler(random.Random(seed))
    pin(seed, lambda: scheduler.now)
    world = World(
        seed,
        scheduler,
        told,
        verbose=asked.verbose,
        nodes=asked.nodes,
        protocol=asked.protocol,
        keyed=asked.keyed,
        locks=asked.locks,
    )
    logging.basicConfig(level=logging.WARNING, handlers=[Traced(world)], force=True)
    ending = Ending.PASSED
    try:
        world.run()
    except Violation as error:
        ending = Ending.VIOLATION
        _tell(world, error)
    except Exception as error:  # noqa: BLE001 - a bug of the simulation's own
        ending = Ending.BROKEN
        _tell(world, error)
    counts = world.judge.counts + world.counts
    summary = ", ".join(f"{counts[name]} {name}" for name in sorted(counts))
    told(f"seed {seed}: {ending.name} after {scheduler.steps} steps, {scheduler.now:.3f} s: {summary}")
    return ending, counts


def _tell(world: World, error: BaseException) -> None:
    world.trace("judge", f"{type(error).__name__}: {error}")
    for line in "".join(traceback.format_exception(error)).splitlines():
        world.told(f"    {line}")
    for line in world.tasks():
        world.told(f"    {line}")


def _leave(ending: Ending) -> NoReturn:
    """Without running any finalizer: coroutines of killed processes must not wake up."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ending)


def replay(asked: argparse.Namespace) -> NoReturn:
    """Print the trace of one seed."""
    ending, _ = simulate(asked.seed, print, asked)
    _leave(ending)


def run_many(asked: argparse.Namespace) -> int:
    """``asked.seeds`` seeds on ``asked.jobs`` processors; prints those that fail. The worst exit status."""
    first = int(time.time() * 1000) % 1_000_000_000 if asked.first is None else asked.first
    waiting = list(range(first, first + asked.seeds))[::-1]
    running: dict[int, tuple[int, int]] = {}
    endings: list[Ending] = []
    counts: Counter[str] = Counter()
    while waiting or running:
        while waiting and len(running) < asked.jobs:
            seed = waiting.pop()
            pid, pipe = _fork(seed, asked)
            running[pid] = (seed, pipe)
        pid, status = os.wait()
        seed, pipe = running.pop(pid)
        with os.fdopen(pipe) as report:
            counts.update(json.loads(report.read() or "{}"))
        ending = Ending(os.waitstatus_to_exitcode(status)) if status in {0, 256} else Ending.BROKEN
        endings.append(ending)
        if ending is not Ending.PASSED:
            print(f"seed {seed} failed: make simulate SEED={seed}{_more(asked)}", flush=True)
            if asked.stop:
                waiting.clear()
    print(json.dumps(dict(sorted(counts.items()))))
    failed = sum(ending is not Ending.PASSED for ending in endings)
    print(f"{len(endings) - failed} passed, {failed} failed")
    return max(endings, default=Ending.PASSED)


def _more(asked: argparse.Namespace) -> str:
    """What a replay has to be asked besides its seed."""
    given = {"--nodes": asked.nodes, "--protocol": asked.protocol}
    told = " ".join(f"{name} {value}" for name, value in given.items() if value is not None)
    told = f"{told} --keyed".strip() if asked.keyed else told
    told = f"{told} --locks".strip() if asked.locks else told
    return f' ARGS="{told}"' if told else ""


def _fork(seed: int, asked: argparse.Namespace) -> tuple[int, int]:
    """The child's process id, and a pipe on which it reports what happened how often."""
    sys.stdout.flush()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        ending, counts = simulate(seed, lambda _: None, asked)
        os.write(writing, json.dumps(counts).encode())
        _leave(ending)
    os.close(writing)
    return pid, reading
