"""Stale holders of locks: processes are stopped (SIGSTOP) while they hold a lock, until another one has it
and has written; then they go on, and try to write under their old token.

On each ledger two processes compete for each of several locks. On a cluster the leader is killed meanwhile. A
file is restored from a backup in the end, and its next token must be higher than all before. The judge reads
what the processes told and the rows that they wrote, and shares no code with the locks:

- *stale_applied*: rows under a token that come after a row under a higher one;
- *tokens_increasing*: whoever asked after another had entered, got a higher token;
- *held_twice*: two processes between entering and leaving (or being stopped) at one time.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from tests.prove.control import control
from tests.prove.fencing_process import TTL_S
from tests.prove.ledgers import LEDGERS, SqliteLedgers
from tests.prove.processes import ROOT, within
from undoubt.coordinator.ledger import maintenance, open_ledger
from undoubt.coordinator.ledger.acting import new_act
from undoubt.coordinator.ledger.contract import Ledger
from undoubt.coordinator.ledger.locks import LockRequest
from undoubt.coordinator.ledger.sqlite import restoring
from undoubt.coordinator.ledger.sqlite.ledger import SqliteLedger
from undoubt.coordinator.settings import LedgerSettings
from undoubt.embedded import EmbeddedServer
from undoubt.participants.postgres import schema
from undoubt.participants.settings import ParticipantSettings

LOCKS = ("billing", "report", "cleanup")
PROCESSES = 2
"""For each lock."""
PLANTED = ("guard-accepts-any-token",)
TABLE = """
    create table applied (id bigint generated always as identity, name text, token bigint, number int)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ledger", choices=[*LEDGERS, "all"], default="all")
    parser.add_argument("--stale", type=int, default=120, help="so many stale writes at least")
    parser.add_argument("--no-control", action="store_true")


@dataclass
class Stay:
    """One process with a lock. ``until``: when it left or was stopped; None if neither was told."""

    token: int
    asked_at: float
    at: float
    until: float | None = None


@dataclass
class Holder:
    """One process, and what it has told."""

    name: str
    process: asyncio.subprocess.Process
    stays: list[Stay] = field(default_factory=list)
    overtaken: set[int] = field(default_factory=set)
    """The tokens under which it was stopped until another process had written."""
    stale_tried: int = 0
    """The writes that were tried under a stale token, refused or not."""
    applied: list[int] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    inside: bool = False

    @property
    def has_applied(self) -> bool:
        """Whether it is in its lock, and has written there."""
        return self.inside and self.applied[-1:] == [self.stays[-1].token]

    def take(self, line: dict[str, Any]) -> None:
        if "entered" in line:
            self.stays.append(Stay(line["entered"], line["asked_at"], line["at"]))
            self.inside = True
        elif "leaving" in line:
            self.stays[-1].until = self.stays[-1].until or line["at"]
            self.inside = False
        elif "stale" in line:
            self.stale_tried += 1
        elif "applied" in line:
            self.applied.append(line["applied"])
            self.stale_tried += line["applied"] in self.overtaken
        elif "trouble" in line or "failed" in line:
            self.troubles.append(str(line))


@dataclass
class Judged:
    stale_tried: int = 0
    stale_applied: int = 0
    tokens_increasing: bool = True
    held_twice: int = 0
    grants: int = 0
    failures: list[str] = field(default_factory=list)


