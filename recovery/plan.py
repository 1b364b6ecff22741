"""What recovery does about one branch: the whole table, and nothing else.

Two questions, each answered by one pure function. A branch that *is* prepared somewhere: what does its
standing allow (:func:`for_prepared`)? A branch of a recorded decision that is *not* prepared: what does its
database's transaction status prove (:func:`for_absent`)? The answers are values of closed unions, which
:mod:`undoubt.recovery.resolve` and :mod:`undoubt.recovery.unfinished` carry out.

==============  ==========  ============================  =============================================
ledger says     prepared?   transaction status            action
==============  ==========  ============================  =============================================
committed       yes                                       :class:`Commit`
committed       no          committed                     :class:`BranchDone`
committed       no          in progress, busy             :class:`LookAgain`
committed       no          aborted, or never assigned    :class:`RecordHeuristicOutcome` (rollback)
committed       no          none that count               :class:`RecordHeuristicOutcome` (hazard)
aborted         yes                                       :class:`RollBack`
aborted         no          committed                     :class:`RecordHeuristicOutcome` (commit)
aborted         no          in progress, busy             :class:`LookAgain`
aborted         no          anything else                 :class:`BranchDone`
active          yes                                       :class:`LeaveAlone`
ask protocol    yes                                       :class:`Terminate`
forgotten       yes                                       :class:`ReportOnly`
impostor        yes                                       :class:`ReportOnly`
lost ledger's   yes                                       :class:`ReportOnly`
other ledger's  yes                                       :class:`ReportOnly`
foreign         yes                                       :class:`ReportOnly`
==============  ==========  ============================  =============================================
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import assert_never

from undoubt.coordinator.ledger.contract import Verdict
from undoubt.participants.contract import Decision, Settled, XactStatus, judge
from undoubt.participants.ids import Foreign, Gid


class BranchStanding(enum.StrEnum):
    """Which ledger a prepared branch belongs to, and which outcome is known. The first six are the ledger's
    verdicts."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    ACTIVE = "active"
    ASK_PROTOCOL = "ask_protocol"
    FORGOTTEN = "forgotten"
    IMPOSTOR = "impostor"
    LOST_LEDGER = "lost_ledger"
    """Its name, database and owner are those of this installation's branches, but its ledger is another one:
    probably one that was lost and replaced."""
    OTHER_LEDGER = "other_ledger"
    FOREIGN = "foreign"
    NOT_KNOWN = "not_known"
    """The ledger, or the participant that its name has, did not answer. This value appears only in lists for
    operators."""

    @property
    def ours(self) -> bool:
        """Whether it is a branch of this ledger."""
        return self not in {
            BranchStanding.IMPOSTOR,
            BranchStanding.LOST_LEDGER,
            BranchStanding.OTHER_LEDGER,
            BranchStanding.FOREIGN,
            BranchStanding.NOT_KNOWN,
        }

    @property
    def in_doubt(self) -> bool:
        """Whether this installation has to end it."""
        return self.ours or self is BranchStanding.LOST_LEDGER

    @property
    def action(self) -> str:
        """The safe action: ``commit``, ``rollback``, ``wait``, ``decide`` (by an operator) or ``none``."""
        match self:
            case BranchStanding.COMMITTED:
                return "commit"
            case BranchStanding.ABORTED:
                return "rollback"
            case BranchStanding.ACTIVE | BranchStanding.ASK_PROTOCOL:
                return "wait"
            case BranchStanding.FORGOTTEN | BranchStanding.LOST_LEDGER:
                return "decide"
            case (
                BranchStanding.IMPOSTOR
                | BranchStanding.OTHER_LEDGER
                | BranchStanding.FOREIGN
                | BranchStanding.NOT_KNOWN
            ):
                return "none"

    @property
    def why(self) -> str:
        """The standing as a reason, for an operator."""
        return _WHY[self]


_WHY = {
    BranchStanding.COMMITTED: "COMMIT is recorded",
    BranchStanding.ABORTED: "it is aborted: no COMMIT is recorded, and none can be recorded from now on",
    BranchStanding.ACTIVE: "its coordinator is alive and may still decide",
    BranchStanding.ASK_PROTOCOL: "the termination of its commit protocol decides",
    BranchStanding.FORGOTTEN: "the ledger no longer has its session",
    BranchStanding.IMPOSTOR: "it has the name of a branch of this ledger, but is not that branch",
    BranchStanding.LOST_LEDGER: "it belongs to another ledger, probably to one that was lost",
    BranchStanding.OTHER_LEDGER: "it belongs to another ledger",
    BranchStanding.FOREIGN: "it is not a branch of undoubt",
    BranchStanding.NOT_KNOWN: "the ledger does not answer",
}


