"""What recovery tells whoever measures it."""

from __future__ import annotations

from typing import Protocol

from undoubt.recovery.worker import Passed


class RecoveryMeter(Protocol):
    """Its methods are called in the event loop, return at once and do not fail."""

    def passed(self, participant: str, passed: Passed) -> None:
        """One pass over a participant is over, whether or not it could be completed."""
        ...

    def gone(self, participant: str) -> None:
        """This process no longer looks after that participant: it was removed, or somebody else leads."""
        ...

    def deadlocks(self, count: int) -> None:
        """So many deadlocks across databases were ended."""
        ...
