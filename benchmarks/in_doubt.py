"""Recovery of many branches in doubt, beside a bare loop of COMMIT PREPARED that knows already what to do.

Both find the same: transactions over two servers whose COMMIT is in the ledger, and whose branches are all
still prepared. Recovery reads the ledger, lists what is prepared, asks what was decided, commits it, looks at
every answer, and tells the ledger what is finished. The bare loop is given the names, and looks at nothing.
They take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import asyncpg

from benchmarks.machine import machine
from undoubt.bench.contract import DATABASES
from undoubt.bench.field import own_servers
from undoubt.coordinator.ledger.contract import Ledger, record_of
from undoubt.coordinator.ledger.urls import open_ledger
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.contract import Decision
from undoubt.participants.ids import Gid, Protocol, SessionKey
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.registry import Registry
from undoubt.participants.settings import ParticipantSettings
from undoubt.recovery.service import RecoveryService
from undoubt.recovery.settings import RecoverySettings

CONNECTIONS = RecoverySettings().parallel
"""Of the bare loop to each server: as many branches at once as recovery settles."""
PREPARE = "begin; select pg_current_xact_id(); prepare transaction '{}'"


class Stage:
    """Both databases by hand, and as participants of a ledger in a file."""

    def __init__(self, ledger: Ledger, registry: Registry, connections: Sequence[Sequence[Any]]) -> None:
        self.ledger = ledger
        self.registry = registry
        self.connections = connections

    async def leave_in_doubt(self, transactions: int) -> list[list[Gid]]:
        """By server: decided, and no participant was told."""
        session = await self.ledger.open_session("benchmark", 60.0)
        key = SessionKey(session.key)
        txids = [session.txid(seq) for seq in range(1, transactions + 1)]
        gids = [
            [Gid(self.ledger.ledger_id, Protocol.TWO_PHASE, txid, number, name).tagged(key) for txid in txids]
            for number, name in enumerate(DATABASES, start=1)
        ]
        await asyncio.gather(
            *(
                self.ledger.decide(branches[0].txid, Decision.COMMIT, [record_of(gid) for gid in branches])
                for branches in zip(*gids, strict=True)
            )
        )
        await self._on_every(gids, PREPARE.format)
        await self.ledger.close_session(session)
        return gids

    async def commit_by_hand(self, gids: Sequence[Sequence[Gid]]) -> None:
        await self._on_every(gids, "commit prepared '{}'".format)

    async def recover(self, _: object) -> None:
        service = RecoveryService(self.ledger, self.registry, RecoverySettings())
        report = await service.run_once()
        if report.errors or report.unfinished:
            raise SystemExit(f"not all was recovered: {report.errors or report.unfinished}")

    async def settled(self, gids: Sequence[Sequence[Gid]]) -> None:
        """Nothing is left of it, and the next round begins without it."""
        await self.ledger.finish([gid.txid for gid in gids[0]])
        for each in self.connections:
            if left := await each[0].fetchval("select count(*) from pg_prepared_xacts"):
                raise SystemExit(f"{left} branches are still prepared")

    async def _on_every(self, gids: Sequence[Sequence[Gid]], statement: Callable[[Gid], str]) -> None:
        async def work(connection: Any, waiting: itertools.chain[Gid]) -> None:
            for gid in waiting:
                await connection.execute(statement(gid))

        async with asyncio.TaskGroup() as group:
            for connections, here in zip(self.connections, gids, strict=True):
                waiting = itertools.chain(here)  # shared: whoever is free takes the next
                for connection in connections:
                    group.create_task(work(connection, waiting))


@contextlib.asynccontextmanager
async def stage(transactions: int) -> AsyncIterator[Stage]:
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="undoubt-benchmark-"))
        dsns = await own_servers(stack, CONNECTIONS + 100, transactions + 100)
        ledger = await open_ledger(LedgerSettings(url=f"sqlite:///{folder}/ledger.db"), create=True)
        stack.push_async_callback(ledger.close)
        registry = Registry()
        stack.push_async_callback(registry.close)
        connections: list[list[Any]] = []
        for name, dsn in zip(DATABASES, dsns, strict=True):
            settings = ParticipantSettings(dsn=dsn)
            registry.add(PostgresParticipant(name, settings, ledger_id=ledger.ledger_id))
            connections.append([await asyncpg.connect(dsn) for _ in range(CONNECTIONS)])
            for connection in connections[-1]:
                stack.push_async_callback(connection.close)
        yield Stage(ledger, registry, connections)


async def measure(transactions: int, rounds: int) -> dict[str, list[float]]:
    """Branches per second of each round."""
    found: dict[str, list[float]] = {"by hand": [], "recovery": []}
    async with stage(transactions) as on:
        ways: dict[str, Callable[[list[list[Gid]]], Awaitable[None]]] = {
            "by hand": on.commit_by_hand,
            "recovery": on.recover,
        }
        for _ in range(rounds):
            for name, way in ways.items():
                gids = await on.leave_in_doubt(transactions)
                began_s = time.perf_counter()
                await way(gids)
                found[name].append(2 * transactions / (time.perf_counter() - began_s))
                await on.settled(gids)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--branches", type=int, default=10_000, help="in both databases together")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found = asyncio.run(measure(options.branches // 2, options.rounds))
    ratios = [ours / hand for hand, ours in zip(found["by hand"], found["recovery"], strict=True)]
    low, high = min(ratios), max(ratios)
    print("| | branches/s |\n|---|---|")
    for name, rates in found.items():
        print(f"| {name} | {statistics.median(rates):,.0f} |")
    print(
        f"| ratio (rounds from, to) | {statistics.median(ratios):.2f} ({low:.2f}, {high:.2f}) |"
        f"\n\n{options.branches:,} branches. {machine()}"
    )


if __name__ == "__main__":
    main()
