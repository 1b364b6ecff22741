"""The methods that recovery calls for metrics."""

from __future__ import annotations

from typing import Protocol

from undoubt.recovery.worker import Passed


class RecoveryMeter(Protocol):
    """Its methods are called in the event loop; they return at once and do not raise."""

    def passed(self, participant: str, passed: Passed) -> None:
        """One pass over a participant has ended, complete or not."""
        ...

    def gone(self, participant: str) -> None:
        """This process has no worker for that participant now: the participant was removed, or another
        process leads."""
        ...

    def deadlocks(self, count: int) -> None:
        """``count`` deadlocks across databases were ended."""
        ...
