"""Recovery beside live work: two recoveries scan all the time, and no live transaction may notice.

One process transfers money at concurrency 32 and recovers in the background; another recovers as well,
through the ledger's socket. Rows are disjoint, so nothing may abort at all.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import undoubt
from tests.prove.bank import ACCOUNTS, NAMES, audit, set_up, transfer
from tests.prove.processes import Child
from undoubt.embedded import EmbeddedServer

SCAN_INTERVAL_S = 0.005


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=30.0, help="at least so long")
    parser.add_argument("--scans", type=int, default=300, help="at least so many")
    parser.add_argument("--seen-active", type=int, default=1000, help="branches of live ones")
    parser.add_argument("--concurrency", type=int, default=32)


async def main(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="undoubt-live-")))
        dsns: dict[str, str] = {}
        for name in NAMES:
            server = await stack.enter_async_context(EmbeddedServer())
            dsns[name] = await server.create_database("bank")
        await set_up(dsns)
        load_run = Load(
            {
                "ledger": {"url": f"sqlite:///{folder}/ledger.db"},
                "participants": {name: {"dsn": dsn} for name, dsn in dsns.items()},
                "recovery": {"interval_s": SCAN_INTERVAL_S},
            }
        )
        await load_run.run(options)
        checked = await audit(dsns, load_run.committed, load_run.aborted)
    result: dict[str, Any] = {
        "seconds": options.seconds,
        "concurrency": options.concurrency,
        "transactions": len(load_run.committed),
        "scans": load_run.scanner.get("scans", 0),
        "scan_interval_ms_median": load_run.scanner.get("interval_ms_median"),
        "seen_active": load_run.scanner.get("seen_active", 0),
        "aborted_alive": len(load_run.aborted) + load_run.heuristics,
        "left": len(checked.prepared) + load_run.unfinished,
        "half_applied": len(checked.half_applied),
        "acknowledged_lost": len(checked.acknowledged_lost),
    }
    holds = checked.clean and not (result["aborted_alive"] or result["left"])
    enough = result["scans"] >= options.scans and result["seen_active"] >= options.seen_active
    return result, holds and enough


class Load:
    """The transfers, the two recoveries beside them, and what was counted."""

    def __init__(self, source: dict[str, Any]) -> None:
        self._source = source
        self._names = itertools.count()
        self.committed: list[str] = []
        self.aborted: list[str] = []
        self.heuristics = self.unfinished = 0
        self.scanner: dict[str, Any] = {}
        self._over = asyncio.Event()

    async def run(self, options: argparse.Namespace) -> None:
        """The options are those of the proof."""
        accounts = range(min(options.concurrency, ACCOUNTS))
        enough = (str(options.scans), str(options.seen_active))
        async with undoubt.connect(self._source) as coordinator:
            scanner = await Child.start("tests.prove.scanner_process", json.dumps(self._source), *enough)
            work = (self._transfer_until_over(coordinator, account) for account in accounts)
            working = asyncio.gather(*work)
            await asyncio.sleep(options.seconds)
            await scanner.go_on()
            await scanner.ended()
            self.scanner = scanner.heard.last
            self._over.set()
            await working
            ledger = coordinator.ledger
            await coordinator.close()
            await asyncio.sleep(1.0)  # the background recovery of this process looks once more
            self.unfinished = len(await ledger.unfinished())
            self.heuristics = len(await ledger.heuristics())

    async def _transfer_until_over(self, coordinator: undoubt.Coordinator, account: int) -> None:
        while not self._over.is_set():
            name = f"t{next(self._names)}"
            try:
                async with coordinator.transaction() as tx:
                    await transfer(tx, account, name)
            except undoubt.TransactionAborted:
                self.aborted.append(name)
            else:
                self.committed.append(name)
