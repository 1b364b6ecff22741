"""Every error that undoubt raises on purpose, as one tree.

::

    UndoubtError
    ├── UsageError                   the caller's mistake: nothing happened, the call was refused
    │   ├── ConfigurationError         a setting is missing, unknown or of the wrong type; the key is named
    │   ├── UnknownParticipant         no participant of that name is registered
    │   ├── ParticipantInUse           it cannot be removed: branches of it are unresolved
    │   ├── TransactionEnded           a branch or a commit after the transaction's end
    │   └── WrongProcess               a coordinator used in a fork of its process
    ├── TransactionAborted           it is in no database, for certain; ``cause`` says why
    ├── OutcomeUnknown               it may or may not be committed; ask later, never guess
    ├── HeuristicOutcome             some database did other than what was decided
    ├── ParticipantError             a database misbehaves or is not there; ``participant`` names it
    │   ├── ParticipantUnavailable     no answer
    │   ├── ParticipantRefused         an answer, and it is no
    │   └── BranchFailed               the branch cannot go on; its transaction aborts
    └── LedgerError
        ├── LedgerUnavailable          no answer, or no room
        ├── LedgerUnusable             it cannot be opened until somebody acts
        │   └── LedgerMissing            there is none: ``undoubt ledger init``
        ├── LedgerLocked               another process owns it and does not answer
        ├── VersionHeldBack            the cluster has members of an older version, which do not know this yet
        ├── SessionLost                the lease is gone: nothing of it can commit any more
        └── BranchListMismatch         a decision is recorded for other branches
"""

from __future__ import annotations

from coordinator.coordinator import ParticipantInUse
from coordinator.errors import (
    BranchListMismatch,
    HeuristicOutcome,
    LedgerError,
    LedgerLocked,
    LedgerMissing,
    LedgerUnavailable,
    LedgerUnusable,
    OutcomeUnknown,
    SessionLost,
    TransactionAborted,
    TransactionEnded,
    VersionHeldBack,
    WrongProcess,
)
from participants.errors import (
    BranchFailed,
    ParticipantError,
    ParticipantRefused,
    ParticipantUnavailable,
    UndoubtError,
    UnknownParticipant,
    UsageError,
)
from recovery.deadlocks import DistributedDeadlock, SelfDeadlock
from undoubt.config import ConfigurationError

__all__ = [
    "BranchFailed",
    "BranchListMismatch",
    "ConfigurationError",
    "DistributedDeadlock",
    "HeuristicOutcome",
    "LedgerError",
    "LedgerLocked",
    "LedgerMissing",
    "LedgerUnavailable",
    "LedgerUnusable",
    "OutcomeUnknown",
    "ParticipantError",
    "ParticipantInUse",
    "ParticipantRefused",
    "ParticipantUnavailable",
    "SelfDeadlock",
    "SessionLost",
    "TransactionAborted",
    "TransactionEnded",
    "UndoubtError",
    "UnknownParticipant",
    "UsageError",
    "VersionHeldBack",
    "WrongProcess",
]
