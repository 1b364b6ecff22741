"""A distributed lock as the application uses it.

::

    async with coordinator.lock("nightly report", timeout=10) as lock:
        async with coordinator.transaction() as tx:
            orders = await tx.branch("orders")
            await lock.guard(orders)            # the first statement of the branch
            await orders.execute("…")

The lock excludes others as long as its session lasts. A process that was stopped for longer does not know yet
that it has lost the lock: ``guard`` has the database refuse it, in the same transaction as its changes.
Without ``guard`` the lock saves work, and protects nothing."""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TypeVar

from undoubt.coordinator.errors import (
    LedgerError,
    LedgerLocked,
    LedgerUnavailable,
    LockLost,
    LockTimeout,
    SessionLost,
    TransactionAborted,
    TransactionEnded,
)
from undoubt.coordinator.ledger.lock_queue import name_fault
from undoubt.coordinator.ledger.locks import LOCK_WAIT_S_MAX, LockEntry, LockRequest
from undoubt.coordinator.lock_session import LockSession
from undoubt.coordinator.transaction import Transaction
from undoubt.participants.bounds import flag, seconds, text
from undoubt.participants.contract import Branch, GuardingBranch
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import TxId

log = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_S = 0.2
"""The pause after a ledger that does not answer, while a request waits."""
ANSWER_S = 1.0
"""How much longer than its timeout a request may last while the ledger does not answer."""


def fence_of(lock: Lock) -> int:
    """What ``lock.guard`` shows to a database: the token, or of several shared holders that of the first one.
    Raises ``UsageError`` if the lock is not acquired."""
    return lock._acquired.fence


def branch_with(transactions: Iterable[Transaction], connection: object) -> Branch:
    """The open branch whose connection the application has. Raises ``UsageError``."""
    for transaction in transactions:
        if transaction.active:
            for branch in transaction._branches.values():
                if branch.connection is connection:
                    return branch
    raise UsageError("this is not the connection of a branch of a running transaction (tx.branch)")


