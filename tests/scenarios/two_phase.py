"""Two-phase commit with a coordinator that dies, answers that are lost, and recoveries, as a scenario.

::

    databases NAME…           scripted participants, a ledger in memory, a coordinator with a session
    begin NAME…               a transaction with a branch in each of these
    commit [until STEP [NAME]]
                              the application commits; the coordinator goes on to its end, or comes to that
                              step (for the branch of NAME) and goes no further
    go [until STEP [NAME]]    it goes on
    finish                    it tells the ledger that the transaction is finished
    die                       it goes no further, for ever; its session remains until it expires
    expire                    so much time passes that every session that nobody renews expires
    vote NAME no              NAME votes no
    vote NAME lost            NAME prepares, and its answer is lost
    lose NAME                 NAME carries out the next COMMIT PREPARED, and its answer is lost
    lose ledger               the ledger records the next decision, and its answer is lost
    down NAME, up NAME        NAME cannot be reached, and can be again
    abort                     an operator records ABORT
    recover WHO [until STEP]  one pass of the recovery WHO over all databases, or up to that step
    resume WHO                it goes on to the end of its pass

The trace is what has changed: what became of each branch; what the ledger holds; what the application was
told; what a recovery did. The steps are those of :mod:`undoubt.coordinator.protocols.steps` and
:mod:`undoubt.recovery.steps`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

from tests.coordinator.ledger.signing import TaggingLedger
from undoubt.coordinator.coordinator import Coordinator
from undoubt.coordinator.errors import HeuristicOutcome, LedgerUnavailable, OutcomeUnknown, TransactionAborted
from undoubt.coordinator.ledger.contract import BranchRecord, RecordedDecision, SessionState
from undoubt.coordinator.protocols.steps import TwoPhaseStep
from undoubt.coordinator.settings import CoordinatorSettings
from undoubt.participants.contract import Decision, Evidence, PrepareUnanswered, Settled, Vote, XactStatus
from undoubt.participants.errors import ParticipantUnavailable
from undoubt.participants.ids import NO_KEY, Gid, SessionKey, TxId
from undoubt.participants.registry import Registry
from undoubt.participants.scripted import ScriptedAnswer, ScriptedBranch, ScriptedParticipant
from undoubt.participants.tasks import Uncancellable
from undoubt.recovery.report import Report
from undoubt.recovery.service import RecoveryService
from undoubt.recovery.settings import RecoverySettings

LIFETIME_S = 3_600.0
"""Of a session: no renewal falls into a story."""
TURNS = 200
"""Of the event loop: until everything that can go on has."""
PATIENCE_S = 60.0


class Database(ScriptedParticipant):
    """Its answers can be lost."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.loses_vote = False
        self.loses_answer = False

    async def begin(self, gid: Gid, *, timeout_s: float, key: SessionKey = NO_KEY) -> ScriptedBranch:
        branch = await super().begin(gid, timeout_s=timeout_s, key=key)
        prepare = branch.prepare

        async def prepared() -> Any:
            answer = await prepare()
            if self.loses_vote:
                raise PrepareUnanswered(ParticipantUnavailable(self.name, "connection lost"))
            return answer

        branch.prepare = prepared  # type: ignore[method-assign]
        return branch

    async def _answer(
        self, answer: ScriptedAnswer, gid: Gid, order: Decision, evidence: Evidence | None
    ) -> Settled:
        settled = await super()._answer(answer, gid, order, evidence)
        if self.loses_answer:
            self.loses_answer = False
            raise ParticipantUnavailable(self.name, "connection lost")
        return settled


