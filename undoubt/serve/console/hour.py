"""Counts the ends of transactions by the minute, and how long commits took, for the last hour.

The memory is bounded: sixty slots, each with three counts and a histogram of fixed size. The bounds of the
histogram grow by a quarter each, so a quantile is at most a quarter too high."""

from __future__ import annotations

import bisect
import itertools
import time
from dataclasses import dataclass, field
from typing import Any

SLOT_S = 60
SLOTS = 60
BOUNDS_MS = tuple(itertools.accumulate(range(48), lambda bound, _: bound * 1.25, initial=1.0))
"""Upper bounds of the histogram, in milliseconds: 1 ms to 45 s. Longer commits count in the last one."""


@dataclass(slots=True)
class _Slot:
    """``at`` is its beginning, in seconds since 1970."""

    at: int
    committed: int = 0
    aborted: int = 0
    other: int = 0
    took: list[int] = field(default_factory=lambda: [0] * len(BOUNDS_MS))


class LastHour:
    """``scope`` says in a sentence which transactions are counted."""

    def __init__(self, scope: str) -> None:
        self.scope = scope
        self.since = time.time()
        self.missed_before = 0.0
        """Some ends before this moment were not read, so their minutes count too few; 0: none is missing."""
        self._slots: dict[int, _Slot] = {}

    def ended(self, outcome: str, at: float, took_s: float | None = None) -> None:
        """Count an end at ``at`` with ``outcome``; ``took_s`` is the duration of a commit, None if it is not
        known. Ends may be told in any order. One before :attr:`since` or before the last hour does not
        count."""
        if at < self.since or (slot := self._slot(int(at) // SLOT_S * SLOT_S)) is None:
            return
        match outcome:
            case "committed":
                slot.committed += 1
            case "aborted":
                slot.aborted += 1
            case _:
                slot.other += 1
        if took_s is not None:
            slot.took[min(bisect.bisect_left(BOUNDS_MS, took_s * 1000), len(BOUNDS_MS) - 1)] += 1

    def _slot(self, at: int) -> _Slot | None:
        """The slot that begins at ``at``; None if there are as many slots as are kept, all newer."""
        if (known := self._slots.get(at)) is not None:
            return known
        if len(self._slots) == SLOTS:
            if at < (oldest := min(self._slots)):
                return None
            del self._slots[oldest]
        self._slots[at] = made = _Slot(at)
        return made

    def document(self) -> dict[str, Any]:
        """For the page, oldest slot first. Slots without an end are left out."""
        oldest = time.time() - SLOTS * SLOT_S
        return {
            "scope": self.scope,
            "since": self.since,
            "incomplete_before": self.missed_before if self.missed_before > oldest else None,
            "slot_s": SLOT_S,
            "slots": [
                {
                    "at": slot.at,
                    "committed": slot.committed,
                    "aborted": slot.aborted,
                    "other": slot.other,
                    "p50_ms": _quantile(slot.took, 0.5),
                    "p95_ms": _quantile(slot.took, 0.95),
                    "p99_ms": _quantile(slot.took, 0.99),
                }
                for slot in sorted(self._slots.values(), key=lambda slot: slot.at)
                if slot.at >= oldest
            ],
        }


def _quantile(took: list[int], share: float) -> float | None:
    """The bound below which that share of the counted durations lies; None without one."""
    wanted, seen = sum(took) * share, 0
    for count, bound in zip(took, BOUNDS_MS, strict=True):
        seen += count
        if count and seen >= wanted:
            return round(bound, 1)
    return None
