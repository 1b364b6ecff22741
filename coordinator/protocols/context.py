"""What every commit protocol is given, and what the caller of commit waits for.

A protocol is a plain async function of a :class:`CommitContext`. It runs in a task of its own that nobody
cancels; the caller watches the context and may go away at any time without changing what happens.

:data:`TRANSITIONS` is the whole automaton of a commit, of every protocol: what has been decided, what the
ledger holds, and whether the branches have ended. Everything that decides what may happen next is in it; the
diagram in ``docs/protocols-background.md`` and the property tests derive from it."""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from undoubt.coordinator.errors import HeuristicOutcome, LedgerUnavailable
from undoubt.coordinator.ledger.contract import BranchRecord, Heuristic, Ledger, RecordedDecision, record_of
from undoubt.coordinator.protocols.steps import Observer, reach
from undoubt.participants.backoff import pauses
from undoubt.participants.contract import Branch, Decision, Evidence, Participant, Settled, Vote
from undoubt.participants.ids import NO_KEY, Gid, Protocol, SessionKey, TxId
from undoubt.participants.invariant import InvariantViolation
from undoubt.participants.three_phase import Termination

T = TypeVar("T")


class Phase(enum.IntEnum):
    """How far a commit has come, as users and metrics see it; only ever rises."""

    VOTING = 1
    """Nothing is decided; it will be aborted if anything goes wrong, or time runs out."""
    DECIDING = 2
    """COMMIT may have become certain: no branch may be rolled back unless ABORT is known to be."""
    ABORTED = 3
    """It can never commit. Branches are being rolled back."""
    COMMITTED = 4
    """COMMIT is certain."""
    APPLIED = 5
    """Every branch was told at least once; ``pending`` lists those that have not confirmed."""


class CommitState(enum.StrEnum):
    """Where one commit is: what is decided, what the ledger holds of it, and whether all branches ended."""

    VOTING = "voting"
    """Nothing is decided, and the ledger holds nothing."""
    PRECOMMITTING = "precommitting"
    """Three-phase commit: all have voted PREPARED; the ledger may hold PRECOMMIT, no participant was told."""

    ONE_PHASE = "one phase"
    """The branches have been told COMMIT without a vote: their answers are the decision."""
    DECIDING = "deciding"
    """The ledger, or the acceptors, have been asked to decide on COMMIT."""
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
    """A branch may still be prepared, or become so. ABORT has to be recorded, so that recovery ends it."""
    LEFT = "left"
    """The ledger holds ABORT, and recovery ends the branches that are left."""
    ABORTED = "aborted"
    """Every branch is rolled back, and the ledger holds nothing."""
    ABORTED_RECORDED = "aborted, recorded"
    """Every branch is rolled back. The ledger holds ABORT, and may hear that the transaction is finished."""

    COMMITTED = "committed"
    """The only writing branch has committed, and the ledger holds nothing."""
    FIXED = "fixed"
    """COMMIT is fixed in participants or acceptors. The ledger is being told, and branches are."""
    RECORDED = "recorded"
    """The ledger holds COMMIT. Branches are being told."""
    FIXED_TOLD = "fixed, told"
    """As FIXED; every branch was told, and some have not confirmed."""
    RECORDED_TOLD = "recorded, told"
    """As RECORDED; every branch was told, and some have not confirmed."""
    FIXED_APPLIED = "fixed, applied"
    """Every branch has ended. The ledger is being told of COMMIT."""
    APPLIED = "applied"
    """Every branch has ended, and the ledger holds nothing."""
    APPLIED_RECORDED = "applied, recorded"
    """Every branch has ended. The ledger holds COMMIT, and may hear that the transaction is finished."""


class CommitEvent(enum.StrEnum):
    """What moves a commit from one state to another."""

    PRECOMMIT_SENT = "precommit sent"
    """Three-phase commit: PRECOMMIT is about to be sent to the ledger."""
    COMMIT_SENT = "commit sent"
    """COMMIT without a vote is about to be sent to the branches."""
    DECIDE_SENT = "decide sent"
    """Those who decide are about to be asked: the ledger, the acceptors, or the participants' rows."""
    BRANCH_COMMITTED = "branch committed"
    """A branch that was told COMMIT without a vote has committed."""
    COMMIT_FIXED = "commit fixed"
    """The acceptors have chosen COMMIT, or every participant's row says PRECOMMIT."""
    COMMIT_RECORDED = "commit recorded"
    """The ledger holds COMMIT."""
    ABORT_RECORDED = "abort recorded"
    """The ledger holds ABORT."""
    ABORT_CERTAIN = "abort certain"
    """It can never commit, and why is known: the rollback of the branches begins."""
    CONFIRMED = "confirmed"
    """Every branch is known to have ended as decided, and none can appear any more."""
    UNCONFIRMED = "unconfirmed"
    """Every branch was told, and not all have confirmed."""


_S, _E = CommitState, CommitEvent

