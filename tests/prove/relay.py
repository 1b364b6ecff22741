"""The outbox: producers, relays and a receiver of webhooks are killed (SIGKILL) while messages are published.

Producers publish in transactions over two databases. Two relays deliver to a receiver that fails at random.
In the end everything is recovered and delivered, and the judge compares what the receiver has noted with what
the two databases hold. It shares no code with the relay:

- *lost*: messages of committed transactions that were not acknowledged;
- *phantom*: messages of transactions that have not committed;
- *out_of_order*: messages that came, the first time, before an earlier one of their key;
- *renamed*: messages that came under two dedupe ids, or two under one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.ports import free_ports
from tests.prove.bank import NAMES
from tests.prove.control import control
from tests.prove.ledgers import LEDGERS, SqliteLedgers
from tests.prove.processes import ROOT, recovered, within
from tests.prove.relay_producer import PARTS
from tests.servers import execute, fetch
from undoubt.embedded import EmbeddedServer
from undoubt.participants.postgres import schema
from undoubt.participants.settings import ParticipantSettings

PRODUCERS, RELAYS = 2, 2
KEYS = 12
PAUSE_S = 0.4
"""Between two kills, at least, and twice that at most."""
EMPTIED_S = 180.0
PLANTED = ("relay-removes-before-delivery", "relay-lane-forgets-its-order")
CONTROL_S = 420.0
TABLE = "create table placed (id bigint generated always as identity, key text, txid text primary key)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--messages", type=int, default=1_000, help="so many at least")
    parser.add_argument("--kills", type=int, default=12, help="so many at least")
    parser.add_argument("--ledger", choices=sorted(LEDGERS), default="sqlite")
    parser.add_argument("--no-control", action="store_true")


async def main(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="undoubt-relay-")))
        shop = await _opened(stack, folder, options.ledger)
        await shop.disturb(options.messages, options.kills)
        left = await shop.settle()
        rows = {
            name: await fetch(dsn, "select key, txid from placed order by id")
            for name, dsn in shop.dsns.items()
        }
        left += [f"{count} messages" for count in [await _waiting(shop.dsns["orders"])] if count]
    result = judged(rows, list(_noted(shop.notes_read)))
    result |= {"kills": shop.kills, "left": len(left), "troubles": shop.troubles}
    faults = ("lost", "phantom", "out_of_order", "renamed", "half_made", "left")
    holds = (
        result["published"] >= options.messages
        and result["kills"] >= options.kills
        and not any(result[name] for name in faults)
    )
    if not options.no_control:
        arguments = ("--no-control", "--messages", "120", "--kills", "3")
        found = await control("relay", *arguments, mutants=PLANTED, timeout_s=CONTROL_S)
        result["control"] = found.result["lost"] + found.result["out_of_order"]
        holds = holds and result["control"] > 0 and not found.holds
    return result, holds


async def _opened(stack: AsyncExitStack, folder: Path, ledger: str) -> Shop:
    dsns = dict[str, str]()
    for name in NAMES:
        server = await stack.enter_async_context(EmbeddedServer())
        dsns[name] = await server.create_database("shop")
        await schema.migrate(name, ParticipantSettings(dsn=dsns[name]))
        await execute(dsns[name], TABLE)
    ledgers: SqliteLedgers = LEDGERS[ledger](folder)
    await ledgers.build(stack)
    settings = {
        "ledger": await ledgers.fresh("relay"),
        "coordinator": {"session_ttl_s": 1.5},
        "recovery": {"interval_s": 0.2},
        "participants": {name: {"dsn": dsn} for name, dsn in dsns.items()},
    }
    lines = [f'[participants.{name}]\ndsn = "{dsn}"' for name, dsn in dsns.items()]
    (folder / "undoubt.toml").write_text("\n".join(lines))
    shop = Shop(folder, json.dumps(settings), dsns, free_ports(1)[0])
    stack.push_async_callback(shop.close)
    await shop.start()
    return shop


@dataclass
class Shop:
    """All processes."""

    folder: Path
    settings: str
    dsns: dict[str, str]
    port: int
    processes: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)
    """The producers, the relays and the receiver, by name."""
    readers: list[asyncio.Task[None]] = field(default_factory=list)
    committed = kills = troubles = 0
    notes_read = b""

    @property
    def notes(self) -> Path:
        return self.folder / "notes"

    async def start(self) -> None:
        for name in _names():
            await self._start(name)

    async def _start(self, name: str) -> None:
        kind, pipe = name.partition(" ")[0], asyncio.subprocess.PIPE if name.startswith("producer") else None
        if kind == "receiver":
            words = ["tests.prove.relay_receiver", str(self.port), str(self.notes)]
        elif kind == "producer":
            words = ["tests.prove.relay_producer", self.settings, str(KEYS)]
        else:
            to = f"http://127.0.0.1:{self.port}/"
            words = ["undoubt", "relay", "--participant", "orders", "--to", to, "--timeout", "5s"]
            words += ["--config", str(self.folder / "undoubt.toml"), "--log-format", "text"]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", *words, cwd=ROOT, stderr=log, stdin=pipe, stdout=pipe,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        if process.stdout is not None:
            self.readers.append(asyncio.create_task(self._read(process.stdout)))

    async def _read(self, lines: asyncio.StreamReader) -> None:
        async for line in lines:
            if line.endswith(b"\n"):
                message = json.loads(line)
                self.committed += "committed" in message
                if "trouble" in message:
                    self.troubles += 1
                    print(message["trouble"], file=sys.stderr)

    async def disturb(self, messages: int, kills: int) -> None:
        """Kill one process after another until there were enough messages and kills."""
        victims = _victims()
        while self.committed * PARTS < messages or self.kills < kills:
            await asyncio.sleep(PAUSE_S * (1 + random.random()))
            if self.kills < 4 * kills:
                await self._kill(next(victims))

    async def _kill(self, name: str) -> None:
        self.processes[name].kill()
        await self.processes[name].wait()
        await self._start(name)
        self.kills += 1

    async def settle(self) -> list[str]:
        """End the producers, recover, and wait until all is delivered. Returns what is left in doubt."""
        for process in self.processes.values():
            if process.stdin is not None:
                process.stdin.close()
        async with within("the end of the producers"):
            await asyncio.gather(*self.readers)
        left = await recovered(self.settings)
        try:
            async with asyncio.timeout(EMPTIED_S):
                while await _waiting(self.dsns["orders"]):
                    await asyncio.sleep(0.1)
        except TimeoutError:
            print((self.folder / "relay 0.log").read_text()[-2_000:], file=sys.stderr)
        for name, process in self.processes.items():
            if name.startswith("relay"):
                process.terminate()
                left += [f"{name} has ended with {status}" for status in [await process.wait()] if status]
        self.notes_read = self.notes.read_bytes()
        return left

    async def close(self) -> None:
        for process in self.processes.values():
            if process.returncode is None:
                process.kill()
                await process.wait()
        await asyncio.gather(*self.readers, return_exceptions=True)


def _names() -> list[str]:
    producers = [f"producer {number}" for number in range(PRODUCERS)]
    return ["receiver", *(f"relay {number}" for number in range(RELAYS)), *producers]


def _victims() -> Iterator[str]:
    names = _names()
    while True:
        yield from random.sample(names, len(names))


def _noted(text: bytes) -> Iterator[dict[str, Any]]:
    """The receiver's notes; one that was cut by its death is no note."""
    for line in text.split(b"\n"):
        if line.startswith(b"{") and line.endswith(b"}"):
            yield json.loads(line)


