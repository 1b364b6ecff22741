"""A ledger moves while branches are in doubt: no money, no acknowledged transfer and no branch is lost.

One process transfers money and is killed. Its ledger is moved to the next place of a tour through all
backends, by a process that is killed at random steps and times and started again, and now and then undone.
Recovery at the new place has to end every branch; at the old place nothing may answer: neither a process that
opens the ledger there now, nor one that had it open before."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import sys
import tempfile
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from tests.etcd import EtcdCluster
from tests.prove.bank import NAMES, Audit, audit, set_up
from tests.prove.control import control
from tests.prove.mover_process import STEPS
from tests.prove.nodes import Nodes
from tests.prove.processes import Child, recovered, within
from tests.prove.trap import NO_TRAP
from tests.servers import fetch
from undoubt.coordinator.errors import LedgerError, LedgerMoved
from undoubt.coordinator.ledger import maintenance, open_ledger
from undoubt.coordinator.ledger.contract import Ledger
from undoubt.coordinator.ledger.moving import move as moving
from undoubt.coordinator.settings import LedgerSettings
from undoubt.embedded import EmbeddedServer
from undoubt.participants.ids import Gid

TOUR = ("sqlite", "postgresql", "raft", "etcd")
PLANTED = ("move-forgets-decisions", "move-does-not-seal")
CONTROL_S = 600.0
WORKERS = 8
TRANSFERS = 100_000
"""More than any worker makes before it is killed."""
KILL_S_MAX = 1.0
"""A moving process that is killed at no step is killed within this time."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--moves", type=int, default=8)
    parser.add_argument("--kills", type=int, default=3, help="of the moving process, at most, in each move")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-control", action="store_true")


async def main(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="undoubt-move-")))
        tour = await Tour.made(stack, folder, random.Random(options.seed))  # noqa: S311 - replayed by its seed
        for source, target in itertools.islice(itertools.pairwise(itertools.cycle(TOUR)), options.moves):
            await tour.take(source, target, options.kills)
        checked = await audit(tour.dsns, tour.acknowledged, ())
    result = tour.result(checked)
    faults = (
        "lost",
        "half_applied",
        "money",
        "prepared",
        "left",
        "heuristics",
        "answered_at_old",
        "failures",
    )
    holds = result["moves"] == options.moves and not any(result[name] for name in faults)
    holds = holds and result["in_doubt"] > 0 and result["acknowledged"] > 0
    if not options.no_control:
        found = await control(
            "move", "--no-control", "--moves", "3", "--kills", "0", mutants=PLANTED, timeout_s=CONTROL_S
        )
        result["control"] = sum(
            found.result[name] for name in ("lost", "half_applied", "left", "answered_at_old", "failures")
        )
        holds = holds and result["control"] > 0 and not found.holds
    return result, holds


