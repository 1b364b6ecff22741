"""The rules of a lock's queue, for all backends, and the table of all locks in the machine's state.

A queue is the tuple of a lock's entries: the granted ones by token, behind them the waiting ones in the order
in which they were recorded. Invariant: the granted ones are one exclusive entry, or shared ones only; the
first waiting entry could not be granted beside them, so no entry is granted before one that waits for longer.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from undoubt.coordinator.ledger.locks import (
    LOCK_NAME_CHARACTERS_MAX,
    LOCK_REQUESTS_MAX,
    LOCKS_MAX,
    SESSION_REQUESTS_MAX,
    LockEntry,
    LockInfo,
    LockRequest,
)

Queue = tuple[LockEntry, ...]

TOKEN_SKIP = 1 << 32
"""More tokens than can be issued after a backup, as with the numbers of sessions."""
TOKEN_MAX = 1 << 62
CLOCK_TOKEN_MAX = 1 << 53
"""A wall clock that is wrong by centuries does not use up the tokens."""


def token_from(next_token: int, skips: int, at: float) -> int:
    """The next token, ``skips`` incarnations after ``next_token`` was computed, at ``at`` seconds since 1970.

    The counter alone makes tokens increase; ``at`` is a wall clock, and may be wrong. But if a ledger was set
    back together with everything that would show it, or the same backup is restored twice, the counter counts
    the same numbers again, and the microseconds of the clock are above them: fewer are issued than pass."""
    return max(next_token + skips * TOKEN_SKIP, round(min(max(at * 1_000_000, 0), CLOCK_TOKEN_MAX)))


def name_fault(name: str) -> str:
    """Why ``name`` cannot be the name of a lock; empty if it can."""
    if not 0 < len(name) <= LOCK_NAME_CHARACTERS_MAX:
        return f"the name of a lock has 1 to {LOCK_NAME_CHARACTERS_MAX} characters"
    if not name.isprintable():
        return "the name of a lock has printable characters only"
    return ""


def same(one: LockRequest, other: LockRequest) -> bool:
    """Whether both are one request, maybe repeated."""
    return (one.session, one.nonce, one.number) == (other.session, other.nonce, other.number)


def find(queue: Queue, request: LockRequest) -> LockEntry | None:
    return next((entry for entry in queue if same(entry.request, request)), None)


def without(queue: Queue, ended: Callable[[LockEntry], bool]) -> Queue:
    return tuple(entry for entry in queue if not ended(entry))


def may_be_granted(queue: Queue, shared: bool) -> bool:
    """Whether a request behind ``queue`` would be granted at once."""
    if not queue:
        return True
    return shared and all(entry.granted and entry.request.shared for entry in queue)


def granted(queue: Queue, next_token: int) -> tuple[Queue, int]:
    """``queue`` after all grants that are due, and the next token."""
    entries = list(queue)
    for place, entry in enumerate(entries):
        if entry.granted:
            continue
        before = tuple(entries[:place])
        if not may_be_granted(before, entry.request.shared):
            break
        fence = before[0].fence if before else next_token
        entries[place] = LockEntry(entry.request, next_token, fence)
        next_token += 1
    return tuple(entries), next_token


@dataclass(slots=True)
class LockTable:
    """All locks of a ledger. Invariants: no queue is empty; the session of each entry is open; ``of_session``
    has, for each session with requests, the locks that they are for, with the number of requests."""

    next_token: int = 1
    incarnation: int = 1
    """The incarnation in which ``next_token`` was computed."""
    queues: dict[str, Queue] = field(default_factory=dict)
    of_session: dict[int, dict[str, int]] = field(default_factory=dict)
    changed: Callable[[], None] | None = None
    """Called after a change: a caller may wait for it. Not part of the state."""
    _names: list[str] = field(default_factory=list)
    """The names in order, made when a page is read; empty after a name was added or removed."""

    @classmethod
    def of(cls, next_token: int, incarnation: int, infos: Iterable[LockInfo]) -> LockTable:
        """The table with the content of ``infos``."""
        table = cls(next_token, incarnation)
        for info in infos:
            table._put(info.name, info.entries)
        return table

    def infos(self) -> Iterator[LockInfo]:
        """All locks, by name."""
        return (LockInfo(name, self.queues[name]) for name in self._sorted())

    def page(self, after: str, limit: int) -> list[LockInfo]:
        names = self._sorted()
        first = bisect_right(names, after)
        return [LockInfo(name, self.queues[name]) for name in names[first : first + limit]]

    def refusal(self, request: LockRequest) -> str:
        """Why there is no room for ``request``; empty if there is."""
        if len(self.queues.get(request.name, ())) >= LOCK_REQUESTS_MAX:
            return f"lock {request.name!r} has {LOCK_REQUESTS_MAX} requests, the maximum"
        if sum(self.of_session.get(request.session, {}).values()) >= SESSION_REQUESTS_MAX:
            return f"session {request.session} has {SESSION_REQUESTS_MAX} requests for locks, the maximum"
        if request.name not in self.queues and len(self.queues) >= LOCKS_MAX:
            return f"{LOCKS_MAX} locks are held, the maximum"
        return ""

    def find(self, request: LockRequest) -> LockEntry | None:
        return find(self.queues.get(request.name, ()), request)

    def ask(self, request: LockRequest, *, wait: bool, incarnation: int) -> LockEntry | None:
        """Record ``request``, which :meth:`refusal` does not refuse and which is not recorded yet."""
        self.next_token = token_from(self.next_token, incarnation - self.incarnation, request.at)
        self.incarnation = incarnation
        queue = self.queues.get(request.name, ())
        if not wait and not may_be_granted(queue, request.shared):
            return None
        self._settle(request.name, (*queue, LockEntry(request)))
        return self.find(request)

    def end(self, name: str, ended: Callable[[LockEntry], bool]) -> bool:
        """End the entries of ``name`` for which ``ended`` is true. Returns whether there was one."""
        queue = self.queues.get(name, ())
        rest = without(queue, ended)
        if len(rest) == len(queue):
            return False
        self._settle(name, rest)
        return True

    def end_session(self, session: int) -> None:
        for name in sorted(self.of_session.get(session, ())):
            self.end(name, lambda entry: entry.request.session == session)

    def of_one(self, session: int, nonce: str) -> list[LockEntry]:
        """The requests of one session, by lock."""
        return [
            entry
            for name in sorted(self.of_session.get(session, ()))
            for entry in self.queues[name]
            if (entry.request.session, entry.request.nonce) == (session, nonce)
        ]

    def _settle(self, name: str, queue: Queue) -> None:
        queue, self.next_token = granted(queue, self.next_token)
        self._put(name, queue)
        if self.changed is not None:
            self.changed()

    def _put(self, name: str, queue: Queue) -> None:
        known = self.queues.pop(name, ())
        if bool(known) != bool(queue):
            self._names = []
        for change, entries in ((-1, known), (1, queue)):
            for entry in entries:
                counts = self.of_session.setdefault(entry.request.session, {})
                counts[name] = counts.get(name, 0) + change
        for session in {entry.request.session for entry in (*known, *queue)}:
            counts = self.of_session[session]
            if not counts[name]:
                del counts[name]
            if not counts:
                del self.of_session[session]
        if queue:
            self.queues[name] = queue

    def _sorted(self) -> list[str]:
        if not self._names:
            self._names = sorted(self.queues)
        return self._names
