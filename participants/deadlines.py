"""The deadlines of an event loop: one timer serves all of them.

Most deadlines are cancelled long before they are due, and a timer of the event loop for each of them would
cost more than what it guards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context, copy_context


def _nothing() -> None:
    """What a cancelled deadline calls."""


class Deadline:
    """``expire`` is called at ``at``, in seconds of the event loop's clock, unless the deadline is cancelled
    before; in the context of the code that set it, as a timer of the event loop would."""

    __slots__ = ("at", "context", "expire", "of")

    def __init__(self, of: Deadlines, at: float, expire: Callable[[], None]) -> None:
        self.of = of
        self.at = at
        self.expire = expire
        self.context = copy_context()

    def cancel(self) -> None:
        """May be repeated. The timer stays as it is: it looks at what waits when it is due."""
        self.of.waiting.pop(self, None)
        self.expire = _nothing  # mostly a method of what holds this deadline: a circle for the collector


class Deadlines:
    """The deadlines of one event loop; :func:`deadlines` returns those of the running one."""

    def __init__(self) -> None:
        self.waiting: dict[Deadline, None] = {}
        """In the order in which they were set, so that a simulation repeats itself."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0

    def call_at(self, at: float, expire: Callable[[], None]) -> Deadline:
        deadline = Deadline(self, at, expire)
        self.waiting[deadline] = None
        if self._timer is None or at < self._timer_due:
            self._set_timer(at)
        return deadline

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = at
        # The context of one deadline would be kept alive for all others.
        self._timer = asyncio.get_running_loop().call_at(at, self._look, context=Context())

    def _look(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        late = sorted((each for each in self.waiting if each.at <= now), key=lambda each: each.at)
        try:
            for each in late:
                expire = each.expire
                each.cancel()
                each.context.run(expire)  # does nothing if one before it has cancelled it
        finally:
            # Also if one has failed: those behind it are due at once.
            if self.waiting:
                self._set_timer(min(each.at for each in self.waiting))


of_loops: dict[asyncio.AbstractEventLoop, Deadlines] = {}
"""Closed loops are removed when another loop is added."""


def deadlines() -> Deadlines:
    """The deadlines of the running event loop."""
    loop = asyncio.get_running_loop()
    found = of_loops.get(loop)
    if found is None:
        for other in list(of_loops):
            if other.is_closed():
                of_loops.pop(other, None)
        found = of_loops[loop] = Deadlines()
    return found
