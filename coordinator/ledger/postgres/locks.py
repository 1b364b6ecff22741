"""The calls for locks over the tables of one PostgreSQL database.

A lock's queue is one row, which is computed here by the rules of all backends, and written only if the row
still has the version that was read (compare and set). So no process that stops in between holds up another.
The new version of a row, and the tokens of the grants in it, are drawn in the statement that writes it:
tokens increase in the order of the writes, and no version comes twice, also if a row is deleted and made
again.

A request of a session that has ended is ignored from then on, and removed by the next process that reads the
row; the leader removes the requests that no process reads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from random import SystemRandom
from typing import Any, NamedTuple

import msgspec

from undoubt.coordinator.errors import LedgerUnavailable, SessionLost
from undoubt.coordinator.ledger.commands import (
    AskLock,
    Command,
    CommandRefused,
    EndLock,
    RevokeLock,
    check_given,
)
from undoubt.coordinator.ledger.lock_queue import (
    CLOCK_TOKEN_MAX,
    TOKEN_MAX,
    TOKEN_SKIP,
    Queue,
    find,
    granted,
    may_be_granted,
    same,
    without,
)
from undoubt.coordinator.ledger.locks import (
    LOCK_REQUESTS_MAX,
    LOCK_WAIT_S_MAX,
    LOCKS_PAGE_MAX,
    SESSION_REQUESTS_MAX,
    LockEntry,
    LockInfo,
    LockRequest,
)
from undoubt.coordinator.ledger.postgres.connections import Connections
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.backoff import pauses_around
from undoubt.participants.bounds import count, seconds

RETRY_S = (0.002, 0.1)
"""The shortest and the longest pause before a lost compare-and-set is tried again."""
WATCH_S = (0.02, 0.4)
"""The same between two looks at requests that wait; the pauses begin again when one is granted."""
NEW_SESSIONS_OF_LOCK = 100
"""Most locks that are freed of ended sessions in one turn of the leader."""

_random = SystemRandom()


class _Row(NamedTuple):
    """A lock as it was read. ``version`` is 0 if there is no row. ``queue`` is without the requests of ended
    sessions, which ``stale`` says there were. ``open`` and ``requests``: about the session that asks."""

    version: int
    queue: Queue
    stale: bool
    open: bool
    requests: int


class PostgresLocks:
    """Implements :class:`~undoubt.coordinator.ledger.locks.LockLedger`."""

    settings: LedgerSettings

    def __init__(self, ask: Callable[..., Any]) -> None:
        """``ask`` sends a statement (:meth:`Connections.ask`)."""
        self._ask_locks = ask
        self._watch = _Watch(self._looked)

    async def lock(self, request: LockRequest, *, wait: bool) -> LockEntry | None:
        request = msgspec.structs.replace(request, at=time.time())
        _check(AskLock(request, wait))

        def asked(row: _Row) -> Queue:
            if not row.open:
                raise SessionLost(f"session {request.session} was closed or has expired")
            if find(row.queue, request) is not None:
                return row.queue
            if len(row.queue) >= LOCK_REQUESTS_MAX:
                raise CommandRefused(f"lock {request.name!r} has {LOCK_REQUESTS_MAX} requests, the maximum")
            if row.requests >= SESSION_REQUESTS_MAX:
                raise CommandRefused(
                    f"session {request.session} has {SESSION_REQUESTS_MAX} requests for locks, the maximum"
                )
            if not wait and not may_be_granted(granted(row.queue, TOKEN_MAX)[0], request.shared):
                return row.queue
            return (*row.queue, LockEntry(request))

        return find(await self._changed(request.name, asked, request), request)

    async def lock_entry(self, request: LockRequest, *, wait_s: float = 0.0) -> LockEntry | None:
        wait_s = min(seconds("wait_s", wait_s), LOCK_WAIT_S_MAX)
        _check(EndLock(request))
        entry = find(await self._changed(request.name, lambda row: row.queue), request)
        if entry is None or entry.granted or not wait_s:
            return entry
        return await self._watch.wait(request, entry, wait_s)

    async def _looked(self, names: Collection[str]) -> dict[str, Queue]:
        """The queues of ``names``, after all grants that are due."""
        found = await self._ask_locks("locks_named", names=sorted(names))
        queues = {name: _queue(*rest) for name, *rest in found if name is not None}
        for name, row in queues.items():
            if row.stale:
                queues[name] = row._replace(queue=await self._changed(name, lambda row: row.queue))
        return {name: row.queue for name, row in queues.items()}

    async def unlock(self, request: LockRequest) -> bool:
        _check(EndLock(request))
        return await self._end(request.name, lambda entry: same(entry.request, request))

    async def revoke_lock(self, name: str, token: int) -> bool:
        _check(RevokeLock(name, token))
        return await self._end(name, lambda entry: entry.token == token)

    async def _end(self, name: str, ended: Callable[[LockEntry], bool]) -> bool:
        was = False

        def rest(row: _Row) -> Queue:
            nonlocal was
            left = without(row.queue, ended)
            was = was or len(left) < len(row.queue)
            return left

        await self._changed(name, rest)
        return was

    async def session_locks(self, session: int, nonce: str) -> Sequence[LockEntry]:
        _check(EndLock(LockRequest("-", session, nonce, 1)))
        found = await self._ask_locks("locks_of", session=session, nonce=nonce)
        return [
            entry
            for name, *rest in found
            if name is not None
            for entry in _queue(*rest).queue
            if entry.request.session == session
        ]

    async def locks(
        self, *, after: str = "", limit: int = LOCKS_PAGE_MAX, only: str = ""
    ) -> Sequence[LockInfo]:
        count("limit", limit, least=1, most=LOCKS_PAGE_MAX)
        if only:
            _check(RevokeLock(only, 1))
            return [LockInfo(name, queue) for name, queue in (await self._looked([only])).items() if queue]
        infos: list[LockInfo] = []
        while len(infos) < limit:
            found = await self._ask_locks("locks", after=after.replace("\0", ""), limit=limit - len(infos))
            rows = [(name, _queue(*rest)) for name, *rest in found if name is not None]
            if not rows:
                break
            # Held by ended sessions only: as if there were no row.
            infos += [LockInfo(name, row.queue) for name, row in rows if row.queue]
            after = rows[-1][0]
        return infos

    async def contended_locks(self) -> Sequence[LockInfo]:
        found = await self._ask_locks("locks_contended")
        infos = [LockInfo(name, _queue(*rest).queue) for name, *rest in found if name is not None]
        return [info for info in infos if info.waiters]

    async def _changed(
        self, name: str, change: Callable[[_Row], Queue], asking: LockRequest | None = None
    ) -> Queue:
        """The queue of ``name`` after ``change`` and all grants that are due; it is written if it is another
        one. ``change`` may be called several times."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self.settings.request_timeout_s
        for pause_s in pauses_around(*RETRY_S, _random):
            session, nonce = (0, "") if asking is None else (asking.session, asking.nonce)
            (found,) = await self._ask_locks("lock", name=name, session=session, nonce=nonce)
            row = _row(*found)
            queue, following = granted(change(row), TOKEN_MAX)
            if queue == row.queue and not row.stale:
                return queue
            if (written := await self._write(name, row.version, queue, following - TOKEN_MAX)) is not None:
                return written
            if loop.time() > end:
                break
            await asyncio.sleep(pause_s)
        raise LedgerUnavailable(
            f"lock {name!r} could not be changed within {self.settings.request_timeout_s:g} s: the ledger is"
            " slow, or the lock is changed all the time"
        )

    async def _write(self, name: str, version: int, queue: Queue, grants: int) -> Queue | None:
        """Write the queue of ``name``; None if the row had another version. Returns it with its tokens."""
        entries = [_relative(entry) for entry in queue]
        ((written,),) = await self._ask_locks(
            "write_lock",
            name=name,
            version=version,
            sessions=[entry.request.session for entry in queue],
            entries=msgspec.json.encode(entries).decode() if entries else "",
            tokens=max(grants, 1),
            skip=TOKEN_SKIP,
            clock_max=CLOCK_TOKEN_MAX,
        )
        return None if written is None else tuple(_absolute(entry, written) for entry in entries)