class Process:
    """One that stops where it is told to: a coordinator, or a recovery."""

    def __init__(self, held: str = "") -> None:
        self.held = held
        """A step that it does not pass."""
        self.dead = False
        self._stop: tuple[str, str] | None = None
        self._gate = asyncio.Event()
        self._stopped = asyncio.Event()
        self.task: asyncio.Task[Any] | None = None

    async def observe(self, step: Any, subject: str) -> None:
        parsed = Gid.parse(subject)
        name = parsed.participant if isinstance(parsed, Gid) else subject
        here = self._stop is not None and self._stop[0] == str(step) and self._stop[1] in ("", name)
        if here or str(step) == self.held or self.dead:
            if here:
                self._stopped.set()
            await (asyncio.Event() if self.dead else self._gate).wait()

    async def before(self, call: str, _gid: Gid) -> None:
        """A dead coordinator asks nothing of a database. What recovery asks is another call."""
        if self.dead and not call.startswith(("settle", "forget")):
            await asyncio.Event().wait()

    async def run(self, words: list[str], begin: Callable[[], Coroutine[Any, Any, Any]]) -> bool:
        """Go on, from ``begin`` or from where it was stopped, to the step that ``words`` name, or to the end.
        Whether it has ended."""
        self._stop = (words[1], " ".join(words[2:])) if words else None
        self._gate.set()
        self._gate, self._stopped = asyncio.Event(), asyncio.Event()
        if self.task is None:
            self.task = asyncio.create_task(begin())
        stopped = asyncio.create_task(self._stopped.wait())
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.wait([self.task, stopped], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        await quiet()
        return self.task.done()


class TwoPhase:
    """One story. ``databases`` begins it; ``close`` ends what still runs."""

    def __init__(self) -> None:
        self._before = asyncio.all_tasks()
        self._ledger = TaggingLedger("abcdefghij")
        self._registry = Registry()
        self._databases: dict[str, Database] = {}
        self._process = Process(str(TwoPhaseStep.BEFORE_FINISH))
        self._coordinator = Coordinator(
            self._ledger,
            self._registry,
            CoordinatorSettings(session_ttl_s=LIFETIME_S),
            observe=self._process.observe,
        )
        self._recoveries: dict[str, Process] = {}
        self._shown: dict[str, str] = {}
        self._told = ""
        self._tx: Any = None
        self._txid: TxId | None = None

    async def play(self, command: str, words: list[str]) -> list[str]:
        commands: dict[str, Callable[[list[str]], Awaitable[object]]] = {
            "databases": self._begin,
            "begin": self._transaction,
            "commit": self._commit,
            "go": self._commit,
            "finish": lambda _: self._finish(),
            "die": lambda _: self._die(),
            "expire": lambda _: self._ledger.elapse(2 * LIFETIME_S),
            "vote": lambda words: self._vote(*words),
            "lose": lambda words: self._lose(words[0]),
            "down": lambda words: self._reach(words[0], ParticipantUnavailable(words[0], "is down")),
            "up": lambda words: self._reach(words[0], None),
            "abort": lambda _: self._abort(),
            "recover": lambda words: self._recover(words[0], words[1:]),
            "resume": lambda words: self._recover(words[0], []),
        }
        told = await commands[command](words)
        await quiet()
        return [*[line async for line in self._changed()], *(told if isinstance(told, list) else [])]

    async def close(self) -> None:
        """Whatever still runs is killed."""
        while left := asyncio.all_tasks() - self._before - {asyncio.current_task()}:
            for task in left:
                task.abandon() if isinstance(task, Uncancellable) else task.cancel()
            await asyncio.wait(left, timeout=0.01)

    # What happens.

    async def _begin(self, names: list[str]) -> None:
        for number, name in enumerate(names):
            database = self._databases[name] = Database(name)
            database.before = self._process.before
            database.system += number  # each on a server of its own
            self._registry.add(database)
        await self._coordinator.start()

    async def _transaction(self, names: list[str]) -> None:
        self._tx = self._coordinator.transaction()
        await self._tx.start()
        self._txid = self._tx.id
        for name in names:
            await self._tx.branch(name)

    async def _commit(self, words: list[str]) -> None:
        await self._process.run(words, self._told_to_commit)

    async def _told_to_commit(self) -> None:
        try:
            result = await self._tx.commit()
        except TransactionAborted:
            self._told = "aborted"
        except OutcomeUnknown:
            self._told = "outcome unknown"
        except HeuristicOutcome as error:
            self._told = f"heuristic {error.kind}"
        else:
            pending = ", ".join(gid.participant for gid in result.pending)
            self._told = f"committed, not confirmed by {pending}" if pending else "committed"

    async def _finish(self) -> None:
        self._process.held = ""
        await self._process.run([], self._told_to_commit)
        await self._coordinator.close()

    async def _die(self) -> None:
        self._process.dead = True

    async def _vote(self, name: str, vote: str) -> None:
        if vote == "no":
            self._databases[name].script.prepare = Vote.ABORT
        else:
            self._databases[name].loses_vote = True

    async def _lose(self, name: str) -> None:
        if name != "ledger":
            self._databases[name].loses_answer = True
            return
        decide = self._ledger.decide

        async def decided(*given: Any, **more: Any) -> Decision:
            self._ledger.decide = decide  # type: ignore[method-assign]
            await decide(*given, **more)
            raise LedgerUnavailable("connection lost")

        self._ledger.decide = decided  # type: ignore[method-assign]

    async def _reach(self, name: str, error: ParticipantUnavailable | None) -> None:
        self._databases[name].down = error

    async def _abort(self) -> None:
        assert self._txid is not None
        records = [BranchRecord(branch.gid.branch, name) for name, branch in self._branches()]
        await self._ledger.decide(self._txid, Decision.ABORT, records)

    async def _recover(self, who: str, words: list[str]) -> list[str]:
        process = self._recoveries.setdefault(who, Process())
        service = RecoveryService(
            self._ledger,
            self._registry,
            RecoverySettings(deadlock_interval_s=0.0),
            observe=process.observe,
            hazard_grace_s=0.001,
        )
        if not await process.run(words, service.run_once):
            return []
        del self._recoveries[who]
        assert process.task is not None
        return list(_done(who, process.task.result()))

    # What is seen.

    def _branches(self) -> Iterator[tuple[str, ScriptedBranch]]:
        for name, database in self._databases.items():
            for branch in database.branches:
                yield name, branch

    async def _changed(self) -> Any:
        seen = {name: self._xact_status(name, branch) for name, branch in self._branches()}
        seen["ledger"] = await self._recorded()
        seen["application"] = self._told
        for found in await self._ledger.heuristics():
            seen[f"heuristic {found.gid.participant}"] = str(found.kind)
        for name, text in seen.items():
            if self._shown.get(name, "") != text:
                self._shown[name] = text
                yield f"{name}: {text}"

    def _xact_status(self, name: str, branch: ScriptedBranch) -> str:
        if branch.gid in self._databases[name].prepared:
            return "prepared"
        match self._databases[name].xact_statuses[branch.xid]:
            case XactStatus.IN_PROGRESS:
                return "open"
            case XactStatus.COMMITTED:
                return "committed"
            case _:
                return "rolled back"

    async def _recorded(self) -> str:
        sessions = await self._ledger.sessions()
        gone = "" if any(one.state is SessionState.OPEN for one in sessions) else ", session gone"
        if self._txid is None or not sessions:
            return gone.removeprefix(", ")
        record = (await self._ledger.records([self._txid]))[self._txid]
        if record is RecordedDecision.NOT_RECORDED:
            return f"nothing{gone}"
        unfinished = {one.txid for one in await self._ledger.unfinished()}
        return f"{record.name}{'' if self._txid in unfinished else ', finished'}{gone}"


async def quiet() -> None:
    """Let everything go on that waits for nothing outside of the event loop."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


def _done(who: str, report: Report) -> Iterator[str]:
    for line in sorted(report.lines, key=lambda line: line.participant):
        yield f"{who} {line.participant}: {line.action}, {line.result}"
    for name in sorted(report.errors):
        yield f"{who} {name}: not reached"
