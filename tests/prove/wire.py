"""One fault at every message of a transaction, on the wire between undoubt and the databases.

A proxy that understands PostgreSQL's framing stands before two servers. A run without faults counts the
messages; then each of them meets each fault (cut before and after, half of it, its answer lost or half,
delayed, late, silence), for every door and driver. After each run the same coordinator commits another
transaction, recovery runs through connections of its own, and what the application was told is compared with
what is in the databases.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from tests.prove.control import control
from tests.prove.nodes import Nodes
from tests.prove.wire_cases import SCENES, Case, Scene, cases
from tests.prove.wire_doors import NAMES, ORDERS, PAYMENTS, RATES
from tests.prove.wire_run import Stuck, Times, Trial, Verdicts
from undoubt.coordinator.ledger import maintenance
from undoubt.coordinator.settings import LedgerSettings
from undoubt.embedded import EmbeddedServer
from undoubt.participants.postgres.schema import migrate
from undoubt.participants.settings import ParticipantSettings


@dataclass(frozen=True, slots=True)
class Control:
    """A planted bug, and where it has to be found: in a scene, at messages that contain one of the texts."""

    mutant: str
    scene: str
    at: tuple[str, ...]


LANES = 16
SHARD_CASES = 12
FAILURES_SHOWN = 20

ONE_PHASE = "set constraints", "select case when", "commit"
"""All messages of a commit in one phase: each meets one fault, and not every fault hides the outcome."""

CONTROLS = (
    Control("unanswered-prepare-is-no", "asyncpg, 2pc, sqlite, transfer", ("current_user",)),
    Control("absent-after-unanswered-prepare-is-gone", "asyncpg, 2pc, sqlite, transfer", ("current_user",)),
    Control("lost-one-phase-answer-is-aborted", "asyncpg, 2pc, sqlite, one phase", ONE_PHASE),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only", nargs="+", default=[""], help="only scenes whose name contains one of these"
    )
    parser.add_argument("--at", nargs="+", default=[""], help="only messages that contain one of these")
    parser.add_argument("--runs-max", type=int, help="only so many cases, evenly chosen")
    parser.add_argument("--lanes", type=int, default=LANES, help="runs side by side")
    parser.add_argument("--statement-s", type=float, default=Times().statement_s)
    parser.add_argument("--settle-s", type=float, default=Times().settle_s)
    parser.add_argument("--no-control", action="store_true")


async def main(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    scenes = [scene for scene in SCENES if any(part in str(scene) for part in options.only)]
    verdicts = Verdicts()
    _listen(verdicts)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="undoubt-wire-")))
        stage = Stage(folder, verdicts, _times(options))
        await stage.build(stack, nodes=any(scene.ledger == "raft" for scene in scenes))
        await stage.run(scenes, options)
    result: dict[str, Any] = {
        "runs": verdicts.runs,
        "scenes": len(scenes),
        "missed": verdicts.missed,
        "wrong": verdicts.wrong,
        "hung": verdicts.hung,
        "prepared_after": verdicts.prepared_after,
        "told": verdicts.told,
        "failures": verdicts.failures[:FAILURES_SHOWN],
    }
    holds = verdicts.wrong == verdicts.prepared_after == 0 and 20 * verdicts.missed < verdicts.runs
    if not options.no_control:
        found = {each.mutant: await _control(each) for each in CONTROLS}
        result |= {"control": sum(found.values()), "control_found": found}
        holds = holds and all(found.values())
    return result, holds


async def _control(each: Control) -> int:
    """How many of a few runs are found wrong with that bug planted."""
    chosen = ("--only", each.scene, "--at", *each.at, "--settle-s", "5")
    found = await control("wire", "--no-control", *chosen, mutants=[each.mutant])
    return int(found.result["wrong"])


def _listen(verdicts: Verdicts) -> None:
    """An error that one of the rooms logs is a bug that nobody else is told of."""
    logging.basicConfig(level=logging.ERROR)

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            verdicts.fail(f"logged by {record.name}: {record.getMessage()}")

    logging.getLogger("undoubt").addHandler(Listener(logging.ERROR))


def _times(options: argparse.Namespace) -> Times:
    statement_s: float = options.statement_s
    return Times(statement_s, 2 * statement_s, settle_s=options.settle_s)


@dataclass(frozen=True, slots=True)
class Ground:
    """What one trial at a time stands on: its databases, and the settings of its ledger."""

    dsns: Mapping[str, str]
    ledger: Mapping[str, object]


class Stage:
    """Two servers, a cluster of nodes where one is wanted, and as much ground as there are trials at once."""

    def __init__(self, folder: Path, verdicts: Verdicts, times: Times) -> None:
        self._folder = folder
        self._verdicts = verdicts
        self._times = times
        self._numbers = count(1)
        self._servers: dict[str, EmbeddedServer] = {}
        self._nodes: Nodes | None = None
        self._cluster_is_free = asyncio.Lock()
        """Recovery in one trial would settle those of another on the same ledger."""
        self._free: dict[tuple[str, bool], list[Ground]] = {}
        """By ledger, and by whether the databases have undoubt's own tables."""

    async def build(self, stack: AsyncExitStack, *, nodes: bool) -> None:
        for name in (ORDERS, PAYMENTS):
            server = EmbeddedServer({"max_connections": "400"}, durable=False)
            self._servers[name] = await stack.enter_async_context(server)
        self._servers[RATES] = self._servers[ORDERS]
        if nodes:
            self._nodes = Nodes(self._folder)
            stack.push_async_callback(self._nodes.close)
            await self._nodes.begin()
            await self._nodes.start(*self._nodes.addresses)

    @asynccontextmanager
    async def trial(self, scene: Scene) -> AsyncIterator[Trial]:
        """On ground that no other trial has at the same time."""
        free = self._free.setdefault((scene.ledger, scene.noted), [])
        ground = free.pop() if free else await self._new_ground(scene)
        async with Trial(scene, ground.dsns, ground.ledger, self._verdicts, self._times) as trial:
            yield trial
        free.append(ground)

    async def _new_ground(self, scene: Scene) -> Ground:
        number = next(self._numbers)
        dsns = {name: await self._servers[name].create_database(f"{name}{number}") for name in NAMES}
        if scene.noted:
            for name, dsn in dsns.items():
                await migrate(name, ParticipantSettings(dsn=dsn))
        if scene.ledger == "raft" and self._nodes is not None:
            return Ground(dsns, {"url": f"raft://{self._nodes.url}"})
        if scene.ledger == "postgresql":
            dsn = await self._servers[PAYMENTS].create_database(f"ledger{number}")
            ledger = LedgerSettings(url=dsn.replace("postgresql://", "postgresql+psycopg://"))
            await maintenance.init(ledger)
            return Ground(dsns, {"url": ledger.url, "request_timeout_s": 3 * self._times.statement_s})
        return Ground(dsns, {"url": f"sqlite:///{self._folder}/{number}.db"})

    @asynccontextmanager
    async def _alone(self, scene: Scene) -> AsyncIterator[None]:
        if scene.ledger == "raft":
            async with self._cluster_is_free:
                yield
        else:
            yield

    async def run(self, scenes: Sequence[Scene], options: argparse.Namespace) -> None:
        """Every scene's cases, or those that ``options`` choose."""
        free = asyncio.Semaphore(options.lanes)

        async def measured(scene: Scene) -> list[tuple[Scene, Case]]:
            async with self._alone(scene), free, self.trial(scene) as trial:
                return [(scene, case) for case in cases(scene, await trial.measure())]

        async def struck(scene: Scene, shard: Sequence[Case]) -> None:
            async with self._alone(scene), free:
                await self._strike(scene, shard)

        every = [each for some in await asyncio.gather(*map(measured, scenes)) for each in some]
        every = [each for each in every if any(part in each[1].label for part in options.at)]
        step = 1 if options.runs_max is None else max(len(every) / options.runs_max, 1)
        chosen = [every[int(number * step)] for number in range(int(len(every) / step))]
        await asyncio.gather(*(struck(*shard) for shard in _shards(chosen)))

    async def _strike(self, scene: Scene, shard: Sequence[Case]) -> None:
        try:
            async with self.trial(scene) as trial:
                await trial.measure()
                for case in shard:
                    await trial.run(case)
                await trial.audit()
        except Stuck as error:
            self._verdicts.fail(f"stuck: {error}")
        except Exception as error:  # noqa: BLE001 - the others speak for themselves
            self._verdicts.fail(f"{scene}: the run failed: {type(error).__name__}: {error}")


def _shards(chosen: Sequence[tuple[Scene, Case]]) -> list[tuple[Scene, list[Case]]]:
    """Of one scene each, so many cases that a trial of its own is worth it."""
    by_scene: dict[Scene, list[Case]] = {}
    for scene, case in chosen:
        by_scene.setdefault(scene, []).append(case)
    shards = []
    for scene, some in by_scene.items():
        pieces = -(-len(some) // SHARD_CASES)
        shards += [(scene, some[number::pieces]) for number in range(pieces)]
    return shards