async def main(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    names = list(LEDGERS) if options.ledger == "all" else [options.ledger]
    total = Judged()
    with tempfile.TemporaryDirectory(prefix="undoubt-fencing-") as folder:
        async with EmbeddedServer() as server:
            for name in names:
                await _on(name, Path(folder), server, -(-options.stale // len(names)), total)
    found = 0
    if not options.no_control:
        arguments = ("--no-control", "--ledger", "sqlite", "--stale", "20")
        found = (await control("fencing", *arguments, mutants=PLANTED)).result["stale_applied"]
    result = {
        "ledgers": names,
        "grants": total.grants,
        "stale_tried": total.stale_tried,
        "stale_applied": total.stale_applied,
        "tokens_increasing": total.tokens_increasing,
        "held_twice": total.held_twice,
        "control": found,
        "failures": total.failures[:5],
    }
    holds = (
        total.stale_tried >= options.stale
        and not total.stale_applied
        and total.tokens_increasing
        and not total.held_twice
        and not total.failures
        and (options.no_control or found > 0)
    )
    return result, holds


async def _on(name: str, folder: Path, server: EmbeddedServer, stale: int, total: Judged) -> None:
    """The proof on one ledger; adds to ``total``."""
    place = folder / name
    place.mkdir()
    ledgers = LEDGERS[name](place)
    async with AsyncExitStack() as stack:
        await ledgers.build(stack)
        settings = LedgerSettings(**await ledgers.fresh("fencing"))  # type: ignore[arg-type]
        if name == "sqlite":
            await maintenance.init(settings)
        ledger = await open_ledger(settings)  # the owner of a file, or the leader of a database
        stack.push_async_callback(ledger.close)
        dsn = await server.create_database(f"fenced_{name}")
        await schema.migrate("orders", ParticipantSettings(dsn=dsn))
        rows = await asyncpg.connect(dsn)
        stack.push_async_callback(rows.close)
        await rows.execute(TABLE)
        backup = place / "backup"
        if isinstance(ledger, SqliteLedger):
            await ledger.backup(backup)
        async with _holders(settings.url, dsn) as holders:
            await _stop_and_go(holders, ledgers, stale)
        await _judge(holders, rows, total)
        if isinstance(ledger, SqliteLedger):
            await ledger.close()
            await _restored(ledger, settings, backup, holders, total)
    print(f"{name}: {total}", file=sys.stderr)


@asynccontextmanager
async def _holders(url: str, dsn: str) -> AsyncIterator[list[Holder]]:
    holders: list[Holder] = []
    readers = []
    try:
        for name in LOCKS:
            for _ in range(PROCESSES):
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "tests.prove.fencing_process", url, dsn, name,
                    stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=ROOT,
                    env={**os.environ, "PYTHONPATH": str(ROOT)},
                )  # fmt: skip
                holders.append(Holder(name, process))
                readers.append(asyncio.create_task(_read(holders[-1])))
        yield holders
        for holder in holders:
            if holder.process.stdin is not None:
                holder.process.stdin.close()
        async with within("the end of the processes"):
            await asyncio.gather(*readers, *(holder.process.wait() for holder in holders))
    finally:
        for holder in holders:
            if holder.process.returncode is None:
                holder.process.kill()
                await holder.process.wait()


async def _read(holder: Holder) -> None:
    assert holder.process.stdout is not None
    async for line in holder.process.stdout:
        if line.endswith(b"\n"):
            holder.take(json.loads(line))


async def _stop_and_go(holders: Sequence[Holder], ledgers: SqliteLedgers, stale: int) -> None:
    """Until ``stale`` writes were tried."""
    turns = [_of_one_lock([each for each in holders if each.name == name], holders, stale) for name in LOCKS]
    killing = asyncio.create_task(_kill_leaders(ledgers))
    try:
        await asyncio.gather(*turns)
    finally:
        killing.cancel()
        await asyncio.gather(killing, return_exceptions=True)


async def _of_one_lock(mine: Sequence[Holder], holders: Sequence[Holder], stale: int) -> None:
    while sum(each.stale_tried for each in holders) < stale:
        async with within("a holder"):
            while not (inside := [each for each in mine if each.has_applied]):
                await asyncio.sleep(0.01)
        victim = inside[0]
        victim.process.send_signal(signal.SIGSTOP)
        stopped_at, token = time.monotonic(), victim.stays[-1].token
        victim.stays[-1].until = stopped_at
        try:
            async with within("the next holder, after the stopped one"):
                while not any(done > token for each in mine if each is not victim for done in each.applied):
                    await asyncio.sleep(0.01)
            victim.overtaken.add(token)
        finally:
            victim.process.send_signal(signal.SIGCONT)
        async with within("the end of the stale holder's writes"):
            while victim.inside and victim.stays[-1].token == token:
                await asyncio.sleep(0.01)


async def _kill_leaders(ledgers: SqliteLedgers) -> None:
    if ledgers.nodes is None:
        return
    while True:
        await asyncio.sleep(2 * TTL_S)
        leader = await ledgers.nodes.leader()
        await ledgers.nodes.end(leader)
        await ledgers.nodes.start(leader)
        await ledgers.nodes.leading()


async def _judge(holders: Sequence[Holder], rows: asyncpg.Connection[asyncpg.Record], total: Judged) -> None:
    total.stale_tried += sum(each.stale_tried for each in holders)
    stays = [(holder.name, stay) for holder in holders for stay in holder.stays]
    total.grants += len(stays)
    highest: dict[str, int] = {}
    for row in await rows.fetch("select name, token from applied order by id"):
        total.stale_applied += row["token"] < highest.get(row["name"], 0)
        highest[row["name"]] = max(row["token"], highest.get(row["name"], 0))
    tokens = [stay.token for _, stay in stays]
    in_order = all(
        later.token > earlier.token
        for (_, earlier), (_, later) in itertools.permutations(stays, 2)
        if earlier.at < later.asked_at
    )
    total.tokens_increasing = total.tokens_increasing and in_order and len(set(tokens)) == len(tokens)
    for (name, one), (other, two) in itertools.combinations(stays, 2):
        if name == other and one.until is not None and two.until is not None:
            total.held_twice += max(one.at, two.at) < min(one.until, two.until)
    for holder in holders:
        if not holder.stays or not holder.applied:
            total.failures.append(f"a process for {holder.name} did nothing: {holder.troubles[:2]}")


async def _restored(
    ledger: SqliteLedger, settings: LedgerSettings, backup: Path, holders: Sequence[Holder], total: Judged
) -> None:
    """The next token of the ledger, after it was made again from a backup that is older than all locks."""
    await asyncio.to_thread(restoring.from_backup, ledger.path, backup, new_act("proof", "restore", ""))
    again: Ledger = await open_ledger(settings)
    try:
        session = await again.open_session("after the restore", 60.0)
        entry = await again.lock(LockRequest("billing", session.id, session.nonce, 1), wait=False)
        highest = max(stay.token for holder in holders for stay in holder.stays)
        total.tokens_increasing = total.tokens_increasing and entry is not None and entry.token > highest
    finally:
        await again.close()