@dataclass
class Tour:
    """The places, the bank, and what was seen."""

    urls: dict[str, str]
    dsns: dict[str, str]
    chance: random.Random
    acknowledged: list[str] = field(default_factory=list)
    moves: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    kills: dict[str, int] = field(default_factory=dict)
    in_doubt = undone = refused = heuristics = 0

    @classmethod
    async def made(cls, stack: AsyncExitStack, folder: Path, seeded: random.Random) -> Tour:
        """Servers, nodes and an etcd that run, and an empty ledger at the first place."""
        servers = [await stack.enter_async_context(EmbeddedServer()) for _ in NAMES]
        dsns = {
            name: await server.create_database("bank") for name, server in zip(NAMES, servers, strict=True)
        }
        await set_up(dsns)
        ledger = await servers[0].create_database("ledger")
        nodes = Nodes(folder, election_s=1.0)
        stack.push_async_callback(nodes.close)
        await nodes.begin()
        await nodes.start(*nodes.addresses)
        etcd = EtcdCluster(folder / "etcd", heartbeat_ms=100)
        stack.callback(etcd.close)
        await asyncio.to_thread(etcd.start)
        urls = {
            "sqlite": f"sqlite:///{folder}/ledger.db",
            "postgresql": ledger.replace("postgresql://", "postgresql+psycopg://"),
            "raft": f"raft://{nodes.url}",
            "etcd": f"{etcd.url}/bank",
        }
        tour = cls(urls, dsns, seeded)
        await maintenance.init(tour.ledger(TOUR[0]))
        return tour

    def ledger(self, kind: str) -> LedgerSettings:
        return LedgerSettings(url=self.urls[kind], request_timeout_s=30.0)

    def _settings(self, kind: str) -> str:
        return json.dumps(
            {
                "ledger": {"url": self.urls[kind], "request_timeout_s": 30.0},
                "coordinator": {"session_ttl_s": 1.5},
                "recovery": {"interval_s": 0.2},
                "participants": {name: {"dsn": dsn} for name, dsn in self.dsns.items()},
            }
        )

    async def take(self, source: str, target: str, kills: int) -> None:
        """Transfer at ``source``, die, move to ``target``, recover there."""
        await self._transfer(source, f"m{len(self.moves)}")
        gids = await self._prepared()
        self.in_doubt += len(gids)
        # One SQLite file has one owner: beside a process that had it open it is not moved.
        former = None if source == "sqlite" else await open_ledger(self.ledger(source))
        try:
            if not await self._move(source, target, kills):
                return
            await self._nothing_answers(source, former, gids)
        finally:
            if former is not None:
                await former.close()
        self.moves.append(f"{source} -> {target}")
        self.left += await recovered(self._settings(target))
        ledger = await open_ledger(self.ledger(target))
        try:
            self.heuristics = len(await ledger.heuristics())
        finally:
            await ledger.close()

    async def _transfer(self, kind: str, tag: str) -> None:
        """Transfer for a while, and die in the middle of it."""
        arguments = (NO_TRAP.encode(), tag, str(WORKERS), str(TRANSFERS))
        child = await Child.start("tests.prove.coordinator_process", self._settings(kind), *arguments)
        enough = self.chance.randrange(50, 150)
        async with within("transfers"):
            async for _ in child.lines():
                if len(child.heard.acknowledged) >= enough:
                    break
        await child.kill()
        self.acknowledged += child.heard.acknowledged

    async def _prepared(self) -> list[Gid]:
        rows = [
            gid
            for dsn in self.dsns.values()
            for (gid,) in await fetch(
                dsn, "select gid from pg_prepared_xacts where database = current_database()"
            )
        ]
        return [gid for row in rows if isinstance(gid := Gid.parse(row), Gid)]

    async def _move(self, source: str, target: str, kills: int) -> bool:
        """Start the moving process, kill it, and start it again, until the ledger is moved."""
        for _ in range(self.chance.randint(0, kills)):
            step = self.chance.choice(("-", *STEPS))
            child = await self._mover(source, target, step)
            if step == "-":
                await asyncio.sleep(self.chance.uniform(0, KILL_S_MAX))
                await child.kill()
            await child.ended()
            self.kills[step] = self.kills.get(step, 0) + 1
            if "moved" in child.heard.last or step == "done":
                break
            if self.chance.random() < 0.3:  # noqa: PLR2004 - now and then
                await self._undo(source)
        child = await self._mover(source, target, "-")
        await child.ended()
        if "moved" not in child.heard.last:
            self.failures.append(f"{source} -> {target}: {child.heard.last}")
        return "moved" in child.heard.last

    async def _mover(self, source: str, target: str, step: str) -> Child:
        settings = json.dumps(msgspec.to_builtins(self.ledger(source)))
        return await Child.start("tests.prove.mover_process", settings, self.urls[target], step)

    async def _undo(self, source: str) -> None:
        try:
            await moving.undo(self.ledger(source))
        except LedgerError:  # it had not begun, or was too far
            return
        self.undone += 1

    async def _nothing_answers(self, source: str, former: Ledger | None, gids: list[Gid]) -> None:
        """Neither a process that had the ledger open, nor a new one, gets a verdict or a session there."""
        try:
            ledger = await open_ledger(self.ledger(source), serves=True)
        except LedgerMoved:
            self.refused += 1
        else:
            await ledger.close()
            self.answered.append(f"{source} was opened")
        if former is None:
            return
        calls: list[Awaitable[object]] = [former.open_session("late", 60.0), former.unfinished()]
        if gids:  # a question about nothing has an answer everywhere
            calls.append(former.outcomes(gids))
        for asked in calls:
            try:
                answer = await asked
            except LedgerMoved:
                self.refused += 1
            else:
                self.answered.append(f"{source} answered {answer!r}")

    def result(self, checked: Audit) -> dict[str, Any]:
        for problem in (*self.failures, *self.answered, *self.left):
            print(problem, file=sys.stderr)
        return {
            "moves": len(self.moves),
            "tour": self.moves,
            "acknowledged": len(self.acknowledged),
            "in_doubt": self.in_doubt,
            "kills": self.kills,
            "undone": self.undone,
            "refused": self.refused,
            "lost": len(checked.acknowledged_lost),
            "half_applied": len(checked.half_applied),
            "money": checked.money,
            "prepared": len(checked.prepared),
            "left": len(self.left),
            "heuristics": self.heuristics,
            "answered_at_old": len(self.answered),
            "failures": len(self.failures),
        }
