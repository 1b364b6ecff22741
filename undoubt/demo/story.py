"""Runs the demo step by step."""

from __future__ import annotations

import asyncio
import signal

from undoubt import wiring
from undoubt.coordinator.ledger.contract import Ledger
from undoubt.coordinator.protocols.steps import TwoPhaseStep
from undoubt.demo import bank
from undoubt.demo.proof import Proof
from undoubt.demo.show import Show
from undoubt.demo.stage import SESSION_TTL_S, Stage
from undoubt.demo.worker import TASKS
from undoubt.demo.workers import Reported, WorkerFailed, working
from undoubt.embedded import ServerFailed
from undoubt.participants.plural import plural
from undoubt.participants.registry import Registry
from undoubt.recovery.operator.explain import explain
from undoubt.recovery.operator.survey import Survey, survey
from undoubt.recovery.plan import BranchStanding
from undoubt.recovery.service import RecoveryService
from undoubt.serve.local.nodes import NodeFailed, Nodes

SHARES = {"work": 0.3, "before": 0.15, "after": 0.15, "database": 0.2, "leader": 0.2}
"""The share of the time for each step that makes transfers."""
LEASES_END_S = SESSION_TTL_S + 30
RECOVERED_S = 30.0
PAUSE_S = 0.1


class Story:
    """One run of the demo, with ``seconds`` of transfers; crashes, recovery and audit take additional
    time."""

    def __init__(self, stage: Stage, show: Show, seconds: float) -> None:
        self._stage = stage
        self._show = show
        self._seconds = seconds
        self._reported = Reported()
        self.proof = Proof()

    async def run(self) -> Proof:
        """Run all steps, and return the proof. Raises ``UndoubtError`` if a step fails."""
        self.proof.money_before = (await bank.audit(self._stage.dsns)).money
        await self._work()
        await self._kill_coordinator("between prepare and decision", TwoPhaseStep.BEFORE_DECIDE, "before", 1)
        self.proof.kills.coordinator_before_decision += 1
        await self._kill_coordinator(
            "between decision and second phase", TwoPhaseStep.AFTER_DECIDE, "after", 2
        )
        self.proof.kills.coordinator_after_decision += 1
        await self._kill_database()
        if (nodes := self._stage.nodes) is not None:
            await self._kill_leader(nodes)
        async with wiring.opened(self._stage.settings()) as (ledger, participants):
            await self._look(ledger, participants)
            await self._recover(ledger, participants)
        await self._audit()
        return self.proof

    def _committed(self) -> int:
        return len(self._reported.acknowledged)

    async def _work(self) -> None:
        self._show.chapter("Transfers between two databases, each in one undoubt transaction")
        seconds = self._seconds * SHARES["work"]
        async with (
            working(self._stage.config, self._reported, seconds=seconds, tag=0) as worker,
            self._show.progress("without faults", seconds, worker.working, self._committed),
        ):
            if (status := await worker.ended(seconds)) != 0:
                raise WorkerFailed(f"a worker ended with status {status}")

    async def _kill_coordinator(self, when: str, step: TwoPhaseStep, share: str, tag: int) -> None:
        self._show.chapter(f"A coordinator process is killed {when}")
        seconds = self._seconds * SHARES[share]
        async with (
            working(self._stage.config, self._reported, seconds=seconds, tag=tag, step=step) as worker,
            self._show.progress(f"coordinator {worker.pid}", seconds, worker.working, self._committed),
        ):
            await worker.killed_at(step, seconds)
        self._show.death(f"coordinator process {worker.pid} at {step}")

    async def _kill_database(self) -> None:
        self._show.chapter("A database server is killed under load, and restarted")
        seconds = self._seconds * SHARES["database"]
        server = self._stage.servers["payments"]
        async with (
            working(self._stage.config, self._reported, seconds=seconds, tag=3) as worker,
            self._show.progress(f"coordinator {worker.pid}", seconds, worker.working, self._committed),
        ):
            await worker.working.wait()
            await asyncio.sleep(seconds / 2)
            pid = server.pid
            if await server.kill() != signal.SIGKILL:
                raise ServerFailed(f"the server was not ended by SIGKILL (process {pid})")
            self.proof.kills.database += 1
            self._show.death(f"the PostgreSQL server of payments, process {pid}")
            await server.start()
            self._show.say(f"payments runs again, process {server.pid}, after PostgreSQL's crash recovery")
            if (status := await worker.ended(seconds)) != 0:
                raise WorkerFailed(f"a worker ended with status {status}")

    async def _kill_leader(self, nodes: Nodes) -> None:
        self._show.chapter("The node that leads the ledger is killed during commits")
        seconds = self._seconds * SHARES["leader"]
        async with (
            working(self._stage.config, self._reported, seconds=seconds, tag=4) as worker,
            self._show.progress(f"coordinator {worker.pid}", seconds, worker.working, self._committed),
        ):
            await worker.working.wait()
            await asyncio.sleep(seconds / 2)
            number = await nodes.leader()
            pid, before = nodes.pids[number], self._committed()
            if await nodes.kill(number) != -signal.SIGKILL:
                raise NodeFailed(f"node {number} was not ended by SIGKILL (process {pid})")
            self.proof.kills.leader = 1
            self._show.death(f"node {number}, which led the ledger, process {pid}")
            self._show.say(f"node {await nodes.leader()} leads now")
            if (status := await worker.ended(seconds)) != 0:
                raise WorkerFailed(f"a worker ended with status {status}")
        self._show.say(f"{self._committed() - before} transfers committed since")
        await nodes.run(number)

    async def _look(self, ledger: Ledger, participants: Registry) -> None:
        self._show.chapter("What the crashes left in doubt (undoubt indoubt list)")
        seen = await _when_leases_have_ended(ledger, participants)
        found = seen.in_doubt()
        self.proof.in_doubt_after_crash = len(found)
        self._show.in_doubt(found)
        async with bank.customers(self._stage.dsns["orders"], range(TASKS, 4 * TASKS)):
            for kind in (BranchStanding.ABORTED, BranchStanding.COMMITTED):
                explanations = [
                    await explain(ledger, participants, one, seen)
                    for one in found
                    if one.standing is kind and one.participant == "orders"
                ]
                # A branch that blocks other sessions, if there is one: that is the cost of a branch in doubt.
                explanations.sort(key=lambda explained: -len(explained.burden.blocks))
                for explained in explanations[:1]:
                    self._show.chapter(f"undoubt indoubt explain, for a branch that is {kind}")
                    self._show.explanation(explained)

    async def _recover(self, ledger: Ledger, participants: Registry) -> None:
        self._show.chapter("Recovery (undoubt recover --once)")
        service = RecoveryService(ledger, participants, self._stage.settings().recovery)
        done: set[tuple[str, str]] = set()
        try:
            async with asyncio.timeout(RECOVERED_S):
                while True:
                    report = await service.run_once()
                    done |= {(line.gid, line.action) for line in report.lines if line.result == "done"}
                    left = (await survey(ledger, participants)).in_doubt()
                    if not left and not report.unfinished and not report.errors:
                        break
                    await asyncio.sleep(PAUSE_S)
        except TimeoutError:
            self._show.say(f"WRONG: recovery did not resolve everything within {RECOVERED_S:g} s")
        resolved = self.proof.resolved
        resolved.committed = sum(action == "commit" for _, action in done)
        resolved.rolled_back = sum(action == "rollback" for _, action in done)
        count = plural(resolved.committed, "branch", "branches")
        self._show.say(f"{count} committed, {resolved.rolled_back} rolled back")

    async def _audit(self) -> None:
        self._show.chapter("The proof, read from the databases themselves")
        books, proof, reported = await bank.audit(self._stage.dsns), self.proof, self._reported
        proof.transactions = len(reported.begun)
        proof.committed = len(books.everywhere)
        proof.aborted = len(reported.begun - books.everywhere)
        proof.acknowledged_lost = len(reported.acknowledged - books.everywhere)
        proof.in_doubt_after_recovery = len(books.prepared)
        proof.money_after = books.money
        half = books.somewhere - books.everywhere
        wrong = reported.aborted & books.somewhere
        never_begun = books.somewhere - reported.begun
        for what, names in (("in one database only", half), ("aborted but there", wrong)):
            for name in sorted(names):
                self._show.say(f"WRONG: transfer {name} is {what}")
        proof.ok = (
            proof.committed > 0
            and proof.acknowledged_lost == 0
            and proof.in_doubt_after_recovery == 0
            and proof.money_before == proof.money_after
            and not (half or wrong or never_begun)
        )


async def _when_leases_have_ended(ledger: Ledger, participants: Registry) -> Survey:
    """The branches in doubt, after the dead coordinators' sessions have expired: until then their undecided
    branches are ``active``, and recovery does not touch them."""
    async with asyncio.timeout(LEASES_END_S):
        while True:
            seen = await survey(ledger, participants)
            if not seen.unreachable and all(one.standing is not BranchStanding.ACTIVE for one in seen.found):
                return seen
            await asyncio.sleep(PAUSE_S)
