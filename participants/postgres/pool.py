"""The sessions of one participant that branches borrow.

A driver's pool does not suffice, because it does not know the state of a session. A session whose state is
unknown is closed, never lent again. A session that an application has used is cleaned: by the first round
trip of the next branch (:mod:`undoubt.participants.postgres.session_setup`) if it follows immediately,
otherwise in the background, so that no idle session keeps anything of an application. The session that was
used last is lent first: its caches stay warm, and the surplus sessions of a burst stay idle and are
closed."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from undoubt.participants.errors import ParticipantUnavailable
from undoubt.participants.postgres.session import ServerSession

S = TypeVar("S", bound=ServerSession)

CLEAN_AFTER_S = 0.005
"""How long a used session stays idle, for a branch that cleans it in its own first round trip, before it is
cleaned in the background."""
TIMER_S = 0.001
"""How early the event loop's timers may fire."""
CLEAN_WAIT_S = 0.05
"""How long a branch waits for a session that is being cleaned, before it opens a new one."""


@dataclass(slots=True, eq=False)
class Slot(Generic[S]):
    """A session of the pool, and what its last use may have left in it."""

    session: S
    fresh: bool
    """Nothing has been sent through it since it was opened."""
    used: bool = False
    """An application has used it, and may have left settings, a role, locks, temporary tables."""
    stale: bool = False
    """Its prepared statements are no longer valid, because the schema was changed."""
    reset: asyncio.Future[Any] | None = None
    """The answers to the reset that was sent behind the end of its last branch; None if none was sent. On
    success nothing of the application is left."""
    timeouts_ms: tuple[int, int] | None = None
    """lock_timeout and idle_in_transaction_session_timeout as set by undoubt; None: the server's own
    values."""
    idle_since: float = 0.0
    """The time of the event loop's clock at which it became idle."""


