"""The table of actions, row by row: one wrong row splits transactions, or leaves them in doubt for ever."""

from __future__ import annotations

import pytest

from undoubt.coordinator.ledger.contract import Verdict
from undoubt.participants.contract import Decision, Settled, XactStatus
from undoubt.participants.ids import Foreign, Gid, Protocol, TxId
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
    standing,
)

GID = Gid("abcdefghij", Protocol.TWO_PHASE, TxId(1, "00112233445566ff", 1), 1, "orders")


@pytest.mark.parametrize(
    ("stands", "action"),
    [
        (BranchStanding.COMMITTED, Commit(GID)),
        (BranchStanding.ABORTED, RollBack(GID)),
        (BranchStanding.ACTIVE, LeaveAlone(GID)),
        (BranchStanding.ASK_PROTOCOL, Terminate(GID)),
        (BranchStanding.FORGOTTEN, ReportOnly(GID, BranchStanding.FORGOTTEN)),
        (BranchStanding.LOST_LEDGER, ReportOnly(GID, BranchStanding.LOST_LEDGER)),
        (BranchStanding.OTHER_LEDGER, ReportOnly(GID, BranchStanding.OTHER_LEDGER)),
    ],
)
def test_prepared(stands: BranchStanding, action: object) -> None:
    assert for_prepared(GID, stands) == action


@pytest.mark.parametrize("stands", BranchStanding)
def test_a_foreign_name_is_reported_whatever_else_is_said(stands: BranchStanding) -> None:
    foreign = Foreign("someone's")
    assert for_prepared(foreign, stands) == ReportOnly(foreign, BranchStanding.FOREIGN)


def heuristic(kind: Settled, decision: Decision) -> RecordHeuristicOutcome:
    return RecordHeuristicOutcome(GID, kind, decision)


@pytest.mark.parametrize(
    ("decision", "xact_status", "action"),
    [
        (Decision.COMMIT, XactStatus.COMMITTED, BranchDone(GID)),
        (Decision.COMMIT, XactStatus.IN_PROGRESS, LookAgain(GID)),
        (Decision.COMMIT, XactStatus.ABORTED, heuristic(Settled.HEURISTIC_ROLLBACK, Decision.COMMIT)),
        (Decision.COMMIT, XactStatus.NEVER_ASSIGNED, heuristic(Settled.HEURISTIC_ROLLBACK, Decision.COMMIT)),
        (Decision.COMMIT, XactStatus.UNKNOWN, heuristic(Settled.HEURISTIC_HAZARD, Decision.COMMIT)),
        (Decision.ABORT, XactStatus.COMMITTED, heuristic(Settled.HEURISTIC_COMMIT, Decision.ABORT)),
        (Decision.ABORT, XactStatus.IN_PROGRESS, LookAgain(GID)),
        (Decision.ABORT, XactStatus.ABORTED, BranchDone(GID)),
        (Decision.ABORT, XactStatus.NEVER_ASSIGNED, BranchDone(GID)),
        (Decision.ABORT, XactStatus.UNKNOWN, BranchDone(GID)),
    ],
)
def test_absent(decision: Decision, xact_status: XactStatus, action: object) -> None:
    assert for_absent(GID, decision, xact_status) == action


@pytest.mark.parametrize(
    ("decision", "settled", "action"),
    [
        (Decision.COMMIT, Settled.BUSY, LookAgain(GID)),
        (Decision.COMMIT, Settled.HEURISTIC_COMMIT, BranchDone(GID)),
        (Decision.COMMIT, Settled.HEURISTIC_MIXED, heuristic(Settled.HEURISTIC_MIXED, Decision.COMMIT)),
        (Decision.ABORT, Settled.HEURISTIC_ROLLBACK, BranchDone(GID)),
        (Decision.ABORT, Settled.HEURISTIC_COMMIT, heuristic(Settled.HEURISTIC_COMMIT, Decision.ABORT)),
        (Decision.ABORT, Settled.ABSENT, BranchDone(GID)),
    ],
)
def test_settled(decision: Decision, settled: Settled, action: object) -> None:
    assert for_settled(GID, decision, settled) == action


@pytest.mark.parametrize("verdict", Verdict)
def test_every_verdict_is_a_standing(verdict: Verdict) -> None:
    """A verdict without one would end a pass with an error, and everything in it would stay in doubt."""
    assert standing(GID, GID.ledger, verdict) == str(verdict)


@pytest.mark.parametrize("verdict", Verdict)
def test_a_verdict_counts_only_for_the_ledgers_own_gids(verdict: Verdict) -> None:
    """Two installations share a database; transaction numbers of both are alike."""
    assert standing(GID, "zzzzzzzzzz", verdict) is BranchStanding.OTHER_LEDGER
    assert standing(Foreign("x"), "zzzzzzzzzz", verdict) is BranchStanding.FOREIGN
