"""The state of one commit, which the protocol changes and the caller of ``commit`` watches.

A protocol is an async function of a :class:`CommitContext`. It runs in a separate task that ignores
cancellation; the caller watches the context, and may be cancelled at any time without an effect on the
commit.

The table :data:`TRANSITIONS` is the whole state machine of a commit, for all protocols: what has been
decided, what the ledger holds, and whether the branches have ended. Everything that decides what may happen
next is in the table; the diagram in ``docs/protocols-background.md`` and the property tests derive from
it."""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from undoubt.coordinator.errors import HeuristicOutcome, LedgerUnavailable, OutcomeUnknown, TransactionAborted
from undoubt.coordinator.ledger.agents import AgentBinding
from undoubt.coordinator.ledger.contract import BranchRecord, Heuristic, Ledger, RecordedDecision, record_of
from undoubt.coordinator.protocols.steps import Observer, reach
from undoubt.participants.backoff import pauses
from undoubt.participants.contract import Branch, Decision, Evidence, Participant, Settled, Vote
from undoubt.participants.ids import NO_KEY, Gid, Protocol, SessionKey, TxId
from undoubt.participants.invariant import state_after
from undoubt.participants.last_agent import AgentEntry
from undoubt.participants.three_phase import Termination

T = TypeVar("T")


class Phase(enum.IntEnum):
    """How far a commit has come, as users and metrics see it; a phase never decreases."""

    VOTING = 1
    """Nothing is decided; an error or the timeout aborts the transaction."""
    DECIDING = 2
    """COMMIT may be certain: no branch may be rolled back unless ABORT is known to be certain."""
    ABORTED = 3
    """ABORT is certain. Branches are being rolled back."""
    COMMITTED = 4
    """COMMIT is certain."""
    APPLIED = 5
    """COMMIT was sent at least once to every branch; ``pending`` lists the branches that have not
    confirmed."""


class CommitState(enum.StrEnum):
    """The state of one commit: what is decided, what the ledger holds, and whether all branches have
    ended."""

    VOTING = "voting"
    """Nothing is decided, and the ledger holds nothing."""
    PRECOMMITTING = "precommitting"
    """Three-phase commit: all have voted PREPARED. The ledger may hold PRECOMMIT; no participant does."""

    ONE_PHASE = "one phase"
    """COMMIT was sent to the branches without a vote: their answers are the decision."""
    DECIDING = "deciding"
    """The ledger, or the acceptors, have been asked to decide on COMMIT."""
    AGENT = "agent"
    """Last-agent commit: COMMIT was sent to the agent, and the row of the transaction there is the
    decision."""
    PRECOMMITTED = "precommitted"
    """Three-phase commit: participants may hold PRECOMMIT, so only a termination may abort."""
    REFUSED = "refused"
    """The ledger holds ABORT. Every branch is still prepared."""

    ABORTING = "aborting"
    """Branches are being rolled back, and the ledger holds nothing (presumed abort)."""
    ABORTING_DUE = "aborting, record due"
    """Branches are being rolled back. The ledger holds PRECOMMIT, so ABORT has to be recorded."""
    ABORTING_RECORDED = "aborting, recorded"
    """Branches are being rolled back, and the ledger holds ABORT."""
    LEFT_DUE = "left, record due"
    """A branch may still be prepared, or become prepared. ABORT has to be recorded, so that recovery ends
    it."""
    LEFT = "left"
    """The ledger holds ABORT, and recovery ends the branches that are left."""
    ABORTED = "aborted"
    """Every branch is rolled back, and the ledger holds nothing."""
    ABORTED_RECORDED = "aborted, recorded"
    """Every branch is rolled back. The ledger holds ABORT, and the transaction can be reported as
    finished."""

    COMMITTED = "committed"
    """The only writing branch has committed, and the ledger holds nothing."""
    FIXED = "fixed"
    """COMMIT is fixed in participants or acceptors, or by the agent. It is being recorded in the ledger and
    sent to the branches."""
    RECORDED = "recorded"
    """The ledger holds COMMIT, which is being sent to the branches."""
    FIXED_SENT = "fixed, sent"
    """The same as FIXED, but COMMIT was sent to every branch, and some branches have not confirmed."""
    RECORDED_SENT = "recorded, sent"
    """The same as RECORDED, but COMMIT was sent to every branch, and some branches have not confirmed."""
    FIXED_APPLIED = "fixed, applied"
    """Every branch has ended. COMMIT is being recorded in the ledger."""
    APPLIED = "applied"
    """Every branch has ended, and the ledger holds nothing."""
    APPLIED_RECORDED = "applied, recorded"
    """Every branch has ended. The ledger holds COMMIT, and the transaction can be reported as finished."""


