"""What every commit protocol is given, and what the caller of commit waits for.

A protocol is a plain async function of a :class:`CommitContext`. It runs in a task of its own that nobody
cancels; the caller watches the context and may go away at any time without changing what happens."""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from undoubt.coordinator.errors import HeuristicOutcome, LedgerUnavailable
from undoubt.coordinator.ledger.contract import BranchRecord, Heuristic, Ledger, RecordedDecision, record_of
from undoubt.coordinator.protocols.steps import Observer
from undoubt.participants.backoff import pauses
from undoubt.participants.contract import Branch, Decision, Evidence, Participant, Settled, Vote
from undoubt.participants.ids import NO_KEY, Gid, SessionKey, TxId
from undoubt.participants.invariant import invariant
from undoubt.participants.three_phase import Termination

T = TypeVar("T")


class Phase(enum.IntEnum):
    """How far it has come; only ever rises."""

    VOTING = 1
    """Nothing is decided; it will be aborted if anything goes wrong, or time runs out."""
    DECIDING = 2
    """``decide(COMMIT)``, or the only branch's COMMIT, has been sent: nobody may roll back any more."""
    ABORTED = 3
    """It can never commit. Branches are being rolled back."""
    COMMITTED = 4
    """COMMIT is recorded, or the only writing branch has committed."""
    APPLIED = 5
    """Every branch was told at least once; ``pending`` lists those that have not confirmed."""


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
    protocol: str = "2"
    termination: Termination = Termination.QUORUM
    """Of three-phase commit: the rule by which whoever comes later has to end it."""
    find: Callable[[str], Participant | None] = lambda _: None
    """A participant by name; None if this process knows none of that name any more."""
    key: SessionKey = NO_KEY
    """Of the transaction's session: it proves which names and notes are this coordinator's."""

    phase: Phase = Phase.VOTING
    votes: dict[str, Vote] = field(default_factory=dict)
    asked: set[Gid] = field(default_factory=set)
    """Branches to which PREPARE may have been sent."""
    unanswered: set[Gid] = field(default_factory=set)
    """Those of them whose answer is missing: a prepared branch may still appear there."""
    reading: set[Gid] = field(default_factory=set)
    """Branches that are not known to have written: ended as told, they say nothing about the outcome."""
    cause: BaseException | None = None
    """Why it is aborted, from the moment that is certain."""
    interruption: BaseException | None = None
    """Why somebody cancels what a branch waits for in the first phase: then that is the cause of an abort."""
    recorded: bool = False
    """A decision of this transaction is in the ledger, so it has to be finished there."""
    precommitted: bool = False
    """The ledger may hold its PRECOMMIT, so its outcome has to be recorded there, whatever it is."""
    fixed_elsewhere: bool = False
    """That it commits is certain, and known to others than the ledger, which is being told."""
    pending: dict[Gid, Branch] = field(default_factory=dict)
    """Branches that have not confirmed the decision; recovery goes on with them."""
    heuristics: dict[Gid, Settled] = field(default_factory=dict)
    heuristic_cause: BaseException | None = None
    """What a branch said that ended otherwise than decided, if it said anything."""
    on_phase: Callable[[Phase], None] | None = None
    """Told each phase that is left, by whoever measures."""
    rows: tuple[Gid, ...] = ()
    """Of three-phase commit: branches that have a row to be forgotten once the transaction is finished."""
    released: bool = False
    """The branches' connections are others': nothing may be asked of these branches any more."""
    told: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """Done once the caller can be told the outcome."""

    def enter(self, phase: Phase) -> None:
        invariant(phase >= self.phase, f"{self.txid} cannot go from {self.phase.name} to {phase.name}")
        if self.on_phase is not None and phase is not self.phase:
            self.on_phase(self.phase)
        self.phase = phase
        if phase is Phase.APPLIED:
            self.tell()

    def tell(self) -> None:
        """Let the caller look: there is something true to tell, or nothing more will come."""
        if not self.told.done():
            self.told.set_result(None)

    async def release(self) -> None:
        """Give the branches' connections back; once, since afterwards they may be somebody else's."""
        if not self.released:
            self.released = True
            for branch in self.branches:
                await branch.release()

    @property
    def finished(self) -> bool:
        """Every branch is known to have ended as decided, none can appear any more, and the ledger waits for
        nothing."""
        ended = self.phase >= Phase.ABORTED and not self.pending and not self.unanswered
        return ended and (self.recorded or not self.precommitted)

    def remaining_s(self) -> float:
        return self.deadline - asyncio.get_running_loop().time()

    async def reach(self, step: enum.StrEnum, subject: Gid | TxId) -> None:
        """Tell the observer, if there is one."""
        if self.observer is not None:
            told = self.observer(step, str(subject))
            if told is not None:
                await told


def label(branch: Branch) -> str:
    """``"1:orders"``: a branch as users see it in votes."""
    return f"{branch.gid.branch}:{branch.gid.participant}"


def branch_record(branch: Branch, evidence: Evidence | None) -> BranchRecord:
    return record_of(branch.gid, evidence)


async def repeat_until_answered(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat ``call`` with growing pauses (10 ms to 1 s) for as long as the ledger gives no answer."""
    waits = pauses(0.01, 1.0)
    while True:
        try:
            return await call()
        except LedgerUnavailable:
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
    silent = context.reading | context.heuristics.keys()
    applied = any(branch.gid not in silent for branch in context.branches)
    kinds = [*context.heuristics.values(), *([Settled.APPLIED] if applied else [])]
    return heuristic_outcome(context, kinds, decision)
