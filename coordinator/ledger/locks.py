"""The ledger's contract for distributed locks: requests, and the calls that change them.

A lock is a name. A session asks for it by a request, which is granted, or waits in the lock's queue. Requests
are granted in the order in which the ledger has recorded them: exclusively, or, if several shared requests
follow each other, all of them together. A request ends when it is withdrawn or revoked, or when its session
ends; until the end of the session is recorded, nobody else gets the lock.

Each grant has a *token*, which is higher than all tokens that the ledger has issued before, over changes of
leaders, restarts and restores. A resource that remembers the highest token that it has seen, and refuses
lower ones, is safe from a former holder that does not know yet that its session has ended (M. Burrows, *The
Chubby lock service*, 2006, §2.4: sequencers).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from undoubt.participants.ids import TxId

LOCK_NAME_CHARACTERS_MAX = 200
LOCK_REQUESTS_MAX = 1_000
"""Most requests for one lock: holders and waiters."""
SESSION_REQUESTS_MAX = 1_000
"""Most requests of one session, for all locks."""
LOCKS_MAX = 100_000
"""Most locks that are held at one time, on a ledger that keeps them in memory."""
LOCKS_PAGE_MAX = 1_000
"""Most locks in one page of :meth:`LockLedger.locks`."""
LOCK_WAIT_S_MAX = 2.0
"""The longest time that one call waits for a grant."""


class LockRequest(msgspec.Struct, frozen=True, array_like=True):
    """A request for a lock. ``number`` is drawn by the process of the session, and never twice: a repeated
    request with the same number is the same request.

    ``txid``: the transaction that waits for the lock, or holds it until its end; None if there is none.
    ``at``: when it was recorded, by the wall clock of the recording process, in seconds since 1970; for
    operators only."""

    name: str
    session: int
    nonce: str
    number: int
    shared: bool = False
    txid: TxId | None = None
    at: float = 0.0


class LockEntry(msgspec.Struct, frozen=True, array_like=True):
    """A recorded request. ``token`` is 0 while the request waits.

    ``fence`` is what resources compare: the token of an exclusive holder; of shared holders the token of the
    first one of those that have held the lock together, so that they do not refuse each other."""

    request: LockRequest
    token: int = 0
    fence: int = 0

    @property
    def granted(self) -> bool:
        return self.token > 0


class LockInfo(msgspec.Struct, frozen=True):
    """A lock: its holders, by token, and behind them its waiters in the order in which they get it."""

    name: str
    entries: tuple[LockEntry, ...]

    @property
    def holders(self) -> tuple[LockEntry, ...]:
        return tuple(entry for entry in self.entries if entry.granted)

    @property
    def waiters(self) -> tuple[LockEntry, ...]:
        return tuple(entry for entry in self.entries if not entry.granted)


class LockLedger(Protocol):
    """The calls of a ledger for locks. All may be repeated, and raise as all calls of the ledger do; in a
    cluster with a member of an older version they raise ``VersionHeldBack``."""

    async def lock(self, request: LockRequest, *, wait: bool) -> LockEntry | None:
        """Ask for a lock. With ``wait`` the request stays in the queue if it is not granted now; without, the
        answer is None then, and nothing is recorded. Raises ``SessionLost`` if the session is gone, and
        ``UsageError`` for a name that is out of bounds, or if there are too many requests."""
        ...

    async def lock_entry(self, request: LockRequest, *, wait_s: float = 0.0) -> LockEntry | None:
        """The recorded request; None if it has ended. If it waits, the answer comes once it is granted or has
        ended, after ``wait_s`` seconds at the latest, at most :data:`LOCK_WAIT_S_MAX`."""
        ...

    async def unlock(self, request: LockRequest) -> bool:
        """End a request, granted or not. False if it had ended already."""
        ...

    async def session_locks(self, session: int, nonce: str) -> Sequence[LockEntry]:
        """All requests of a session, none if the session is gone."""
        ...

    async def locks(
        self, *, after: str = "", limit: int = LOCKS_PAGE_MAX, only: str = ""
    ) -> Sequence[LockInfo]:
        """A page of the locks that somebody holds: at most ``limit``, in the order of their names, those
        after ``after``. An empty page is the end. ``only``: that lock, if somebody holds it."""
        ...

    async def contended_locks(self) -> Sequence[LockInfo]:
        """The locks for which a request waits, by name."""
        ...

    async def revoke_lock(self, name: str, token: int) -> bool:
        """End the granted request with ``token``, for an operator: its holder may still work. False if nobody
        holds ``name`` with that token."""
        ...
