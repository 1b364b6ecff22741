"""The driver's hand on the storage: writes in order, one at a time, all that wait together.

What comes in while the disk is busy is written next, in one transaction with one sync (group commit). A write
that found no room is given again, and again, until there is some: what was promised to be stored before
anything that comes later will be. What can be left out is left out then, so that votes do not wait behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from undoubt.coordinator.ledger.disk import StoreFull
from undoubt.coordinator.node.storage.contract import DiskWrite, Storage

RETRY_S = 0.5

NOTHING = DiskWrite()


@dataclass(slots=True)
class _Job:
    write: DiskWrite
    then: Callable[[], None]
    no_room: Callable[[], None] | None


class Disk:
    """``on_full`` is told True when there is no room any more, False when there is some again; ``on_broken``
    once, after which nothing is written."""

    def __init__(
        self,
        storage: Storage,
        on_full: Callable[[bool], None],
        on_broken: Callable[[BaseException], None],
    ) -> None:
        self._storage = storage
        self._on_full = on_full
        self._on_broken = on_broken
        self._loop = asyncio.get_running_loop()
        self._waiting: list[_Job] = []
        self._busy = False
        self._full = False
        self._asking = False
        self._broken = False
        self._closed = False

    @property
    def full(self) -> bool:
        return self._full

    def give(
        self, write: DiskWrite, then: Callable[[], None], *, no_room: Callable[[], None] | None = None
    ) -> None:
        """``then`` is called once ``write`` and all before it are durable. Begun by the next :meth:`flush`.

        With ``no_room``, nothing that is given later depends on ``write``: if there is no room it is left
        out, and ``no_room`` called instead."""
        self._waiting.append(_Job(write, then, no_room))

    def flush(self) -> None:
        if self._busy or self._broken or self._closed or not self._waiting:
            return
        batch, self._waiting = self._waiting, []
        writes = [job.write for job in batch if job.write != NOTHING]
        if not writes:
            self._done(batch)
            return
        self._busy = True
        self._storage.write(writes).add_done_callback(lambda future: self._ended(batch, future))

    def _ended(self, batch: list[_Job], future: asyncio.Future[bool]) -> None:
        if future.cancelled():  # the loop is ending
            return
        error = future.exception()
        if isinstance(error, StoreFull):
            self._leave_out(batch)
            return
        self._busy = False
        if error is not None:
            self._broken = True
            self._on_broken(error)
            return
        self._room(future.result())
        self._done(batch)
        self._ask_later()

    def _leave_out(self, batch: list[_Job]) -> None:
        """There was no room for ``batch``: without what can be left out it is tried at once, else later."""
        left = [job for job in batch if job.no_room is None]
        self._waiting = [*left, *self._waiting]
        self._loop.call_later(0 if len(left) < len(batch) else RETRY_S, self._again)
        self._room(False)
        for job in batch:
            if job.no_room is not None:
                job.no_room()

    def _again(self) -> None:
        self._busy = False
        self.flush()
        if not self._busy:
            self._ask_later()

    def _ask_later(self) -> None:
        if self._full and not self._asking:
            self._asking = True
            self._loop.call_later(RETRY_S, self._ask)

    def _ask(self) -> None:
        """Is there room again?"""
        self._asking = False
        if not self._busy and not self._broken and not self._closed:
            self._busy = True
            self._storage.write(()).add_done_callback(lambda future: self._ended([], future))

    def close(self) -> None:
        """Nothing is begun any more."""
        self._closed = True

    def _room(self, room: bool) -> None:
        if room is self._full:
            self._full = not room
            self._on_full(self._full)

    def _done(self, batch: list[_Job]) -> None:
        for job in batch:
            job.then()
