"""The errors of an operator's calls.

::

    UndoubtError
    ├── UsageError
    │   └── NotOurs            the prepared transaction is not of undoubt, or belongs to another ledger
    ├── NotPrepared            no participant lists such a branch
    ├── NotAllSeen             it may exist: some participant did not answer
    ├── Conflict               a recorded decision, or the end of another branch, contradicts the call
    └── StillBusy              another process has been finishing it for too long
"""

from __future__ import annotations

from undoubt.participants.errors import UndoubtError, UsageError


class NotOurs(UsageError):
    """The prepared transaction is not of undoubt, or belongs to another ledger. Nothing was done."""


class NotPrepared(UndoubtError):
    """All participants answered, and none lists it."""


class NotAllSeen(UndoubtError):
    """It was not found, and not all participants answered."""


class Conflict(UndoubtError):
    """The call contradicts a decision, or nothing is decided, or the branch ended otherwise."""


class StillBusy(UndoubtError):
    """Another process is finishing the branch, or it cannot be finished yet. Look again."""