def standing(gid: Gid | Foreign, ledger_id: str, verdict: Verdict | None) -> BranchStanding:
    """``verdict`` is the ledger's answer about a gid of its own, and None for any other gid."""
    if isinstance(gid, Foreign):
        return BranchStanding.FOREIGN
    if gid.ledger != ledger_id or verdict is None:
        return BranchStanding.OTHER_LEDGER
    return BranchStanding(str(verdict))


@dataclass(frozen=True, slots=True)
class Commit:
    """COMMIT PREPARED."""

    gid: Gid


@dataclass(frozen=True, slots=True)
class RollBack:
    """ROLLBACK PREPARED."""

    gid: Gid


@dataclass(frozen=True, slots=True)
class LeaveAlone:
    """Its coordinator is alive and may still decide."""

    gid: Gid


@dataclass(frozen=True, slots=True)
class Terminate:
    """The termination of its commit protocol decides; a presumed outcome could split the transaction."""

    gid: Gid


@dataclass(frozen=True, slots=True)
class ReportOnly:
    """Show it to operators, and never change it."""

    gid: Gid | Foreign
    standing: BranchStanding


@dataclass(frozen=True, slots=True)
class BranchDone:
    """The branch has applied the decision."""

    gid: Gid


@dataclass(frozen=True, slots=True)
class LookAgain:
    """Nothing is certain yet; the next pass looks again."""

    gid: Gid


@dataclass(frozen=True, slots=True)
class RecordHeuristicOutcome:
    """Its database has ended, or may have ended, the branch against ``decision``."""

    gid: Gid
    kind: Settled
    decision: Decision


@dataclass(frozen=True, slots=True)
class Ended:
    """The result of a :class:`Terminate`: ``decision`` is None if nothing is decided yet, ``why`` says why,
    and ``hopeless`` that another attempt will not help."""

    decision: Decision | None
    why: str
    hopeless: bool = False


PreparedAction = Commit | RollBack | LeaveAlone | Terminate | ReportOnly
AbsentAction = BranchDone | LookAgain | RecordHeuristicOutcome


def for_prepared(gid: Gid | Foreign, stands: BranchStanding) -> PreparedAction:
    """What to do about a branch that a participant lists as prepared."""
    if isinstance(gid, Foreign):
        return ReportOnly(gid, BranchStanding.FOREIGN)
    match stands:
        case BranchStanding.COMMITTED:
            return Commit(gid)
        case BranchStanding.ABORTED:
            return RollBack(gid)
        case BranchStanding.ACTIVE:
            return LeaveAlone(gid)
        case BranchStanding.ASK_PROTOCOL:
            return Terminate(gid)
        case (
            BranchStanding.FORGOTTEN
            | BranchStanding.IMPOSTOR
            | BranchStanding.LOST_LEDGER
            | BranchStanding.OTHER_LEDGER
            | BranchStanding.FOREIGN
            | BranchStanding.NOT_KNOWN
        ):
            return ReportOnly(gid, stands)
        case _:
            assert_never(stands)


def for_absent(gid: Gid, decision: Decision, xact_status: XactStatus) -> AbsentAction:
    """What to do about a branch of a recorded decision that is missing from a list taken after the decision
    was read."""
    return for_settled(gid, decision, judge(decision, xact_status))


def for_settled(gid: Gid, decision: Decision, settled: Settled) -> AbsentAction:
    """What a participant's answer to the second phase means. A heuristic outcome that agrees with the
    decision needs no record: the branch has ended as decided."""
    agreeing = Settled.HEURISTIC_COMMIT if decision is Decision.COMMIT else Settled.HEURISTIC_ROLLBACK
    match settled:
        case Settled.APPLIED | Settled.ABSENT:
            return BranchDone(gid)
        case Settled.BUSY:
            return LookAgain(gid)
        case _:
            return BranchDone(gid) if settled is agreeing else RecordHeuristicOutcome(gid, settled, decision)
