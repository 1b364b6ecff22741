"""The database of the agent fails over while last-agent commits are under way.

Each failover has servers of its own: the agent's primary with a standby, and the other database. Transfers
are committed; then the standby stops receiving, transfers come to the COMMIT of their agent, some of those
waits for the standby are broken off, the primary dies by SIGKILL, and the standby is promoted. Recovery runs.
Then no transfer is in one database alone, none that was acknowledged is lost, and every branch that is still
prepared was *told*: recovery says that its agent is in another history.

``half_applied_async``: the same without a synchronous standby, where the others commit what the failover
takes back; the documentation says so. ``control``: what is half applied with a standby, if an answer without
its confirmation is believed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import undoubt
from tests.prove.bank import TRANSFER_ERRORS, audit, transfer
from tests.prove.control import control
from tests.prove.standby import WITHIN_S, ask, bank_with_standby, either, until
from undoubt import wiring
from undoubt.config import load
from undoubt.embedded import EmbeddedServer
from undoubt.recovery.service import RecoveryService

DATABASE = "bank"
BEFORE, UNDER_WAY = 3, 4
"""Transfers before the standby stops receiving, and after it."""
TIMEOUT_S = 2.0
"""Of a transfer."""
PASSES_MAX = 40
TOLD = "another history"
MUTANT = "agent-believes-an-unconfirmed-commit"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--failovers", type=int, default=10, help="with a synchronous standby")
    parser.add_argument("--async", dest="unsafe", type=int, default=2, help="failovers without one")
    parser.add_argument("--no-control", action="store_true", help="do not look for the planted bug")


async def main(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    result: dict[str, Any] = {"failovers": options.failovers, "acknowledged": 0, "unknown": 0, "left": 0}
    result |= dict.fromkeys(("half_applied_sync", "half_applied_async", "acknowledged_lost", "untold"), 0)
    for number in range(options.failovers + options.unsafe):
        synchronous = number < options.failovers
        found = await Failover(synchronous=synchronous).run()
        print(f"{number:3} {'sync' if synchronous else 'async'} {found}", file=sys.stderr)
        result["half_applied_sync" if synchronous else "half_applied_async"] += found.pop("half_applied")
        for what, count in found.items() if synchronous else ():
            result[what] += count
    if not options.no_control:
        arguments = ("--no-control", "--failovers", "1", "--async", "0")
        found = (await control("last-failover", *arguments, mutants=[MUTANT])).result
        result["control"] = found["half_applied_sync"]
    whole = result["failovers"] > 0 and result["acknowledged"] > 0 and result["left"] > 0
    safe = not (result["half_applied_sync"] or result["acknowledged_lost"] or result["untold"])
    return result, whole and safe and (options.no_control or result["control"] > 0)


class Failover:
    """One failover. ``synchronous``: the primary's commits wait for the standby."""

    def __init__(self, *, synchronous: bool) -> None:
        self._synchronous = synchronous
        self._acknowledged: list[str] = []
        self._aborted: list[str] = []
        self._unknown: list[str] = []

    async def run(self) -> dict[str, int]:
        async with asyncio.timeout(WITHIN_S * 2), AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="undoubt-failover-")))
            dsns, primary, standby = await bank_with_standby(stack, DATABASE)
            if self._synchronous:
                primary.settings["synchronous_standby_names"] = "*"
            await primary.start()
            await until(primary, "select exists (select from pg_stat_replication where state = 'streaming')")
            both = either(dsns["payments"], standby.port)
            settings = self._settings(folder, {"orders": dsns["orders"], "payments": both})
            await self._commit_and_fail_over(settings, primary, standby)
            told = await _recovered(settings)
            dsns["payments"] = standby.dsn(DATABASE)
            found = await audit(dsns, self._acknowledged, self._aborted)
        return {
            "half_applied": len(found.half_applied) + len(found.aborted_applied),
            "acknowledged": len(self._acknowledged),
            "acknowledged_lost": len(found.acknowledged_lost),
            "unknown": len(self._unknown),
            "left": len(found.prepared),
            "untold": len([gid for gid in found.prepared if TOLD not in told.get(gid, "")]),
        }

    def _settings(self, folder: Path, dsns: dict[str, str]) -> dict[str, Any]:
        return {
            "ledger": {"url": f"sqlite:///{folder}/ledger.db"},
            "coordinator": {
                "protocol": "last",
                "agent": "payments",
                "timeout_s": TIMEOUT_S,
                "session_ttl_s": 2.0,
                "drain_s": 5.0,
            },
            "participants": {name: {"dsn": dsn, "connect_timeout_s": 3} for name, dsn in dsns.items()},
        }

    async def _commit_and_fail_over(
        self, settings: dict[str, Any], primary: EmbeddedServer, standby: EmbeddedServer
    ) -> None:
        async with undoubt.connect(settings, recover=False) as coordinator:
            for number in range(BEFORE):
                await self._transfer(coordinator, f"before-{number}", number, timeout=30.0)
            sender = await ask(primary, "select pid from pg_stat_replication")
            os.kill(sender, signal.SIGSTOP)
            under_way = [
                asyncio.create_task(self._transfer(coordinator, f"after-{number}", number, timeout=TIMEOUT_S))
                for number in range(UNDER_WAY)
            ]
            if self._synchronous:
                waits = "from pg_stat_activity where wait_event = 'SyncRep'"
                await until(primary, f"select count(*) >= {UNDER_WAY} {waits}")
                await ask(primary, f"select pg_cancel_backend(pid) {waits} limit {UNDER_WAY // 2}")
                # The answers are on their way, and where they are believed, the others commit.
                await asyncio.sleep(TIMEOUT_S / 2)
            else:
                await asyncio.wait(under_way)
            await primary.kill()
            await ask(standby, "select pg_promote()")
            await asyncio.wait(under_way)

    async def _transfer(
        self, coordinator: undoubt.Coordinator, name: str, account: int, *, timeout: float
    ) -> None:
        try:
            async with coordinator.transaction(timeout=timeout) as tx:
                await transfer(tx, account, name)
        except undoubt.TransactionAborted:
            self._aborted.append(name)
        except undoubt.OutcomeUnknown:
            self._unknown.append(name)
        except TRANSFER_ERRORS:
            self._aborted.append(name)
        else:
            self._acknowledged.append(name)


async def _recovered(settings: dict[str, Any]) -> dict[str, str]:
    """What recovery says about each branch that it leaves, by gid."""
    loaded = load(settings)
    async with wiring.opened(loaded) as (ledger, participants):
        service = RecoveryService(ledger, participants, loaded.recovery)
        for _ in range(PASSES_MAX):
            report = await service.run_once()
            left = {line.gid: line.why for line in report.lines if line.result != "done"}
            if not report.errors and all(TOLD in why for why in left.values()):
                break
            await asyncio.sleep(0.2)
        await service.close()
    return left


__all__ = ["add_arguments", "main"]
