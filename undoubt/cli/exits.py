"""The exit statuses of the command, and the status of each error.

==== ======================================================================================
0    ok
1    failure
2    usage: a flag, an argument or the configuration is wrong; a question without a terminal
3    not found: no such transaction, branch, participant, node or ledger
4    no quorum or unreachable: the act may or may not have happened, or not everything is known
5    conflict: it contradicts a recorded decision or the end of another branch; or what is prepared is not
     a branch of this ledger
6    timeout
7    in doubt: ``check`` found what it looks for
130  interrupted
==== ======================================================================================
"""

from __future__ import annotations

import enum

from undoubt.coordinator.errors import (
    BranchListMismatch,
    HeuristicOutcome,
    LedgerLocked,
    LedgerMisconfigured,
    LedgerMissing,
    LedgerUnavailable,
    UnknownNode,
)
from undoubt.participants.errors import (
    ParticipantMisconfigured,
    ParticipantUnavailable,
    UndoubtError,
    UnknownParticipant,
    UsageError,
)
from undoubt.participants.ids import InvalidName
from undoubt.recovery.errors import Conflict, NotAllSeen, NotOurs, NotPrepared, StillBusy


class Exit(enum.IntEnum):
    """See the module."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    NOT_FOUND = 3
    UNREACHABLE = 4
    CONFLICT = 5
    TIMEOUT = 6
    IN_DOUBT = 7
    INTERRUPTED = 130


class CommandError(UndoubtError):
    """A command's own refusal, with its exit status."""

    def __init__(self, status: Exit, message: str) -> None:
        super().__init__(message)
        self.status = status


_BY_ERROR: tuple[tuple[type[BaseException], Exit], ...] = (
    (UnknownParticipant, Exit.NOT_FOUND),
    (UnknownNode, Exit.NOT_FOUND),
    (NotOurs, Exit.CONFLICT),
    (LedgerMissing, Exit.NOT_FOUND),
    (LedgerMisconfigured, Exit.USAGE),
    (ParticipantMisconfigured, Exit.USAGE),
    (UsageError, Exit.USAGE),
    (InvalidName, Exit.USAGE),
    (BranchListMismatch, Exit.CONFLICT),
    (HeuristicOutcome, Exit.CONFLICT),
    (LedgerUnavailable, Exit.UNREACHABLE),
    (LedgerLocked, Exit.UNREACHABLE),
    (ParticipantUnavailable, Exit.UNREACHABLE),
    (NotPrepared, Exit.NOT_FOUND),
    (NotAllSeen, Exit.UNREACHABLE),
    (Conflict, Exit.CONFLICT),
    (StillBusy, Exit.TIMEOUT),
    (TimeoutError, Exit.TIMEOUT),
    (UndoubtError, Exit.FAILURE),
)
"""First match wins: narrower errors stand above wider ones."""


def status_of(error: BaseException) -> Exit | None:
    """The status of an error that is printed in one line; None for an error that is a bug of undoubt."""
    if isinstance(error, CommandError):
        return error.status
    return next((status for kind, status in _BY_ERROR if isinstance(error, kind)), None)