class CommitEvent(enum.StrEnum):
    """What moves a commit from one state to another."""

    PRECOMMIT_SENT = "precommit sent"
    """Three-phase commit: PRECOMMIT is about to be sent to the ledger."""
    COMMIT_SENT = "commit sent"
    """COMMIT without a vote is about to be sent to the branches."""
    DECIDE_SENT = "decide sent"
    """The request that decides is about to be sent: to the ledger, the acceptors, or the participants'
    rows."""
    AGENT_SENT = "agent sent"
    """Last-agent commit: the row and COMMIT are about to be sent to the agent."""
    BRANCH_COMMITTED = "branch committed"
    """A branch to which COMMIT was sent without a vote has committed."""
    COMMIT_FIXED = "commit fixed"
    """The acceptors have chosen COMMIT; or the agent has committed; or the participants' rows have fixed it:
    every row says PRECOMMIT, or a termination has succeeded."""
    COMMIT_RECORDED = "commit recorded"
    """The ledger holds COMMIT."""
    ABORT_RECORDED = "abort recorded"
    """The ledger holds ABORT."""
    ABORT_CERTAIN = "abort certain"
    """ABORT is certain and its cause is known: the rollback of the branches begins."""
    CONFIRMED = "confirmed"
    """Every branch has ended, and no further branch can become prepared."""
    UNCONFIRMED = "unconfirmed"
    """The decision was sent to every branch, and not all branches have confirmed."""


_S, _E = CommitState, CommitEvent

TRANSITIONS: Mapping[tuple[CommitState, CommitEvent], CommitState] = {
    (_S.VOTING, _E.ABORT_CERTAIN): _S.ABORTING,
    (_S.VOTING, _E.COMMIT_SENT): _S.ONE_PHASE,
    (_S.VOTING, _E.DECIDE_SENT): _S.DECIDING,
    (_S.VOTING, _E.AGENT_SENT): _S.AGENT,
    (_S.VOTING, _E.PRECOMMIT_SENT): _S.PRECOMMITTING,
    (_S.PRECOMMITTING, _E.ABORT_CERTAIN): _S.ABORTING_DUE,
    (_S.PRECOMMITTING, _E.DECIDE_SENT): _S.PRECOMMITTED,
    # The decision.
    (_S.ONE_PHASE, _E.BRANCH_COMMITTED): _S.COMMITTED,
    (_S.ONE_PHASE, _E.ABORT_CERTAIN): _S.ABORTING,
    (_S.DECIDING, _E.COMMIT_RECORDED): _S.RECORDED,
    (_S.DECIDING, _E.COMMIT_FIXED): _S.FIXED,
    (_S.DECIDING, _E.ABORT_RECORDED): _S.REFUSED,
    (_S.AGENT, _E.COMMIT_FIXED): _S.FIXED,
    (_S.AGENT, _E.ABORT_CERTAIN): _S.ABORTING,
    (_S.AGENT, _E.COMMIT_RECORDED): _S.RECORDED,
    (_S.AGENT, _E.ABORT_RECORDED): _S.REFUSED,
    (_S.PRECOMMITTED, _E.COMMIT_FIXED): _S.FIXED,
    (_S.PRECOMMITTED, _E.ABORT_CERTAIN): _S.ABORTING_DUE,
    (_S.REFUSED, _E.ABORT_CERTAIN): _S.ABORTING_RECORDED,
    # The rollback.
    (_S.ABORTING, _E.CONFIRMED): _S.ABORTED,
    (_S.ABORTING, _E.UNCONFIRMED): _S.LEFT_DUE,
    (_S.ABORTING_DUE, _E.ABORT_RECORDED): _S.ABORTING_RECORDED,
    (_S.ABORTING_DUE, _E.UNCONFIRMED): _S.LEFT_DUE,
    (_S.ABORTING_RECORDED, _E.CONFIRMED): _S.ABORTED_RECORDED,
    (_S.ABORTING_RECORDED, _E.UNCONFIRMED): _S.LEFT,
    (_S.LEFT_DUE, _E.ABORT_RECORDED): _S.LEFT,
    # The second phase.
    (_S.COMMITTED, _E.CONFIRMED): _S.APPLIED,
    (_S.FIXED, _E.COMMIT_RECORDED): _S.RECORDED,
    (_S.FIXED, _E.CONFIRMED): _S.FIXED_APPLIED,
    (_S.FIXED, _E.UNCONFIRMED): _S.FIXED_SENT,
    (_S.FIXED_SENT, _E.COMMIT_RECORDED): _S.RECORDED_SENT,
    (_S.FIXED_SENT, _E.CONFIRMED): _S.FIXED_APPLIED,
    (_S.FIXED_APPLIED, _E.COMMIT_RECORDED): _S.APPLIED_RECORDED,
    (_S.RECORDED, _E.CONFIRMED): _S.APPLIED_RECORDED,
    (_S.RECORDED, _E.UNCONFIRMED): _S.RECORDED_SENT,
    (_S.RECORDED_SENT, _E.CONFIRMED): _S.APPLIED_RECORDED,
}
"""The state after each event. An event that a state does not have here is a bug, and raises."""