TRANSITIONS: Mapping[tuple[CommitState, CommitEvent], CommitState] = {
    (_S.VOTING, _E.ABORT_CERTAIN): _S.ABORTING,
    (_S.VOTING, _E.COMMIT_SENT): _S.ONE_PHASE,
    (_S.VOTING, _E.DECIDE_SENT): _S.DECIDING,
    (_S.VOTING, _E.PRECOMMIT_SENT): _S.PRECOMMITTING,
    (_S.PRECOMMITTING, _E.ABORT_CERTAIN): _S.ABORTING_DUE,
    (_S.PRECOMMITTING, _E.DECIDE_SENT): _S.PRECOMMITTED,
    # Who decides.
    (_S.ONE_PHASE, _E.BRANCH_COMMITTED): _S.COMMITTED,
    (_S.ONE_PHASE, _E.ABORT_CERTAIN): _S.ABORTING,
    (_S.DECIDING, _E.COMMIT_RECORDED): _S.RECORDED,
    (_S.DECIDING, _E.COMMIT_FIXED): _S.FIXED,
    (_S.DECIDING, _E.ABORT_RECORDED): _S.REFUSED,
    (_S.PRECOMMITTED, _E.COMMIT_FIXED): _S.FIXED,
    (_S.PRECOMMITTED, _E.ABORT_CERTAIN): _S.ABORTING_DUE,
    (_S.REFUSED, _E.ABORT_CERTAIN): _S.ABORTING_RECORDED,
    # The way back.
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
    (_S.FIXED, _E.UNCONFIRMED): _S.FIXED_TOLD,
    (_S.FIXED_TOLD, _E.COMMIT_RECORDED): _S.RECORDED_TOLD,
    (_S.FIXED_TOLD, _E.CONFIRMED): _S.FIXED_APPLIED,
    (_S.FIXED_APPLIED, _E.COMMIT_RECORDED): _S.APPLIED_RECORDED,
    (_S.RECORDED, _E.CONFIRMED): _S.APPLIED_RECORDED,
    (_S.RECORDED, _E.UNCONFIRMED): _S.RECORDED_TOLD,
    (_S.RECORDED_TOLD, _E.CONFIRMED): _S.APPLIED_RECORDED,
}
"""All that can happen to a commit. Any other event in a state is a bug, and raises."""

