"""One run: everything that takes part, put together; chaos, then peace, then judgement."""

from __future__ import annotations

import asyncio
import enum
import logging
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.linearizability.check import violations
from tests.linearizability.history import History
from tests.simulation.agents import AgentRows
from tests.simulation.applications import (
    Application,
    Auditor,
    OperatorProcess,
    RecoveryProcess,
    WithoutLedgerProcess,
)
from tests.simulation.database import SLOWEST_PREPARE_S, Disk, Server, State
from tests.simulation.drive import Drive
from tests.simulation.faults import Nemesis
from tests.simulation.files import FileMachine
from tests.simulation.holders import Holders
from tests.simulation.judge import Judge, Violation
from tests.simulation.leaders import StaleLeaders
from tests.simulation.members import MembersProcess
from tests.simulation.network import Network
from tests.simulation.nodes import CLUSTER, SimulatedCluster
from tests.simulation.promises import Promises
from tests.simulation.rows import Rows
from tests.simulation.scheduler import Process, Scheduler
from tests.simulation.strangers import Insider, Stranger
from tests.stand_in import put
from undoubt.coordinator.ledger.cluster.ledger import ClusterLedger
from undoubt.coordinator.ledger.contract import Ledger, RecordedDecision
from undoubt.coordinator.ledger.machine import Machine
from undoubt.coordinator.ledger.sqlite import owner
from undoubt.coordinator.ledger.sqlite.ledger import SqliteLedger
from undoubt.coordinator.node import snapshots
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.errors import UndoubtError
from undoubt.participants.ids import TxId
from undoubt.participants.three_phase import Termination
from undoubt.recovery import worker
from undoubt.recovery.sweep import sweep

CALM_S = 150.0
"""Within how much virtual time after healing nothing may be in doubt any more."""
QUIET_S = 10.0
"""Longer than any PREPARE takes."""
PORT = 5432
BALANCE = 1_000


