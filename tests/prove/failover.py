"""A participant fails over, and back again, while two-phase commits are under way.

Each pair of servers fails over twice: the primary dies by SIGKILL and its standby is promoted; the dead one
is rewound (``pg_rewind``), follows, and takes over when the other one dies. Before each death some transfers
commit, some wait with their decision recorded, and then the standby stops receiving: those transfers send
COMMIT PREPARED, and others come to PREPARE, where half of the waits for the standby are broken off. Recovery
runs after each promotion.

With a synchronous standby no transfer is then in one database alone, and none that was acknowledged is lost.
Without one, a transfer may be: ``untold_heuristics`` counts those that are half applied and of which the
ledger says nothing, among them transfers that had been finished long before. Nothing is left prepared.

``control`` is the same with planted bugs: an unconfirmed PREPARE that counts as a vote, and a recovery that
looks for nothing that a promoted server has lost.
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
from tests.prove.bank import TRANSFER_ERRORS, audit, transfer, transfers
from tests.prove.control import control
from tests.prove.standby import (
    WITHIN_S,
    ask,
    bank_with_standby,
    either,
    promote,
    rewound,
    streaming,
    until,
)
from undoubt import wiring
from undoubt.config import load
from undoubt.coordinator.protocols.steps import TwoPhaseStep
from undoubt.embedded import EmbeddedServer
from undoubt.recovery.service import RecoveryService

DATABASE = "bank"
BEFORE, DECIDED, AFTER = 3, 2, 4
"""Transfers that end before the standby stops receiving; that are decided by then; that begin afterwards."""
TIMEOUT_S = 2.0
"""Of a transfer that begins afterwards."""
PASSES_MAX = 60
TURNS = 2
"""Failovers of one pair of servers."""
VOTES_ANYWAY = "unconfirmed-prepare-is-a-vote"
LOOKS_FOR_NOTHING = "lost-by-a-promotion-is-not-looked-for"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pairs", type=int, default=5, help="with a synchronous standby; each fails over twice"
    )
    parser.add_argument("--async", dest="unsafe", type=int, default=2, help="pairs without one")
    parser.add_argument("--no-control", action="store_true", help="do not look for the planted bugs")


async def main(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    result: dict[str, Any] = dict.fromkeys(
        ("failovers", "acknowledged", "half_applied_sync", "half_applied_async", "acknowledged_lost"), 0
    )
    result |= dict.fromkeys(("untold_heuristics", "prepared_after", "finished_lost"), 0)
    for number in range(options.pairs + options.unsafe):
        synchronous = number < options.pairs
        found = await Pair(number, synchronous=synchronous).run()
        print(f"{number:3} {'sync' if synchronous else 'async'} {found}", file=sys.stderr)
        result["half_applied_sync" if synchronous else "half_applied_async"] += found.pop("half_applied")
        lost = found.pop("acknowledged_lost")
        result["acknowledged_lost"] += lost if synchronous else 0
        for what, count in found.items():
            result[what] += count
    whole = result["failovers"] > 0 and result["acknowledged"] > 0
    whole &= not options.unsafe or (result["half_applied_async"] > 0 and result["finished_lost"] > 0)
    safe = not (result["half_applied_sync"] or result["acknowledged_lost"] or result["untold_heuristics"])
    safe &= not result["prepared_after"]
    if not options.no_control:
        result["control"] = await _control()
    return result, whole and safe and (options.no_control or result["control"] > 0)


async def _control() -> int:
    """How many of the planted bugs are found, if both are; otherwise 0."""
    arguments = ("--no-control", "--pairs")
    votes = await control("failover", *arguments, "1", "--async", "0", mutants=[VOTES_ANYWAY])
    looks = await control("failover", *arguments, "0", "--async", "1", mutants=[LOOKS_FOR_NOTHING])
    found = (votes.result["half_applied_sync"] > 0, looks.result["untold_heuristics"] > 0)
    return sum(found) if all(found) else 0


class Pair:
    """A primary with a standby. ``synchronous``: the primary's commits wait for the standby."""

    def __init__(self, number: int, *, synchronous: bool) -> None:
        self._number = number
        self._synchronous = synchronous
        self._acknowledged: dict[str, str] = {}
        """Transaction ids, by the name of the transfer."""
        self._aborted: list[str] = []
        self._begun: dict[str, str] = {}
        self._decided = 0
        self._all_decided = asyncio.Event()
        self._go_on = asyncio.Event()

    async def run(self) -> dict[str, int]:
        async with asyncio.timeout(WITHIN_S * 3), AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="undoubt-failover-")))
            # pg_rewind needs hints in the WAL, or checksums.
            made = await bank_with_standby(stack, DATABASE, {"wal_log_hints": "on"})
            dsns, primary, standby = made
            await primary.start()
            settings = self._settings(
                folder, {"orders": dsns["orders"], "payments": either(dsns["payments"], standby.port)}
            )
            finished_lost = 0
            for turn in range(TURNS):
                if turn:
                    await rewound(standby, primary)
                await streaming(primary)
                await self._wait_for_standbys(primary, self._synchronous)
                await self._commit_and_die(settings, turn, primary)
                await self._wait_for_standbys(standby, False)
                await promote(standby, by_program=bool((self._number + turn) % 2))
                primary, standby = standby, primary
                finished_lost += await self._finished_lost(settings, primary)
                await _recovered(settings)
            dsns["payments"] = primary.dsn(DATABASE)
            found = await audit(dsns, self._acknowledged, self._aborted)
            told = await _told(settings)
        half_applied = found.half_applied + found.aborted_applied
        return {
            "failovers": TURNS,
            "half_applied": len(half_applied),
            "acknowledged": len(self._acknowledged),
            "acknowledged_lost": len(found.acknowledged_lost),
            "finished_lost": finished_lost,
            "untold_heuristics": len([name for name in half_applied if self._begun[name] not in told]),
            "prepared_after": len(found.prepared),
        }

    def _settings(self, folder: Path, dsns: dict[str, str]) -> dict[str, Any]:
        return {
            "ledger": {"url": f"sqlite:///{folder}/ledger.db"},
            "coordinator": {"timeout_s": 30.0, "session_ttl_s": 2.0, "drain_s": 5.0},
            "participants": {name: {"dsn": dsn, "connect_timeout_s": 3} for name, dsn in dsns.items()},
        }

    async def _wait_for_standbys(self, server: EmbeddedServer, synchronous: bool) -> None:
        """Whether commits of ``server``, which may be in recovery, wait for a standby."""
        names = "*" if synchronous else ""
        if not await ask(server, "select pg_is_in_recovery()"):
            await ask(server, f"alter system set synchronous_standby_names = '{names}'")
            await ask(server, "select pg_reload_conf()")
            await until(server, f"select current_setting('synchronous_standby_names') = '{names}'")

    async def _commit_and_die(self, settings: dict[str, Any], turn: int, primary: EmbeddedServer) -> None:
        self._decided = 0
        self._all_decided, self._go_on = asyncio.Event(), asyncio.Event()
        async with undoubt.connect(settings, recover=False, observe=self._observe) as coordinator:
            self._go_on.set()
            for number in range(BEFORE):
                await self._transfer(coordinator, f"{turn}-before-{number}", number)
            self._decided = 0
            self._all_decided.clear()
            self._go_on.clear()
            under_way = [
                asyncio.create_task(self._transfer(coordinator, f"{turn}-decided-{number}", number))
                for number in range(DECIDED)
            ]
            await self._all_decided.wait()
            await streaming(primary)
            sender = await ask(primary, "select pid from pg_stat_replication")
            os.kill(sender, signal.SIGSTOP)
            self._go_on.set()
            if not self._synchronous:
                await asyncio.wait(under_way)
            under_way += [
                asyncio.create_task(
                    self._transfer(coordinator, f"{turn}-after-{number}", number + DECIDED, timeout=TIMEOUT_S)
                )
                for number in range(AFTER)
            ]
            if self._synchronous:
                waits = "from pg_stat_activity where wait_event = 'SyncRep' and query ilike '%prepare tr%'"
                await until(primary, f"select count(*) >= {AFTER} {waits}")
                some = f"(select pid {waits} limit {AFTER // 2}) as w"
                await ask(primary, f"select count(pg_cancel_backend(pid)) from {some}")
                # What is told now would be believed now; what is not told comes to its end by the timeout.
                await asyncio.wait(under_way[DECIDED:])
            else:
                await asyncio.wait(under_way)
            await primary.kill()
            await asyncio.wait(under_way)

    async def _observe(self, step: Any, _: object) -> None:
        if step is TwoPhaseStep.AFTER_DECIDE:
            self._decided += 1
            if self._decided >= DECIDED:
                self._all_decided.set()
            await self._go_on.wait()

    async def _transfer(
        self, coordinator: undoubt.Coordinator, name: str, account: int, *, timeout: float = 30.0
    ) -> None:
        try:
            async with coordinator.transaction(timeout=timeout) as tx:
                await transfer(tx, account, name)
                self._begun[name] = str(tx.id)
        except undoubt.TransactionAborted:
            self._aborted.append(name)
        except (undoubt.OutcomeUnknown, undoubt.HeuristicOutcome):
            return  # neither acknowledged nor refused
        except TRANSFER_ERRORS:
            self._aborted.append(name)
        else:
            self._acknowledged[name] = self._begun[name]

    async def _finished_lost(self, settings: dict[str, Any], primary: EmbeddedServer) -> int:
        """How many finished transfers the promoted server has lost: they are what recovery cannot find among
        the prepared ones."""
        there = await transfers({"payments": primary.dsn(DATABASE)})
        lost = 0
        async with wiring.opened(load(settings)) as (ledger, _):
            for name, txid in self._acknowledged.items():
                info = await ledger.transaction(undoubt.TxId.parse(txid))
                lost += info is not None and info.finished and name not in there
        return lost


async def _recovered(settings: dict[str, Any]) -> None:
    """Run recovery until no decision is unfinished."""
    loaded = load(settings)
    async with wiring.opened(loaded) as (ledger, participants):
        service = RecoveryService(ledger, participants, loaded.recovery)
        for _ in range(PASSES_MAX):
            report = await service.run_once()
            if not report.errors and not report.lines and not await ledger.unfinished():
                break
            await asyncio.sleep(0.2)
        await service.close()


async def _told(settings: dict[str, Any]) -> set[str]:
    """The ids of the transactions of which the ledger has a heuristic outcome."""
    async with wiring.opened(load(settings)) as (ledger, _):
        return {str(one.gid.txid) for one in await ledger.heuristics(include_forgotten=True)}


__all__ = ["add_arguments", "main"]
