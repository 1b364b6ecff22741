"""Background loops that outlive their own bugs.

Upkeep of a ledger, renewal of sessions, recovery and the like run for as long as their process does, and
nobody waits for them: one that ended by an exception would be missed hours later. :class:`Supervised` begins
it again after a pause, logs the traceback, and counts it in :data:`restarts`. :class:`Upkeep` is such a loop
with a fixed interval.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable

from undoubt.coordinator.errors import LedgerError
from undoubt.participants.backoff import pauses

log = logging.getLogger(__name__)

PAUSE_S = 1.0
PAUSE_S_MAX = 30.0

restarts: Counter[str] = Counter()
"""Of this process, by the task's name. ``undoubt.metrics`` shows them as ``undoubt_task_restarts_total``."""


class Supervised:
    """``loop()`` is carried out until it returns or this is cancelled. ``name`` is the metric's label: one
    for all tasks of a kind."""

    def __init__(self, name: str, loop: Callable[[], Awaitable[None]], *, pause_s: float = PAUSE_S) -> None:
        """``pause_s``: before the first restart; doubled with each that follows soon."""
        self.name = name
        self._loop = loop
        self._pause_s = pause_s

    def start(self, task_name: str) -> asyncio.Task[None]:
        """In a task of its own, which its owner cancels."""
        return asyncio.get_running_loop().create_task(self.run(), name=task_name)

    async def run(self) -> None:
        waits = pauses(self._pause_s, PAUSE_S_MAX)
        while True:
            began = asyncio.get_running_loop().time()
            try:
                await self._loop()
            except Exception:  # a bug of ours or of a driver's: everything else relies on this task
                restarts[self.name] += 1
                log.exception("task %r failed; it is begun again", self.name)
            else:
                return
            if asyncio.get_running_loop().time() - began > 2 * PAUSE_S_MAX:
                waits = pauses(self._pause_s, PAUSE_S_MAX)
            await asyncio.sleep(next(waits))


class Upkeep:
    """``turn()`` is carried out again and again, each time after a pause of ``interval_s`` seconds. A ledger
    that does not answer ends a turn, and not the loop: ``undone`` says in the log what is not done then."""

    def __init__(
        self,
        name: str,
        turn: Callable[[], Awaitable[None]],
        interval_s: float,
        *,
        undone: str,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """``name``: as of :class:`Supervised`. ``pause``: sleeps for so many seconds."""
        self._supervised = Supervised(name, self._loop)
        self._turn = turn
        self._interval_s = interval_s
        self._undone = undone
        self._pause = pause
        self._task: asyncio.Task[None] | None = None

    def start(self, task_name: str) -> None:
        """Once; more changes nothing."""
        if self._task is None:
            self._task = self._supervised.start(task_name)

    async def stop(self) -> None:
        """Return once nothing of it runs. May be repeated, and called before :meth:`start`."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _loop(self) -> None:
        while True:
            await self._pause(self._interval_s)
            try:
                await self._turn()
            except LedgerError as error:
                log.warning("%s: %s", self._undone, error)
