"""Every error that undoubt raises on purpose, as one tree.

::

    UndoubtError
    ├── UsageError                   the caller made a mistake: the call was refused and had no effect
    │   ├── AlreadyCommitted           a transaction with the same key has committed: nothing is done again
    │   ├── ConfigurationError         a setting is missing, unknown or of the wrong type; its key is named
    │   ├── CoordinatorClosed          the coordinator is closed; a call that was running may have an effect
    │   ├── InvalidName                the text is no transaction id, participant's name or ledger id
    │   ├── NotOurs                    the prepared transaction is not of undoubt, or is of another ledger
    │   ├── OutOfBounds                a value is beyond its bounds, which are named; also a ``ValueError``
    │   ├── ParticipantInUse           the participant cannot be removed: it has unresolved branches
    │   ├── TransactionEnded           the transaction, or the branch, has ended already
    │   ├── UnknownParticipant         no participant of that name is registered
    │   ├── WhichLedger                branches of several ledgers are left: the call must name one ledger
    │   ├── WrongLoop                  a coordinator was used in another event loop than its own
    │   └── WrongProcess               a coordinator was used in a fork of its process
    ├── TransactionAborted           the transaction is in no database, for certain; ``cause`` says why
    ├── OutcomeUnknown               it may or may not be committed: ask later, do not assume either
    ├── HeuristicOutcome             a database did, or may have done, something else than was decided
    ├── KeyInUse                     another transaction with the same key is undecided: try again later
    ├── AbortedByOthers              a cause: an operator, or a recovery, has aborted the transaction
    ├── DistributedDeadlock          a cause: chosen to end a deadlock across databases; may be run again
    │   └── SelfDeadlock               two branches of it wait for each other: it must not be run again
    ├── LockTimeout                  the lock was not granted within the time that was given
    ├── LockLost                     a lock that was held is another one's now, or may be
    ├── ParticipantError             a database fails or cannot be reached; ``participant`` names it
    │   ├── BranchFailed               the branch cannot go on; its transaction aborts
    │   │   └── StaleLock                  its lock is another one's: the database refuses the branch
    │   ├── ParticipantRefused         the database answered that it does not do what was asked
    │   │   └── ParticipantMisconfigured   the participant's dsn cannot be used: no server was asked
    │   └── ParticipantUnavailable     the database did not answer
    ├── LedgerError                  the ledger could not do what was asked
    │   ├── BranchListMismatch         the recorded decision has another list of branches
    │   ├── ClusterRefused             the operation on the cluster is impossible, or would stop the cluster
    │   │   ├── ClusterNotReady          a node that it needs does not answer, or is behind: repeat it later
    │   │   └── UnknownNode              the cluster has no node of that number
    │   ├── Impostor                   this ledger did not make that name
    │   ├── LedgerLocked               another process owns the ledger and does not answer
    │   ├── LedgerUnavailable          the ledger does not answer, or has no room
    │   ├── LedgerUnusable             the ledger cannot be opened until an operator acts
    │   │   ├── LedgerMisconfigured      the ledger's URL, or a TLS file of the settings, cannot be used
    │   │   ├── LedgerMissing            there is no ledger: ``undoubt ledger init`` makes one
    │   │   └── LedgerMoved              it was moved elsewhere, or is being moved; the message says where
    │   ├── MoveRefused                the ledger was not moved, or the move not undone: the message says why
    │   ├── NotPermitted               the client's certificate does not have the role that the call needs
    │   ├── SessionLost                the session has ended: its transactions can no longer commit
    │   └── VersionHeldBack            the call is of a newer version than some members of the cluster have
    ├── NotPrepared                  operators' calls: no participant lists the branch
    ├── NotAllSeen                   operators' calls: it may exist, some participant did not answer
    ├── Conflict                     operators' calls: a recorded decision, or a database, contradicts it
    ├── StillBusy                    operators' calls: another process has been finishing it for too long
    ├── BinariesMissing              ``undoubt.embedded``: no PostgreSQL was found
    └── ServerFailed                 ``undoubt.embedded``: the server did not start or stop, or is not running

"A cause" is a value of ``TransactionAborted.cause``. Other causes are an error of a participant, of the
ledger or of a driver, ``TimeoutError`` and ``UsageError``.
"""

from __future__ import annotations

from undoubt.config import ConfigurationError
from undoubt.coordinator.coordinator import ParticipantInUse
from undoubt.coordinator.errors import (
    AbortedByOthers,
    AlreadyCommitted,
    BranchListMismatch,
    ClusterNotReady,
    ClusterRefused,
    CoordinatorClosed,
    DistributedDeadlock,
    HeuristicOutcome,
    Impostor,
    KeyInUse,
    LedgerError,
    LedgerLocked,
    LedgerMisconfigured,
    LedgerMissing,
    LedgerMoved,
    LedgerUnavailable,
    LedgerUnusable,
    LockLost,
    LockTimeout,
    MoveRefused,
    NotPermitted,
    OutcomeUnknown,
    SelfDeadlock,
    SessionLost,
    TransactionAborted,
    TransactionEnded,
    UnknownNode,
    VersionHeldBack,
    WrongProcess,
)
from undoubt.embedded.binaries import BinariesMissing
from undoubt.embedded.server import ServerFailed
from undoubt.participants.bounds import OutOfBounds
from undoubt.participants.errors import (
    BranchFailed,
    ParticipantError,
    ParticipantMisconfigured,
    ParticipantRefused,
    ParticipantUnavailable,
    StaleLock,
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
    "AlreadyCommitted",
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
    "KeyInUse",
    "LedgerError",
    "LedgerLocked",
    "LedgerMisconfigured",
    "LedgerMissing",
    "LedgerMoved",
    "LedgerUnavailable",
    "LedgerUnusable",
    "LockLost",
    "LockTimeout",
    "MoveRefused",
    "NotAllSeen",
    "NotOurs",
    "NotPermitted",
    "NotPrepared",
    "OutOfBounds",
    "OutcomeUnknown",
    "ParticipantError",
    "ParticipantInUse",
    "ParticipantMisconfigured",
    "ParticipantRefused",
    "ParticipantUnavailable",
    "SelfDeadlock",
    "ServerFailed",
    "SessionLost",
    "StaleLock",
    "StillBusy",
    "TransactionAborted",
    "TransactionEnded",
    "UndoubtError",
    "UnknownNode",
    "UnknownParticipant",
    "UsageError",
    "VersionHeldBack",
    "WhichLedger",
    "WrongLoop",
    "WrongProcess",
]
