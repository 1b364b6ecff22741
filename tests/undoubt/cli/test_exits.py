"""The table from errors to exit statuses: scripts branch on it."""

from __future__ import annotations

import pytest

from undoubt.cli.exits import CommandError, Exit, status_of
from undoubt.config import ConfigurationError
from undoubt.coordinator.errors import (
    BranchListMismatch,
    HeuristicOutcome,
    LedgerError,
    LedgerLocked,
    LedgerUnavailable,
    LedgerUnusable,
    OutcomeUnknown,
    SessionLost,
)
from undoubt.participants.contract import Settled
from undoubt.participants.errors import (
    ParticipantRefused,
    ParticipantUnavailable,
    UndoubtError,
    UnknownParticipant,
    UsageError,
)
from undoubt.participants.ids import InvalidName, TxId
from undoubt.recovery.errors import NotOurs

TXID = TxId(1, "0" * 16, 1)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UndoubtError("x"), 1),
        (LedgerError("x"), 1),
        (LedgerUnusable("x"), 1),
        (SessionLost("x"), 1),
        (OutcomeUnknown(TXID, "x"), 1),
        (ParticipantRefused("a", "wrong password"), 1),
        (UsageError("x"), 2),
        (ConfigurationError("x"), 2),
        (InvalidName("x"), 2),
        (UnknownParticipant("a", []), 3),
        (NotOurs("x"), 5),
        (LedgerUnavailable("x"), 4),
        (LedgerLocked("x"), 4),
        (ParticipantUnavailable("a", "down"), 4),
        (BranchListMismatch(TXID, ["a"], ["b"]), 5),
        (HeuristicOutcome(TXID, Settled.HEURISTIC_HAZARD, {}), 5),
        (TimeoutError("x"), 6),
        (CommandError(Exit.IN_DOUBT, "x"), 7),
    ],
)
def test_every_error_has_its_status(error: BaseException, status: int) -> None:
    assert status_of(error) == status


@pytest.mark.parametrize("error", [TypeError("x"), ValueError("x"), KeyError("x"), OSError("x")])
def test_a_bug_is_not_dressed_up_as_an_error_of_the_users(error: BaseException) -> None:
    assert status_of(error) is None
