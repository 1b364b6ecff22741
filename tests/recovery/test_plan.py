"""The table of actions, row by row: one wrong row splits transactions, or leaves them in doubt for ever."""

from __future__ import annotations

import pytest

from undoubt.coordinator.ledger.contract import Decision, Verdict
from undoubt.participants.contract import Fate, Settled
from undoubt.participants.ids import Foreign, Gid, Protocol, TxId
from undoubt.recovery.plan import (
    BranchDone,
    Commit,
    LeaveAlone,
    LookAgain,
    RecordHeuristic,
    ReportOnly,
    RollBack,
    Standing,
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
        (Standing.COMMITTED, Commit(GID)),
        (Standing.ABORTED, RollBack(GID)),
        (Standing.ACTIVE, LeaveAlone(GID)),
        (Standing.ASK_PROTOCOL, Terminate(GID)),
        (Standing.FORGOTTEN, ReportOnly(GID, Standing.FORGOTTEN)),
        (Standing.LOST_LEDGER, ReportOnly(GID, Standing.LOST_LEDGER)),
        (Standing.OTHER_LEDGER, ReportOnly(GID, Standing.OTHER_LEDGER)),
    ],
)
def test_prepared(stands: Standing, action: object) -> None:
    assert for_prepared(GID, stands) == action


@pytest.mark.parametrize("stands", Standing)
def test_a_foreign_name_is_reported_whatever_else_is_said(stands: Standing) -> None:
    foreign = Foreign("someone's")
    assert for_prepared(foreign, stands) == ReportOnly(foreign, Standing.FOREIGN)


def heuristic(kind: Settled, decision: Decision) -> RecordHeuristic:
    return RecordHeuristic(GID, kind, decision)


@pytest.mark.parametrize(
    ("decision", "fate", "action"),
    [
        (Decision.COMMIT, Fate.COMMITTED, BranchDone(GID)),
        (Decision.COMMIT, Fate.IN_PROGRESS, LookAgain(GID)),
        (Decision.COMMIT, Fate.ABORTED, heuristic(Settled.HEURISTIC_ROLLBACK, Decision.COMMIT)),
        (Decision.COMMIT, Fate.NEVER_ASSIGNED, heuristic(Settled.HEURISTIC_ROLLBACK, Decision.COMMIT)),
        (Decision.COMMIT, Fate.UNKNOWN, heuristic(Settled.HEURISTIC_HAZARD, Decision.COMMIT)),
        (Decision.ABORT, Fate.COMMITTED, heuristic(Settled.HEURISTIC_COMMIT, Decision.ABORT)),
        (Decision.ABORT, Fate.IN_PROGRESS, LookAgain(GID)),
        (Decision.ABORT, Fate.ABORTED, BranchDone(GID)),
        (Decision.ABORT, Fate.NEVER_ASSIGNED, BranchDone(GID)),
        (Decision.ABORT, Fate.UNKNOWN, BranchDone(GID)),
    ],
)
def test_absent(decision: Decision, fate: Fate, action: object) -> None:
    assert for_absent(GID, decision, fate) == action


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
    assert standing(GID, "zzzzzzzzzz", verdict) is Standing.OTHER_LEDGER
    assert standing(Foreign("x"), "zzzzzzzzzz", verdict) is Standing.FOREIGN
