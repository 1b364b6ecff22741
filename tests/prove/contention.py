"""Heavy locking without a deadlock: transactions of several processes wait for each other at few hot rows of
three databases and at locks of the ledger, always in one order. The detectors of deadlocks look all the time,
and none may find a victim.

``lock_waits`` counts the times that a row or a lock was not free, ``by_ledger_locks`` those of locks."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg

from tests.prove.control import control
from tests.prove.ledgers import LEDGERS
from tests.prove.processes import Child, within
from undoubt.embedded import EmbeddedServer

NAMES = ("inventory", "orders", "payments")
LOOK_S = 0.05
"""Between two looks of each detector."""
LAST_S = 300.0
"""It ends by then, however few the waits are."""
PLANTED = ("deadlock-holders-wait-too",)
SCHEMA = """
    create table item (id int primary key, n int not null default 0);
    insert into item (id) select generate_series(0, 9);
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--waits", type=int, default=1000, help="at least so many")
    parser.add_argument("--seconds", type=float, default=20.0, help="at least so long")
    parser.add_argument("--ledger", choices=sorted(LEDGERS), default="sqlite")
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=6, help="of each process")
    parser.add_argument("--no-control", action="store_true")


async def main(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="undoubt-contention-")))
        server = await stack.enter_async_context(EmbeddedServer())
        dsns = {name: await server.create_database(name) for name in NAMES}
        for dsn in dsns.values():
            connection = await asyncpg.connect(dsn)
            await connection.execute(SCHEMA)
            await connection.close()
        ledgers = LEDGERS[options.ledger](folder)
        await ledgers.build(stack)
        settings = {
            "ledger": await ledgers.fresh("contention"),
            "recovery": {"deadlock_interval_s": LOOK_S},
            "participants": {name: {"dsn": dsn} for name, dsn in dsns.items()},
        }
        await ledgers.watched(stack, settings)
        result = await _run(json.dumps(settings), options)
    enough = result["lock_waits"] >= options.waits and result["by_ledger_locks"] > 0
    holds = enough and not result["victims"] and not result["failed"] and result["committed"] > 0
    if not options.no_control:
        arguments = ("--no-control", "--seconds", "5", "--waits", "50")
        found = await control("contention", *arguments, mutants=PLANTED)
        result["control"] = found.result["victims"]
        holds = holds and found.result["victims"] > 0 and not found.holds
    return result, holds


async def _run(settings: str, options: argparse.Namespace) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    told = Counter[str]()
    counts: list[dict[str, int]] = []

    async def read(child: Child, place: int, ready: asyncio.Event) -> None:
        async for message in child.lines():
            if "ready" in message:
                ready.set()
            elif "counts" in message:
                counts[place] = message["counts"]
            elif "victim" in message:
                told["victims" if message["victim"] else "failed"] += 1
                print(message["why"], file=sys.stderr)

    def total(*names: str) -> int:
        return sum(each[name] for each in counts for name in names if each)

    children: list[Child] = []
    readers: list[asyncio.Task[None]] = []
    began = loop.time()
    try:
        for place in range(options.processes):
            counts.append({})
            arguments = (settings, str(options.tasks), str(place))
            children.append(await Child.start("tests.prove.contention_process", *arguments))
            ready = asyncio.Event()
            readers.append(asyncio.create_task(read(children[-1], place, ready)))
            async with within("a process that is ready"):
                await ready.wait()  # the first one has to have the ledger before others ask for it
        while loop.time() < began + LAST_S:
            enough = total("lock_waits", "row_waits") >= options.waits
            if enough and loop.time() > began + options.seconds:
                break
            await asyncio.sleep(0.2)
        for child in reversed(children):  # the first one has the ledger
            child.close_input()
            await asyncio.wait([readers[children.index(child)]])
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        for child in children:
            await child.kill()
    return {
        "ledger": options.ledger,
        "seconds": round(loop.time() - began, 1),
        "lock_waits": total("lock_waits", "row_waits"),
        "by_ledger_locks": total("lock_waits"),
        "committed": total("committed"),
        "victims": told["victims"],
        "failed": told["failed"],
    }
