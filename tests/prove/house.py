"""How easily the house is read: files on the path of one commit, circles of imports, names that stand for two
things, loops that do one job, modules on no map, dead code.

The files of a commit are counted by a tracer. One transaction with a branch in each of two PostgreSQL
databases commits on three nodes; the client and the leader run in the traced thread, the followers in
another. A file counts if each of several such commits calls a function of it between ``commit`` and its
answer, other than from a timer or a loop of upkeep. ARCHITECTURE.md lists exactly these files, and besides
them some that other threads enter meanwhile: the followers, and the threads that write to the disks."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator, Set
from pathlib import Path
from types import FrameType
from typing import Any

import asyncpg

import undoubt
from tests.coordinator.node.cluster import Cluster
from tests.house.architecture import DISKS, PATH, files_named
from tests.house.dead import dead
from tests.house.reading import circles, reply_loops, same_named_public_classes, unmapped_modules
from tests.house.tree import ROOMS, ROOT
from undoubt.coordinator.errors import LedgerError
from undoubt.coordinator.ledger.cluster import admin
from undoubt.coordinator.node.settings import NodeSettings
from undoubt.coordinator.supervision import Supervised
from undoubt.embedded import EmbeddedServer

COMMITS = 5
FILES_MAX = 40
NAMES = ("orders", "payments")
CALM = NodeSettings(heartbeat_s=0.1, election_timeout_s=2.0)
"""A tracer makes all slow: the leader has to remain."""
QUIET_S = 0.3
"""After a commit, until the ledger has heard that the transaction is finished: no work of the next one."""

Calls = set[tuple[str, str]]
"""File and function."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--commits", type=int, default=COMMITS)


async def main(given: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    with tempfile.TemporaryDirectory(prefix="undoubt-house-") as folder:
        entered, elsewhere = await commits(Path(folder), given.commits)
    files = sorted({file for file, _ in entered})
    details: dict[str, Any] = {
        "commit_files": files,
        "unlike_the_map": unlike_the_map(set(files), {file for file, _ in elsewhere}),
        "circles": circles(),
        "same_named_public_classes": same_named_public_classes(),
        "reply_loops": reply_loops(),
        "unmapped_modules": unmapped_modules(),
        "dead": dead(),
    }
    told: dict[str, Any] = {name: len(found) for name, found in details.items()}
    told |= {"commit_functions": len(entered), "details": details}
    clean = ("unlike_the_map", "circles", "same_named_public_classes", "unmapped_modules", "dead")
    holds = len(files) <= FILES_MAX and told["reply_loops"] == 1 and not any(told[name] for name in clean)
    return told, holds


def unlike_the_map(entered: Set[str], elsewhere: Set[str]) -> list[str]:
    """What ARCHITECTURE.md says of the files of a commit that is not so, a line each."""
    named, others = files_named(PATH), files_named(DISKS)
    return [
        *(f"{file} is entered, and not named" for file in sorted(entered - named)),
        *(f"{file} is named, and not entered" for file in sorted(named - entered)),
        *(f"{file} is named, and entered by no other thread" for file in sorted(others - elsewhere)),
    ]


async def commits(folder: Path, count: int) -> tuple[Calls, Calls]:
    """What each of ``count`` commits calls in the client and the leader, and what any of them calls in other
    threads."""
    found: list[Calls] = []
    elsewhere: Calls = set()
    async with contextlib.AsyncExitStack() as stack:
        tracer = stack.enter_context(Tracer())
        server = await stack.enter_async_context(EmbeddedServer(durable=False))
        owner = await asyncpg.connect(server.dsn())
        for name in NAMES:
            await owner.execute(f"create database {name}")
        await owner.close()
        cluster = await stack.enter_async_context(_three_nodes(folder, leader=1))
        databases = {name: {"dsn": server.dsn(name)} for name in NAMES}
        settings = {"ledger": {"url": cluster.settings.url}, "participants": databases}
        coordinator = await stack.enter_async_context(undoubt.connect(settings, recover=False))
        number = 0
        while len(found) <= count:
            number += 1
            tx = coordinator.transaction()
            await tx.start()
            for name in NAMES:
                branch: Any = await tx.branch(name)
                await branch.execute(f"create table t{number} ()")
            await asyncio.sleep(QUIET_S)
            await _lead(cluster, 1)
            term = cluster.nodes[1].replica.raft.term
            with tracer.on() as (calls, others):
                await tx.commit()
            if cluster.nodes[1].leads and cluster.nodes[1].replica.raft.term == term:
                found.append(calls)
                elsewhere |= others
    return set.intersection(*found[1:]), elsewhere  # the first one opens connections


class Tracer:
    """Of every thread that begins while it is open, and of the one that opens it."""

    def __init__(self) -> None:
        rooms = {room: ROOT / room if room == "undoubt" else ROOT / "undoubt" / room for room in ROOMS}
        self._prefixes = (*map(str, rooms.values()), *(str(ROOT / room) for room in ROOMS))
        self._own = threading.get_ident()
        self._noted: tuple[Calls, Calls] | None = None

    def __enter__(self) -> Tracer:
        threading.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        threading.setprofile(None)

    @contextlib.contextmanager
    def on(self) -> Iterator[tuple[Calls, Calls]]:
        """What this thread, and what others call of the product meanwhile."""
        self._noted = set(), set()
        sys.setprofile(self._note)
        try:
            yield self._noted
        finally:
            sys.setprofile(None)
            self._noted = None

    def _note(self, frame: FrameType, event: str, _: object) -> None:
        noted, name = self._noted, frame.f_code.co_filename
        if noted is None or event != "call" or not name.startswith(self._prefixes):
            return
        if frame.f_code.co_qualname == "<module>" or _in_the_background(frame):
            return
        calls = noted[threading.get_ident() != self._own]
        calls.add((str(Path(name).resolve().relative_to(ROOT)), frame.f_code.co_qualname))


def _in_the_background(frame: FrameType) -> bool:
    """Timers and loops of upkeep belong to no commit."""
    at: FrameType | None = frame
    while at is not None:
        if at.f_code is Supervised.run.__code__:
            return True
        if at.f_code is asyncio.Handle._run.__code__:
            return isinstance(at.f_locals.get("self"), asyncio.TimerHandle)
        at = at.f_back
    return False


@contextlib.asynccontextmanager
async def _three_nodes(folder: Path, leader: int) -> AsyncIterator[Cluster]:
    """``leader`` leads, in this thread."""
    cluster = Cluster(folder, 3, node_settings=CALM)
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
        await _lead(cluster, leader)
        yield cluster
    finally:
        over.set()
        await asyncio.to_thread(thread.join)
        await cluster.stop(leader)


async def _lead(cluster: Cluster, leader: int) -> None:
    while not cluster.nodes[leader].leads:
        with contextlib.suppress(LedgerError):
            await admin.transfer(cluster.settings, leader)
        await asyncio.sleep(0.05)
