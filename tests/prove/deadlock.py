"""Deadlocks that no database sees: circles of waits through rows of three databases, branches that are
prepared, and locks of the ledger, in two coordinator processes. One transaction of each circle is aborted,
and all others commit.

Each transaction of a circle has one resource, and asks for that of the next one. A transaction that waits in
its first phase, for a row that a deferred trigger updates, holds the other row by a prepared branch. ``hung``
counts the transactions that have neither committed nor become the victim of a deadlock.
``p99_to_break_ms`` is the time from when the last transaction was told to ask, until the victim's block had
ended. ``wrong_rows`` counts rows that were not updated exactly by those that have committed."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import asyncpg

from tests.prove.control import control
from tests.prove.ledgers import LEDGERS
from tests.prove.processes import Child, within
from undoubt.embedded import EmbeddedServer
from undoubt.participants.ids import Gid

NAMES = ("inventory", "orders", "payments")
PROCESSES = 2
LANES = 3
"""Circles at one time."""
KINDS = ("rows", "ring", "lock", "locks", "prepared", "prepared and lock")
PLANTED = ("deadlock-lock-waits-not-read",)
SCHEMA = """
    create table item (id int primary key, n int not null default 0);
    insert into item (id) select generate_series(0, 9999);
    create table later (item int not null);
    create function update_later() returns trigger language plpgsql as
        $$ begin update item set n = n + 1 where id = new.item; return null; end $$;
    create constraint trigger update_later after insert on later deferrable initially deferred
        for each row execute function update_later();