class Lock:
    """``async with coordinator.lock(name) as lock``, or :meth:`acquire` and :meth:`release`. One task at a
    time may use it; it may be acquired again after it was released. Use in another event loop or process than
    the coordinator's raises ``WrongLoop`` or ``WrongProcess``, and changes nothing."""

    def __init__(
        self,
        session: LockSession,
        live: Mapping[TxId, Transaction],
        name: str,
        *,
        timeout: float | None = None,
        shared: bool = False,
        tx: Transaction | None = None,
    ) -> None:
        """``live``: the running transactions of the coordinator. See :meth:`Coordinator.lock`."""
        if fault := name_fault(text("name", name)):
            raise UsageError(fault)
        self.name = name
        self.shared = flag("shared", shared)
        self._timeout_s = math.inf if timeout is None else seconds("timeout", timeout)
        self._session = session
        self._live = live
        self._tx = tx
        self._txid = None if tx is None else tx.id
        self._entry: LockEntry | None = None
        self._why_lost = ""
        self._lost = asyncio.Event()
        self._unanswered: LedgerError | None = None
        """The last failure of the ledger while the lock was asked for."""

    def __repr__(self) -> str:
        state = f"token {self._entry.token}" if self._entry is not None else "not acquired"
        return f"<Lock {self.name!r}, {'shared' if self.shared else 'exclusive'}, {state}>"

    @property
    def token(self) -> int:
        """The fencing token: higher than the tokens of all earlier holders of any lock of this ledger. Raises
        ``UsageError`` if the lock was not acquired."""
        return self._acquired.token

    @property
    def held(self) -> bool:
        """Whether it is certain at this moment that no other process has the lock. False also while the
        ledger does not answer for longer than a session lasts."""
        self._session.check_here()
        entry = self._entry
        return entry is not None and not self._lost.is_set() and self._session.sure(entry.request)

    def check(self) -> None:
        """Raise ``LockLost`` unless the lock is :attr:`held`."""
        self._session.check_here()
        held = self._session.sure(self._acquired.request) and not self._lost.is_set()
        if not held:
            raise self._error()

    async def lost(self) -> str:
        """Wait until the lock is lost; returns the reason. For a task beside the work, which stops it."""
        self._session.check_here()
        await self._lost.wait()
        return self._why_lost

    async def acquire(self) -> Lock:
        """Wait for the lock. Raises ``LockTimeout`` if it is not granted within the lock's timeout, also
        because the ledger does not answer (at most :data:`ANSWER_S` later, with the ledger's error as its
        cause); ``UsageError`` if there are too many requests, and ``CoordinatorClosed``. With a transaction:
        ``TransactionAborted`` once that is aborted, for example as the victim of a deadlock,
        ``TransactionEnded`` if it is over, and ``UsageError`` if it has the lock already."""
        self._session.check_here()
        if self._entry is not None:
            raise UsageError(f"lock {self.name!r} was acquired already by this object: make one for each use")
        end = asyncio.get_running_loop().time() + self._timeout_s
        limit = asyncio.timeout_at(None if math.isinf(end) else end + ANSWER_S)
        try:
            async with limit:
                await self._acquire(end)
        except TimeoutError:
            if not limit.expired():
                raise
            cause = self._unanswered or LedgerUnavailable("the ledger does not answer")
            raise self._late(": the ledger does not answer") from cause
        return self

    async def _acquire(self, end: float) -> None:
        loop = asyncio.get_running_loop()
        self._unanswered = None
        for attempt in itertools.count():
            self._lost, self._why_lost = asyncio.Event(), ""
            request = await self._answered(functools.partial(self._request, again=attempt > 0), end)
            if request is None:
                continue  # the transaction is aborted
            try:
                with self._withdrawn_when_doomed(request):
                    entry = await self._granted(request, end)
            except SessionLost:
                self._session.session_lost(request)
                continue  # ask again, with another session
            except BaseException:
                self._session.drop(request)
                raise
            if entry is None or self._aborted:
                await asyncio.shield(asyncio.ensure_future(self._session.end(request)))
                if self._aborted or loop.time() < end:
                    continue
                raise self._late("")
            self._session.granted(request)
            self._entry = entry
            return

    async def _request(self, *, again: bool) -> LockRequest:
        await self._check_transaction(again=again)
        return await self._session.request(self.name, self._hear, shared=self.shared, txid=self._txid)

    async def _answered(self, call: Callable[[], Awaitable[T]], end: float) -> T | None:
        """The answer to ``call``, which is repeated until ``end`` while the ledger does not answer; None if
        the request cannot be granted any more. Raises ``LockTimeout``, and the other errors of ``call``."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                return await call()
            except (LedgerUnavailable, LedgerLocked) as error:
                log.debug("lock %r: %s", self.name, error)
                if self._lost.is_set() or self._aborted:
                    return None
                if (left_s := end - loop.time()) <= 0:
                    raise self._late(": the ledger does not answer") from error
                self._unanswered = error
                await asyncio.sleep(min(RETRY_S, left_s))

    def _late(self, why: str) -> LockTimeout:
        return LockTimeout(f"lock {self.name!r} was not granted within {self._timeout_s:g} s{why}")

    async def try_acquire(self) -> bool:
        """Take the lock if it is free now; returns whether it was. Raises as :meth:`acquire` does, and
        ``LockTimeout`` if the ledger does not answer."""
        timeout_s, self._timeout_s = self._timeout_s, 0.0
        try:
            await self.acquire()
        except LockTimeout as error:
            if error.__cause__ is not None:
                raise
            return False
        finally:
            self._timeout_s = timeout_s
        return True

    async def _granted(self, request: LockRequest, end: float) -> LockEntry | None:
        """The entry once it is granted; None if it was not granted until ``end``, or has ended. Raises
        ``SessionLost``, ``LockTimeout``, and the errors of the first call."""
        loop, ledger = asyncio.get_running_loop(), self._session.ledger
        entry = await self._answered(lambda: ledger.lock(request, wait=loop.time() < end), end)
        while entry is not None and not entry.granted:
            left_s = end - loop.time()
            if left_s <= 0 or self._lost.is_set() or self._aborted:
                return None
            wait_s = min(left_s, LOCK_WAIT_S_MAX)
            entry = await self._answered(functools.partial(ledger.lock_entry, request, wait_s=wait_s), end)
            if entry is None and self._tx is None:
                # An operator's release ends granted requests only: the session is gone.
                raise SessionLost(f"the request for lock {self.name!r} has ended")
        return entry

    @property
    def _aborted(self) -> bool:
        """Whether the transaction is known to be aborted."""
        return self._tx is not None and self._tx.interruption is not None

    async def _check_transaction(self, *, again: bool) -> None:
        """Raise if the transaction of the lock has ended. ``again``: a request has ended; a detector of
        deadlocks in another process records why in the ledger before it ends one."""
        tx = self._tx
        if tx is None:
            return
        cause = await tx.find_out(None) if again else tx.interruption
        if cause is not None:
            raise TransactionAborted(tx.id, cause) from cause
        if not tx.active:
            raise TransactionEnded(f"transaction {tx.id} is over: it can wait for no lock")

    @contextmanager
    def _withdrawn_when_doomed(self, request: LockRequest) -> Iterator[None]:
        """Meanwhile ``request`` is withdrawn at once if the transaction is doomed in this process."""
        if self._tx is None:
            yield
            return

        def withdraw() -> None:
            self._session.drop(request)

        self._tx.on_doom.add(withdraw)
        try:
            yield
        finally:
            self._tx.on_doom.discard(withdraw)

    async def release(self) -> bool:
        """Give the lock back; returns whether it is certain that it was held until then. If the ledger does
        not answer, the lock is released as soon as the ledger does, or with the end of the session. Does
        nothing, and returns False, if the lock is not acquired."""
        self._session.check_here()
        entry, self._entry = self._entry, None
        if entry is None:
            return False
        lost = self._lost.is_set()
        return await asyncio.shield(asyncio.ensure_future(self._session.end(entry.request))) and not lost

    async def guard(self, connection: object) -> None:
        """Have the database of a branch refuse the branch if another holder of the lock has been there: the
        branch's first statement, before it reads or writes what the lock protects. ``connection`` is what
        ``tx.branch`` returned.

        Until the branch ends, later holders wait in their ``guard``. Raises ``StaleLock`` for a stale holder,
        after which the transaction can only be rolled back; ``LockLost`` if that is known without asking;
        ``ParticipantRefused`` if the database has no table of locks (``undoubt participants migrate``)."""
        self._session.check_here()
        fence = self._fence
        await self._guard(branch_with(self._live.values(), connection), fence)

    async def guard_in(self, transaction: Transaction, name: str) -> None:
        """As :meth:`guard`, of the open branch of ``transaction`` in participant ``name``, whose connection
        is one of the application's own."""
        self._session.check_here()
        fence = self._fence
        if (branch := transaction._branches.get(name)) is None or not transaction.active:
            raise UsageError(f"the transaction has no open branch in participant {name!r}")
        await self._guard(branch, fence)

    async def _guard(self, branch: Branch, fence: int) -> None:
        if not isinstance(branch, GuardingBranch):
            raise UsageError("another program runs this branch: it has to guard it")
        await branch.guard_lock(self._session.ledger.ledger_id, self.name, fence)

    @property
    def _fence(self) -> int:
        """Raises ``UsageError``, ``LockLost``."""
        entry = self._acquired
        if self._lost.is_set():
            raise self._error()
        return entry.fence

    async def __aenter__(self) -> Lock:
        return await self.acquire()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        held = not self._lost.is_set() if self._entry is None else await self.release()
        if error is None and not held:
            raise self._error()

    @property
    def _acquired(self) -> LockEntry:
        if self._entry is None:
            raise UsageError(f"lock {self.name!r} is not acquired: use 'async with', or await acquire()")
        return self._entry

    def _hear(self, why: str) -> None:
        self._why_lost = why
        self._lost.set()

    def _error(self) -> LockLost:
        why = self._why_lost or "its session could not be renewed in time, or an operator has released it"
        return LockLost(f"lock {self.name!r} is lost, or may be: {why}")
