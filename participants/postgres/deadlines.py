"""The deadlines of statements whose answers are awaited without a timer of their own: one timer serves all
statements of a participant."""

from __future__ import annotations

import asyncio
from typing import Protocol


class Due(Protocol):
    deadline: float
    """By the clock of the event loop."""

    def expire(self) -> None:
        """Called once, when the deadline has passed."""
        ...


class Deadlines:
    """For one event loop."""

    def __init__(self) -> None:
        self._waiting: set[Due] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0

    def add(self, due: Due) -> None:
        """Call ``due.expire`` at its deadline, unless :meth:`remove` is called before."""
        self._waiting.add(due)
        if self._timer is None or due.deadline < self._timer_due:
            self._set_timer(due.deadline)

    def remove(self, due: Due) -> None:
        """May be repeated. The timer stays as it is: it looks at what waits when it is due."""
        self._waiting.discard(due)

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = at
        self._timer = asyncio.get_running_loop().call_at(at, self._look)

    def _look(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        late = [due for due in self._waiting if due.deadline <= now]
        self._waiting.difference_update(late)
        if self._waiting:
            self._set_timer(min(due.deadline for due in self._waiting))
        for due in late:
            due.expire()