"""

Resource = list[Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cycles", type=int, default=30)
    parser.add_argument("--ledger", choices=sorted(LEDGERS), default="sqlite")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=30.0, help="of each transaction, in seconds")
    parser.add_argument("--no-control", action="store_true")


async def main(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="undoubt-deadlock-")))
        dsns = dict[str, str]()
        for name in NAMES:
            server = await stack.enter_async_context(EmbeddedServer())
            dsns[name] = await server.create_database("shop")
        connections = {name: await asyncpg.connect(dsn) for name, dsn in dsns.items()}
        for connection in connections.values():
            stack.push_async_callback(connection.close)
            await connection.execute(SCHEMA)
        ledgers = LEDGERS[options.ledger](folder)
        await ledgers.build(stack)
        settings = {
            "ledger": await ledgers.fresh("deadlock"),
            "participants": {name: {"dsn": dsn} for name, dsn in dsns.items()},
        }
        circles = Circles(connections, Random(options.seed))  # noqa: S311 - a seed replays it
        stack.push_async_callback(circles.close)
        await ledgers.watched(stack, settings)
        await circles.run(json.dumps(settings), options)
        result = await circles.result(options)
    holds = _holds(result, options)
    if not options.no_control:
        arguments = ("--no-control", "--cycles", "2", "--kinds", "lock", "--timeout", "10")
        found = await control("deadlock", *arguments, mutants=PLANTED)
        result["control"] = found.result["hung"]
        holds = holds and found.result["hung"] > 0 and not found.holds
    return result, holds


def _holds(result: dict[str, Any], options: argparse.Namespace) -> bool:
    one_each = result["cycles"] == result["victims"] == result["broken_by_one"] == options.cycles
    rest = result["committed"] == result["transactions"] - result["victims"]
    return one_each and rest and not result["hung"] and not result["wrong_rows"] and not result["left"]


@dataclass
class Circle:
    kind: str
    members: list[tuple[str, Resource, Resource]]
    """The id of each transaction, what it has, and what it wants."""
    closed_at: float = 0.0
    prepared: bool = False
    """Whether a branch of a waiting transaction was seen prepared."""


@dataclass
class Circles:
    """The processes, the circles that they have joined in, and what they have told."""

    connections: dict[str, Any]
    random: Random
    children: list[Child] = field(default_factory=list)
    circles: list[Circle] = field(default_factory=list)
    told: dict[str, dict[str, Any]] = field(default_factory=dict)
    has: dict[str, str] = field(default_factory=dict)
    """The transactions that have their first resource, with their ids in the ledger."""
    _readers: list[asyncio.Task[None]] = field(default_factory=list)
    _reading: asyncio.Lock = field(default_factory=asyncio.Lock)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def run(self, settings: str, options: argparse.Namespace) -> None:
        """The options are those of the proof."""
        for _ in range(PROCESSES):
            child = await Child.start("tests.prove.deadlock_process", settings, str(options.timeout))
            self.children.append(child)
            async with within("a process that is ready"):
                async for message in child.lines():
                    if "ready" in message:
                        break
            self._readers.append(asyncio.create_task(self._read(child)))
        kinds = itertools.cycle(options.kinds)
        todo = [self._drawn(next(kinds)) for _ in range(options.cycles)]

        async def lane() -> None:
            while todo:
                await self._close_one(todo.pop(0))

        await asyncio.gather(*(lane() for _ in range(LANES)))

    async def _read(self, child: Child) -> None:
        async for message in child.lines():
            if "has" in message:
                self.has[message["has"]] = message["txid"]
            if "outcome" in message:
                self.told[message["id"]] = message

    def _drawn(self, kind: str) -> Circle:
        """A circle that no database sees as a whole."""
        places = self.random.sample(NAMES, 3)
        row = [["row", place, next(self._numbers)] for place in places]
        locks = [["lock", f"lock {next(self._numbers)}", 0] for _ in range(3)]
        resources = {
            "rows": row[:2],
            "ring": row,
            "lock": self.random.choice([[row[0], locks[0]], [row[0], locks[0], row[1]]]),
            "locks": self.random.choice([locks[:2], locks]),
            "prepared": self.random.choice([row[:2], row]),
            "prepared and lock": [row[0], row[1], locks[0]],
        }[kind]
        wanted = [*resources[1:], resources[0]]
        if kind.startswith("prepared"):
            wanted[0] = ["deferred", *wanted[0][1:]]
        names = [f"t{next(self._numbers)}" for _ in resources]
        return Circle(kind, list(zip(names, resources, wanted, strict=True)))

    async def _close_one(self, circle: Circle) -> None:
        order = list(enumerate(circle.members))
        # The youngest is the victim: it is of the process that has begun last, if one of that takes part.
        child = {name: self.random.choice(self.children) for name, *_ in circle.members}
        for _, (name, has, wants) in self.random.sample(order, len(order)):
            await child[name].send({"id": name, "has": has, "wants": wants})
            async with within(f"{name} has {has}"):
                while name not in self.has and name not in self.told:
                    await asyncio.sleep(0.005)
        for _, (name, has, wants) in order:
            circle.closed_at = time.monotonic()
            await child[name].send({"id": name, "go": True})
            if wants[0] == "deferred":
                circle.prepared = await self._prepared(has[1], self.has[name])
        async with within(f"the end of {circle}"):
            while any(name not in self.told for name, *_ in circle.members):
                await asyncio.sleep(0.01)
        self.circles.append(circle)

    async def _prepared(self, place: str, txid: str) -> bool:
        """Return once the branch of ``txid`` is prepared there."""
        async with within(f"a prepared branch of {txid}"):
            while True:
                async with self._reading:
                    rows = await self.connections[place].fetch("select gid from pg_prepared_xacts")
                gids = [Gid.parse(row["gid"]) for row in rows]
                if any(isinstance(gid, Gid) and str(gid.txid) == txid for gid in gids):
                    return True
                await asyncio.sleep(0.01)

    async def close(self) -> None:
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        for child in self.children:
            await child.kill()

    async def result(self, options: argparse.Namespace) -> dict[str, Any]:
        outcomes = Counter(message["outcome"] for message in self.told.values())
        to_break = []
        by_one = 0
        for circle in self.circles:
            victims = [name for name, *_ in circle.members if self.told[name]["outcome"] == "victim"]
            by_one += len(victims) == 1
            to_break += [1000 * (self.told[name]["at"] - circle.closed_at) for name in victims]
        for message in self.told.values():
            if message["outcome"] == "failed":
                print(message, file=sys.stderr)
        to_break.sort()
        left = [
            await each.fetchval("select count(*) from pg_prepared_xacts")
            for each in self.connections.values()
        ]
        return {
            "ledger": options.ledger,
            "cycles": len(self.circles),
            "by_kind": dict(Counter(circle.kind for circle in self.circles)),
            "prepared": sum(circle.prepared for circle in self.circles),
            "transactions": len(self.told),
            "victims": outcomes["victim"],
            "broken_by_one": by_one,
            "committed": outcomes["committed"],
            "hung": outcomes["failed"],
            "wrong_rows": await self._wrong_rows(),
            "left": sum(left),
            "median_to_break_ms": round(to_break[len(to_break) // 2]) if to_break else None,
            "p99_to_break_ms": round(to_break[min(len(to_break) * 99 // 100, len(to_break) - 1)])
            if to_break
            else None,
        }

    async def _wrong_rows(self) -> int:
        wanted: Counter[tuple[str, int]] = Counter()
        for circle in self.circles:
            for name, *resources in circle.members:
                if self.told[name]["outcome"] == "committed":
                    wanted.update((place, row) for kind, place, row in resources if kind != "lock")
        found = {
            (place, row["id"]): row["n"]
            for place, connection in self.connections.items()
            for row in await connection.fetch("select id, n from item where n <> 0")
        }
        return sum(found.get(row, 0) != wanted[row] for row in found.keys() | wanted.keys())
