"""A coordinator's lease on the ledger, and the sequence numbers that it hands out under it.

``floor`` is the lowest sequence number that is still undecided here: everything below it is over, and the
ledger may answer for it. It rides along with the renewals of the lease. After so many transactions a lease is
replaced, so that each stays small and can be dropped as a whole once retention allows. One that is bound to
acceptors is replaced as well once others are to be bound to: what it has begun ends with the acceptors that
it was begun with, and then it is closed, which lets these go.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from undoubt.coordinator.errors import (
    CoordinatorClosed,
    LedgerError,
    LedgerUnavailable,
    SessionLost,
    VersionHeldBack,
)
from undoubt.coordinator.ledger.contract import Ledger, Session
from undoubt.coordinator.supervision import Supervised, restarts
from undoubt.participants.ids import SessionKey, TxId
from undoubt.participants.invariant import invariant

log = logging.getLogger(__name__)


class Lease:
    """One ledger session with the transactions that run under it."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.key = SessionKey(session.key) if session.key else SessionKey.drawn()
        self.lost = False
        self._last_seq = 0
        self._active: dict[int, None] = {}  # insertion order is ascending: the first key is the floor

    @property
    def begun(self) -> int:
        return self._last_seq

    @property
    def floor(self) -> int:
        return next(iter(self._active), self._last_seq + 1)

    @property
    def idle(self) -> bool:
        return not self._active

    def begin(self) -> TxId:
        self._last_seq += 1
        self._active[self._last_seq] = None
        return self.session.txid(self._last_seq)

    def end(self, txid: TxId) -> None:
        invariant(txid.session == self.session.id, f"{txid} was not begun under session {self.session.id}")
        self._active.pop(txid.seq, None)


