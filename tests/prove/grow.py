"""A cluster of real processes grows from three nodes to five and shrinks to three others, under load.

Callers decide all the time. Every decision has to be answered, with what was asked for, and has to be there
in the end, after the nodes that are left were killed and started again. Among those who leave is the leader.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path
from typing import Any

from coordinator.ledger.cluster.ledger import ClusterLedger
from coordinator.ledger.contract import BranchRecord, Decision, Record, Session
from coordinator.settings import LedgerSettings
from participants.errors import UndoubtError
from participants.ids import TxId
from tests.prove.nodes import Nodes

BRANCHES = (
    BranchRecord(1, "orders", 77, 2**62, "00000001"),
    BranchRecord(2, "payments", 78, 2**62, "00000001"),
)
RECORDS_AT_ONCE = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--decisions", type=int, default=500, help="at least so many between two steps")


async def main(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    with tempfile.TemporaryDirectory(prefix="undoubt-grow-") as folder:
        nodes = Nodes(Path(folder))
        try:
            return await _prove(nodes, options)
        finally:
            await nodes.close()


async def _prove(nodes: Nodes, options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    await nodes.begin()
    await nodes.start(1, 2, 3)
    await nodes.leader()
    settings = LedgerSettings(url=f"raft://{nodes.url}", request_timeout_s=60.0)
    ledger = await ClusterLedger.open(settings)
    load = Load(ledger, await ledger.open_session("grow", 3600.0))
    workers = [asyncio.create_task(load.run(k, options.concurrency)) for k in range(options.concurrency)]
    try:
        sizes = await _steps(nodes, load, options.decisions)
    finally:
        load.ended = True
        await asyncio.gather(*workers)
        await ledger.close()
    lost = await _lost(nodes, load)
    result: dict[str, Any] = {
        "sizes": sizes,
        "decisions": len(load.told),
        "decisions_per_step": load.marks,
        "failed_decisions": len(load.failed),
        "lost_decisions": lost,
        "longest_pause_ms_per_step": load.pauses_ms,
        "failures": load.failed[:5],
    }
    holds = sizes == [3, 5, 3] and not load.failed and not lost and min(load.marks) >= options.decisions
    return result, holds


async def _steps(nodes: Nodes, load: Load, decisions: int) -> list[int]:
    sizes = [len((await nodes.run(0, "cluster", "transfer"))["voters"])]
    await load.more(decisions)
    for number in (4, 5):
        await nodes.run(number, "cluster", "add")
        await nodes.start(number)
        await load.more(decisions)
    sizes.append(len((await nodes.run(0, "cluster", "promote", "4", "5"))["voters"]))
    await load.more(decisions)
    # The client's URL names the first three: one of them stays, so that it finds its way.
    leader = await nodes.leader()
    if leader > 3:
        await nodes.run(0, "cluster", "transfer", "1")
        leader = 1
    other = next(number for number in (1, 2, 3) if number != leader)
    shrunk = await nodes.run(0, "cluster", "remove", str(leader), str(other), "--yes")
    sizes.append(len(shrunk["voters"]))
    await nodes.end(leader, other)
    await load.more(decisions)
    return sizes


async def _lost(nodes: Nodes, load: Load) -> int:
    """Acknowledged, and not there any more once all that is left was killed and has started again."""
    left = list(nodes.running)
    await nodes.end(*left)
    await nodes.start(*left)
    ledger = await ClusterLedger.open(LedgerSettings(url=f"raft://{nodes.url}", request_timeout_s=60.0))
    lost = 0
    try:
        for first in range(0, len(load.told), RECORDS_AT_ONCE):
            records = await ledger.records(load.told[first : first + RECORDS_AT_ONCE])
            lost += sum(record is not Record.COMMIT for record in records.values())
    finally:
        await ledger.close()
    return lost


class Load:
    """Callers that record COMMIT after COMMIT. ``told``: those that were acknowledged."""

    def __init__(self, ledger: ClusterLedger, session: Session) -> None:
        self.told: list[TxId] = []
        self.failed: list[str] = []
        self.marks: list[int] = []
        self.pauses_ms: list[int] = []
        self._longest_s = 0.0
        self.ended = False
        self._ledger = ledger
        self._session = session
        self._last_at = asyncio.get_running_loop().time()

    async def run(self, worker: int, workers: int) -> None:
        loop = asyncio.get_running_loop()
        seq = worker + 1
        while not self.ended:
            txid = self._session.txid(seq)
            seq += workers
            try:
                decided = await self._ledger.decide(txid, Decision.COMMIT, BRANCHES)
            except UndoubtError as error:
                self.failed.append(f"{txid}: {error}")
                continue
            if decided is not Decision.COMMIT:
                self.failed.append(f"{txid}: {decided}")
            else:
                self.told.append(txid)
            now = loop.time()
            self._longest_s = max(self._longest_s, now - self._last_at)
            self._last_at = now

    async def more(self, decisions: int) -> None:
        """Wait for so many, answered from now on: the end of a step."""
        before = len(self.told) + len(self.failed)
        while len(self.told) + len(self.failed) < before + decisions:
            await asyncio.sleep(0.02)
        self.marks.append(len(self.told) + len(self.failed) - before)
        self.pauses_ms.append(round(1000 * self._longest_s))
        self._longest_s = 0.0
