"""The calls for locks.

A lock's queue is one key, which is computed here by the rules of all backends, and written only if it has
not changed (:meth:`~.store.EtcdStore.change`). The counter of tokens is written in the same transaction, so
tokens increase over all locks, and a write that is carried out late, after its repetition, finds another
counter.

A request of a session that has ended is ignored from then on, and removed by the next process that changes
the queue. The leader removes the requests that no process removes."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import chain

import msgspec

from undoubt.coordinator.errors import SessionLost
from undoubt.coordinator.ledger.commands import AskLock, CommandRefused, EndLock, RevokeLock, check_given
from undoubt.coordinator.ledger.contract import SessionState
from undoubt.coordinator.ledger.etcd import messages
from undoubt.coordinator.ledger.etcd.keyspace import LockRecord, Tokens, decode, encode
from undoubt.coordinator.ledger.etcd.sessions import Operations, Sessions
from undoubt.coordinator.ledger.etcd.store import KEYS_MAX, EtcdStore, KeySnapshot
from undoubt.coordinator.ledger.lock_queue import (
    TOKEN_MAX,
    Queue,
    find,
    granted,
    may_be_granted,
    same,
    token_from,
    without,
)
from undoubt.coordinator.ledger.lock_watch import LockWatch
from undoubt.coordinator.ledger.locks import (
    LOCK_REQUESTS_MAX,
    LOCK_WAIT_S_MAX,
    LOCKS_PAGE_MAX,
    SESSION_REQUESTS_MAX,
    LockEntry,
    LockInfo,
    LockRequest,
)
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.bounds import count, seconds

Change = Callable[[Queue, KeySnapshot], Queue]


class EtcdLocks:
    """Implements :class:`~undoubt.coordinator.ledger.locks.LockLedger`."""

    def __init__(self, store: EtcdStore, sessions: Sessions, settings: LedgerSettings) -> None:
        self._lock_store = store
        self._lock_sessions = sessions
        self.settings = settings
        self._watch = LockWatch(self._looked)
        self._changing = asyncio.Lock()
        """The changes of one process wait for each other: all of them write the counter of tokens."""

    async def lock(self, request: LockRequest, *, wait: bool) -> LockEntry | None:
        request = msgspec.structs.replace(request, at=time.time())
        check_given(AskLock(request, wait))
        sessions, keys = self._lock_sessions, self._lock_store.keys
        listed = await self._lock_store.every(keys.all("lock-of", request.session))
        requests = sum(int(kv.value) for kv in listed)

        def asked(queue: Queue, snapshot: KeySnapshot) -> Queue:
            standing = sessions.standing(snapshot, request.session, request.nonce)
            if standing.state is not SessionState.OPEN:
                raise SessionLost(f"session {request.session} was closed or has expired")
            if find(queue, request) is not None:
                return queue
            if len(queue) >= LOCK_REQUESTS_MAX:
                raise CommandRefused(f"lock {request.name!r} has {LOCK_REQUESTS_MAX} requests, the maximum")
            if requests >= SESSION_REQUESTS_MAX:
                raise CommandRefused(
                    f"session {request.session} has {SESSION_REQUESTS_MAX} requests for locks, the maximum"
                )
            if not wait and not may_be_granted(granted(queue, TOKEN_MAX)[0], request.shared):
                return queue
            return (*queue, LockEntry(request))

        needs = sessions.keys_of(request.session, request.nonce)
        return find(await self._changed(request.name, asked, needs), request)

    async def lock_entry(self, request: LockRequest, *, wait_s: float = 0.0) -> LockEntry | None:
        wait_s = min(seconds("wait_s", wait_s), LOCK_WAIT_S_MAX)
        check_given(EndLock(request))
        entry = find(await self._changed(request.name, _as_it_is), request)
        if entry is None or entry.granted or not wait_s:
            return entry
        return await self._watch.wait(request, entry, wait_s)

    async def _looked(self, names: Collection[str]) -> dict[str, Queue]:
        """The queues of ``names``, after all grants that are due."""
        store, prefix = self._lock_store, self._lock_store.keys.all("lock")
        infos: list[LockInfo] = []
        asked = sorted(names)
        for at in range(0, len(asked), KEYS_MAX):
            by_key = [store.keys.lock(name) for name in asked[at : at + KEYS_MAX]]
            snapshot = await store.read(by_key)
            kvs = [messages.KeyValue(key, value) for key in by_key if (value := snapshot[key]) is not None]
            infos += await self._lock_infos(prefix, kvs)
        return {info.name: info.entries for info in infos}

    async def unlock(self, request: LockRequest) -> bool:
        check_given(EndLock(request))
        return await self._end(request.name, lambda entry: same(entry.request, request))

    async def revoke_lock(self, name: str, token: int) -> bool:
        check_given(RevokeLock(name, token))
        return await self._end(name, lambda entry: entry.token == token)

    async def _end(self, name: str, ended: Callable[[LockEntry], bool]) -> bool:
        was = False

        def rest(queue: Queue, _: KeySnapshot) -> Queue:
            nonlocal was
            left = without(queue, ended)
            was = was or len(left) < len(queue)
            return left

        await self._changed(name, rest)
        return was

    async def session_locks(self, session: int, nonce: str) -> Sequence[LockEntry]:
        check_given(EndLock(LockRequest("-", session, nonce, 1)))
        keys = self._lock_store.keys
        prefix = keys.all("lock-of", session)
        found = []
        for kv in await self._lock_store.every(prefix, keys_only=True):
            queue = await self._changed(kv.key.removeprefix(prefix).decode(), _as_it_is)
            found += [entry for entry in queue if _session_of(entry) == (session, nonce)]
        return found

    async def locks(
        self, *, after: str = "", limit: int = LOCKS_PAGE_MAX, only: str = ""
    ) -> Sequence[LockInfo]:
        count("limit", limit, least=1, most=LOCKS_PAGE_MAX)
        if only:
            check_given(RevokeLock(only, 1))
            queue = await self._changed(only, _as_it_is)
            return [LockInfo(only, queue)] if queue else []
        prefix = self._lock_store.keys.all("lock")
        begin = self._lock_store.keys.lock(after) if after else b""
        infos: list[LockInfo] = []
        while len(infos) < limit:
            page, _ = await self._lock_store.pages(prefix, after=begin, limit=limit - len(infos))
            if not page:
                break
            begin = page[-1].key
            infos += await self._lock_infos(prefix, page)
        return infos

    async def contended_locks(self) -> Sequence[LockInfo]:
        store, prefix = self._lock_store, self._lock_store.keys.all("contended")
        names = [kv.key.removeprefix(prefix).decode() for kv in await store.every(prefix, keys_only=True)]
        infos = [LockInfo(name, queue) for name, queue in (await self._looked(names)).items()]
        return [info for info in infos if info.waiters]

    async def _lock_infos(self, prefix: bytes, kvs: Iterable[messages.KeyValue]) -> list[LockInfo]:
        """Locks without the requests of ended sessions, as they would be after the grants that are due; held
        by ended sessions only: as if there were no lock."""
        queues = {kv.key.removeprefix(prefix).decode(): self._of(decode(kv.value, LockRecord)) for kv in kvs}
        ended = await self._ended(chain.from_iterable(queues.values()))
        found = []
        for name, queue in queues.items():
            if any(_session_of(entry) in ended for entry in queue):
                queue = await self._changed(name, _as_it_is, ended=ended)  # noqa: PLW2901 - as it is now
            if queue:
                found.append(LockInfo(name, queue))
        return found

    def _of(self, record: LockRecord | None) -> Queue:
        if record is None or record.incarnation < self._lock_store.era.incarnation:
            return ()  # all sessions of an earlier incarnation have ended
        return record.entries

    async def _ended(self, entries: Iterable[LockEntry]) -> set[tuple[int, str]]:
        """The sessions of ``entries`` that have ended. A session that is not among them may have ended since:
        its request stays until the next look."""
        store = self._lock_store
        asked = sorted(set(map(_session_of, entries)))
        ended = set()
        for at in range(0, len(asked), KEYS_MAX):
            some = {store.keys.lease(*session): session for session in asked[at : at + KEYS_MAX]}
            snapshot = await store.read(some)
            ended |= {session for key, session in some.items() if snapshot[key] is None}
        return ended

    async def _changed(
        self,
        name: str,
        change: Change,
        needs: Sequence[bytes] = (),
        *,
        ended: Collection[tuple[int, str]] | None = None,
    ) -> Queue:
        """The queue of ``name`` after ``change`` and all grants that are due. ``needs``: keys that ``change``
        looks at; it may be called several times. ``ended``: sessions that have ended, if that is known."""
        store, key = self._lock_store, self._lock_store.keys.lock(name)
        if ended is None:
            ended = await self._ended(self._of((await store.read([key])).get(key, LockRecord)))

        def changed(snapshot: KeySnapshot) -> tuple[Operations, Queue]:
            record = snapshot.get(key, LockRecord)
            before = self._of(record)
            rest = without(before, lambda entry: _session_of(entry) in ended)
            tokens = snapshot.get(store.keys.next_token, Tokens) or Tokens()
            incarnation = store.era.incarnation
            token = token_from(tokens.next_token, incarnation - tokens.incarnation, time.time())
            if token >= TOKEN_MAX:
                raise CommandRefused("there are no more tokens for locks")
            queue, following = granted(change(rest, snapshot), token)
            if record is not None and queue == record.entries and record.incarnation == incarnation:
                return [], queue
            if record is None and not queue:
                return [], queue
            operations = [*self._written(name, queue), *self._listed(name, before, queue, ended)]
            if following > token:
                operations.append(messages.put(store.keys.next_token, encode(Tokens(following, incarnation))))
            return operations, queue

        async with self._changing:
            return await store.change([key, store.keys.next_token, *needs], changed)

    def _written(self, name: str, queue: Queue) -> list[messages.EtcdOperation]:
        keys = self._lock_store.keys
        contended = keys.all("contended") + name.encode()
        record = LockRecord(self._lock_store.era.incarnation, queue)
        return [
            messages.put(keys.lock(name), encode(record)) if queue else messages.delete(keys.lock(name)),
            messages.put(contended) if queue and not queue[-1].granted else messages.delete(contended),
        ]

    def _listed(
        self, name: str, before: Queue, queue: Queue, ended: Collection[tuple[int, str]]
    ) -> list[messages.EtcdOperation]:
        """Note how many requests for the lock the session has that has asked, or has ended one. What is noted
        of ended sessions is removed by the leader."""
        keys = self._lock_store.keys
        gone = {session for session, _ in ended}
        had = Counter(entry.request.session for entry in before)
        has = Counter(entry.request.session for entry in queue)
        changed = sorted(
            session for session in had | has if had[session] != has[session] and session not in gone
        )
        return [
            messages.put(keys.lock_of(session, name), b"%d" % has[session])
            if has[session]
            else messages.delete(keys.lock_of(session, name))
            for session in changed
        ]

    async def end_locks_of(self, session: int) -> None:
        """Remove the requests of a session that has ended. For the leader."""
        store, prefix = self._lock_store, self._lock_store.keys.all("lock-of", session)
        for kv in await store.every(prefix, keys_only=True):
            await self._changed(kv.key.removeprefix(prefix).decode(), _as_it_is)
            await store.client.transact(messages.EtcdTransaction(success=[messages.delete(kv.key)]))


def _session_of(entry: LockEntry) -> tuple[int, str]:
    return entry.request.session, entry.request.nonce


def _as_it_is(queue: Queue, _: KeySnapshot) -> Queue:
    return queue
