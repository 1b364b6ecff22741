"""Virtual time, and the processes that live in it.

One heap holds everything that will happen, by time and then by the order in which it was asked for. A process
is an event loop of its own (:mod:`tests.simulation.loop`) that runs one callback at a time and takes a little
time for each; which of two processes is faster is drawn from the seed. Killing a process cancels nothing: its
callbacks are never run again, its coroutines are kept where they stood, so that not even a ``finally`` runs.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

COST_S = (0.000_002, 0.000_060)
"""What one callback costs its process, least and most."""


class Process:
    """One simulated operating-system process. ``host`` is the machine whose network and disks it uses.

    ``clock_offset_s`` and ``clock_rate`` make its monotonic clock differ from everybody else's.
    """

    def __init__(self, scheduler: Scheduler, name: str, host: str) -> None:
        # Here and not above, because a loop needs its process.
        from tests.simulation.loop import ProcessLoop  # noqa: PLC0415

        self.scheduler = scheduler
        self.name = name
        self.host = host
        self.alive = True
        self.paused = False
        self.clock_offset_s = scheduler.random.uniform(0, 1_000_000)
        self.clock_rate = scheduler.random.uniform(0.995, 1.005)
        self.slowness = 1.0
        self.ready: deque[asyncio.Handle] = deque()
        self.steps = 0
        self.dies_at_step: int | None = None
        self.on_kill: list[Callable[[], None]] = []
        self.after_turn: Callable[[], None] = lambda: None
        self.loop = ProcessLoop(self)  # type: ignore[abstract] # what it lacks raises NotImplementedError
        self._awake = False
        self._free_at = 0.0

    def local_time(self) -> float:
        return self.clock_offset_s + self.clock_rate * self.scheduler.now

    def global_time(self, local: float) -> float:
        return (local - self.clock_offset_s) / self.clock_rate

    def post(self, handle: asyncio.Handle) -> None:
        """Run ``handle`` when everything before it has been run."""
        self.ready.append(handle)
        self.wake()

    def wake(self) -> None:
        if self.alive and not self.paused and not self._awake and self.ready:
            self._awake = True
            self.scheduler.at(max(self.scheduler.now, self._free_at), self._turn)

    def _turn(self) -> None:
        self._awake = False
        if not self.alive or self.paused or not self.ready:
            return
        self.steps += 1
        if self.dies_at_step is not None and self.steps >= self.dies_at_step:
            self.scheduler.killing(self)
            return
        handle = self.ready.popleft()
        if not handle.cancelled():
            self.run(handle)
            self.after_turn()
        self._free_at = self.scheduler.now + self.scheduler.random.uniform(*COST_S) * self.slowness
        self.wake()

    def run(self, handle: asyncio.Handle) -> None:
        """Run one callback as this process."""
        scheduler = self.scheduler
        before, scheduler.running = scheduler.running, self
        asyncio._set_running_loop(self.loop)
        try:
            handle._run()
        finally:
            asyncio._set_running_loop(None if before is None else before.loop)
            scheduler.running = before

    def start(self, main: Callable[[], Any], name: str) -> asyncio.Task[Any]:
        """Begin with ``main``, a coroutine function, as its first task."""
        return self.loop.create_task(main(), name=name)

    def pause(self, paused: bool) -> None:
        """SIGSTOP and SIGCONT: time goes on meanwhile."""
        self.paused = paused
        self.wake()

    def kill(self) -> None:
        """SIGKILL."""
        if not self.alive:
            return
        self.alive = False
        self.scheduler.graveyard.append((self, asyncio.all_tasks(self.loop)))
        for told in self.on_kill:
            told()


class Scheduler:
    """``killing`` is called for a process whose last step has come; ``after_step`` after every callback."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.now = 0.0
        self.steps = 0
        self.running: Process | None = None
        self.graveyard: list[object] = []
        self.killing: Callable[[Process], None] = Process.kill
        self.after_step: Callable[[], None] = lambda: None
        self._heap: list[tuple[float, int, Callable[[], None], Process | None]] = []
        self._count = 0

    def at(self, when: float, what: Callable[[], None], process: Process | None = None) -> None:
        """Call ``what`` at that moment, unless ``process`` is dead by then."""
        self._count += 1
        heapq.heappush(self._heap, (max(when, self.now), self._count, what, process))

    def after(self, delay_s: float, what: Callable[[], None], process: Process | None = None) -> None:
        self.at(self.now + delay_s, what, process)

    def run(self, until: float, stop: Callable[[], bool] = lambda: False) -> bool:
        """Let the world go on until that moment, or until ``stop()``; True in the second case."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            when, _, what, process = heapq.heappop(heap)
            self.now = when
            if process is not None and not process.alive:
                self.graveyard.append(what)
                continue
            self.steps += 1
            what()
            self.after_step()
            if stop():
                return True
        self.now = max(self.now, until)
        return stop()
