"""A participant in memory with scripted answers, for tests of protocols and recovery, here and in
applications.

Without a script it is a correct small resource manager: it prepares, commits, rolls back, lists its prepared
branches, and records outcomes. A :class:`Script` replaces single answers, so that a test can make the
participant refuse, give a wrong answer, or give none. ``calls`` is the trace; ``before`` is awaited before
every call takes effect.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from undoubt.participants.contract import (
    HEURISTICS,
    Decision,
    Ending,
    Evidence,
    HeuristicAtPrepare,
    PreparedBranch,
    PrepareResult,
    PrepareUnanswered,
    Settled,
    TimelineHistory,
    Vote,
    Waiting,
    Work,
    XactStatus,
    judge,
)
from undoubt.participants.errors import BranchFailed, ParticipantError, StaleLock, UsageError
from undoubt.participants.findings import Finding, Severity
from undoubt.participants.ids import NO_KEY, Gid, Protocol, SessionKey
from undoubt.participants.invariant import invariant
from undoubt.participants.last_agent import AgentEntry, AgentUnanswered
from undoubt.participants.outbox import Publication, dedupe_id
from undoubt.participants.scripted_agent import MemoryAgent
from undoubt.participants.scripted_three_phase import MemoryStates

ScriptedAnswer = Settled | BaseException | None
"""None: the correct answer."""


@dataclass(slots=True)
class Script:
    """The answers that replace the correct ones. A list is used from its head; its last element stays."""

    work: Work | BaseException = Work.WRITES
    begin: BaseException | None = None
    prepare: Vote | Settled | BaseException | None = None
    """A heuristic ``Settled``: the participant ended the branch by its own decision. An exception: no answer
    came, nothing happened."""
    one_phase: ScriptedAnswer = None
    commit: list[ScriptedAnswer] = field(default_factory=list)
    rollback: list[ScriptedAnswer] = field(default_factory=list)
    surely_writes: bool = False
    prepares: bool = True
    """Whether the database can prepare. PREPARE succeeds in any case."""
    agent: BaseException | None = None
    """What the COMMIT of the agent raises. ``AgentUnanswered``: nothing has arrived yet, and
    :meth:`ScriptedParticipant.arrive` executes it."""
    agent_check: BaseException | None = None
    """The error of a branch that cannot be the agent."""
    end_reading: BaseException | None = None
    """The error that the COMMIT of a branch that only read raises."""


def _next(answers: list[ScriptedAnswer]) -> ScriptedAnswer:
    if not answers:
        return None
    return answers.pop(0) if len(answers) > 1 else answers[0]


Before = Callable[[str, Gid], Awaitable[None]]


class ScriptedParticipant:
    """A participant in memory, see the module. ``system`` and ``timeline`` are those of its evidence; change
    them to simulate another server."""

    def __init__(self, name: str, script: Script | None = None, *, before: Before | None = None) -> None:
        self.name = name
        self.names = frozenset({name})
        self.other_ledgers: frozenset[str] = frozenset()
        self.script = script or Script()
        self.before = before
        self.calls: list[tuple[str, Gid]] = []
        self.agent_calls: list[str] = []
        self.prepared: dict[Gid, int] = {}
        self.xact_statuses: dict[int, XactStatus] = {}
        self.foreign: list[PreparedBranch] = []
        self.ended: list[PreparedBranch] = []
        """The branches of ``foreign`` that ``end_impostor`` has rolled back."""
        self.waiting: list[Waiting] = []
        self.cancelled: list[Waiting] = []
        self.findings: list[Finding] = []
        self.system = 7_000_000_000_000_000_001
        self.timeline = "00000001"
        self.history: TimelineHistory | None = None
        self.age_s = 60.0
        """How long ago each branch was prepared, as the list shows it."""
        self.at_once = False
        """Whether it can settle several branches in one call; ``together`` are these calls."""
        self.together: list[list[Gid]] = []
        self.down: BaseException | None = None
        """The error that every call raises while this is set."""
        self.tokens: dict[tuple[str, str], int] = {}
        """The highest token of each lock that a branch has shown, by ledger and name."""
        self.branches: list[ScriptedBranch] = []
        self.next_xid = 1_000
        self.agent = MemoryAgent(self._reach_agent, lambda: self.script.prepares)
        self.on_the_way: list[tuple[ScriptedBranch, AgentEntry, bytes]] = []
        """COMMITs of the agent that have not arrived."""
        self.states = MemoryStates(lambda gid: self.xact_status(gid) is XactStatus.COMMITTED, self.record)

    async def record(self, call: str, gid: Gid) -> None:
        if self.before is not None:
            await self.before(call, gid)
        if self.down is not None:
            raise self.down
        self.calls.append((call, gid))

    async def _reach_agent(self, call: str) -> None:
        if self.down is not None:
            raise self.down
        self.agent_calls.append(call)

    def arrive(self) -> None:
        """Execute the COMMITs of the agent that were not answered."""
        while self.on_the_way:
            branch, entry, branches = self.on_the_way.pop(0)
            branch.commit_on_arrival(entry, branches)

    def trace(self, gid: Gid | None = None) -> list[str]:
        """The names of the calls for ``gid``, or for all branches if None, in order."""
        return [call for call, of in self.calls if gid is None or of == gid]

    async def begin(self, gid: Gid, *, timeout_s: float, key: SessionKey = NO_KEY) -> ScriptedBranch:
        await self.record("begin", gid)
        if self.script.begin is not None:
            raise self.script.begin
        self.next_xid += 1
        self.xact_statuses[self.next_xid] = XactStatus.IN_PROGRESS
        branch = ScriptedBranch(self, gid, self.next_xid)
        self.branches.append(branch)
        return branch

    async def in_doubt(self) -> Sequence[PreparedBranch]:
        if self.down is not None:
            raise self.down
        ours = [
            PreparedBranch(
                gid,
                owner="scripted",
                database=self.name,
                prepared_at=0.0,
                age_s=self.age_s,
                xid=xid,
                evidence=Evidence(xid, self.system, self.timeline),
            )
            for gid, xid in self.prepared.items()
        ]
        return [*ours, *self.foreign]

    async def settle(self, gid: Gid, order: Decision, evidence: Evidence | None) -> Settled:
        await self.record(f"settle_{order.verb}", gid)
        answer = _next(self.script.commit if order is Decision.COMMIT else self.script.rollback)
        return await self._answer(answer, gid, order, evidence)

    async def settle_each(self, endings: Sequence[Ending]) -> Sequence[Settled | ParticipantError] | None:
        if not self.at_once:
            return None
        self.together.append([gid for gid, _, _ in endings])
        results: list[Settled | ParticipantError] = []
        for ending in endings:
            try:
                results.append(await self.settle(*ending))
            except ParticipantError as error:
                results.append(error)
        return results

    async def _answer(
        self, answer: ScriptedAnswer, gid: Gid, order: Decision, evidence: Evidence | None
    ) -> Settled:
        if isinstance(answer, BaseException):
            raise answer
        if answer is Settled.ABSENT:
            return judge(order, XactStatus.UNKNOWN)
        if answer is not None:
            if answer in HEURISTICS:
                self.prepared.pop(gid, None)
            return answer
        xid = self.prepared.pop(gid, None)
        if xid is None:
            xact_status = XactStatus.UNKNOWN if evidence is None else await self.evidence(evidence)
            return judge(order, xact_status)
        self.xact_statuses[xid] = XactStatus.COMMITTED if order is Decision.COMMIT else XactStatus.ABORTED
        return Settled.APPLIED

    async def end_impostor(self, branch: PreparedBranch) -> Settled:
        if self.down is not None:
            raise self.down
        if branch not in self.foreign:
            return Settled.ABSENT
        self.foreign.remove(branch)
        self.ended.append(branch)
        return Settled.APPLIED

    async def evidence(self, evidence: Evidence) -> XactStatus:
        if self.down is not None:
            raise self.down
        if (evidence.system, evidence.timeline) != (self.system, self.timeline):
            return XactStatus.UNKNOWN
        if evidence.xid > self.next_xid:
            return XactStatus.NEVER_ASSIGNED
        return self.xact_statuses.get(evidence.xid, XactStatus.UNKNOWN)

    async def timeline_history(self) -> TimelineHistory | None:
        if self.down is not None:
            raise self.down
        return self.history

    async def forget(self, gid: Gid) -> None:
        await self.record("forget", gid)

    async def waits(self) -> Sequence[Waiting]:
        if self.down is not None:
            raise self.down
        return list(self.waiting)

    async def cancel_waiter(self, waiting: Waiting) -> bool:
        self.cancelled.append(waiting)
        return True

    async def check(self, *, protocol: Protocol = Protocol.TWO_PHASE) -> Sequence[Finding]:
        if self.down is not None:
            return [Finding(self.name, "reach", Severity.UNREACHABLE, str(self.down))]
        return [*self.findings, Finding(self.name, "reach", Severity.OK, "scripted")]

    async def close(self) -> None:
        self.down = UsageError(f"participant {self.name!r} is closed")

    def finish_by_hand(self, gid: Gid, order: Decision) -> None:
        """End a prepared branch as an operator does in psql."""
        xid = self.prepared.pop(gid)
        self.xact_statuses[xid] = XactStatus.COMMITTED if order is Decision.COMMIT else XactStatus.ABORTED

    def xact_status(self, gid: Gid) -> XactStatus:
        """The outcome of the branch that was begun with ``gid``."""
        for branch in self.branches:
            if branch.gid == gid:
                return self.xact_statuses[branch.xid]
        return XactStatus.UNKNOWN


class ScriptedBranch:
    """A branch of a :class:`ScriptedParticipant`; ``connection`` is the branch itself."""

    def __init__(self, participant: ScriptedParticipant, gid: Gid, xid: int) -> None:
        self.participant = participant
        self.gid = gid
        self.xid = xid
        self.released = False
        self._vote: Vote | None = None
        self._evidence: Evidence | None = None
        self._ended = False
        self._to_forget = False
        self._stale = False
        self.published: list[Publication] = []

    @property
    def connection(self) -> ScriptedBranch:
        return self

    @property
    def prepares(self) -> bool:
        return self.participant.script.prepares

    @property
    def surely_writes(self) -> bool:
        return self.participant.script.surely_writes

    def break_off(self, why: Callable[[], Exception]) -> None:
        """Does nothing: no application uses the connection."""

    async def guard_lock(self, ledger: str, name: str, token: int) -> None:
        await self.participant.record("guard", self.gid)
        seen = self.participant.tokens.get((ledger, name), 0)
        if token < seen:
            self._stale = True
            raise StaleLock(self.participant.name, f"lock {name}: token {token} is stale, {seen} was shown")
        self.participant.tokens[ledger, name] = token

    async def publish(self, publication: Publication) -> str:
        await self.participant.record("publish", self.gid)
        self.published.append(publication)
        return dedupe_id(self.gid, len(self.published))

    async def poll(self) -> Work:
        await self.participant.record("poll", self.gid)
        if self._stale:
            raise BranchFailed(self.participant.name, "its transaction has failed")
        work = self.participant.script.work
        if isinstance(work, BaseException):
            raise work
        return work

    async def prepare(self) -> PrepareResult:
        await self.participant.record("prepare", self.gid)
        answer = self.participant.script.prepare
        if isinstance(answer, Settled):
            self._end(None)
            self._to_forget = True
            raise HeuristicAtPrepare(answer)
        if isinstance(answer, BaseException):
            raise PrepareUnanswered(answer)
        self._vote = answer or Vote.PREPARED
        match self._vote:
            case Vote.PREPARED:
                self.participant.prepared[self.gid] = self.xid
                self._evidence = Evidence(self.xid, self.participant.system, self.participant.timeline)
                return PrepareResult(Vote.PREPARED, self._evidence)
            case Vote.READ_ONLY:
                return PrepareResult(Vote.READ_ONLY)
            case Vote.ABORT:
                self.participant.xact_statuses[self.xid] = XactStatus.ABORTED
                reason = BranchFailed(self.participant.name, "votes abort, as scripted")
                return PrepareResult(Vote.ABORT, reason=reason)

    async def commit_one_phase(self) -> Settled:
        await self.participant.record("one_phase", self.gid)
        answer = self.participant.script.one_phase
        if isinstance(answer, BaseException):
            self._end(XactStatus.ABORTED)
            raise answer
        if answer is not None:
            self._to_forget = answer in HEURISTICS
            return answer
        self._end(XactStatus.COMMITTED)
        return Settled.APPLIED

    async def check_as_agent(self, entry: AgentEntry) -> None:
        await self.participant.record("check_as_agent", self.gid)
        if self.participant.script.agent_check is not None:
            raise self.participant.script.agent_check
        if entry.place.history != self.participant.agent.history:
            raise BranchFailed(self.participant.name, "it is in another history")

    async def commit_as_agent(self, entry: AgentEntry, branches: bytes) -> None:
        await self.participant.record("commit_as_agent", self.gid)
        answer = self.participant.script.agent
        if isinstance(answer, AgentUnanswered):
            self.participant.on_the_way.append((self, entry, branches))
            self._ended = True
        if answer is not None:
            raise answer
        if not self.commit_on_arrival(entry, branches):
            raise BranchFailed(self.participant.name, "its transaction was aborted by a tombstone")

    def commit_on_arrival(self, entry: AgentEntry, branches: bytes) -> bool:
        """Execute COMMIT. False if it has met a tombstone."""
        committed = self.participant.agent.commit(entry, branches)
        self.participant.xact_statuses[self.xid] = XactStatus.COMMITTED if committed else XactStatus.ABORTED
        self._ended = True
        return committed

    async def commit(self) -> Settled:
        if self._vote is not Vote.PREPARED:
            await self.participant.record("end_read_only", self.gid)
            if (refusal := self.participant.script.end_reading) is not None:
                self._end(XactStatus.ABORTED)
                raise refusal
            self._end(XactStatus.COMMITTED)
            return Settled.APPLIED
        await self.participant.record("commit", self.gid)
        return await self._settle(_next(self.participant.script.commit), Decision.COMMIT)

    async def rollback(self) -> Settled:
        if self._vote is Vote.READ_ONLY:
            await self.participant.record("end_read_only", self.gid)
            self._end(XactStatus.ABORTED)
            return Settled.APPLIED
        await self.participant.record("rollback", self.gid)
        answer = _next(self.participant.script.rollback)
        if answer is None and self._vote is not Vote.PREPARED:
            self._end(XactStatus.ABORTED)
            return Settled.APPLIED
        return await self._settle(answer, Decision.ABORT)

    async def _settle(self, answer: ScriptedAnswer, order: Decision) -> Settled:
        settled = await self.participant._answer(answer, self.gid, order, self._evidence)
        self._to_forget = settled in HEURISTICS and answer is not Settled.ABSENT
        return settled

    async def forget(self) -> None:
        if self._to_forget:
            await self.participant.forget(self.gid)

    async def release(self) -> None:
        self.released = True
        if self.gid not in self.participant.prepared and not self._ended:
            self._end(XactStatus.ABORTED)

    def _end(self, xact_status: XactStatus | None) -> None:
        invariant(not self._ended or xact_status is XactStatus.ABORTED, f"branch {self.gid} ended twice")
        self._ended = True
        if xact_status is not None and self.participant.xact_statuses[self.xid] is XactStatus.IN_PROGRESS:
            self.participant.xact_statuses[self.xid] = xact_status
