"""Three real nodes on this machine: decisions a second, time until the next commit when the leader is killed,
memory and restart of a node that holds a million finished transactions. It holds if nothing answered was
lost."""

from __future__ import annotations

import argparse
import asyncio
import signal
import statistics
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from tests.coordinator.ledger.signing import Signing
from tests.coordinator.node.processes import Processes
from undoubt.coordinator.ledger.cluster.ledger import ClusterLedger
from undoubt.coordinator.ledger.commands import CloseSession, Decide, Finish, OpenSession
from undoubt.coordinator.ledger.contract import BranchRecord, RecordedDecision, Session
from undoubt.coordinator.ledger.machine import Machine
from undoubt.coordinator.node.bootstrap import beginning
from undoubt.coordinator.node.fsm import NodeStateMachine
from undoubt.coordinator.node.storage.contract import DiskIdentity, Snapshot
from undoubt.coordinator.node.storage.node_storage import create
from undoubt.participants.contract import Decision
from undoubt.participants.ids import Protocol, TxId

BRANCHES = (
    BranchRecord(1, "orders", 2**40, 2**62, "00000001"),
    BranchRecord(2, "payments", 2**40, 2**62, "00000001"),
)
SESSIONS = 10
ASKED_AT_ONCE = 1_000
ELECTION_TIMEOUT_S = 1.0
CONFIG = f"heartbeat_s = 0.1\nelection_timeout_s = {ELECTION_TIMEOUT_S}\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=5.0, help="for each number in flight")
    parser.add_argument("--kills", type=int, default=7)
    parser.add_argument("--finished", type=int, default=1_000_000, help="transactions of the large node")


async def main(given: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    told: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="undoubt-") as folder:
        nodes = Processes(Path(folder), timers=CONFIG)
        try:
            await nodes.start()
            await nodes.leader()
            told |= await _speed(nodes, given)
        finally:
            await nodes.kill()
    with tempfile.TemporaryDirectory(prefix="undoubt-") as folder:
        told |= await _size(Path(folder), given.finished)
    return told, told["lost"] == 0 and told["large_node"]["kept"]


async def _speed(nodes: Processes, given: argparse.Namespace) -> dict[str, Any]:
    ledger = Signing(await ClusterLedger.open(nodes.settings))
    try:
        work = _Work(ledger, await ledger.open_session("proof", 600.0))
        rates = {str(count): await work.rate(count, given.seconds) for count in (1, 8, 64, 256)}
        gaps = [await _killed(nodes, work) for _ in range(given.kills)]
        lost = await work.lost()
    finally:
        await ledger.close()
    ratio = statistics.median(gaps) / ELECTION_TIMEOUT_S if gaps else None
    return {
        "decisions_per_s": rates,
        "next_commit_s": [round(gap, 3) for gap in gaps],
        "next_commit_per_election_timeout": ratio if ratio is None else round(ratio, 2),
        "decided": work.answered,
        "lost": lost,
    }


class _Work:
    """Callers that decide one transaction after the other."""

    def __init__(self, ledger: Signing, session: Session) -> None:
        self.ledger = ledger
        self.session = session
        self._answered: list[TxId] = []
        self.last_answer_at = 0.0
        self._seq = 0

    async def _decide(self, until: asyncio.Event) -> None:
        while not until.is_set():
            self._seq += 1
            txid = self.session.txid(self._seq)
            if await self.ledger.decide(txid, Decision.COMMIT, BRANCHES) is Decision.COMMIT:
                self._answered.append(txid)
            self.last_answer_at = time.perf_counter()

    @property
    def answered(self) -> int:
        return len(self._answered)

    async def rate(self, in_flight: int, seconds: float) -> int:
        until, before, began = asyncio.Event(), self.answered, time.perf_counter()
        asyncio.get_running_loop().call_later(seconds, until.set)
        await asyncio.gather(*(self._decide(until) for _ in range(in_flight)))
        return round((self.answered - before) / (time.perf_counter() - began))

    async def next_answer_after(self, event: float) -> float:
        """Seconds from ``event`` to the first answer to something that was asked after it."""
        until = asyncio.Event()
        asking = asyncio.create_task(self._decide(until))
        while self.last_answer_at < event:
            await asyncio.sleep(0.001)
        until.set()
        gap = self.last_answer_at - event
        await asking
        return gap

    async def lost(self) -> int:
        """Decisions that were answered and are not there."""
        lost = 0
        for first in range(0, self.answered, ASKED_AT_ONCE):
            records = await self.ledger.records(self._answered[first : first + ASKED_AT_ONCE])
            lost += sum(record is not RecordedDecision.COMMIT for record in records.values())
        return lost


async def _killed(nodes: Processes, work: _Work) -> float:
    leader = await nodes.leader()
    # Not always at the same moment of a heartbeat.
    await asyncio.sleep(Random(leader).random() * 0.2)
    event = time.perf_counter()
    await nodes.end(leader, signal.SIGKILL)
    gap = await work.next_answer_after(event)
    await nodes.start(leader)
    await nodes.applied()
    return gap


async def _size(folder: Path, finished: int) -> dict[str, Any]:
    """A node of a cluster of one, begun with what so many transactions leave behind."""
    nodes = Processes(folder, count=1, timers=CONFIG)
    nodes.data(1).rename(folder / "empty")
    await asyncio.to_thread(_large, nodes, finished)
    try:
        began = time.perf_counter()
        await nodes.start()
        ledger = await ClusterLedger.open(nodes.settings)
        ready_s = time.perf_counter() - began
        info = await ledger.info()
        await ledger.close()
        memory = Path(f"/proc/{nodes.running[1].pid}/status").read_text()
        resident_kb = int(memory.partition("VmHWM:")[2].split()[0])
    finally:
        await nodes.kill()
    kept = info.decisions_kept == finished + info.unfinished
    return {
        "large_node": {
            "finished": finished,
            "open": info.unfinished,
            "kept": kept,
            "memory_mb": round(resident_kb / 1024),
            "restart_s": round(ready_s, 2),
            "disk_mb": round(sum(path.stat().st_size for path in nodes.data(1).iterdir()) / 2**20),
        }
    }


def _large(nodes: Processes, finished: int) -> None:
    machine = Machine("abcdefghij")
    session: object = None
    for number in range(SESSIONS):
        session = machine.apply(OpenSession(f"{number:016x}", "proof", 3_600_000))
        for seq in range(1, finished // SESSIONS + 1):
            _finished(machine, session, seq)
        machine.drain_history()
        if number < SESSIONS - 1 and isinstance(session, Session):
            machine.apply(CloseSession(session.id, session.nonce))
    if isinstance(session, Session):
        for seq in range(1, 10_001):
            txid = session.txid(finished // SESSIONS + seq)
            machine.apply(Decide(txid, Protocol.TWO_PHASE, Decision.COMMIT, BRANCHES, 1.0))
    addresses = {1: f"127.0.0.1:{nodes.ports[0]}"}
    hard_state, first = beginning("abcdefghij", addresses)
    meta = msgspec.structs.replace(first.meta, index=2 * finished)
    image = NodeStateMachine(machine, addresses).image()
    create(nodes.data(1), DiskIdentity("abcdefghij", 1, "disk"), hard_state, Snapshot(meta, image))


def _finished(machine: Machine, session: object, seq: int) -> None:
    if isinstance(session, Session):
        txid = session.txid(seq)
        machine.apply(Decide(txid, Protocol.TWO_PHASE, Decision.COMMIT, BRANCHES, 1.0))
        machine.apply(Finish((txid,)))