PHASES: Mapping[CommitState, Phase] = {
    _S.VOTING: Phase.VOTING,
    _S.PRECOMMITTING: Phase.VOTING,
    _S.ONE_PHASE: Phase.DECIDING,
    _S.DECIDING: Phase.DECIDING,
    _S.AGENT: Phase.DECIDING,
    _S.PRECOMMITTED: Phase.DECIDING,
    _S.REFUSED: Phase.DECIDING,
    _S.ABORTING: Phase.ABORTED,
    _S.ABORTING_DUE: Phase.ABORTED,
    _S.ABORTING_RECORDED: Phase.ABORTED,
    _S.LEFT_DUE: Phase.ABORTED,
    _S.LEFT: Phase.ABORTED,
    _S.ABORTED: Phase.ABORTED,
    _S.ABORTED_RECORDED: Phase.ABORTED,
    _S.COMMITTED: Phase.COMMITTED,
    _S.FIXED: Phase.COMMITTED,
    _S.RECORDED: Phase.COMMITTED,
    _S.FIXED_SENT: Phase.APPLIED,
    _S.RECORDED_SENT: Phase.APPLIED,
    _S.FIXED_APPLIED: Phase.APPLIED,
    _S.APPLIED: Phase.APPLIED,
    _S.APPLIED_RECORDED: Phase.APPLIED,
}

OUTCOMES: Mapping[Phase, Decision | None] = {
    Phase.VOTING: None,
    Phase.DECIDING: None,
    Phase.ABORTED: Decision.ABORT,
    Phase.COMMITTED: Decision.COMMIT,
    Phase.APPLIED: Decision.COMMIT,
}
"""The outcome that a caller may get in each phase. None: the outcome is not known yet, however much time has
passed."""

CERTAIN_BEFORE_THE_LEDGER = frozenset({_S.FIXED, _S.FIXED_SENT, _S.FIXED_APPLIED})
"""The states in which COMMIT is certain, and the ledger may not have it yet."""
FINISHED = frozenset({_S.ABORTED_RECORDED, _S.APPLIED_RECORDED})
"""The states in which every branch has ended, and the ledger keeps a record until the transaction is reported
as finished."""
COMMIT_IN_THE_LEDGER = frozenset({_S.RECORDED, _S.RECORDED_SENT, _S.APPLIED_RECORDED})
"""The states in which the ledger holds COMMIT."""
NOTHING_LEFT = FINISHED | {_S.ABORTED, _S.APPLIED}
"""The states in which every branch has ended, and no process will need the participants' rows for the
outcome."""


@dataclass(slots=True)
class VoteTally:
    """The answers of the first phase. ``failure`` is the first reason to abort, in the order of the
    branches."""

    asked: tuple[Gid, ...] = ()
    """Branches to which PREPARE may have been sent."""
    unanswered: set[Gid] = field(default_factory=set)
    """The branches of ``asked`` whose answer is missing: such a branch may still become prepared."""
    reading: set[Gid] = field(default_factory=set)
    """Branches that are not known to have written: their end, in either direction, does not show the
    outcome."""
    prepared: list[tuple[Branch, Evidence | None]] = field(default_factory=list)
    heuristic: list[tuple[Branch, Settled]] = field(default_factory=list)
    failure: BaseException | None = None
    votes: dict[str, Vote] = field(default_factory=dict)
    """The votes as users see them, by :func:`label`."""