class _Watch:
    """Looks at the queues of all requests of this process that wait, together, as long as there are any."""

    def __init__(self, look: Callable[[Collection[str]], Any]) -> None:
        self._look = look
        self._waiting: dict[asyncio.Future[LockEntry | None], LockRequest] = {}
        self._task: asyncio.Task[None] | None = None

    async def wait(self, request: LockRequest, entry: LockEntry, wait_s: float) -> LockEntry | None:
        """The entry once it is granted or gone; ``entry`` if it is neither after ``wait_s``. Raises what the
        look raises."""
        future: asyncio.Future[LockEntry | None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = request
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch(), name="undoubt-ledger-locks")
        try:
            await asyncio.wait([future], timeout=wait_s)
            return future.result() if future.done() else entry
        finally:
            self._waiting.pop(future, None)
            future.cancel()

    async def _watch(self) -> None:
        pauses = pauses_around(*WATCH_S, _random)
        while self._waiting:
            await asyncio.sleep(next(pauses))
            waiting = dict(self._waiting)
            try:
                queues = await self._look({request.name for request in waiting.values()})
            except Exception as error:  # noqa: BLE001 - raised to all that wait
                for future in waiting:
                    if not future.done():
                        future.set_exception(error)
                continue
            for future, request in waiting.items():
                found = find(queues.get(request.name, ()), request)
                if (found is None or found.granted) and not future.done():
                    future.set_result(found)
                    pauses = pauses_around(*WATCH_S, _random)


