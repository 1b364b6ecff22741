"""The settings of recovery. ``undoubt.config`` loads them."""

from __future__ import annotations

import msgspec

from undoubt.participants.bounds import count, seconds


class RecoverySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Times are in seconds."""

    interval_s: float = 1.0
    """Pause between two passes over one participant."""
    backoff_max_s: float = 30.0
    """Longest pause before a participant that does not answer is tried again."""
    parallel: int = 8
    """Number of sessions in which branches of one participant are settled at once; of many branches, several
    at once in each session."""
    deadlock_interval_s: float = 1.0
    """Pause between two looks at the wait graphs of all participants; 0 switches the detector off."""

    def __post_init__(self) -> None:
        seconds("interval_s", self.interval_s)
        seconds("backoff_max_s", self.backoff_max_s, zero=False)
        seconds("deadlock_interval_s", self.deadlock_interval_s)
        count("parallel", self.parallel, least=1, most=10_000)