@dataclass(frozen=True, slots=True)
class GivenKey:
    """The idempotency key that a transaction has claimed, the proof that it may use it, and its encoded
    result."""

    key: str
    proof: str
    result: bytes


@dataclass(slots=True)
class CommitContext:
    """One transaction during its commit.

    ``branches`` are in the stable order of their participants' names, so that no two commits prepare in
    opposite order. ``deadline`` is in seconds of the event loop's clock.
    """

    txid: TxId
    branches: tuple[Branch, ...]
    ledger: Ledger
    deadline: float
    observer: Observer | None = None
    protocol: Protocol = Protocol.TWO_PHASE
    termination: Termination = Termination.QUORUM
    """For three-phase commit: the rule by which a termination has to end the transaction."""
    find: Callable[[str], Participant | None] = lambda _: None
    """Returns a participant by name; None if this process has no participant of that name now."""
    agent: AgentBinding | None = None
    """For last-agent commit: the agent of the transaction's session."""
    key: SessionKey = NO_KEY
    """The key of the transaction's session, which proves the gids and notes of this coordinator."""
    prepares_all: bool = False
    """Whether every branch is prepared, even if it has not written, and every commit is recorded, so that the
    outcome can be read from the ledger alone."""
    given_key: GivenKey | None = None
    """The transaction's idempotency key: its commit is recorded in any case, with the result. For two-phase
    commit only."""
    on_phase: Callable[[Phase], None] | None = None
    """Called by :meth:`move` with each phase that ends; set for metrics."""

    state: CommitState = CommitState.VOTING
    """Changed only by :meth:`move`: what may happen next depends on nothing else."""
    tally: VoteTally = field(default_factory=VoteTally)
    cause: BaseException | None = None
    """Why the transaction is aborted; set once ABORT is certain."""
    interruption: BaseException | None = None
    """Why a statement of a branch is cancelled from outside during the first phase; if the transaction aborts
    then, this is the cause."""
    agent_row: AgentEntry | None = None
    """For last-agent commit: the row that the agent may hold; set before COMMIT is sent to the agent."""
    pending: dict[Gid, Branch] = field(default_factory=dict)
    """Branches that have not confirmed the decision; recovery finishes them."""
    heuristics: dict[Gid, Settled] = field(default_factory=dict)
    heuristic_cause: BaseException | None = None
    """The error of a branch that ended otherwise than decided; None if there was no error."""
    held: tuple[Branch, ...] = field(init=False)
    """Branches whose connections have not been released."""
    answer_ready: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    """Done once the caller can get the outcome, or the commit task has ended."""

    def __post_init__(self) -> None:
        self.held = self.branches

    def move(self, event: CommitEvent) -> None:
        """Change the state as :data:`TRANSITIONS` says. Raises ``InvariantViolation`` for an event that is
        not in the table for the current state."""
        before, after = self.state, state_after(TRANSITIONS, self.state, event, str(self.txid))
        self.state = after
        if PHASES[after] is not PHASES[before]:
            if self.on_phase is not None:
                self.on_phase(PHASES[before])
            if PHASES[after] is Phase.APPLIED:
                self.set_answer_ready()

    @property
    def phase(self) -> Phase:
        return PHASES[self.state]

    @property
    def decision(self) -> Decision | None:
        """The outcome that the caller may get; None as long as the outcome is not certain."""
        return OUTCOMES[self.phase]

    def note_on(self, error: BaseException) -> None:
        """Add a note to ``error``, which leaves a call or a block of the application, if the transaction may
        have committed. An outcome names the transaction itself; nor is a second note added."""
        told = any(str(self.txid) in note for note in getattr(error, "__notes__", ()))
        if told or self.phase is Phase.ABORTED:
            return
        outcomes = TransactionAborted, OutcomeUnknown, HeuristicOutcome
        if isinstance(error, outcomes) and error.txid == self.txid:
            return
        goes_on = f"the commit of transaction {self.txid} goes on; coordinator.outcome returns its outcome"
        has_committed = f"transaction {self.txid} has committed"
        error.add_note(has_committed if self.decision is Decision.COMMIT else goes_on)

    def set_answer_ready(self) -> None:
        """Wake the caller: the outcome is known, or nothing more will become known in this process."""
        if not self.answer_ready.done():
            self.answer_ready.set_result(None)

    async def release(self) -> None:
        """Release the connections of the branches; only once, since another transaction may use them
        afterwards."""
        held, self.held = self.held, ()
        for branch in held:
            await branch.release()

    @property
    def readers(self) -> tuple[Branch, ...]:
        """Branches that are not known to have written."""
        return tuple(branch for branch in self.branches if branch.gid in self.tally.reading)

    @property
    def rows(self) -> tuple[Gid, ...]:
        """For three-phase commit: branches whose rows have to be deleted once the transaction is finished."""
        return self.tally.asked if self.protocol is Protocol.THREE_PHASE else ()

    def remaining_s(self) -> float:
        return self.deadline - asyncio.get_running_loop().time()

    async def reach(self, step: enum.StrEnum, subject: Gid | TxId) -> None:
        """Call the observer, if there is one."""
        if self.observer is not None:
            await reach(self.observer, step, subject)


