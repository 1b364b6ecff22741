"""The second half of a pass over one participant: it acts on what :mod:`undoubt.recovery.scan` saw.

Every action may be repeated, and two recoveries may act at once: a branch that was finished meanwhile answers
so, and the database's transaction status proves whether it ended as decided.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from undoubt.coordinator.ledger.contract import BranchRecord, DecisionRecord, Ledger
from undoubt.coordinator.protocols.context import applied_elsewhere
from undoubt.coordinator.protocols.steps import Observer, reach
from undoubt.participants.contract import HEURISTICS, Decision, Ending, Participant, Settled
from undoubt.participants.errors import ParticipantError, ParticipantUnavailable
from undoubt.participants.ids import Gid, Protocol, TxId
from undoubt.participants.registry import Registry
from undoubt.recovery import heuristics
from undoubt.recovery.parallel import each
from undoubt.recovery.plan import (
    BranchDone,
    BranchStanding,
    Commit,
    LeaveAlone,
    LookAgain,
    RecordHeuristicOutcome,
    ReportOnly,
    RollBack,
    Terminate,
    for_absent,
    for_prepared,
    for_settled,
)
from undoubt.recovery.report import Counters, ReportedBranch
from undoubt.recovery.scan import Scan
from undoubt.recovery.steps import RecoveryStep
from undoubt.recovery.terminate import Terminator
from undoubt.recovery.unfinished import UnfinishedProgress, ask_books

log = logging.getLogger(__name__)

LEFT_TO_LIVE_S = 2.0
"""How long after its PREPARE a decided branch is left to its coordinator, if the coordinator's session is
open: it is about to end the branch itself, and one of the two would find the branch busy. By the clock of the
participant; if that clock is set back or forward, recovery acts earlier."""
TOGETHER_MIN = 16
TOGETHER_MAX = 256
"""Of how many branches one call of ``settle_each`` is given, where there are many."""
UNAVAILABLE_MAX = 3
"""Number of consecutive branches without an answer after which a pass stops: one bad branch must not hold up
the others, and a database that is down must not be asked ten thousand times."""


_BEFORE = {
    Decision.COMMIT: RecoveryStep.BEFORE_COMMIT,
    Decision.ABORT: RecoveryStep.BEFORE_ROLLBACK,
}
_AFTER = {Decision.COMMIT: RecoveryStep.AFTER_COMMIT, Decision.ABORT: RecoveryStep.AFTER_ROLLBACK}


@dataclass(slots=True)
class RecoveryContext:
    """What all passes of a process share."""

    ledger: Ledger
    participants: Registry
    parallel: int
    observe: Observer | None = None
    hazard_grace_s: float = 1.0
    progress: UnfinishedProgress = field(default_factory=UnfinishedProgress)
    counters: Counters = field(default_factory=Counters)
    alone: dict[str, set[Gid]] = field(default_factory=dict)
    """By participant: the branches that a connection was lost about, or waited in vain. Each of them is
    settled alone from then on, so that it does not hold up others."""
    left_to_live: bool = False
    """Whether a pass has left a decided branch to its living coordinator."""
    terminator: Terminator = field(init=False)

    def __post_init__(self) -> None:
        self.terminator = Terminator(self.ledger, self.participants, self.observe)


class Resolution:
    """The actions of one pass at one participant; ``lines`` reports them. A dry run reports what it would
    have done."""

    def __init__(
        self, tools: RecoveryContext, participant: Participant, scan: Scan, *, dry_run: bool, young_s: float
    ) -> None:
        self.lines: list[ReportedBranch] = []
        self.applied: set[Gid] = set()
        """The branches that this pass has settled, or found to be settled, as recorded."""
        self._tools = tools
        self._participant = participant
        self._scan = scan
        self._dry_run = dry_run
        self._young_s = young_s
        self._unavailable = 0
        self._one_by_one: list[Commit | RollBack] = []
        """The branches that the participant could not settle together."""

    async def run(self) -> None:
        """Carry out the plan. Raises ``LedgerError``, and ``ParticipantUnavailable`` if the pass stops
        early."""
        self._tools.progress.saw(self._participant.name, self._scan.listed)
        todo: list[Commit | RollBack] = []
        young: list[Commit | RollBack] = []
        undecided: list[Gid] = []
        for branch, stands in self._scan.prepared:
            match for_prepared(branch.gid, stands):
                case Commit() | RollBack() as action:
                    (young if 0 <= branch.age_s < LEFT_TO_LIVE_S else todo).append(action)
                case LeaveAlone():
                    self._tools.counters.seen_active += 1
                    self._line(branch.gid, str(stands), "wait", "nothing")
                case Terminate(gid):
                    undecided.append(gid)
                case ReportOnly():
                    self._line(branch.gid, str(stands), "report", "nothing", stands.why)
        dead: list[Gid] = []
        if undecided or young:
            alive = await self._tools.terminator.alive()
            dead = [gid for gid in undecided if not self._lives(gid, BranchStanding.ASK_PROTOCOL, alive)]
            old = [action for action in young if not self._lives(action.gid, _stands(action), alive)]
            self._tools.left_to_live |= len(old) < len(young)
            todo += old
        await self._act_on(todo)
        await each(dead, self._terminate, parallel=self._tools.parallel)
        await each(self._left_behind(), self._judge, parallel=self._tools.parallel)

    def _lives(self, gid: Gid, stands: BranchStanding, alive: Callable[[TxId], bool]) -> bool:
        if not alive(gid.txid):
            return False
        self._tools.counters.seen_active += 1
        self._line(gid, str(stands), "wait", "nothing", "its coordinator is alive")
        return True

    async def _terminate(self, gid: Gid) -> None:
        stands = str(BranchStanding.ASK_PROTOCOL)
        if self._dry_run:
            self._line(gid, stands, "terminate", "would_do")
            return
        try:
            ended = await self._tools.terminator.end(self._participant, gid)
            if ended.decision is None:
                result = "nothing" if ended.hopeless else "look_again"
                self._line(gid, stands, "terminate", result, ended.why)
                return
            result, why = await self._settle(gid, ended.decision)
        except ParticipantError as error:
            self._line(gid, stands, "terminate", "failed", str(error))
            self._failed(error)
        else:
            self._unavailable = 0
            self._line(gid, stands, "terminate", result, why or ended.why)

    def _left_behind(self) -> list[tuple[DecisionRecord, BranchRecord]]:
        progress = self._tools.progress
        before_s = asyncio.get_running_loop().time() - self._young_s
        return [
            (record, branch)
            for record, branch in self._scan.absent()
            if progress.known_since(record.txid) <= before_s
            and not progress.is_done(record.txid, branch.number)
        ]

    async def _act_on(self, todo: list[Commit | RollBack]) -> None:
        """Few branches are settled one by one, each in a session of its own; of many, several at once in each
        session."""
        parallel = self._tools.parallel
        alone = self._tools.alone.setdefault(self._participant.name, set())
        alone &= {action.gid for action in todo}
        together = [action for action in todo if action.gid not in alone]
        if self._dry_run or len(together) <= parallel:
            await each(todo, self._act, parallel=parallel)
            return
        size = min(max(-(-len(together) // parallel), TOGETHER_MIN), TOGETHER_MAX)
        parts = [together[start : start + size] for start in range(0, len(together), size)]
        await each(parts, self._act_together, parallel=parallel)
        await each(self._one_by_one, self._act_now, parallel=parallel)
        await each([action for action in todo if action.gid in alone], self._act, parallel=parallel)

    async def _act_together(self, actions: Sequence[Commit | RollBack]) -> None:
        endings = [Ending(one.gid, _decision(one), self._scan.evidence(one.gid)) for one in actions]
        for ending in endings:
            await self._reach(_BEFORE, ending.gid, ending.order)
        results = await self._participant.settle_each(endings)
        if results is None:
            self._one_by_one += actions
            return
        lost = None
        for action, result in zip(actions, results, strict=True):
            if not isinstance(result, ParticipantError):
                self._unavailable = 0
                self._line_of(action, *await self._settled(action.gid, _decision(action), result))
                continue
            self._line_of(action, "failed", str(result))
            if isinstance(result, ParticipantUnavailable) and lost is None:
                lost = result
                self._tools.alone[self._participant.name].add(action.gid)
        if lost is not None and all(isinstance(one, ParticipantUnavailable) for one in results):
            self._failed(lost)

    async def _act_now(self, action: Commit | RollBack) -> None:
        await self._act(action, reached=True)

    async def _act(self, action: Commit | RollBack, *, reached: bool = False) -> None:
        if self._dry_run:
            self._line_of(action, "would_do")
            return
        try:
            result, why = await self._settle(action.gid, _decision(action), reached=reached)
        except ParticipantError as error:
            self._line_of(action, "failed", str(error))
            self._failed(error)
        else:
            self._unavailable = 0
            self._line_of(action, result, why)

    def _line_of(self, action: Commit | RollBack, result: str, why: str = "") -> None:
        name = "commit" if isinstance(action, Commit) else "rollback"
        self._line(action.gid, str(_stands(action)), name, result, why)

    async def _reach(self, steps: Mapping[Decision, RecoveryStep], gid: Gid, decision: Decision) -> None:
        await reach(self._tools.observe, steps[decision], gid)

    async def _settle(self, gid: Gid, decision: Decision, *, reached: bool = False) -> tuple[str, str]:
        """``reached``: the step before it has been reached already."""
        if not reached:
            await self._reach(_BEFORE, gid, decision)
        settled = await self._participant.settle(gid, decision, self._scan.evidence(gid))
        return await self._settled(gid, decision, settled)

    async def _settled(self, gid: Gid, decision: Decision, settled: Settled) -> tuple[str, str]:
        tools = self._tools
        commits = decision is Decision.COMMIT
        await self._reach(_AFTER, gid, decision)
        if settled is Settled.APPLIED and commits:
            tools.counters.committed += 1
        elif settled is Settled.APPLIED:
            tools.counters.rolled_back += 1
        if settled is Settled.HEURISTIC_HAZARD:
            # It vanished after it was listed. The next pass judges it, with a list taken after the decision
            # was read and with the evidence recorded with the decision.
            return "look_again", "another process finished it meanwhile"
        match for_settled(gid, decision, settled):
            case BranchDone():
                if settled in HEURISTICS:
                    await self._participant.forget(gid)
                tools.progress.done(gid)
                self.applied.add(gid)
                return "done", ""
            case LookAgain():
                return "look_again", "busy: another process is finishing it"
            case RecordHeuristicOutcome() as found:
                await self._record(found)
                return "done", str(found.kind)

    async def _judge(self, item: tuple[DecisionRecord, BranchRecord]) -> None:
        record, branch = item
        gid = branch.gid(self._tools.ledger.ledger_id, record.protocol, record.txid)
        if branch.xid is None and (record.protocol, record.decision) == (Protocol.LAST, Decision.COMMIT):
            await self._conclude(BranchDone(gid))  # the agent's own branch, whose COMMIT was the decision
            return
        try:
            seen = self._tools.progress.seen(self._participant.name, gid)
            xact_status = await ask_books(self._participant, gid, branch, seen)
            await self._conclude(for_absent(gid, record.decision, xact_status))
        except ParticipantError as error:
            self._line(gid, None, "finish", "failed", str(error))
            self._failed(error)
        else:
            self._unavailable = 0

    async def _conclude(self, action: BranchDone | LookAgain | RecordHeuristicOutcome) -> None:
        progress = self._tools.progress
        match action:
            case BranchDone(gid):
                if not self._dry_run:
                    progress.done(gid)
                self._line(gid, None, "finish", "would_do" if self._dry_run else "done")
            case LookAgain(gid):
                self._line(gid, None, "look_again", "look_again", "its database says it is in progress")
            case RecordHeuristicOutcome(gid, kind):
                if self._dry_run:
                    self._line(gid, None, "heuristic", "would_do", str(kind))
                elif kind is Settled.HEURISTIC_HAZARD and not self._is_sure(gid):
                    self._line(gid, None, "look_again", "look_again", "nothing proves what became of it")
                elif kind is Settled.HEURISTIC_HAZARD and await applied_elsewhere(self._tools.ledger, gid):
                    progress.done(gid)
                    self._line(gid, None, "finish", "done", "another recovery has finished its transaction")
                else:
                    await self._record(action)
                    self._line(gid, None, "heuristic", "done", str(kind))

    def _is_sure(self, gid: Gid) -> bool:
        now_s = asyncio.get_running_loop().time()
        return self._tools.progress.sure(gid, now_s, self._tools.hazard_grace_s)

    async def _record(self, found: RecordHeuristicOutcome) -> None:
        await heuristics.record(self._tools.ledger, self._participant, found)
        self._tools.counters.heuristics += 1
        self._tools.progress.done(found.gid)

    def _failed(self, error: ParticipantError) -> None:
        if isinstance(error, ParticipantUnavailable):
            self._unavailable += 1
            if self._unavailable >= UNAVAILABLE_MAX:
                raise error

    def _line(self, gid: object, stands: str | None, action: str, result: str, why: str = "") -> None:
        self.lines.append(ReportedBranch(str(gid), self._participant.name, stands, action, result, why))


def _decision(action: Commit | RollBack) -> Decision:
    return Decision.COMMIT if isinstance(action, Commit) else Decision.ABORT


def _stands(action: Commit | RollBack) -> BranchStanding:
    return BranchStanding.COMMITTED if isinstance(action, Commit) else BranchStanding.ABORTED


async def finish(tools: RecoveryContext, scan: Scan) -> list[str]:
    """Finish in the ledger the transactions that are applied everywhere; returns their ids. Raises
    ``LedgerError``."""
    finished: list[str] = []
    claimed: list[TxId] = []
    try:
        while txids := tools.progress.claim(scan.records.values()):
            claimed += txids
            for txid in txids:
                await reach(tools.observe, RecoveryStep.BEFORE_FINISH, txid)
            await tools.ledger.finish(txids)
            tools.progress.finished(txids)
            finished += map(str, txids)
            for txid in txids:
                await reach(tools.observe, RecoveryStep.AFTER_FINISH, txid)
    finally:
        tools.progress.release(claimed)
    tools.counters.finished += len(finished)
    return finished
