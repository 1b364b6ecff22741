"""What recovery does about one branch: the whole table, and nothing else.

Two questions, each answered by one pure function. A branch that *is* prepared somewhere: what does its
standing allow (:func:`for_prepared`)? A branch of a recorded decision that is *not* prepared: what do its
database's own books prove (:func:`for_absent`)? The answers are values of closed unions, which
:mod:`undoubt.recovery.resolve` and :mod:`undoubt.recovery.unfinished` carry out.

==============  ==========  ============================  =============================================
ledger says     prepared?   the database's books          action
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
    """Whose a prepared branch is, and what is known of its end. The first six are the ledger's verdicts."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    ACTIVE = "active"
    ASK_PROTOCOL = "ask_protocol"
    FORGOTTEN = "forgotten"
    IMPOSTOR = "impostor"
    LOST_LEDGER = "lost_ledger"
    """It is one of this installation's in everything but the ledger: that was lost, and another one was made
    in its place."""
    OTHER_LEDGER = "other_ledger"
    FOREIGN = "foreign"
    NOT_KNOWN = "not_known"
    """The ledger could not be asked. Only lists for people have it."""

    @property
    def ours(self) -> bool:
        """It is a branch of this ledger."""
        return self not in {
            BranchStanding.IMPOSTOR,
            BranchStanding.LOST_LEDGER,
            BranchStanding.OTHER_LEDGER,
            BranchStanding.FOREIGN,
            BranchStanding.NOT_KNOWN,
        }

    @property
    def in_doubt(self) -> bool:
        """It is this installation's to end."""
        return self.ours or self is BranchStanding.LOST_LEDGER

    @property
    def action(self) -> str:
        """What is safe: ``commit``, ``rollback``, ``wait``, ``decide`` (a person must) or ``none``."""
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
        """The standing as a reason, for people."""
        return _WHY[self]


_WHY = {
    BranchStanding.COMMITTED: "COMMIT is recorded",
    BranchStanding.ABORTED: "it is aborted: no COMMIT is recorded, and none can be any more",
    BranchStanding.ACTIVE: "its coordinator is alive and may still decide",
    BranchStanding.ASK_PROTOCOL: "the termination protocol of its own kind decides",
    BranchStanding.FORGOTTEN: "the ledger knows nothing of its session any more",
    BranchStanding.IMPOSTOR: "it has the name of a branch of this ledger, and is none",
    BranchStanding.LOST_LEDGER: "it is of a ledger that is not this one: of one that was lost, it seems",
    BranchStanding.OTHER_LEDGER: "another ledger's",
    BranchStanding.FOREIGN: "not undoubt's",
    BranchStanding.NOT_KNOWN: "the ledger does not answer",
}


def standing(gid: Gid | Foreign, ledger_id: str, verdict: Verdict | None) -> BranchStanding:
    """``verdict`` is the ledger's about a gid of its own; of any other none is asked for."""
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
    """Its coordinator lives and may still decide."""

    gid: Gid


@dataclass(frozen=True, slots=True)
class Terminate:
    """Its protocol's own termination decides; presuming anything could split the transaction."""

    gid: Gid


@dataclass(frozen=True, slots=True)
class ReportOnly:
    """Show it to people, never touch it."""

    gid: Gid | Foreign
    standing: BranchStanding


@dataclass(frozen=True, slots=True)
class BranchDone:
    """It has applied the decision."""

    gid: Gid


@dataclass(frozen=True, slots=True)
class LookAgain:
    """Nothing is certain yet; the next pass may tell."""

    gid: Gid


@dataclass(frozen=True, slots=True)
class RecordHeuristicOutcome:
    """Its database did, or may have done, other than ``decision``."""

    gid: Gid
    kind: Settled
    decision: Decision


PreparedAction = Commit | RollBack | LeaveAlone | Terminate | ReportOnly
AbsentAction = BranchDone | LookAgain | RecordHeuristicOutcome


def for_prepared(gid: Gid | Foreign, stands: BranchStanding) -> PreparedAction:
    """About a branch that a participant lists as prepared."""
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


def for_absent(gid: Gid, decision: Decision, fate: XactStatus) -> AbsentAction:
    """About a branch of a recorded decision that was not in a list taken after the decision was read."""
    return for_settled(gid, decision, judge(decision, fate))


def for_settled(gid: Gid, decision: Decision, settled: Settled) -> AbsentAction:
    """What a participant's answer to the second phase means. A heuristic that agrees with the decision is
    none: the branch is where it should be."""
    agreeing = Settled.HEURISTIC_COMMIT if decision is Decision.COMMIT else Settled.HEURISTIC_ROLLBACK
    match settled:
        case Settled.APPLIED | Settled.ABSENT:
            return BranchDone(gid)
        case Settled.BUSY:
            return LookAgain(gid)
        case _:
            return BranchDone(gid) if settled is agreeing else RecordHeuristicOutcome(gid, settled, decision)
