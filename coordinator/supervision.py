"""Background loops that are started again after a bug.

The maintenance of a ledger, the renewal of sessions, recovery and the like run for as long as their process,
and no code awaits their end: a loop that ended with an exception would be missed only hours later.
:class:`Supervised` starts the loop again after a pause, logs the traceback, and counts the restart in
:data:`restarts`. :class:`Upkeep` is such a loop with a fixed interval.
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
"""The restarts in this process, by the name of the task. ``undoubt.metrics`` shows them as
``undoubt_task_restarts_total``."""


class Supervised:
    """Runs ``loop()`` until it returns or the task is cancelled. ``name`` is the label in the metric; all
    tasks of one kind have the same."""

    def __init__(self, name: str, loop: Callable[[], Awaitable[None]], *, pause_s: float = PAUSE_S) -> None:
        """``pause_s``: the pause before the first restart; doubled with each restart that follows soon."""
        self.name = name
        self._loop = loop
        self._pause_s = pause_s

    def start(self, task_name: str) -> asyncio.Task[None]:
        """Run the loop in a new task, which the caller has to cancel."""
        return asyncio.get_running_loop().create_task(self.run(), name=task_name)

    async def run(self) -> None:
        waits = pauses(self._pause_s, PAUSE_S_MAX)
        while True:
            began = asyncio.get_running_loop().time()
            try:
                await self._loop()
            except Exception:  # a bug of undoubt or of a driver: everything else relies on this task
                restarts[self.name] += 1
                log.exception("task %r failed; it is started again", self.name)
            else:
                return
            if asyncio.get_running_loop().time() - began > 2 * PAUSE_S_MAX:
                waits = pauses(self._pause_s, PAUSE_S_MAX)
            await asyncio.sleep(next(waits))


class Upkeep:
    """Runs ``turn()`` repeatedly, with a pause of ``interval_s`` seconds before each run. A ledger that does
    not answer ends the turn, and not the loop; the log line then begins with ``undone``, which says what was
    not done."""

    def __init__(
        self,
        name: str,
        turn: Callable[[], Awaitable[None]],
        interval_s: float,
        *,
        undone: str,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """``name``: as in :class:`Supervised`. ``pause`` sleeps for the given number of seconds."""
        self._supervised = Supervised(name, self._loop)
        self._turn = turn
        self._interval_s = interval_s
        self._undone = undone
        self._pause = pause
        self._task: asyncio.Task[None] | None = None

    def start(self, task_name: str) -> None:
        """Start the loop; further calls change nothing."""
        if self._task is None:
            self._task = self._supervised.start(task_name)

    async def stop(self) -> None:
        """Cancel the loop and return once it has ended. May be repeated, and called before :meth:`start`."""
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
