"""Every error that undoubt raises on purpose, as one tree.

::

    UndoubtError
    ├── UsageError                   the caller's mistake: nothing happened, the call was refused
    │   ├── ConfigurationError         a setting is missing, unknown or of the wrong type; the key is named
    │   ├── CoordinatorClosed          nothing begins any more; what was under way may have had an effect
    │   ├── InvalidName                no transaction's id, participant's name or ledger's id
    │   ├── NotOurs                    a prepared transaction that is not this ledger's to finish
    │   ├── ParticipantInUse           it cannot be removed: branches of it are unresolved
    │   ├── TransactionEnded           a branch or a commit after the transaction's end
    │   ├── UnknownParticipant         no participant of that name is registered
    │   ├── WhichLedger                branches of several ledgers are left: which ones are meant?
    │   ├── WrongLoop                  a coordinator used in another event loop than its own
    │   └── WrongProcess               a coordinator used in a fork of its process
    ├── TransactionAborted           it is in no database, for certain; ``cause`` says why
    ├── OutcomeUnknown               it may or may not be committed; ask later, never guess
    ├── HeuristicOutcome             some database did other than what was decided
    ├── AbortedByOthers              a cause: an operator, or a recovery, has aborted the transaction
    ├── DistributedDeadlock          a cause: chosen to end a deadlock across databases; may be run again
    │   └── SelfDeadlock               two of its own branches wait for each other: not to be run again
    ├── ParticipantError             a database misbehaves or is not there; ``participant`` names it
    │   ├── BranchFailed               the branch cannot go on; its transaction aborts
    │   ├── ParticipantRefused         an answer, and it is no
    │   │   └── ParticipantMisconfigured   its dsn cannot be used: no server was asked
    │   └── ParticipantUnavailable     no answer
    ├── LedgerError                  the ledger could not do what was asked
    │   ├── BranchListMismatch         a decision is recorded for other branches
    │   ├── ClusterRefused             an operation on the cluster that cannot be, or would stop it
    │   │   └── ClusterNotReady          or would, but for nodes that are silent or behind
    │   ├── Impostor                   a name that this ledger never gave
    │   ├── LedgerLocked               another process owns it and does not answer
    │   ├── LedgerUnavailable          no answer, or no room
    │   ├── LedgerUnusable             it cannot be opened until somebody acts
    │   │   ├── LedgerMisconfigured      its URL, or a TLS file that the settings name, is none
    │   │   └── LedgerMissing            there is none: ``undoubt ledger init``
    │   ├── NotPermitted               the certificate of this client has another role than the call needs
    │   ├── SessionLost                the lease is gone: nothing of it can commit any more
    │   └── VersionHeldBack            the cluster has members of an older version, which do not know this yet
    ├── NotPrepared                  an operator's: no participant lists such a branch
    ├── NotAllSeen                   an operator's: it may be there, some participant did not answer
    ├── Conflict                     an operator's: a recorded decision, or a database, says otherwise
    ├── StillBusy                    an operator's: somebody else is finishing it, for too long
    ├── BinariesMissing              ``undoubt.embedded``: no PostgreSQL was found
    └── ServerFailed                 ``undoubt.embedded``: the server does not start, or has ended

A cause is what ``TransactionAborted.cause`` may be, besides an error of a participant, of the ledger or of a
driver, ``TimeoutError`` or ``UsageError``.
"""

from __future__ import annotations

from undoubt.config import ConfigurationError
from undoubt.coordinator.coordinator import ParticipantInUse
from undoubt.coordinator.errors import (
    AbortedByOthers,
    BranchListMismatch,
    ClusterNotReady,
    ClusterRefused,
    CoordinatorClosed,
    DistributedDeadlock,
    HeuristicOutcome,
    Impostor,
    LedgerError,
    LedgerLocked,
    LedgerMisconfigured,
    LedgerMissing,
    LedgerUnavailable,
    LedgerUnusable,
    NotPermitted,
    OutcomeUnknown,
    SelfDeadlock,
    SessionLost,
    TransactionAborted,
    TransactionEnded,
    VersionHeldBack,
    WrongProcess,
)
from undoubt.embedded.binaries import BinariesMissing
from undoubt.embedded.server import ServerFailed
from undoubt.participants.errors import (
    BranchFailed,
    ParticipantError,
    ParticipantMisconfigured,
    ParticipantRefused,
    ParticipantUnavailable,
    UndoubtError,
    UnknownParticipant,
    UsageError,
    WrongLoop,
)
from undoubt.participants.ids import InvalidName
from undoubt.recovery.errors import Conflict, NotAllSeen, NotOurs, NotPrepared, StillBusy
from undoubt.recovery.without_ledger import WhichLedger

__all__ = [
    "AbortedByOthers",
    "BinariesMissing",
    "BranchFailed",
    "BranchListMismatch",
    "ClusterNotReady",
    "ClusterRefused",
    "ConfigurationError",
    "Conflict",
    "CoordinatorClosed",
    "DistributedDeadlock",
    "HeuristicOutcome",
    "Impostor",
    "InvalidName",
    "LedgerError",
    "LedgerLocked",
    "LedgerMisconfigured",
    "LedgerMissing",
    "LedgerUnavailable",
    "LedgerUnusable",
    "NotAllSeen",
    "NotOurs",
    "NotPermitted",
    "NotPrepared",
    "OutcomeUnknown",
    "ParticipantError",
    "ParticipantInUse",
    "ParticipantMisconfigured",
    "ParticipantRefused",
    "ParticipantUnavailable",
    "SelfDeadlock",
    "ServerFailed",
    "SessionLost",
    "StillBusy",
    "TransactionAborted",
    "TransactionEnded",
    "UndoubtError",
    "UnknownParticipant",
    "UsageError",
    "VersionHeldBack",
    "WhichLedger",
    "WrongLoop",
    "WrongProcess",
]