class World:
    def __init__(
        self,
        seed: int,
        scheduler: Scheduler,
        told: Callable[[str], None],
        *,
        verbose: bool = False,
        nodes: int | None = None,
        protocol: str | None = None,
        keyed: bool = False,
        locks: bool = False,
    ) -> None:
        """``nodes`` keep the ledger, 0: a file; ``protocol`` is every transaction's; drawn if they are None.
        ``keyed``: transactions have keys; ``locks``: applications hold locks too. Raises ``ValueError`` for
        Paxos Commit on a file."""
        self.verbose, self.keyed, self.locks = verbose, keyed, locks
        self.seed, self.random = seed, scheduler.random
        self.scheduler = scheduler
        self.told = told
        self.network = Network(scheduler, Random(self.random.getrandbits(64)))
        self.machine = FileMachine(Drive(scheduler, Random(self.random.getrandbits(64))))
        self.machine.drive.on_broken = self.killed_soon
        self.machine.install()
        self.judge = Judge(Rows(), Promises(), AgentRows())
        self.holders = Holders(self.judge.counts)
        self.history = History(lambda: scheduler.now)
        self.counts: Counter[str] = Counter()
        self.ledgers: list[tuple[Process, SqliteLedger]] = []
        self.peace = self.settled = False
        self.unknown: list[TxId] = []
        self.tampers = self.random.random() < 0.25 and protocol in {None, "2pc"}
        drawn_destroys = not self.tampers and self.random.random() < 0.1
        self.destroys = drawn_destroys and not keyed and protocol in {None, "3pc"}
        """In the end the ledger is destroyed, with everybody who used it. Transactions with keys use
        two-phase commit, whose decision is nowhere else: what is prepared then is left to a person."""
        self.destroyed = False
        self._quiet_since = math.inf
        self.notes = self.random.random() < 0.7
        self.accounts = self.random.choice([2, 5, 50])
        self.chaos_s = self.random.uniform(5.0, 20.0)
        count = self.random.choice([2, 2, 3])
        names = ["inventory", "orders", "payments"][:count]
        self.databases = {name: (f"db-{name}", PORT) for name in names}
        self.disks = {
            name: Disk(name, 7_000_000 + number, self.accounts, BALANCE) for number, name in enumerate(names)
        }
        self.servers: dict[str, tuple[Process, Server]] = {}
        self.applications: dict[str, Application] = {}
        self._births: Counter[str] = Counter()
        self.processes: list[Process] = []
        drawn = self.random.choice([0, 1, 3, 3, 3, 3, 5])
        members = drawn if nodes is None else nodes
        self.protocols = self.drawn_protocols(members) if protocol is None else [protocol]
        if protocol == "paxos" and not members:
            raise ValueError("Paxos Commit needs nodes: say how many with --nodes")
        self.agent = self.random.choice(names) if self.protocols == ["last"] else ""
        """Of last-agent commit, which is only simulated by name: then no failover hits it, after which a row
        that is missing is left to a person."""
        self.strangers = self.random.random() < 0.5  # who prepare under names that are none of theirs
        self.termination = Termination.QUORUM
        if "3pc" in self.protocols and self.random.random() < 0.2:
            self.termination = Termination.SKEEN
        self.cluster = SimulatedCluster(self, members) if members else None
        """None: the ledger is a file, which one of the applications owns."""
        self.settings = self.drawn_settings()
        scheduler.killing = self.kill
        scheduler.after_step = self.look
        self.nemesis = Nemesis(self)

    def drawn_settings(self) -> LedgerSettings:
        """Those of the ledger; constants of the modules that this process has loaded are drawn too."""
        owner.LOG_BYTES_MIN = self.random.choice([2_000, 4 * 1024 * 1024])
        put(worker, "SWEEP_INTERVAL_S", sweep_interval_s := self.random.choice([3.0, 60.0]))
        sweep.__defaults__ = (sweep_interval_s, max(sweep_interval_s, SLOWEST_PREPARE_S))
        snapshots.CHUNK_BYTES = self.random.choice([300, 64 * 1024])
        return LedgerSettings(
            url=self.cluster.url if self.cluster is not None else "sqlite:////simulated/ledger.db",
            retention_s=max(self.random.choice([30.0, 7 * 86_400.0]), 7 * 86_400.0 if self.keyed else 0.0),
            request_timeout_s=self.random.choice([1.0, 5.0]),
        )

    def drawn_protocols(self, members: int) -> list[str]:
        """What transactions choose from; some runs are about one protocol alone."""
        if self.tampers:
            return ["2pc"]  # what somebody ends by hand, the others leave to a person: nothing would settle
        if self.destroys:
            return ["3pc"]
        known = ["2pc", "3pc", *(["paxos"] if members else [])]
        return self.random.choice([known, known, known[:1], known[1:2], known[-1:]])

    @property
    def databases_answer(self) -> bool:
        """Skeen's termination takes who does not answer for dead for ever, and is right as long as that is
        so: then databases neither fall silent nor come back."""
        return self.termination is Termination.SKEEN

    # People and things.

    def trace(self, who: str, what: str) -> None:
        self.told(f"{self.scheduler.now:11.6f}  {who:<14} {what}")

    def host(self, name: str) -> str:
        """A file's users share its machine; those of a cluster have machines of their own."""
        return "shop" if self.cluster is None else name

    def process(self, name: str, host: str) -> Process:
        self.network.down.discard(host)
        self._births[name] += 1
        number = self._births[name]
        process = Process(self.scheduler, name if number == 1 else f"{name}.{number}", host)
        self.network.adopt(process)
        self.processes.append(process)
        return process

    def mortal(self) -> list[Process]:
        """Those that the nemesis may kill or stop: all but the databases, which have faults of their own."""
        return [process for process in self.processes if process.alive and not process.host.startswith("db-")]

    def hosts(self) -> list[str]:
        return sorted({process.host for process in self.processes if process.alive})

    async def open_ledger(self, process: Process) -> Ledger:
        while True:
            try:
                if self.cluster is not None:
                    random = Random(self.random.getrandbits(64))
                    return await ClusterLedger.open(self.settings, random=random, name=process.name)
                ledger = await SqliteLedger.open(
                    Path("/simulated/ledger.db"), self.settings, clock=process.local_time
                )
                self.ledgers.append((process, ledger))
                return ledger
            except UndoubtError as error:
                self.trace(process.name, f"cannot open the ledger: {error}")
                await asyncio.sleep(0.3)

    def observer(self, process: Process) -> Callable[[enum.StrEnum, str], Any]:
        """At every named step of protocols and recovery: a pause, or death."""
        random = self.random

        def observe(step: enum.StrEnum, _subject: str) -> Any:
            self.counts[str(step)] += 1
            draw = random.random()
            if self.peace or draw > 0.05:
                return None
            if draw < 0.004:
                self.trace(process.name, f"dies at {step}")
                self.kill(process)
                return asyncio.get_running_loop().create_future()
            return asyncio.sleep(random.choice([0, 0.001, 0.3]))

        return observe

    def faulty(self, what: str, probability: float) -> bool:
        if self.peace or self.random.random() >= probability:
            return False
        if self.databases_answer and what == "lost answer":
            return False
        self.counts[what] += 1
        return True

    # Births and deaths.

    def start(self) -> None:
        for name in self.databases:
            self.start_database(name)
        if self.cluster is not None:
            self.cluster.start()
            StaleLeaders(self).begin()
        for number in range(1, self.random.randint(2, 3) + 1):
            self.start_application(f"shop{number}")
        for name in ("recover", "recover-too")[: self.random.choice([0, 0, 1, 2])]:
            self.start_other(name, RecoveryProcess)
        if self.random.random() < 0.5:
            self.start_other("operator", OperatorProcess)
        if self.strangers:
            self.start_other("stranger", Stranger)
        if self.cluster is not None and self.random.random() < 0.4:
            self.cluster.tidy = False
            self.start_other("members", MembersProcess)
        self.nemesis.begin()

    def start_database(self, name: str) -> None:
        host, port = self.databases[name]
        process = self.process(host, host)

        def told(pid: int, verb: str, arguments: Any, answer: object) -> None:
            if self.verbose:
                self.trace(process.name, f"{pid} {verb}{arguments} → {answer}")

        server = Server(self.disks[name], self.random, self.judge, faulty=self.faulty, told=told)
        self.servers[name] = (process, server)
        process.start(lambda: server.serve(process.loop, (host, port)), "serve")

    def start_application(self, name: str) -> None:
        process = self.process(name, self.host(name))
        application = self.applications[name] = Application(self, process)
        self.born(process, application.main, lambda: self.start_application(name))

    def start_other(self, name: str, kind: Any) -> None:
        process = self.process(name, self.host(name))
        self.born(process, kind(self, process).main, lambda: self.start_other(name, kind))

    def born(self, process: Process, main: Callable[[], Any], again: Callable[[], None]) -> None:
        self.trace(process.name, "starts")
        task = process.start(main, "main")

        def ended(task: asyncio.Task[Any]) -> None:
            if process.alive and not task.cancelled() and task.exception() is not None:
                raise Violation(f"{process.name} has failed: {task.exception()!r}") from task.exception()

        task.add_done_callback(ended)

        def reborn() -> None:
            if not self.settled and not self.destroyed:
                again()

        def died() -> None:
            self.scheduler.after(self.random.uniform(0.05, 4.0), reborn)

        process.on_kill.append(died)

    def kill(self, process: Process, *, power: bool = False) -> None:
        """One process, or its machine with all that runs there."""
        if not process.alive:
            return
        self.counts["kills"] += 1
        self.trace(
            "nemesis", f"kills {process.name} after {process.steps} steps" + ", and its machine" * power
        )
        if power:
            self.network.down.add(process.host)
            for other in self.mortal():
                if other.host == process.host and other is not process:
                    self.trace("nemesis", f"kills {other.name} with it")
                    other.kill()
        process.kill()

    def killed_soon(self, process: Process) -> None:
        """A supervisor restarts what cannot go on."""
        self.scheduler.after(self.random.uniform(0.5, 3.0), lambda: self.kill(process))

    def crash_database(self, name: str, outage_s: float, *, promote: bool = False) -> None:
        process, server = self.servers[name]
        if not process.alive:
            return
        disk = self.disks[name]
        self.trace("nemesis", f"crashes database {name} for {outage_s:.3f} s" + (", promotes" * promote))
        self.counts["promotions" if promote else "database crashes"] += 1
        process.kill()
        for session in server.sessions.values():
            if session.work is not None and session.work.state is not State.COMMITTED:
                disk.abort(session.work)
                disk.books.pop(session.work.xid or 0, None)
                self.judge.ended(name, session.work, prepared=False)
        # What never reached the log is given out again.
        disk.next_xid = max([1_000, *disk.books, *(work.xid or 0 for work in disk.prepared.values())])
        if promote:
            disk.recovering = True
            self.scheduler.after(outage_s + self.random.uniform(0.1, 2.0), lambda: self.promoted(disk))
        self.scheduler.after(outage_s, lambda: self.start_database(name))

    def promoted(self, disk: Disk) -> None:
        disk.timeline += 1
        disk.history = f"{self.random.getrandbits(128):032x}"
        disk.recovering = False
        disk.promotions.append(self.scheduler.now)
        self.trace(disk.name, f"is the primary now, on timeline {disk.timeline}")
        process, _ = self.servers[disk.name]
        if process.alive:
            self.network.drop(process)

    def trouble_disk(self) -> None:
        """Of the ledger's file, or of one node."""
        random, drive, whose = self.random, self.machine.drive, "the ledger's disk"
        if self.cluster is not None:
            number = random.choice(sorted(self.cluster.nodes))
            drive, whose = self.cluster.nodes[number].drive, f"the disk of node {number}"
        draw = random.random()
        if draw < 0.4:
            drive.slowness = random.choice([10.0, 300.0, 3000.0])
            self.trace("nemesis", f"slows {whose} by {drive.slowness}")
        elif draw < 0.8:
            drive.full = True
            self.trace("nemesis", f"fills {whose}")
        else:
            drive.broken = True
            self.trace("nemesis", f"breaks the next write to {whose}")

        def mended() -> None:
            drive.slowness, drive.full = 1.0, False

        self.scheduler.after(random.uniform(0.1, 5.0), mended)

    def hand_over(self) -> None:
        """Somebody restarts a node, as one should."""
        if self.cluster is None:
            return
        number = self.random.choice(sorted(self.cluster.nodes))
        member = self.cluster.nodes[number]
        if member.running is not None and member.process is not None:
            self.trace("nemesis", f"asks node {number} to stop")
            member.process.start(member.hand_over, "hand over")

    def meddle(self) -> None:
        name = self.random.choice(sorted(self.databases))
        process, server = self.servers[name]
        prepared = sorted(self.disks[name].prepared)
        if not process.alive or not prepared:
            return
        gid, commit = self.random.choice(prepared), self.random.random() < 0.5
        work = self.disks[name].prepared[gid]
        if work.busy:
            return
        self.trace("nemesis", f"ends {gid} by hand: {'commit' if commit else 'rollback'}")
        (self.disks[name].commit if commit else self.disks[name].abort)(work)
        server.judge.ended(name, work, prepared=True, by_hand=True)
        server.free(work)

    # The course of a run.

    def run(self) -> None:
        """Raises :class:`~tests.simulation.judge.Violation`."""
        self.trace("world", f"seed {self.seed}")
        self.start()
        self.scheduler.run(self.chaos_s)
        self.heal()
        ends = self.scheduler.now + CALM_S
        if not self.scheduler.run(ends, self.is_settled):
            raise Violation(f"not settled {CALM_S} s after healing: {self.unsettled()}")
        if self.strangers and not self.destroyed:
            self.replay()
        self.settled = True
        self.counts["transactions with votes for both"] += len(self.judge.promises.mixed)
        self.counts["rows fixed to abort"] += [*self.judge.rows.fixed.values()].count("abort")
        if not self.destroyed:
            self.audit()
        self.judge.final(list(self.disks.values()), BALANCE * self.accounts * len(self.disks))
        for wrong in violations(self.history, drops=self.settings.retention_s < self.scheduler.now):
            raise Violation(f"not linearizable: {wrong}")

    def replay(self) -> None:
        """What was committed is prepared again, in its own role and place; the judge sees whether anybody
        ends that, and nothing may become open because of it."""
        process = self.process("insider", self.host("insider"))
        insider = Insider(self, process)
        process.start(insider.main, "main")
        if not self.scheduler.run(self.scheduler.now + CALM_S, lambda: insider.done):
            raise Violation("the insider gets no answers")
        self.scheduler.run(self.scheduler.now + QUIET_S)
        if self.unsettled():
            raise Violation(f"open since old names were prepared again: {self.unsettled()}")

    def audit(self) -> None:
        """Ask the ledger once more about every transaction: what it answers goes into the history."""
        process = self.process("auditor", self.host("auditor"))
        auditor = Auditor(self, process)
        process.start(auditor.main, "main")
        if not self.scheduler.run(self.scheduler.now + CALM_S, lambda: auditor.done):
            raise Violation("the auditor gets no answers")

    def look(self) -> None:
        """After every callback of anybody."""
        if Violation.first is not None:
            raise Violation.first

    def heal(self) -> None:
        self.peace = True
        self.trace("world", "peace")
        self.network.heal()
        self.network.down.clear()
        self.machine.drive.heal()
        for member in self.cluster.nodes.values() if self.cluster is not None else ():
            member.drive.heal()
        for process in self.processes:
            process.dies_at_step = None
            if process.alive:
                process.pause(False)
        if self.destroys:
            self.destroy()

    def destroy(self) -> None:
        """Nothing is left but the databases, and somebody with the command line."""
        self.trace("world", "the ledger is destroyed")
        self.counts["ledgers destroyed"] += 1
        self.destroyed = True
        for process in self.mortal():
            if self.cluster is None or process.host.startswith("node") or self.random.random() < 0.5:
                process.kill()  # whoever lives on has transactions under way, and nobody to ask
        for name in ("last", "last-too")[: self.random.choice([1, 2])]:
            process = self.process(name, self.host(name))
            process.start(WithoutLedgerProcess(self, process).main, "main")

    @property
    def ledger_id(self) -> str:
        if self.cluster is not None:
            return CLUSTER
        return next(file.ledger_id for file in self.machine.files.values())

    def is_settled(self) -> bool:
        """Nothing is open, and has not been for a while: a slow PREPARE or a commit in the background that
        nobody waits for any more may open something again."""
        if self.scheduler.steps % 64 == 0:
            if self.unsettled():
                self._quiet_since = math.inf
            else:
                self._quiet_since = min(self._quiet_since, self.scheduler.now)
        return self.scheduler.now - self._quiet_since >= QUIET_S

    def machines(self) -> list[Machine]:
        """Of all running nodes, or of the file's owner."""
        if self.cluster is not None:
            running = [node.running for node in self.cluster.running]
            return [node.replica.replicated.machine for node in running if node is not None]
        owned = [each.owned for process, each in self.ledgers if process.alive]
        return [each.machine for each in owned if each is not None]

    def unsettled(self) -> list[str]:
        """What is still open."""
        found = [f"{name} is down" for name, (process, _) in self.servers.items() if not process.alive]
        for name, disk in self.disks.items():
            found += [
                f"{gid} is prepared in {name}" for gid, work in disk.prepared.items() if not work.impostor
            ]
        if self.destroyed:
            return found
        found += [f"{name} has not closed" for name, each in self.applications.items() if not each.done]
        found += [f"{txid} is unfinished" for machine in self.machines() for txid in machine.state.unfinished]
        found += [f"{txid} is committed, and not recorded" for txid in self.unrecorded()]
        for disk in self.disks.values():
            found += [
                f"the row of {row.txid} is left"
                for row in disk.agent.rows.values()
                if row.decision == "commit"
            ]
        if self.cluster is not None and not self.cluster.agreed():
            found.append("the nodes do not agree")
        return found

    def unrecorded(self) -> list[TxId]:
        """What the acceptors of Paxos Commit have chosen to commit, and the ledger has not heard of."""
        found = []
        for machine in self.machines()[:1]:
            for text, outcome in self.judge.promises.outcomes.items():
                txid = TxId.parse(text)
                book = machine.state.sessions.get(txid.session)
                kept = book is not None and book.nonce == txid.nonce and book.acceptors
                if outcome == "commit" and kept and machine.record(txid) is RecordedDecision.NOT_RECORDED:
                    found.append(txid)
        return found

    def tasks(self) -> list[str]:
        """Where every task of every living process stands: for whoever looks into a run that hangs."""
        found = []
        for process in self.processes:
            if not process.alive:
                continue
            found.append(f"{process.name}: {process.steps} steps" + (", stopped" * process.paused))
            for task in sorted(asyncio.all_tasks(process.loop), key=hash):
                frames = [
                    f"{frame.f_code.co_filename.rsplit('/', 1)[-1]}:{frame.f_lineno}"
                    for frame in task.get_stack()
                ]
                found.append(f"  {task.get_name()}: {task.get_coro().__qualname__} at {' '.join(frames)}")  # type: ignore[union-attr]
        return found


class Traced(logging.Handler):
    """The shipped code's own log lines, into the trace."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.WARNING)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        running = self._world.scheduler.running
        who = "nobody" if running is None else running.name
        self._world.trace(who, f"{record.levelname.lower()}: {record.getMessage()}")
        if record.exc_info and record.exc_info[1] is not None:
            self._world.trace(who, f"  {record.exc_info[1]!r}")


__all__ = ["State", "Traced", "World"]
