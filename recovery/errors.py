"""What an operator is told instead of a result.

::

    UndoubtError
    ├── UsageError
    │   └── NotOurs            a prepared transaction that no undoubt, or another ledger's, may finish
    ├── NotPrepared            no participant lists such a branch
    ├── NotAllSeen             it may be there: some participant did not answer
    ├── Conflict               a recorded decision, or what a database did already, says otherwise
    └── StillBusy              somebody else is finishing it, for too long
"""

from __future__ import annotations

from undoubt.participants.errors import UndoubtError, UsageError


class NotOurs(UsageError):
    """It is a foreign prepared transaction, or another ledger's. Nothing was done."""


class NotPrepared(UndoubtError):
    """Every participant was asked, and none lists it."""


class NotAllSeen(UndoubtError):
    """It was not found, and not every participant answered."""


class Conflict(UndoubtError):
    """What was asked contradicts a decision, or nothing is decided, or it ended another way."""


class StillBusy(UndoubtError):
    """The branch is being finished by somebody else, or is not yet finishable. Look again."""