class Pool(Generic[S]):
    """A pool of at most ``size_max`` sessions, opened by ``connect`` when needed.

    ``clean`` is called with a slot that was used, and sets ``used`` to False or raises; without ``clean``
    sessions are not cleaned. A session that was idle for ``idle_s`` seconds is closed; 0: never. A pool is
    for one event loop."""

    def __init__(
        self,
        participant: str,
        connect: Callable[[], Awaitable[S]],
        size_max: int,
        *,
        idle_s: float = 0.0,
        clean: Callable[[Slot[S]], Awaitable[None]] | None = None,
    ) -> None:
        self._participant = participant
        self._connect = connect
        self._size_max = size_max
        self._idle_s = idle_s
        self._clean = clean
        self.idle: list[Slot[S]] = []
        """Idle sessions; the one that was used last is at the end."""
        self._lent: set[S] = set()
        self.cleaning: dict[asyncio.Future[Any], Slot[S]] = {}
        self._connecting = 0
        """The number of places that are taken for sessions that are being opened."""
        self._waiting: deque[asyncio.Future[Slot[S] | None]] = deque()
        """The waiting callers of ``acquire``. The result of each is a session, or None: then a place for a
        new session is already counted in ``_connecting``."""
        self._timer: asyncio.Handle | None = None
        self._timer_due = 0.0
        """When the timer is due. uvloop returns a handle without a time for a timer that is due already."""
        self._closed = False

    @property
    def size(self) -> int:
        """The number of sessions, including those that are being opened."""
        return len(self.idle) + len(self._lent) + len(self.cleaning) + self._connecting

    async def acquire(self, timeout_s: float, *, fresh: bool = False) -> Slot[S]:
        """An idle session, or a new one; with ``fresh`` always a new one. Raises ``ParticipantUnavailable``
        if no session becomes free within ``timeout_s``, and the errors of ``connect``."""
        self._check_open()
        slot = None if fresh else self._pop_idle()
        if slot is None and not self._take_place(fresh=fresh):
            slot = await self._wait(timeout_s)
            if slot is not None and fresh:
                self._lent.discard(slot.session)
                slot.session.discard()
                slot = None
                self._connecting += 1
        if slot is None:
            slot = await self._open()
        self._lent.add(slot.session)
        if self._closed:
            self.release(slot)
            self._check_open()
        return slot

    def release(self, slot: Slot[S]) -> None:
        """Return a session to the pool. Closes it if it is broken or a transaction is open in it. May be
        repeated."""
        if slot.session not in self._lent:
            return
        self._lent.discard(slot.session)
        slot.fresh = False
        reset, slot.reset = slot.reset, None
        if slot.stale:
            slot.session.discard()
        if reset is not None and not slot.session.broken:
            self.cleaning[reset] = slot
            reset.add_done_callback(self._has_reset)
        else:
            self._shelve(slot)
        if slot.stale:
            # Statements that other sessions prepared before the schema changed are no longer valid either.
            self.drop_idle()

    def drop_idle(self) -> None:
        """Close all idle sessions: if one session was lost, others probably were as well."""
        idle, self.idle = self.idle, []
        for slot in idle:
            slot.session.discard()
        for task, slot in self.cleaning.items():
            slot.stale = True  # it may be clean already, and about to become idle
            task.cancel()
        self._place_is_free()

    def close(self) -> None:
        """Close every session, also those that are lent."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(ParticipantUnavailable(self._participant, "it has been closed"))
        self.drop_idle()
        for session in self._lent:
            session.discard()

    async def drain(self) -> None:
        """Wait until no session is being cleaned."""
        if self.cleaning:
            await asyncio.wait(list(self.cleaning))

    # Places.

    def _take_place(self, *, fresh: bool) -> bool:
        """Take a place for a new session; True if a session may be opened immediately."""
        if self.cleaning and not fresh and self.size < self._size_max:
            return False  # a session that is being cleaned will be ready sooner
        if fresh and self.size >= self._size_max and self.idle:
            self.idle.pop(0).session.discard()
        if self.size >= self._size_max:
            return False
        self._connecting += 1
        return True

    async def _wait(self, timeout_s: float) -> Slot[S] | None:
        """Wait for a session. None: a place for a new session is taken instead."""
        waiter: asyncio.Future[Slot[S] | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        full = self.size >= self._size_max
        try:
            async with asyncio.timeout(timeout_s if full else min(timeout_s, CLEAN_WAIT_S)):
                return await waiter
        except TimeoutError:
            if waiter.done() and not waiter.cancelled():
                return waiter.result()
            if self.size < self._size_max:
                self._connecting += 1
                return None
            if not full:
                return await self._wait(timeout_s - CLEAN_WAIT_S)
            raise ParticipantUnavailable(
                self._participant,
                f"all {self._size_max} connections were in use for {timeout_s:g} s;"
                " raise connections_max, or keep transactions shorter",
            ) from None
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._return(waiter.result())
            raise
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)

    async def _open(self) -> Slot[S]:
        """Open a session in a place that is counted in ``_connecting``."""
        try:
            session = await self._connect()
        except BaseException:
            self._return(None)
            raise
        self._connecting -= 1
        return Slot(session, fresh=True)

    def _return(self, given: Slot[S] | None) -> None:
        """Take back what a cancelled or failed caller of ``acquire`` was given: a session, or a place
        (None)."""
        if given is not None:
            self._lent.discard(given.session)
            self._shelve(given)
        else:
            self._connecting -= 1
            self._place_is_free()

    def _place_is_free(self) -> None:
        while self._waiting and self.size < self._size_max:
            waiter = self._waiting.popleft()
            if not waiter.done():
                self._connecting += 1
                waiter.set_result(None)

    # Idle sessions.

    def _shelve(self, slot: Slot[S]) -> None:
        """Give a session that is no longer lent to a waiting caller, or make it idle; close it if it is not
        usable."""
        if self._closed or slot.session.broken or slot.session.in_transaction:
            slot.session.discard()
            self._place_is_free()
            return
        slot.idle_since = asyncio.get_running_loop().time()
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                self._lent.add(slot.session)
                waiter.set_result(slot)
                return
        self.idle.append(slot)
        due = self._due(slot)
        if due is not None and (self._timer is None or self._timer_due > due):
            self._set_timer()

    def _pop_idle(self) -> Slot[S] | None:
        while self.idle:
            slot = self.idle.pop()
            if not slot.session.broken:
                return slot
            slot.session.discard()
        return None

    def _due(self, slot: Slot[S]) -> float | None:
        """When an idle session has to be cleaned or closed; None: never."""
        if self._is_dirty(slot):
            return slot.idle_since + CLEAN_AFTER_S
        return slot.idle_since + self._idle_s if self._idle_s > 0 else None

    def _set_timer(self) -> None:
        """Set the timer to the time at which the next session has to be cleaned or closed."""
        if self._timer is not None:
            self._timer.cancel()
        due = [slot.idle_since + CLEAN_AFTER_S for slot in self.idle if self._is_dirty(slot)][:1]
        if self.idle and self._idle_s > 0:
            due.append(self.idle[0].idle_since + self._idle_s)
        self._timer = None
        if due:
            self._timer_due = min(due)
            self._timer = asyncio.get_running_loop().call_at(self._timer_due, self._tend)

    def _tend(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time() + TIMER_S
        kept: list[Slot[S]] = []
        idle, self.idle = self.idle, kept
        for slot in idle:
            if self._idle_s > 0 and slot.idle_since + self._idle_s <= now:
                slot.session.discard()
            elif self._is_dirty(slot) and slot.idle_since + CLEAN_AFTER_S <= now:
                task = loop.create_task(self._cleaned(slot), name=f"undoubt-clean {self._participant}")
                self.cleaning[task] = slot
                task.add_done_callback(self._has_cleaned)
            else:
                kept.append(slot)
        self._set_timer()
        self._place_is_free()

    def _is_dirty(self, slot: Slot[S]) -> bool:
        return slot.used and self._clean is not None

    async def _cleaned(self, slot: Slot[S]) -> None:
        clean = self._clean
        try:
            if clean is not None:
                await clean(slot)
        finally:
            if slot.used:
                slot.session.discard()

    def _has_reset(self, reset: asyncio.Future[Any]) -> None:
        if reset.cancelled() or reset.exception() is not None:
            self.cleaning[reset].session.discard()
        else:
            self.cleaning[reset].used = False
        self._has_cleaned(reset)

    def _has_cleaned(self, task: asyncio.Future[Any]) -> None:
        slot = self.cleaning.pop(task)
        if not task.cancelled():
            task.exception()  # an error needs no handling: the session is closed
        if slot.stale:
            slot.session.discard()
        self._shelve(slot)

    def _check_open(self) -> None:
        if self._closed:
            raise ParticipantUnavailable(self._participant, "it has been closed")
