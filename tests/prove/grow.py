"""A cluster of real processes grows from three nodes to five and shrinks to three others, under load.

Callers decide all the time: by the log (``--protocol 2pc``), or by the nodes as acceptors (``paxos``), with
which their coordinator moves. Every decision has to be answered, with what was asked for, and has to be in
the ledger in the end, after the nodes that are left were killed and started again. The leader is among those
who leave.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.coordinator.ledger.signing import Signing
from tests.prove.nodes import Nodes
from tests.prove.processes import TIMEOUT_S
from undoubt.coordinator.coordinator import Coordinator
from undoubt.coordinator.ledger.cluster.ledger import ClusterLedger
from undoubt.coordinator.ledger.contract import BranchRecord, RecordedDecision
from undoubt.coordinator.settings import CoordinatorSettings, LedgerSettings
from undoubt.participants.contract import Decision
from undoubt.participants.errors import UndoubtError
from undoubt.participants.ids import TxId
from undoubt.participants.registry import Registry
from undoubt.participants.scripted import Script, ScriptedParticipant

BRANCHES = (
    BranchRecord(1, "orders", 77, 2**62, "00000001"),
    BranchRecord(2, "payments", 78, 2**62, "00000001"),
)
RECORDS_AT_ONCE = 1000
FINISH_AT_ONCE = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--protocol", choices=list(LOADS), default="2pc")
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
    try:
        async with LOADS[options.protocol](ledger) as load:
            count = options.concurrency
            workers = [asyncio.create_task(load.run(worker, count)) for worker in range(count)]
            try:
                sizes = await _steps(nodes, ledger, load, options)
            finally:
                load.ended = True
                await asyncio.gather(*workers)
        acceptors = [list(session.acceptors) for session in await ledger.sessions() if session.acceptors]
    finally:
        await ledger.close()
    gone = await lost(nodes, load)
    result: dict[str, Any] = {
        "protocol": options.protocol,
        "sizes": sizes,
        "acceptors": [each for number, each in enumerate(acceptors) if each not in acceptors[:number]],
        "decisions": len(load.told),
        "decisions_per_step": load.marks,
        "failed_decisions": len(load.failed),
        "lost_decisions": gone,
        "longest_pause_ms_per_step": load.pauses_ms,
        "failures": load.failed[:5],
    }
    holds = sizes == [3, 5, 3] and not load.failed and not gone and min(load.marks) >= options.decisions
    return result, holds


async def _steps(nodes: Nodes, ledger: ClusterLedger, load: Load, options: argparse.Namespace) -> list[int]:
    decisions: int = options.decisions
    bound = options.protocol == "paxos"
    sizes = [len((await nodes.run(0, "cluster", "transfer"))["voters"])]
    await load.more(decisions)
    for number in (4, 5):
        await nodes.run(number, "cluster", "add")
        await nodes.start(number)
        await load.more(decisions)
    sizes.append(len((await nodes.run(0, "cluster", "promote", "4", "5"))["voters"]))
    if bound:
        await _moved(ledger, {1, 2, 3, 4, 5})
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
    if bound:
        await _moved(ledger, {1, 2, 3, 4, 5} - {leader, other})
    await load.more(decisions)
    return sizes


async def _moved(ledger: ClusterLedger, acceptors: set[int]) -> None:
    """Once new transactions are decided by these."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            newest = max(await ledger.sessions(), key=lambda session: session.id)
            if {*newest.acceptors} == acceptors:
                return
            await asyncio.sleep(0.1)


async def lost(nodes: Nodes, load: Load) -> int:
    """Acknowledged, and not there any more once all that is left was killed and has started again."""
    left = list(nodes.running)
    await nodes.end(*left)
    await nodes.start(*left)
    ledger = await ClusterLedger.open(LedgerSettings(url=f"raft://{nodes.url}", request_timeout_s=60.0))
    gone = 0
    try:
        for first in range(0, len(load.told), RECORDS_AT_ONCE):
            records = await ledger.records(load.told[first : first + RECORDS_AT_ONCE])
            gone += sum(record is not RecordedDecision.COMMIT for record in records.values())
    finally:
        await ledger.close()
    return gone


class Load:
    """Callers that commit without end. ``told``: those that were acknowledged. ``commit`` takes a number that
    is used once; raises for what did not commit."""

    def __init__(self, commit: Callable[[int], Awaitable[TxId]]) -> None:
        self.told: list[TxId] = []
        self.failed: list[str] = []
        self.marks: list[int] = []
        self.pauses_ms: list[int] = []
        self._longest_s = 0.0
        self.ended = False
        self._commit = commit
        self._last_at = asyncio.get_running_loop().time()

    async def run(self, worker: int, workers: int) -> None:
        loop = asyncio.get_running_loop()
        for number in itertools.count(worker + 1, workers):
            if self.ended:
                return
            try:
                self.told.append(await self._commit(number))
            except UndoubtError as error:
                self.failed.append(f"{number}: {error}")
                continue
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


@contextlib.asynccontextmanager
async def deciding(ledger: ClusterLedger) -> AsyncIterator[Load]:
    """Two-phase commit's part of a cluster: decisions, as many as it can make. They are finished in batches,
    as by a coordinator: what is not finished is in every snapshot, and fills disks."""
    signing = Signing(ledger)
    session = await signing.open_session("grow", 3600.0)
    unfinished: list[TxId] = []

    async def commit(number: int) -> TxId:
        txid = session.txid(number)
        if await signing.decide(txid, Decision.COMMIT, BRANCHES) is not Decision.COMMIT:
            raise UndoubtError(f"{txid} is recorded as aborted")
        unfinished.append(txid)
        if len(unfinished) >= FINISH_AT_ONCE:
            batch, unfinished[:] = unfinished[:], []
            await ledger.finish(batch)
        return txid

    yield Load(commit)


@contextlib.asynccontextmanager
async def voting(ledger: ClusterLedger) -> AsyncIterator[Load]:
    """Whole transactions of Paxos Commit, over participants without a disk: its acceptors are the nodes."""
    registry = Registry()
    names = [branch.participant for branch in BRANCHES]
    for name in names:
        registry.add(ScriptedParticipant(name, Script(surely_writes=True)))
    settings = CoordinatorSettings(protocol="paxos", timeout_s=60.0)
    async with Coordinator(ledger, registry, settings) as coordinator:

        async def commit(_: int) -> TxId:
            async with coordinator.transaction() as tx:
                for name in names:
                    await tx.branch(name)
                return (await tx.commit()).txid

        yield Load(commit)


LOADS = {"2pc": deciding, "paxos": voting}
