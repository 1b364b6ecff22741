"""Keeps the ledger session of a coordinator's locks, and finds out which locks it has lost.

Locks have a session of their own: it is opened with the first request, is renewed as long as there are
requests, and is not replaced with the sessions of transactions, so that a lock may be held for weeks.

In each renewal the requests that the ledger has are compared with those that this process knows: a lock that
the ledger no longer has is lost, and a request that no code of this process waits for any more (its caller
was cancelled, the answer to its end was lost) is ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from undoubt.coordinator.errors import CoordinatorClosed, LedgerError, SessionLost
from undoubt.coordinator.ledger.contract import Ledger, Session
from undoubt.coordinator.ledger.locks import LockRequest
from undoubt.coordinator.supervision import Supervised
from undoubt.participants.ids import TxId

log = logging.getLogger(__name__)

RENEWALS = 3
"""Renewals within one lifetime of the session."""
DRIFT = 0.01
"""How much faster the ledger's clock may run than that of this process: the session is certain for so much
less of its lifetime."""


def _suspended_s() -> float:
    """For how long this machine has been suspended since it was booted: time that the clock of the event loop
    does not count (clock_gettime(2), CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


class LockSession:
    """The session of the locks of one coordinator."""

    def __init__(self, ledger: Ledger, name: str, ttl_s: float, check_here: Callable[[], None]) -> None:
        """``check_here`` raises ``WrongLoop`` or ``WrongProcess`` where the coordinator must not be used."""
        self.ledger = ledger
        self.check_here = check_here
        self._name = name
        self._ttl_s = ttl_s
        self._current: Session | None = None
        self._renewed_at = 0.0
        """When the last renewal that was answered was sent, by the clock of the loop: the session lasts for a
        lifetime at least from then on."""
        self._suspended_s = 0.0
        """What :func:`_suspended_s` was then."""
        self._opening = asyncio.Lock()
        self._last_number = 0
        self._lost: dict[int, Callable[[str], None]] = {}
        """Who hears that a request has ended, by its number: those that wait or hold."""
        self._held: set[int] = set()
        self._to_end: dict[int, LockRequest] = {}
        """Requests that this process has no use for, and that the ledger may still have."""
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._closed = False

    async def request(
        self, name: str, lost: Callable[[str], None], *, shared: bool, txid: TxId | None
    ) -> LockRequest:
        """A new request, not yet sent, under a session that is open. ``lost`` is called once if it ends
        before :meth:`drop`, with the reason. Raises ``LedgerError``, ``CoordinatorClosed``."""
        async with self._opening:
            if self._closed:
                raise CoordinatorClosed
            if self._current is None:
                sent_at, suspended_s = asyncio.get_running_loop().time(), _suspended_s()
                self._current = await self.ledger.open_session(self._name, self._ttl_s)
                self._renewed_at, self._suspended_s = sent_at, suspended_s
                self._wake.set()
                if self._task is None:
                    self._task = Supervised("locks", self._keep).start("undoubt-locks")
            session = self._current
            self._last_number += 1
            made = LockRequest(name, session.id, session.nonce, self._last_number, shared, txid)
            self._lost[made.number] = lost
            return made

    def granted(self, request: LockRequest) -> None:
        """The ledger has granted ``request``."""
        self._held.add(request.number)

    def sure(self, request: LockRequest) -> bool:
        """Whether the session of ``request`` is certainly open: the last renewal is young enough."""
        session = self._current
        mine = session is not None and session.id == request.session
        unseen_s = max(_suspended_s() - self._suspended_s, 0.0)
        passed_s = asyncio.get_running_loop().time() - self._renewed_at + unseen_s
        return mine and passed_s < self._ttl_s * (1 - DRIFT)

    def drop(self, request: LockRequest) -> None:
        """This process has no use for ``request`` any more; the ledger hears it soon, and as often as it
        takes."""
        self._lost.pop(request.number, None)
        self._held.discard(request.number)
        session = self._current
        if session is not None and session.id == request.session:
            self._to_end[request.number] = request
            self._wake.set()

    async def end(self, request: LockRequest) -> None:
        """End a request, as :meth:`drop` does; return once the ledger has ended it, or does not answer."""
        self._lost.pop(request.number, None)
        self._held.discard(request.number)
        try:
            await self.ledger.unlock(request)
        except LedgerError as error:
            log.warning("lock %r could not be released yet: %s", request.name, error)
            self.drop(request)

    def session_lost(self, request: LockRequest) -> None:
        """The ledger has answered that the session of ``request`` is gone."""
        if self._current is not None and self._current.id == request.session:
            self._lose("its session was closed or has expired")

    async def close(self) -> None:
        """End the session, and with it all requests, as far as the ledger answers."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        async with self._opening:
            session = self._current
            self._lose("the coordinator was closed")
        if session is not None:
            try:
                await self.ledger.close_session(session)
            except LedgerError as error:
                log.warning("the locks of session %d are held until it expires: %s", session.id, error)

    def _lose(self, why: str) -> None:
        lost, self._lost = self._lost, {}
        self._current = None
        self._held.clear()
        self._to_end.clear()
        for hear in lost.values():
            hear(why)

    async def _keep(self) -> None:
        while True:
            due_s = self._renewed_at + self._ttl_s / RENEWALS - asyncio.get_running_loop().time()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), max(due_s, 0) if self._current else None)
            self._wake.clear()
            try:
                await self._end_dropped()
                if asyncio.get_running_loop().time() >= self._renewed_at + self._ttl_s / RENEWALS:
                    await self._renew()
            except LedgerError as error:
                log.warning("the session of locks could not be renewed: %s", error)
                await asyncio.sleep(min(self._ttl_s / 10, 1.0))
                self._wake.set()

    async def _end_dropped(self) -> None:
        for request in list(self._to_end.values()):
            await self.ledger.unlock(request)
            self._to_end.pop(request.number, None)

    async def _renew(self) -> None:
        session = self._current
        if session is None:
            return
        if not self._lost and not self._to_end:
            async with self._opening:
                if self._lost:
                    return
                self._current = None
            await self.ledger.close_session(session)
            return
        sent_at, suspended_s = asyncio.get_running_loop().time(), _suspended_s()
        held, known = set(self._held), set(self._lost)
        try:
            await self.ledger.keep_alive(session, 1)
        except SessionLost:
            if session is self._current:
                log.warning("session %d was closed or has expired: its locks are lost", session.id)
                self._lose("its session was closed or has expired")
            return
        self._renewed_at, self._suspended_s = sent_at, suspended_s
        entries = await self.ledger.session_locks(session.id, session.nonce)
        there = {entry.request.number: entry for entry in entries}
        for number in held & self._held - there.keys():
            self._held.discard(number)
            self._lost.pop(number)("an operator has released it")
        for number in there.keys() - known - self._lost.keys():
            await self.ledger.unlock(there[number].request)