class SessionKeeper:
    """Keeps one lease current: opens it, renews it three times per lifetime, replaces it when it is full,
    lost, or bound to acceptors that are others by now. ``on_lost`` is told the session number of a lease that
    is gone with transactions in it."""

    def __init__(
        self,
        ledger: Ledger,
        name: str,
        *,
        ttl_s: float,
        transactions_max: int,
        on_lost: Callable[[int], None],
        bind: bool = False,
    ) -> None:
        """``bind``: to acceptors of Paxos Commit, from the first lease on."""
        self._ledger = ledger
        self._name = name
        self._ttl_s = ttl_s
        self._transactions_max = transactions_max
        self._on_lost = on_lost
        self._bind = bind
        self._current: Lease | None = None
        self._leases: dict[int, Lease] = {}
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._wanted = False
        """Another lease is."""
        self._opened = asyncio.Event()
        self._shut = False
        self._given_up = False
        self._trouble: Exception | None = None
        """Why there is no other lease yet."""
        self._held_back: VersionHeldBack | None = None
        """Why the last lease is not bound, though it should be."""

    async def start(self) -> None:
        """Open the first session; raises what the ledger raises."""
        await self._open()
        self._task = Supervised("session", self._keep).start("undoubt-session")

    async def begin(self, timeout_s: float, *, bound: bool = False) -> tuple[TxId, SessionKey]:
        """A new transaction id, and the key of its session. Waits for a session if the last one was lost and
        none is open yet; raises ``LedgerUnavailable`` if none is within ``timeout_s`` seconds. ``bound``: of
        a lease that is bound to acceptors, as all are from then on; raises ``VersionHeldBack`` while the
        cluster has none."""
        self._bind = self._bind or bound
        end = None
        while (lease := self._current) is None or lease.lost or (bound and not lease.session.acceptors):
            self._check_open()
            self._opened.clear()
            self._want()
            end = end or asyncio.get_running_loop().time() + timeout_s
            await self._wait_for_another(end, timeout_s)
            if bound and self._held_back is not None:
                raise self._held_back
        self._check_open()
        txid = lease.begin()
        if lease.begun >= self._transactions_max:
            self._want()
        return txid, lease.key

    async def _wait_for_another(self, end: float, timeout_s: float) -> None:
        try:
            async with asyncio.timeout_at(end):
                await self._opened.wait()
        except TimeoutError:
            why = self._trouble or "it does not answer"
            raise LedgerUnavailable(f"no session with the ledger within {timeout_s:g} s: {why}") from None

    def shut(self) -> None:
        """No transaction begins any more; sessions are renewed for those that have."""
        self._shut = True
        self._opened.set()

    def _check_open(self) -> None:
        if self._shut:
            raise CoordinatorClosed

    def _want(self) -> None:
        self._wanted = True
        self._wake.set()

    def give_up(self) -> None:
        """What ends from now on is left to recovery: no floor passes it, as if it were recorded."""
        self._given_up = True

    def end(self, txid: TxId) -> None:
        """Nothing of ``txid`` is undecided here any more."""
        if self._given_up:
            return
        lease = self._leases.get(txid.session)
        if lease is not None:
            lease.end(txid)
            if lease.idle and lease is not self._current:
                self._wake.set()

    async def close(self) -> None:
        """Stop renewing, and close every session, as far as the ledger answers."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for lease in list(self._leases.values()):
            try:
                await self._end(lease)
            except LedgerError as error:
                log.warning("session %d stays open until it expires: %s", lease.session.id, error)
        self._leases.clear()

    async def _open(self) -> None:
        former = self._current
        session = await self._bound()
        if session is None and former is not None and self._usable(former):
            self._opened.set()
            return
        lease = Lease(session or await self._ledger.open_session(self._name, self._ttl_s))
        session = lease.session
        self._leases[session.id] = lease
        self._current = lease
        self._trouble = None
        self._opened.set()
        if former is not None and former.idle:
            self._wake.set()

    def _usable(self, lease: Lease) -> bool:
        return not lease.lost and lease.begun < self._transactions_max

    async def _bound(self) -> Session | None:
        """A session that is bound to acceptors; None where there are none, or none is wanted."""
        acceptors, self._held_back = self._ledger.acceptors if self._bind else None, None
        if acceptors is None:
            return None
        try:
            return await acceptors.open_session(self._name, self._ttl_s)
        except VersionHeldBack as error:
            self._held_back = error
            return None

    async def _moved(self) -> bool:
        """Whether a lease that is opened now would be bound to other acceptors."""
        lease, acceptors = self._current, self._ledger.acceptors
        if lease is None or acceptors is None or not lease.session.acceptors:
            return False
        return tuple(await acceptors.current()) != lease.session.acceptors

    async def _keep(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._ttl_s / 3)
            self._wake.clear()
            try:
                await self._renew_all()
                if self._wanted or await self._moved():
                    self._wanted = False
                    await self._open()
            except Exception as error:  # a bug of ours or of a driver's too: without leases nothing goes on
                if isinstance(error, LedgerError):
                    log.warning("the ledger does not answer: %s", error)
                else:
                    restarts["session"] += 1
                    log.exception("a session could not be renewed or opened")
                self._trouble = error
                self._wanted = False
                await asyncio.sleep(min(self._ttl_s / 10, 1.0))
                self._wake.set()  # a third of the lifetime may be all that is left
                lease = self._current
                if lease is None or lease.lost or (self._bind and not lease.session.acceptors):
                    self._want()

    async def _end(self, lease: Lease) -> None:
        """Acceptors let go what its floor has passed, and nobody moves that once it is closed."""
        if lease.session.acceptors:
            with contextlib.suppress(SessionLost):
                await self._ledger.keep_alive(lease.session, lease.floor)
        await self._ledger.close_session(lease.session)

    async def _renew_all(self) -> None:
        for lease in list(self._leases.values()):
            if lease is not self._current and lease.idle:
                await self._end(lease)
                del self._leases[lease.session.id]
                continue
            try:
                await self._ledger.keep_alive(lease.session, lease.floor)
            except SessionLost:
                self._lose(lease)

    def _lose(self, lease: Lease) -> None:
        log.warning("session %d is gone; its undecided transactions abort", lease.session.id)
        lease.lost = True
        del self._leases[lease.session.id]
        self._on_lost(lease.session.id)
        if lease is self._current:
            self._want()
