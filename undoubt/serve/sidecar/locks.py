"""Locks of the ledger for clients. Each is held for one transaction of the client, and is given back with it:
at its commit, its rollback, or its deadline, so that a client that has vanished holds none.

A request waits for a lock only as long as ``Prefer: wait`` says. The transaction is known to the detector of
deadlocks, which aborts one of several transactions that wait for each other.
"""

from __future__ import annotations

from undoubt.coordinator.errors import LedgerError, LedgerUnavailable, LockTimeout
from undoubt.coordinator.locks import Lock, fence_of
from undoubt.participants.errors import UndoubtError
from undoubt.participants.postgres.sql import fill
from undoubt.serve.sidecar.book import OpenTransaction
from undoubt.serve.sidecar.handlers import (
    JudgedRequest,
    Sidecar,
    answer,
    check_participant,
    check_sql,
    used_branch,
)
from undoubt.serve.sidecar.idempotency import Answer
from undoubt.serve.sidecar.problems import RETRY_AFTER_S, RequestRefused
from undoubt.serve.sidecar.types import (
    AcquireRequest,
    GuardedBranch,
    GuardRequest,
    LockList,
    LockMode,
    LockReleased,
    LockShown,
)

LOCKS_MAX = 100
"""Most locks of one transaction."""


async def acquire(sidecar: Sidecar, request: JudgedRequest) -> Answer:
    """Take a lock for a transaction of the client. Raises :class:`RequestRefused` if it is not granted in the
    time that the client waits."""
    request.client.needs("transact")
    wanted = request.given(AcquireRequest)
    entry = sidecar.own(request, wanted.transaction)
    entry.check_active()
    _check_room(entry)
    _check_new(entry, wanted)
    with sidecar.waits(request) as wait_s:
        lock = sidecar.book.coordinator.lock(
            wanted.name, timeout=wait_s, shared=wanted.mode == "shared", tx=entry.transaction
        )
        try:
            await lock.acquire()
        except LockTimeout as error:
            if isinstance(error.__cause__, LedgerError):
                raise LedgerUnavailable(str(error.__cause__)) from None
            raise RequestRefused(
                409,
                "LockHeld",
                str(error),
                headers={"Retry-After": str(RETRY_AFTER_S)},
                transaction=entry.id,
            ) from None
    try:
        # While this request waited, the transaction may have ended, or other requests may have taken locks.
        entry.check_active()
        _check_room(entry)
    except (RequestRefused, UndoubtError):
        await lock.release()
        raise
    entry.locks[lock.token] = lock
    taken = answer(_shown(sidecar, entry, lock), 201, location=f"/v1/locks/{lock.token}")
    if wait_s:
        taken.headers["preference-applied"] = f"wait={wait_s:g}"
    return taken


def _check_room(entry: OpenTransaction) -> None:
    if len(entry.locks) >= LOCKS_MAX:
        raise RequestRefused(422, "TooManyLocks", f"a transaction has at most {LOCKS_MAX}")


def _check_new(entry: OpenTransaction, wanted: AcquireRequest) -> None:
    """Raise :class:`RequestRefused` if the transaction would wait for a lock of its own."""
    for token, lock in entry.locks.items():
        if lock.name == wanted.name and lock.held and not (lock.shared and wanted.mode == "shared"):
            raise RequestRefused(
                409,
                "LockHeld",
                f"this transaction holds lock {lock.name!r} already, with token {token}",
                transaction=entry.id,
            )


async def list_locks(sidecar: Sidecar, request: JudgedRequest) -> Answer:
    """The locks that are held here for transactions that the client may see."""
    request.client.needs("transact", "observe", "operate")
    found = [
        _shown(sidecar, entry, lock)
        for entry in sidecar.book
        if request.client.sees(entry.owner)
        for lock in entry.locks.values()
    ]
    return answer(LockList(tuple(found)))


async def release(sidecar: Sidecar, request: JudgedRequest) -> Answer:
    request.client.needs("transact")
    entry, lock = _own(sidecar, request)
    del entry.locks[lock.token]
    token = lock.token
    held = await lock.release()
    return answer(LockReleased(token, held))


async def guard(sidecar: Sidecar, request: JudgedRequest) -> Answer:
    """Guard a branch that the sidecar runs: have its database refuse it if a later holder has been there."""
    request.client.needs("transact")
    entry, lock = _own(sidecar, request)
    entry.check_active()
    name = request.given(GuardRequest).participant
    check_participant(request.client, None, name)
    check_sql(sidecar, name)
    async with used_branch(sidecar, entry, name) as connection:
        await lock.guard(connection)
    return answer(GuardedBranch(lock.token, name))


def _own(sidecar: Sidecar, request: JudgedRequest) -> tuple[OpenTransaction, Lock]:
    """The lock of the path. Raises :class:`RequestRefused`."""
    token = request.path["token"]
    number = int(token) if token.isascii() and token.isdecimal() and len(token) < 20 else 0
    for entry in sidecar.book:
        if entry.owner == request.client.name and number in entry.locks:
            return entry, entry.locks[number]
    # Other clients do not learn whether the lock is held.
    raise RequestRefused(404, "NoSuchLock", f"you hold no lock with token {token[:20]!r} here")


def _shown(sidecar: Sidecar, entry: OpenTransaction, lock: Lock) -> LockShown:
    mode: LockMode = "shared" if lock.shared else "exclusive"
    ledger_id, fence = sidecar.ledger.ledger_id, str(fence_of(lock))
    statement = fill("guard_lock", ledger=ledger_id, lock=lock.name, token=fence)
    return LockShown(lock.token, lock.name, mode, entry.id, lock.held, statement)
