"""A disk with its faults, and the one thread that works with it.

A job takes its time outside of the event loop; a process that is killed before its job is done has changed
nothing; done is durable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future
from random import Random
from typing import Any

from tests.simulation.scheduler import Process, Scheduler
from undoubt.coordinator.ledger.disk import StoreBroken, StoreFull


class Drive:
    """``full``: nothing can be written. ``broken``: the next write fails, and nobody knows what of it is
    there; ``on_broken`` is told whose it was. ``slowness`` is a factor."""

    def __init__(self, scheduler: Scheduler, random: Random) -> None:
        self.scheduler = scheduler
        self.random = random
        self.full = False
        self.broken = False
        self.slowness = 1.0
        self.on_broken: Callable[[Process], None] = lambda _: None

    def running(self) -> Process:
        process = self.scheduler.running
        assert process is not None, "a disk is used outside of any process"
        return process

    def duration_s(self) -> float:
        return self.random.uniform(0.000_1, 0.003) * self.slowness

    def before_write(self, change: Callable[[], None]) -> None:
        """Raises what the disk has to say instead of carrying out ``change``; which may yet have happened."""
        if self.broken:
            self.broken = False
            self.on_broken(self.running())
            if self.random.random() < 0.5:
                change()
            raise StoreBroken("the disk has failed")
        if self.full:
            raise StoreFull("no room")

    def heal(self) -> None:
        self.full, self.broken, self.slowness = False, False, 1.0


class Thread(Executor):
    """One job after the other, each after a time of its own."""

    def __init__(self, drive: Drive) -> None:
        self._drive = drive
        self._process = drive.running()
        self._free_at = 0.0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        scheduler = self._drive.scheduler
        self._free_at = max(self._free_at, scheduler.now) + self._drive.duration_s()

        def done() -> None:
            before, scheduler.running = scheduler.running, self._process
            try:
                result = fn(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - whatever it is, the loop is told
                if not future.cancelled():
                    future.set_exception(error)
            else:
                if not future.cancelled():  # whoever waited was; it is done all the same
                    future.set_result(result)
            finally:
                scheduler.running = before

        scheduler.at(self._free_at, done, self._process)
        return future


class Writer:
    """In place of :class:`undoubt.coordinator.ledger.group_commit.WriterThread`."""

    def __init__(self, drive: Drive) -> None:
        self.ended = False
        self._thread = Thread(drive)

    def do(self, job: Callable[[], Any]) -> asyncio.Future[Any]:
        return asyncio.wrap_future(self._thread.submit(job), loop=asyncio.get_running_loop())

    def end(self) -> None:
        self.ended = True
