"""How easily the house is read: files on the path of one commit, circles of imports, names that stand for two
things, loops that do one job, modules on no map, dead code.

The files of a commit are counted by a tracer. One transaction with a branch in each of two PostgreSQL
databases commits on three nodes; the client and the leader run in the traced thread, the followers in
another. A file counts if each of several such commits calls a function of it between ``commit`` and its
answer."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import asyncpg

import undoubt
from tests.coordinator.node.cluster import QUICK, Cluster
from tests.house.dead import dead
from tests.house.reading import circles, reply_loops, same_named_public_classes, unmapped_modules
from tests.house.tree import ROOMS, ROOT
from undoubt.coordinator.errors import LedgerError
from undoubt.coordinator.ledger.cluster import admin
from undoubt.embedded import EmbeddedServer

COMMITS = 5
FILES_MAX = 40
NAMES = ("orders", "payments")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--commits", type=int, default=COMMITS)


async def main(given: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    with tempfile.TemporaryDirectory(prefix="undoubt-house-") as folder:
        entered = await _commits(Path(folder), given.commits)
    files = sorted({file for file, _ in entered})
    told: dict[str, Any] = {
        "commit_files": len(files),
        "commit_functions": len(entered),
        "circles": len(circles()),
        "same_named_public_classes": len(same_named_public_classes()),
        "reply_loops": len(reply_loops()),
        "unmapped_modules": len(unmapped_modules()),
        "dead": len(dead()),
        "details": {
            "commit_files": files,
            "circles": circles(),
            "same_named_public_classes": same_named_public_classes(),
            "reply_loops": reply_loops(),
            "unmapped_modules": unmapped_modules(),
            "dead": dead(),
        },
    }
    clean = ("circles", "same_named_public_classes", "unmapped_modules", "dead")
    holds = len(files) <= FILES_MAX and told["reply_loops"] == 1 and not any(told[name] for name in clean)
    return told, holds


async def _commits(folder: Path, count: int) -> set[tuple[str, str]]:
    """File and function of what each of ``count`` commits calls."""
    found: list[set[tuple[str, str]]] = []
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(EmbeddedServer(durable=False))
        owner = await asyncpg.connect(server.dsn())
        for name in NAMES:
            await owner.execute(f"create database {name}")
        await owner.close()
        url = await stack.enter_async_context(_three_nodes(folder, leader=1))
        databases = {name: {"dsn": server.dsn(name)} for name in NAMES}
        settings = {"ledger": {"url": url}, "participants": databases}
        coordinator = await stack.enter_async_context(undoubt.connect(settings, recover=False))
        for number in range(count + 1):
            tx = coordinator.transaction()
            await tx.start()
            for name in NAMES:
                branch: Any = await tx.branch(name)
                await branch.execute(f"create table t{number} ()")
            with _traced() as calls:
                await tx.commit()
            found.append(calls)
    return set.intersection(*found[1:])  # the first one opens connections


@contextlib.contextmanager
def _traced() -> Iterator[set[tuple[str, str]]]:
    """What this thread calls of the product meanwhile."""
    calls: set[tuple[str, str]] = set()
    rooms = {room: str(ROOT / "undoubt" / room) if room != "undoubt" else str(ROOT / room) for room in ROOMS}
    prefixes = (*rooms.values(), *(str(ROOT / room) for room in ROOMS))

    def note(frame: FrameType, event: str, _: object) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(prefixes) and frame.f_code.co_qualname != "<module>":
            calls.add((str(Path(name).resolve().relative_to(ROOT)), frame.f_code.co_qualname))

    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(None)


@contextlib.asynccontextmanager
async def _three_nodes(folder: Path, leader: int) -> AsyncIterator[str]:
    """``leader`` leads, in this thread; the URL of all."""
    cluster = Cluster(folder, 3, node_settings=QUICK)
    others = [number for number in cluster.addresses if number != leader]
    started, over = threading.Event(), threading.Event()

    async def follow() -> None:
        await cluster.start(*others)
        started.set()
        await asyncio.to_thread(over.wait)
        await cluster.stop(*others)

    thread = threading.Thread(target=asyncio.run, args=(follow(),))
    thread.start()
    try:
        await asyncio.to_thread(started.wait)
        await cluster.start(leader)
        url = cluster.settings.url
        await _lead(cluster, leader)
        yield url
    finally:
        over.set()
        await asyncio.to_thread(thread.join)
        await cluster.stop(leader)


async def _lead(cluster: Cluster, leader: int) -> None:
    while not cluster.nodes[leader].leads:
        with contextlib.suppress(LedgerError):
            await admin.transfer(cluster.settings, leader)
        await asyncio.sleep(0.05)
