"""Group commit: writes that arrive while the disk is busy wait, and are then stored together, with one sync.

Nodes and SQLite ledgers store through :class:`GroupCommit`; a :class:`WriterThread` does the work. The disk
is always in one :class:`DiskState`:

=========  ==============================================  ==========================================
state      writes                                          reported to the user
=========  ==============================================  ==========================================
idle       none is under way                               there is room
writing    one is under way                                there is room
full       none is under way; after a pause an empty       there is no room
           write asks the store for room
trying     one is under way, perhaps the empty one         there is no room
refused    one found no room; it is repeated after a       there is no room
           pause
closing    one is under way; no other is begun
closed     none is begun
broken     none is begun; which part of the last one is    the error, once
           on the disk is unknown
=========  ==============================================  ==========================================

:data:`TRANSITIONS` holds everything that decides what may happen next. A write is begun only in a state with
a transition for :attr:`DiskEvent.BEGIN`, and the callback of a write is called only after it is stored. So
nothing that depends on a write (a vote, an acknowledgement, an answer) is sent before."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from undoubt.coordinator.ledger.disk import StoreFull
from undoubt.participants.invariant import state_after

T = TypeVar("T")
W = TypeVar("W")
W_contra = TypeVar("W_contra", contravariant=True)

RETRY_S = 0.5


class DiskState(enum.StrEnum):
    IDLE = "idle"
    WRITING = "writing"
    FULL = "full"
    TRYING = "trying"
    REFUSED = "refused"
    CLOSING = "closing"
    CLOSED = "closed"
    BROKEN = "broken"


class DiskEvent(enum.StrEnum):
    BEGIN = "begin"
    """A write, perhaps the empty one that asks for room, is given to the store."""
    STORED = "stored"
    """The write is durable, and there is room for more."""
    STORED_LAST = "stored last"
    """The write is durable, and there is no room for more."""
    REFUSE = "refuse"
    """There was no room: no part of the write is on the disk."""
    FAIL = "fail"
    """The write failed; which part of it is on the disk is unknown."""
    RETRY = "retry"
    """The pause is over, and a refused write is to be repeated."""
    CLOSE = "close"


_S, _E = DiskState, DiskEvent

TRANSITIONS: Mapping[tuple[DiskState, DiskEvent], DiskState] = {
    (_S.IDLE, _E.BEGIN): _S.WRITING,
    (_S.IDLE, _E.CLOSE): _S.CLOSED,
    (_S.WRITING, _E.STORED): _S.IDLE,
    (_S.WRITING, _E.STORED_LAST): _S.FULL,
    (_S.WRITING, _E.REFUSE): _S.REFUSED,
    (_S.WRITING, _E.FAIL): _S.BROKEN,
    (_S.WRITING, _E.CLOSE): _S.CLOSING,
    (_S.FULL, _E.BEGIN): _S.TRYING,
    (_S.FULL, _E.CLOSE): _S.CLOSED,
    (_S.TRYING, _E.STORED): _S.IDLE,
    (_S.TRYING, _E.STORED_LAST): _S.FULL,
    (_S.TRYING, _E.REFUSE): _S.REFUSED,
    (_S.TRYING, _E.FAIL): _S.BROKEN,
    (_S.TRYING, _E.CLOSE): _S.CLOSING,
    (_S.REFUSED, _E.RETRY): _S.FULL,
    (_S.REFUSED, _E.CLOSE): _S.CLOSED,
    (_S.CLOSING, _E.STORED): _S.CLOSED,
    (_S.CLOSING, _E.STORED_LAST): _S.CLOSED,
    (_S.CLOSING, _E.REFUSE): _S.CLOSED,
    (_S.CLOSING, _E.FAIL): _S.BROKEN,
    (_S.CLOSING, _E.CLOSE): _S.CLOSING,
    (_S.CLOSED, _E.CLOSE): _S.CLOSED,
    (_S.BROKEN, _E.CLOSE): _S.BROKEN,
}
"""The transitions. An event without a transition in a state cannot happen in that state."""

WITHOUT_ROOM = frozenset({_S.FULL, _S.TRYING, _S.REFUSED})
WITH_ROOM = frozenset({_S.IDLE, _S.WRITING})


class Store(Protocol[W_contra]):
    def write(self, writes: Sequence[W_contra]) -> asyncio.Future[bool]:
        """Carry out ``writes`` in order, all or none. Done once they are durable. One call at a time.

        The result is whether there is room for more; a call without writes only asks for it. ``StoreFull``:
        no part of the writes is on the disk, and the call may be repeated. Any other error: which part is on
        the disk is unknown, and the store has to be opened again."""
        ...


@dataclass(slots=True)
class _Job(Generic[W]):
    write: W | None
    then: Callable[[], None]
    refused: Callable[[BaseException], None] | None
    first: bool


class GroupCommit(Generic[W]):
    """Stores writes in batches.

    ``on_full`` is called with True when there is no longer room, with False when there is room again.
    ``on_broken`` is called once with the error; nothing is written afterwards. ``on_stored`` is called after
    each batch, after the callbacks of its writes."""

    def __init__(
        self,
        store: Store[W],
        on_full: Callable[[bool], None],
        on_broken: Callable[[BaseException], None],
        on_stored: Callable[[], None] = lambda: None,
    ) -> None:
        self.state = DiskState.IDLE
        self._store = store
        self._on_full = on_full
        self._on_broken = on_broken
        self._on_stored = on_stored
        self._loop = asyncio.get_running_loop()
        self._waiting: list[_Job[W]] = []
        self._timer: asyncio.TimerHandle | None = None
        """Ends the pause in ``full`` or ``refused``."""

    @property
    def full(self) -> bool:
        return self.state in WITHOUT_ROOM

    def give(
        self,
        write: W | None,
        then: Callable[[], None],
        *,
        refused: Callable[[BaseException], None] | None = None,
        first: bool = False,
    ) -> None:
        """Queue ``write``; :meth:`flush` begins it. ``then`` is called once ``write`` and all writes before
        it are durable; with ``write`` None nothing is written for it.

        ``refused`` may be given if no later write depends on ``write``. If there is no room, ``write`` is
        then left out and ``refused`` called instead of ``then``; so also if the disk breaks. Without
        ``refused`` the write is repeated until there is room. ``first``: before all waiting writes, in a
        batch without other writes."""
        job = _Job(write, then, refused, first)
        self._waiting.insert(0 if first else len(self._waiting), job)

    def flush(self) -> None:
        """Begin to store the waiting writes, if the state allows it."""
        if self._waiting and (self.state, DiskEvent.BEGIN) in TRANSITIONS:
            batch = self._next()
            writes = [job.write for job in batch if job.write is not None]
            if writes:
                self._begin(batch, writes)
            else:
                self._call(batch)

    def _next(self) -> list[_Job[W]]:
        """The next batch: all waiting writes, or the one that is to be stored alone."""
        end = 1 if self._waiting[0].first else len(self._waiting)
        batch, self._waiting = self._waiting[:end], self._waiting[end:]
        return batch

    def _begin(self, batch: list[_Job[W]], writes: Sequence[W]) -> None:
        self._enter(DiskEvent.BEGIN)
        self._store.write(writes).add_done_callback(lambda future: self._ended(batch, future))

    def _ended(self, batch: list[_Job[W]], future: asyncio.Future[bool]) -> None:
        if future.cancelled():  # the event loop is ending
            return
        error = future.exception()
        if isinstance(error, StoreFull):
            self._leave_out(batch, error)
        elif error is not None:
            self._enter(DiskEvent.FAIL)
            self._on_broken(error)
            self.refuse_waiting(error, batch)
        else:
            self._enter(DiskEvent.STORED if future.result() else DiskEvent.STORED_LAST)
            self._call(batch)

    def _call(self, batch: list[_Job[W]]) -> None:
        for job in batch:
            job.then()
        self._on_stored()

    def _leave_out(self, batch: list[_Job[W]], error: StoreFull) -> None:
        """Handle a lack of room for ``batch``. Writes with ``refused`` are left out. If there are such
        writes, the rest is repeated immediately, otherwise after a pause."""
        left = [job for job in batch if job.refused is None]
        self._waiting = [*left, *self._waiting]
        self._enter(DiskEvent.REFUSE, retry_s=0 if len(left) < len(batch) else RETRY_S)
        for job in batch:
            if job.refused is not None:
                job.refused(error)

    def refuse_waiting(self, error: BaseException, first: Sequence[_Job[W]] = ()) -> None:
        """Drop all waiting writes, and call their ``refused``, if they have one, with ``error``."""
        jobs, self._waiting = [*first, *self._waiting], []
        for job in jobs:
            if job.refused is not None:
                job.refused(error)

    def _retry(self) -> None:
        """Repeat a refused write; in state ``full`` ask for room by an empty write."""
        self._timer = None
        if self.state is DiskState.REFUSED:
            self._enter(DiskEvent.RETRY)
            self.flush()
        else:
            self._begin([], ())

    async def drained(self) -> None:
        """Return once all queued writes are stored or refused."""
        if self.state not in WITH_ROOM | WITHOUT_ROOM:  # no write is stored in these states
            return
        reached: asyncio.Future[None] = self._loop.create_future()
        self.give(None, lambda: reached.set_result(None), refused=lambda _: reached.set_result(None))
        self.flush()
        await reached

    def close(self) -> None:
        """Begin no further write. A write that is under way ends. May be repeated."""
        self._enter(DiskEvent.CLOSE)

    def _enter(self, event: DiskEvent, *, retry_s: float = RETRY_S) -> None:
        before, self.state = self.state, state_after(TRANSITIONS, self.state, event, "the disk")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.state in {DiskState.FULL, DiskState.REFUSED}:
            self._timer = self._loop.call_later(retry_s, self._retry)
        if before in WITH_ROOM and self.state in WITHOUT_ROOM:
            self._on_full(True)
        elif before in WITHOUT_ROOM and self.state in WITH_ROOM:
            self._on_full(False)


class WriterThread:
    """One thread that runs jobs in order and reports their results to the event loop that made it.

    Like ``ThreadPoolExecutor(1)``, with less overhead per job: each decision waits for one."""

    def __init__(self, name: str) -> None:
        self.ended = False
        """Whether :meth:`end` was called: no further jobs are accepted."""
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = SimpleQueue()
        # A daemon: a disk that hangs for ever must not keep the process from ending.
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def do(self, job: Callable[[], T]) -> asyncio.Future[T]:
        """Run ``job`` in the thread. The future has its result or its exception."""
        answer: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put((job, answer))
        return answer

    def end(self) -> None:
        """End the thread after all queued jobs."""
        self.ended = True
        self._jobs.put(None)

    def _run(self) -> None:
        while (given := self._jobs.get()) is not None:
            job, answer = given
            result: Any = None
            error: BaseException | None = None
            try:
                result = job()
            except BaseException as raised:  # noqa: BLE001 - passed on to the waiting caller
                error = raised
            with contextlib.suppress(RuntimeError):  # the event loop was closed before the job ended
                self._loop.call_soon_threadsafe(_resolve, answer, result, error)
            del given, job, answer, result, error


def _resolve(answer: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if answer.done():  # the waiting caller was cancelled
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(result)
