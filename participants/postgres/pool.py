"""The sessions of one participant that branches borrow.

A pool of its own, because of what may be known about a session afterwards: one whose state is unknown is
closed, never lent again; one that an application has used is reset by the next branch's first round trip
(:mod:`participants.postgres.begin`); the session that was used last is lent first, so that the surplus ages
and its caches stay warm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from participants.errors import ParticipantUnavailable
from participants.postgres.session import Session

S = TypeVar("S", bound=Session)


@dataclass(slots=True)
class Slot(Generic[S]):
    """A borrowed session, and what is left in it from the last time."""

    session: S
    fresh: bool
    """Nobody has sent anything through it since it was opened."""
    used: bool = False
    """An application had it: it may have left settings, a role, locks, temporary tables."""
    timeouts_ms: tuple[int, int] | None = None
    """lock_timeout and idle_in_transaction_session_timeout as set here; None: as the server has them."""


class Pool(Generic[S]):
    """At most ``size_max`` sessions at once, opened by ``connect`` when needed."""

    def __init__(self, participant: str, connect: Callable[[], Awaitable[S]], size_max: int) -> None:
        self._participant = participant
        self._connect = connect
        self._size_max = size_max
        self._free = asyncio.Semaphore(size_max)
        self._idle: list[Slot[S]] = []
        self._lent: set[S] = set()
        self._closed = False

    async def acquire(self, timeout_s: float, *, fresh: bool = False) -> Slot[S]:
        """An idle session, or a new one (always with ``fresh``). Raises ``ParticipantUnavailable`` if none
        gets free within ``timeout_s``, and what ``connect`` raises."""
        if self._free.locked():
            await self._wait(timeout_s)
        else:
            await self._free.acquire()
        try:
            slot = None if fresh else self._pop_idle()
            if slot is None:
                slot = Slot(await self._connect(), fresh=True)
        except BaseException:
            self._free.release()
            raise
        self._lent.add(slot.session)
        if self._closed:
            self.release(slot)
            raise ParticipantUnavailable(self._participant, "it has been closed")
        return slot

    async def _wait(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._free.acquire()
        except TimeoutError:
            raise ParticipantUnavailable(
                self._participant,
                f"all {self._size_max} connections were in use for {timeout_s:g} s;"
                " raise connections_max, or keep transactions shorter",
            ) from None

    def release(self, slot: Slot[S]) -> None:
        """Take a session back. Closes it if it is broken or a transaction is open in it. May be repeated."""
        if slot.session not in self._lent:
            return
        self._lent.discard(slot.session)
        self._free.release()
        if self._closed or slot.session.broken or slot.session.in_transaction:
            slot.session.discard()
            return
        slot.fresh = False
        self._idle.append(slot)

    def drop_idle(self) -> None:
        """Close what nobody uses: a lost session is seldom the only one."""
        for slot in self._idle:
            slot.session.discard()
        self._idle.clear()

    def close(self) -> None:
        """Close every session, lent ones too."""
        self._closed = True
        self.drop_idle()
        for session in self._lent:
            session.discard()

    def _pop_idle(self) -> Slot[S] | None:
        while self._idle:
            slot = self._idle.pop()
            if not slot.session.broken:
                return slot
            slot.session.discard()
        return None
