"""Exactly once: two processes run the work of each key at the same time, and processes are killed.

For each key both processes call ``coordinator.run(order, key=…)``. For some keys the process that runs the
work is killed between the recorded decision and its answer (``after_decide``), for some before the decision.
A new process then makes the call again. ``executed`` counts the orders in the databases, where nothing but
the key keeps an order from being made twice; a call that is answered has to be answered with the order that
is there."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.prove.bank import NAMES
from tests.prove.control import control
from tests.prove.ledgers import LEDGERS, SqliteLedgers
from tests.prove.processes import Child, recovered, within
from tests.servers import execute, fetch
from undoubt.embedded import EmbeddedServer

PROCESSES = 2
PLANTED = ("key-claimed-twice", "key-committed-without-a-claim")
PLANTED_IN_POSTGRES = ("key-postgres-claimed-twice", "key-postgres-commits-unclaimed")
CONTROL_S = 420.0
SCHEMA = "create table made (key text not null, run text not null)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keys", type=int, default=100)
    parser.add_argument("--kills", type=int, default=20, help="between the decision and its answer")
    parser.add_argument("--kills-before", type=int, default=4, help="before the decision")
    parser.add_argument("--ledger", choices=sorted(LEDGERS), default="sqlite")
    parser.add_argument("--no-control", action="store_true")


async def main(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="undoubt-keys-")))
        dsns = dict[str, str]()
        for name in NAMES:
            server = await stack.enter_async_context(EmbeddedServer())
            dsns[name] = await server.create_database("shop")
            await execute(dsns[name], SCHEMA)
        ledgers: SqliteLedgers = LEDGERS[options.ledger](folder)
        await ledgers.build(stack)
        settings = json.dumps(
            {
                "ledger": await ledgers.fresh("keys"),
                "coordinator": {"session_ttl_s": 1.5},
                "recovery": {"interval_s": 0.2},
                "participants": {name: {"dsn": dsn} for name, dsn in dsns.items()},
            }
        )
        shop = Shop(settings)
        stack.push_async_callback(shop.close)
        await shop.run(options)
        left = await recovered(settings)
        made = {name: await fetch(dsn, "select key, run from made") for name, dsn in dsns.items()}
    result = shop.result(made, left)
    holds = _holds(result, options)
    if not options.no_control:
        arguments = ("--no-control", "--ledger", options.ledger, "--keys", "12", "--kills", "2")
        planted = PLANTED_IN_POSTGRES if options.ledger == "postgresql" else PLANTED
        found = await control("keys", *arguments, "--kills-before", "0", mutants=planted, timeout_s=CONTROL_S)
        result["control"] = found.result["twice"]
        holds = holds and result["control"] > 0 and not found.holds
    return result, holds


def _holds(result: dict[str, Any], options: argparse.Namespace) -> bool:
    faults = ("twice", "half_made", "wrong_results", "unanswered", "left")
    enough = result["kills"] >= options.kills + options.kills_before
    counted = result["executed"] == result["keys"] == options.keys
    return counted and enough and not any(result[name] for name in faults)


@dataclass
class Shop:
    """The processes, and what they have told."""

    settings: str
    children: list[Child] = field(default_factory=list)
    answers: dict[str, list[str]] = field(default_factory=dict)
    """By key: the run that each answered call has returned."""
    failures: list[str] = field(default_factory=list)
    calls = kills = again = 0

    async def run(self, options: argparse.Namespace) -> None:
        """The options are those of the proof."""
        for place in range(PROCESSES):  # the first one owns a SQLite ledger, and serves the others
            await self._start(place)
        total = options.kills + options.kills_before
        every = max(options.keys // max(total, 1), 1)
        killing = [number for number in range(options.keys) if number % every == 0][:total]
        before = set(killing[: options.kills_before])
        for number in range(options.keys):
            key = f"order-{number}"
            die = ("before_decide" if number in before else "after_decide") if number in killing else ""
            await self._both(key, die)

    async def _both(self, key: str, die: str) -> None:
        """Have both processes make the order at the same time; with ``die``, the one that runs it dies."""
        self.calls += PROCESSES
        order = range(PROCESSES)
        if die == "before_decide":  # only the first one dies: the second has to make the order
            await self._ask(0, key, die)
            await self._until_begun(0)
            await self._ask(1, key, "")
        else:
            for place in order:
                await self._ask(place, key, die)
        died = [not alive for alive in await asyncio.gather(*(self._answer(place, key) for place in order))]
        self.kills += sum(died)
        for place in order:
            if died[place]:
                await self._start(place)
                self.again += 1
                await self._ask(place, key, "")
                if not await self._answer(place, key):
                    self.failures.append(f"{key}: the new process died")

    async def _start(self, place: int) -> None:
        child = await Child.start("tests.prove.keys_process", self.settings)
        self.children[place : place + 1] = [child]
        async with within("a process that is ready"):
            async for message in child.lines():
                if "ready" in message:
                    return
        raise RuntimeError(f"a process ended: {await child.ended()}")

    async def _ask(self, place: int, key: str, die: str) -> None:
        await self.children[place].send({"key": key, "die": die})

    async def _until_begun(self, place: int) -> None:
        async with within("the work of an order"):
            async for message in self.children[place].lines():
                if "began" in message or "died" in message:
                    return

    async def _answer(self, place: int, key: str) -> bool:
        """Take the answer of that process; False if it has died."""
        async with within(f"the answer for {key}"):
            async for message in self.children[place].lines():
                if message.get("key") != key:
                    continue
                if "result" in message:
                    self.answers.setdefault(key, []).append(message["result"]["run"])
                else:
                    self.failures.append(f"{key}: {message['failed']}")
                return True
        await self.children[place].ended()
        return False

    async def close(self) -> None:
        for child in self.children:
            await child.kill()

    def result(self, made: dict[str, list[tuple[str, str]]], left: list[str]) -> dict[str, Any]:
        rows = {name: sorted(found) for name, found in made.items()}
        orders = rows[NAMES[0]]
        count = Counter(key for key, _ in orders)
        runs = dict(orders)
        wrong = [key for key, answers in self.answers.items() if {*answers} != {runs.get(key)}]
        for failure in self.failures:
            print(failure, file=sys.stderr)
        return {
            "calls": self.calls,
            "keys": len(count),
            "executed": len(orders),
            "kills": self.kills,
            "asked_again": self.again,
            "twice": sum(times > 1 for times in count.values()),
            "half_made": len(set(rows[NAMES[0]]) ^ set(rows[NAMES[1]])),
            "wrong_results": len(wrong),
            "unanswered": len(self.failures),
            "left": len(left),
        }