def judged(rows: dict[str, list[tuple[str, str]]], notes: list[dict[str, Any]]) -> dict[str, Any]:
    """``rows``: the keys and transactions in each database, in the order of their turns."""
    placed = rows["orders"]
    truth = dict[str, list[tuple[str, int]]]()
    for key, txid in placed:
        truth.setdefault(key, []).extend((txid, part) for part in range(PARTS))
    expected = {message for messages in truth.values() for message in messages}
    acknowledged = {(note["txid"], note["part"]) for note in notes if note["acknowledged"]}
    first = dict[str, list[tuple[str, int]]]()
    ids, messages = dict[tuple[str, int], set[str]](), dict[str, set[tuple[str, int]]]()
    for note in notes:
        message = (note["txid"], note["part"])
        if message not in ids:
            first.setdefault(note["key"], []).append(message)
        ids.setdefault(message, set()).add(note["id"])
        messages.setdefault(note["id"], set()).add(message)
    return {
        "published": len(expected),
        "delivered": len(notes),
        "redelivered": len(notes) - len(ids),
        "lost": len(expected - acknowledged),
        "phantom": len(ids.keys() - expected),
        "out_of_order": sum(_overtaken(truth.get(key, []), came) for key, came in first.items()),
        "renamed": sum(len(names) > 1 for names in ids.values())
        + sum(len(named) > 1 for named in messages.values()),
        "half_made": len(set(placed) ^ set(rows["payments"])),
    }


def _overtaken(truth: list[tuple[str, int]], came: list[tuple[str, int]]) -> int:
    """How many came the first time behind one that was published after them."""
    place = {message: number for number, message in enumerate(truth)}
    highest, count = -1, 0
    for message in came:
        if message in place:
            count += place[message] < highest
            highest = max(highest, place[message])
    return count


async def _waiting(dsn: str) -> int:
    return len(await fetch(dsn, "select from undoubt.undoubt_outbox"))