PHASES: Mapping[CommitState, Phase] = {
    _S.VOTING: Phase.VOTING,
    _S.PRECOMMITTING: Phase.VOTING,
    _S.ONE_PHASE: Phase.DECIDING,
    _S.DECIDING: Phase.DECIDING,
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
    _S.FIXED_TOLD: Phase.APPLIED,
    _S.RECORDED_TOLD: Phase.APPLIED,
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
"""What a caller may be told. None: the outcome is not known yet, whatever time has passed."""

CERTAIN_BEFORE_THE_LEDGER = frozenset({_S.FIXED, _S.FIXED_TOLD, _S.FIXED_APPLIED})
"""COMMIT is certain, and the ledger may not know it yet."""
FINISHED = frozenset({_S.ABORTED_RECORDED, _S.APPLIED_RECORDED})
"""Every branch has ended, and the ledger keeps a record until it hears that."""
NOTHING_LEFT = FINISHED | {_S.ABORTED, _S.APPLIED}
"""Every branch has ended, and nobody will ask the participants' rows for the outcome."""


@dataclass(slots=True)
class VoteTally:
    """The answers of the first phase. ``failure`` is the first reason to abort, in the order of the
    branches."""

    asked: tuple[Gid, ...] = ()
    """Branches to which PREPARE may have been sent."""
    unanswered: set[Gid] = field(default_factory=set)
    """Those of them whose answer is missing: a prepared branch may still appear there."""
    reading: set[Gid] = field(default_factory=set)
    """Branches that are not known to have written: ended as told, they say nothing about the outcome."""
    prepared: list[tuple[Branch, Evidence | None]] = field(default_factory=list)
    heuristic: list[tuple[Branch, Settled]] = field(default_factory=list)
    failure: BaseException | None = None
    votes: dict[str, Vote] = field(default_factory=dict)
    """As users see them, by :func:`label`."""


@dataclass(slots=True)
class CommitContext:
    """One transaction on its way through commit.

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
    """Of three-phase commit: the rule by which whoever comes later has to end it."""
    find: Callable[[str], Participant | None] = lambda _: None
    """A participant by name; None if this process knows none of that name any more."""
    key: SessionKey = NO_KEY
    """Of the transaction's session: it proves which names and notes are this coordinator's."""
    prepares_all: bool = False
    """Every branch is prepared, whether or not it has written, and every commit is recorded: whoever asks the
    ledger later learns the outcome from there alone."""
    on_phase: Callable[[Phase], None] | None = None
    """Told each phase that is left, by whoever measures."""

    state: CommitState = CommitState.VOTING
    """Changed by :meth:`move` alone: what may happen next depends on nothing else."""
    tally: VoteTally = field(default_factory=VoteTally)
    cause: BaseException | None = None
    """Why it is aborted, from the moment that is certain."""
    interruption: BaseException | None = None
    """Why somebody cancels what a branch waits for in the first phase: then that is the cause of an abort."""
    pending: dict[Gid, Branch] = field(default_factory=dict)
    """Branches that have not confirmed the decision; recovery goes on with them."""
    heuristics: dict[Gid, Settled] = field(default_factory=dict)
    heuristic_cause: BaseException | None = None
    """What a branch said that ended otherwise than decided, if it said anything."""
    held: tuple[Branch, ...] = field(init=False)
    """Branches whose connections have not been given back."""
    told: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """Done once the caller can be told the outcome."""

    def __post_init__(self) -> None:
        self.held = self.branches

    def move(self, event: CommitEvent) -> None:
        """Raises ``InvariantViolation`` for an event that :data:`TRANSITIONS` does not hold in this state."""
        before, after = self.state, TRANSITIONS.get((self.state, event))
        if after is None:
            raise InvariantViolation(f"{self.txid}: event {event!s} in state {before!s}")
        self.state = after
        if PHASES[after] is not PHASES[before]:
            if self.on_phase is not None:
                self.on_phase(PHASES[before])
            if PHASES[after] is Phase.APPLIED:
                self.tell()

    @property
    def phase(self) -> Phase:
        return PHASES[self.state]

    @property
    def decision(self) -> Decision | None:
        """What the caller may be told; None as long as the outcome is not certain."""
        return OUTCOMES[self.phase]

    def tell(self) -> None:
        """Let the caller look: there is something true to tell, or nothing more will come."""
        if not self.told.done():
            self.told.set_result(None)

    async def release(self) -> None:
        """Give the branches' connections back; once, since afterwards they may be somebody else's."""
        held, self.held = self.held, ()
        for branch in held:
            await branch.release()

    @property
    def readers(self) -> tuple[Branch, ...]:
        """Branches that are not known to have written."""
        return tuple(branch for branch in self.branches if branch.gid in self.tally.reading)

    @property
    def rows(self) -> tuple[Gid, ...]:
        """Of three-phase commit: branches that have a row, to be deleted once the transaction is finished."""
        return self.tally.asked if self.protocol is Protocol.THREE_PHASE else ()

    def remaining_s(self) -> float:
        return self.deadline - asyncio.get_running_loop().time()

    async def reach(self, step: enum.StrEnum, subject: Gid | TxId) -> None:
        """Tell the observer, if there is one."""
        if self.observer is not None:
            await reach(self.observer, step, subject)


def label(branch: Branch) -> str:
    """``"1:orders"``: a branch as users see it in votes."""
    return f"{branch.gid.branch}:{branch.gid.participant}"


def branch_record(branch: Branch, evidence: Evidence | None) -> BranchRecord:
    return record_of(branch.gid, evidence)


async def repeat_until_answered(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat ``call`` with growing pauses (10 ms to 1 s) for as long as the ledger gives no answer."""
    waits = None
    while True:
        try:
            return await call()
        except LedgerUnavailable:
            waits = waits or pauses(0.01, 1.0)
            await asyncio.sleep(next(waits))


def worst(kinds: list[Settled], decision: Decision) -> Settled:
    """The one word for several branches, of which ``kinds`` are the heuristic and the applied ones.

    Mixed if it is certain that some committed and some rolled back; else a hazard if any is unknown; else
    they all did the same against the decision (X/Open XA, heuristic decisions).
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
    """Remember it in the ledger for as long as an operator wants to see it, then let the branch forget."""
    context.heuristics[branch.gid] = kind
    found = Heuristic(branch.gid, kind, decision, found_at=time.time(), note=note)
    await repeat_until_answered(lambda: context.ledger.record_heuristic(found))
    await branch.forget()


async def applied_elsewhere(ledger: Ledger, gid: Gid) -> bool:
    """Whether the ledger proves that the branch ``gid`` of a committed transaction has committed: the
    transaction is finished, and nothing else is recorded of this branch. Only who knows that every branch has
    applied the decision, or has recorded what it did instead, finishes a transaction. Raises
    ``LedgerError``."""
    info = await ledger.transaction(gid.txid)
    if info is None or not info.finished or info.record is not RecordedDecision.COMMIT:
        return False
    return all(heuristic.gid != gid for heuristic in info.heuristics)


def heuristic_outcome(context: CommitContext, kinds: list[Settled], decision: Decision) -> HeuristicOutcome:
    return HeuristicOutcome(context.txid, worst(kinds, decision), context.heuristics)


def known_heuristics(context: CommitContext, decision: Decision) -> HeuristicOutcome | None:
    """What to tell of a transaction with that outcome some branch of which did otherwise, or may have, for as
    far as that is known. None if all did as decided, or will."""
    if not context.heuristics:
        return None
    silent = context.tally.reading | context.heuristics.keys()
    applied = any(branch.gid not in silent for branch in context.branches)
    kinds = [*context.heuristics.values(), *([Settled.APPLIED] if applied else [])]
    return heuristic_outcome(context, kinds, decision)
