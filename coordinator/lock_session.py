"""Keeps the ledger session of a coordinator's locks, and finds out which locks it has lost.

Locks have a session of their own: it is opened with the first request, is renewed as long as there are
requests, and is not replaced with the sessions of transactions, so that a lock may be held for weeks.

After each renewal the requests that the ledger has are compared with those that this process knows: a lock
that the ledger no longer has is lost, and a request that no code of this process waits for any more (its
caller was cancelled, the answer to its end was lost) is ended. This is another task than the one that renews,
which must not wait behind anything."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from undoubt.coordinator.errors import CoordinatorClosed, LedgerError, SessionLost
from undoubt.coordinator.ledger.contract import Ledger, Session
from undoubt.coordinator.ledger.locks import LockRequest
from undoubt.coordinator.supervision import Supervised
from undoubt.participants.errors import UsageError
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


class _Live(NamedTuple):
    """A request that code of this process waits for, or holds. ``lost`` is called if it ends."""

    request: LockRequest
    lost: Callable[[str], None]


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
        self._live: dict[int, _Live] = {}
        """By the number of the request."""
        self._held: set[int] = set()
        self._to_end: dict[int, LockRequest] = {}
        """Requests that this process has no use for, and that the ledger may still have."""
        self._tasks: list[asyncio.Task[None]] = []
        self._opened = asyncio.Event()
        self._renewed = False
        """Whether the session was renewed since the requests were last compared."""
        self._tidy = asyncio.Event()
        self._closed = False

    async def request(
        self, name: str, lost: Callable[[str], None], *, shared: bool, txid: TxId | None
    ) -> LockRequest:
        """A new request, not yet sent, under a session that is open. ``lost`` is called once if it ends
        before :meth:`drop`, with the reason. Raises ``LedgerError``, ``CoordinatorClosed``, and
        ``UsageError`` if the transaction would wait for a lock of its own."""
        for request, _ in self._live.values():
            if request.txid == txid is not None and request.name == name and not (request.shared and shared):
                raise UsageError(
                    f"transaction {txid} has lock {name!r} already, or waits for it: a lock is not reentrant,"
                    " and a shared one does not become exclusive"
                )
        async with self._opening:
            if self._closed:
                raise CoordinatorClosed
            if self._current is None:
                sent_at, suspended_s = asyncio.get_running_loop().time(), _suspended_s()
                self._current = await self.ledger.open_session(self._name, self._ttl_s)
                self._renewed_at, self._suspended_s = sent_at, suspended_s
                self._opened.set()
                if not self._tasks:
                    self._tasks = [
                        Supervised("locks", self._keep).start("undoubt-locks"),
                        Supervised("ends of locks", self._keep_tidy).start("undoubt-locks-ends"),
                    ]
            session = self._current
            self._last_number += 1
            made = LockRequest(name, session.id, session.nonce, self._last_number, shared, txid)
            self._live[made.number] = _Live(made, lost)
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
        self._live.pop(request.number, None)
        self._held.discard(request.number)
        session = self._current
        if session is not None and session.id == request.session:
            self._to_end[request.number] = request
            self._tidy.set()

    async def end(self, request: LockRequest) -> bool:
        """End a request, as :meth:`drop` does; return once the ledger has ended it, or does not answer.
        Returns whether it is certain that it had not ended before this call: the ledger had it until now, or
        does not answer, and the session is certainly open."""
        self._live.pop(request.number, None)
        self._held.discard(request.number)
        sure = self.sure(request)
        try:
            return await self.ledger.unlock(request)
        except LedgerError as error:
            log.warning("lock %r could not be released yet: %s", request.name, error)
            self.drop(request)
            return sure

    def session_lost(self, request: LockRequest) -> None:
        """The ledger has answered that the session of ``request`` is gone."""
        if self._current is not None and self._current.id == request.session:
            self._lose("its session was closed or has expired")

    async def close(self) -> None:
        """End the session, and with it all requests, as far as the ledger answers."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        async with self._opening:
            session = self._current
            self._lose("the coordinator was closed")
        if session is not None:
            try:
                await self.ledger.close_session(session)
            except LedgerError as error:
                log.warning("the locks of session %d are held until it expires: %s", session.id, error)

    def _lose(self, why: str) -> None:
        lost, self._live = self._live, {}
        self._current = None
        self._held.clear()
        self._to_end.clear()
        for _, hear in lost.values():
            hear(why)

    async def _keep(self) -> None:
        while True:
            if self._current is None:
                self._opened.clear()
                await self._opened.wait()
            due_s = self._renewed_at + self._ttl_s / RENEWALS - asyncio.get_running_loop().time()
            if due_s > 0:
                await asyncio.sleep(due_s)
                continue  # another session may have been opened meanwhile
            try:
                await self._renew()
            except LedgerError as error:
                log.warning("the session of locks could not be renewed: %s", error)
                await asyncio.sleep(min(self._ttl_s / 10, 1.0))

    async def _renew(self) -> None:
        """Renew the session; if it is gone, all its locks are lost."""
        session = self._current
        if session is None:
            return
        sent_at, suspended_s = asyncio.get_running_loop().time(), _suspended_s()
        try:
            await self.ledger.keep_alive(session, 1)
        except SessionLost:
            if session is self._current:
                log.warning("session %d was closed or has expired: its locks are lost", session.id)
                self._lose("its session was closed or has expired")
            return
        if session is self._current:
            self._renewed_at, self._suspended_s = sent_at, suspended_s
            self._renewed = True
            self._tidy.set()

    async def _keep_tidy(self) -> None:
        while True:
            await self._tidy.wait()
            self._tidy.clear()
            try:
                for request in list(self._to_end.values()):
                    await self.ledger.unlock(request)
                    self._to_end.pop(request.number, None)
                if self._renewed:
                    await self._compare()
            except LedgerError as error:
                log.warning("the ledger does not hear which locks are given back: %s", error)
                await asyncio.sleep(min(self._ttl_s / 10, 1.0))
                self._tidy.set()

    async def _compare(self) -> None:
        """Compare the requests of this process with those of the ledger; without any, end the session."""
        self._renewed = False
        session = self._current
        if session is None:
            return
        if not self._live and not self._to_end:
            async with self._opening:
                if self._live or session is not self._current:
                    return
                self._current = None
            await self.ledger.close_session(session)
            return
        held, known = set(self._held), set(self._live)
        entries = await self.ledger.session_locks(session.id, session.nonce)
        there = {entry.request.number: entry for entry in entries}
        if held & self._held - there.keys():
            await self._renew()  # the session may have ended, and all its requests with it
        for number in held & self._held - there.keys():
            self._held.discard(number)
            self._live.pop(number).lost("an operator has released it")
        for number in there.keys() - known - self._live.keys():
            await self.ledger.unlock(there[number].request)