def label(branch: Branch) -> str:
    """Return the name of a branch in votes, as users see it: ``"1:orders"``."""
    return f"{branch.gid.branch}:{branch.gid.participant}"


def branch_record(branch: Branch, evidence: Evidence | None) -> BranchRecord:
    return record_of(branch.gid, evidence)


async def repeat_until_answered(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat ``call`` with growing pauses (10 ms to 1 s) while the ledger gives no answer; return its
    result."""
    waits = None
    while True:
        try:
            return await call()
        except LedgerUnavailable:
            waits = waits or pauses(0.01, 1.0)
            await asyncio.sleep(next(waits))


def worst(kinds: list[Settled], decision: Decision) -> Settled:
    """Return one outcome for several branches, of which ``kinds`` are the heuristic and the applied ones.

    Mixed if it is certain that some committed and some rolled back; otherwise a hazard if any is unknown;
    otherwise all ended against the decision, in the same direction (X/Open XA, heuristic decisions).
    """
    distinct = set(kinds)
    if decision is Decision.COMMIT:
        committed = bool(distinct & {Settled.APPLIED, Settled.HEURISTIC_COMMIT})
        rolled_back = Settled.HEURISTIC_ROLLBACK in distinct
    else:
        committed = Settled.HEURISTIC_COMMIT in distinct
        rolled_back = bool(distinct & {Settled.APPLIED, Settled.ABSENT, Settled.HEURISTIC_ROLLBACK})
    if Settled.HEURISTIC_MIXED in distinct or (committed and rolled_back):
        return Settled.HEURISTIC_MIXED
    if Settled.HEURISTIC_HAZARD in distinct:
        return Settled.HEURISTIC_HAZARD
    return Settled.HEURISTIC_ROLLBACK if rolled_back else Settled.HEURISTIC_COMMIT


async def record_heuristic(
    context: CommitContext, branch: Branch, kind: Settled, decision: Decision, note: str = ""
) -> None:
    """Record the heuristic outcome of ``branch`` in the ledger, where it stays until an operator forgets it;
    then let the branch forget it."""
    context.heuristics[branch.gid] = kind
    found = Heuristic(branch.gid, kind, decision, found_at=time.time(), note=note)
    await repeat_until_answered(lambda: context.ledger.record_heuristic(found))
    await branch.forget()


async def applied_elsewhere(ledger: Ledger, gid: Gid) -> bool:
    """Whether the ledger proves that the branch ``gid`` of a committed transaction has committed: the
    transaction is finished, and no heuristic outcome of this branch is recorded. A transaction is finished
    only after every branch has applied the decision, or its heuristic outcome is recorded. Raises
    ``LedgerError``."""
    info = await ledger.transaction(gid.txid)
    if info is None or not info.finished or info.record is not RecordedDecision.COMMIT:
        return False
    return all(heuristic.gid != gid for heuristic in info.heuristics)


def heuristic_outcome(context: CommitContext, kinds: list[Settled], decision: Decision) -> HeuristicOutcome:
    return HeuristicOutcome(context.txid, worst(kinds, decision), context.heuristics)


def known_heuristics(context: CommitContext, decision: Decision) -> HeuristicOutcome | None:
    """Return the error for a transaction with the outcome ``decision`` of which some branch is known to have
    ended otherwise, or may have. None if there is no such branch."""
    if not context.heuristics:
        return None
    silent = context.tally.reading | context.heuristics.keys()
    applied = any(branch.gid not in silent for branch in context.branches)
    kinds = [*context.heuristics.values(), *([Settled.APPLIED] if applied else [])]
    return heuristic_outcome(context, kinds, decision)