async def end_stale(connections: Connections, settings: LedgerSettings) -> None:
    """Remove the requests of ended sessions. For the leader."""
    table = PostgresLocks(connections.ask)
    table.settings = settings
    for (name,) in await connections.ask("stale_locks", limit=NEW_SESSIONS_OF_LOCK):
        if name is not None:
            await table._changed(name, lambda row: row.queue)


def _check(command: Command) -> None:
    """Raises ``UsageError`` for what the other ledgers would refuse, and for text that PostgreSQL refuses."""
    check_given(command)
    if isinstance(command, AskLock | EndLock) and "\0" in command.request.nonce:
        raise CommandRefused("the nonce of a session contains a NUL character")


def _row(
    version: int | None, entries: str | None, ended: Sequence[int] | None, is_open: bool, requests: int
) -> _Row:
    if version is None or entries is None:
        return _Row(0, (), stale=False, open=is_open, requests=requests)
    return _queue(version, entries, ended)._replace(open=is_open, requests=requests)


def _queue(version: int, entries: str, ended: Sequence[int] | None) -> _Row:
    queue = tuple(_absolute(entry, version) for entry in _decode(entries))
    rest = without(queue, lambda entry: entry.request.session in (ended or ()))
    return _Row(version, rest, stale=len(rest) < len(queue), open=False, requests=0)


_decode = msgspec.json.Decoder(list[LockEntry]).decode


def _relative(entry: LockEntry) -> LockEntry:
    """``entry`` as it is stored. A new grant's token becomes known with the version of its row: it is stored
    as the distance from that, negative and less by one."""
    return LockEntry(entry.request, _stored(entry.token), _stored(entry.fence))


def _stored(token: int) -> int:
    return TOKEN_MAX - token - 1 if token >= TOKEN_MAX else token


def _absolute(entry: LockEntry, version: int) -> LockEntry:
    if entry.token >= 0 and entry.fence >= 0:
        return entry
    return LockEntry(entry.request, _known(entry.token, version), _known(entry.fence, version))


def _known(token: int, version: int) -> int:
    return version - token - 1 if token < 0 else token
