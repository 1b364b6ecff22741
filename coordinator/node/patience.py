"""Measures how long a leader waits for the followers that get new entries at once, and calls for the others
if these are late (:attr:`undoubt.coordinator.raft.RaftSettings.lazy`)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from statistics import median

from undoubt.coordinator.raft import Raft

LEAST_S = 0.002
FACTOR = 3
SAMPLES = 15
"""The last waits whose median counts."""


class Patience:
    """``wake`` is called after the core was told to hurry: if an entry is not committed within :data:`FACTOR`
    times the median of the last waits, and within :data:`LEAST_S` seconds at least. There is one timer for
    all entries."""

    def __init__(self, raft: Raft, wake: Callable[[], None], loop: asyncio.AbstractEventLoop) -> None:
        self._raft = raft
        self._wake = wake
        self._loop = loop
        self._waits_s: deque[float] = deque(maxlen=SAMPLES)
        self._limit_s = LEAST_S
        self._index = 0
        """The entry whose wait is measured; 0 if there is none."""
        self._since_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def look(self) -> None:
        """Note what is committed, and what is waited for; to be called in each turn in which either may have
        changed."""
        raft = self._raft
        if self._index:
            if raft.leads and raft.commit_index < self._index:
                return
            if raft.leads:
                self._note(self._loop.time() - self._since_s)
            self._index = 0
        if raft.holds_back:
            self._index = raft.last_index
            self._since_s = self._loop.time()
            if self._timer is None:
                self._timer = self._loop.call_at(self._since_s + self._limit_s, self._due)

    def stop(self, _: object = None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._index = 0

    def _note(self, wait_s: float) -> None:
        # One long wait, of a follower that was paused, must not make the next entries wait as long.
        self._waits_s.append(min(wait_s, FACTOR * self._limit_s))
        self._limit_s = max(LEAST_S, FACTOR * median(self._waits_s))

    def _due(self) -> None:
        self._timer = None
        if not self._index:
            return
        due_s = self._since_s + self._limit_s
        if self._loop.time() < due_s:
            self._timer = self._loop.call_at(due_s, self._due)
        elif self._raft.holds_back:
            self._raft.hurry(self._index)
            self._wake()
