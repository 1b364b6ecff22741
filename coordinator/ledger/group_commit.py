"""Group commit: writes that come in while the disk is busy wait, and are then stored together, with one sync.

Nodes and SQLite ledgers store through :class:`GroupCommit`; the work itself is done in a
:class:`WriterThread`. At each moment the disk is in one :class:`DiskState`:

=========  ==============================================  ==========================================
state      a write                                         a caller is told
=========  ==============================================  ==========================================
idle       none is under way                               there is room
writing    is under way                                    there is room
full       none is under way; the store is asked again     there is no room
trying     is under way, or the question for room is       there is no room
refused    found no room, and is given again               there is no room
closing    is under way; none is begun any more
closed     none is begun any more
broken     none is begun any more: what the last one       once, why
           has left on the disk is not known
=========  ==============================================  ==========================================

:data:`TRANSITIONS` holds everything that decides what may happen next. A write is begun only in a state with
a transition for :attr:`DiskEvent.BEGIN`, and only a write that is stored lets what waits for it go on: so
nothing that depends on a write (a vote, an acknowledgement, an answer) leaves in another way."""

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
from undoubt.participants.invariant import invariant

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
    """A write, or the question for room, is given to the store."""
    STORED = "stored"
    """It is durable, and there is room for more."""
    STORED_LAST = "stored last"
    """It is durable, and there is no room for more."""
    REFUSE = "refuse"
    """There was no room: nothing of it is there."""
    FAIL = "fail"
    """Nobody knows what of it is there."""
    RETRY = "retry"
    """It is time to give a refused write again."""
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
"""An event that has no transition in a state cannot happen in it."""

WITHOUT_ROOM = frozenset({_S.FULL, _S.TRYING, _S.REFUSED})
WITH_ROOM = frozenset({_S.IDLE, _S.WRITING})


def after(state: DiskState, event: DiskEvent) -> DiskState:
    """Raises InvariantViolation for an event that cannot happen in ``state``."""
    invariant((state, event) in TRANSITIONS, f"a disk that is {state} cannot {event}")
    return TRANSITIONS[state, event]


class Store(Protocol[W_contra]):
    def write(self, writes: Sequence[W_contra]) -> asyncio.Future[bool]:
        """Carry out ``writes`` in order, all or none; done once they are durable. One call at a time.

        The result is whether there is room for more; an empty call asks again. ``StoreFull``: nothing of it
        is there, and it may be given again. Any other error: nobody knows, and only opening the store anew
        helps.
        """
        ...


@dataclass(slots=True)
class _Job(Generic[W]):
    write: W | None
    then: Callable[[], None]
    refused: Callable[[BaseException], None] | None
    first: bool


class GroupCommit(Generic[W]):
    """``on_full`` is told True when there is no room any more, False when there is some again; ``on_broken``
    once, after which nothing is written. ``on_stored`` is called after each batch, when all that waited for
    it has been called."""

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
        """Ends the time in ``full`` or ``refused``."""

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
        """``then`` is called once ``write`` and all before it are durable; None writes nothing. Begun by the
        next :meth:`flush`.

        With ``refused``, nothing that is given later depends on ``write``: if there is no room it is left
        out, and ``refused`` called instead; also if the disk breaks. Without it, it is given to the store
        again until there is room. ``first``: before all that waits, and in no batch with other writes."""
        job = _Job(write, then, refused, first)
        self._waiting.insert(0 if first else len(self._waiting), job)

    def flush(self) -> None:
        """Begin to store what waits, if that can be begun now."""
        if self._waiting and (self.state, DiskEvent.BEGIN) in TRANSITIONS:
            batch = self._next()
            writes = [job.write for job in batch if job.write is not None]
            if writes:
                self._begin(batch, writes)
            else:
                self._call(batch)

    def _next(self) -> list[_Job[W]]:
        """What is stored together: all that waits, or the write that is to be stored alone."""
        end = 1 if self._waiting[0].first else len(self._waiting)
        batch, self._waiting = self._waiting[:end], self._waiting[end:]
        return batch

    def _begin(self, batch: list[_Job[W]], writes: Sequence[W]) -> None:
        self._enter(DiskEvent.BEGIN)
        self._store.write(writes).add_done_callback(lambda future: self._ended(batch, future))

    def _ended(self, batch: list[_Job[W]], future: asyncio.Future[bool]) -> None:
        if future.cancelled():  # the loop is ending
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
        """There was no room for ``batch``: without what can be left out it is tried at once, else later."""
        left = [job for job in batch if job.refused is None]
        self._waiting = [*left, *self._waiting]
        self._enter(DiskEvent.REFUSE, retry_s=0 if len(left) < len(batch) else RETRY_S)
        for job in batch:
            if job.refused is not None:
                job.refused(error)

    def refuse_waiting(self, error: BaseException, first: Sequence[_Job[W]] = ()) -> None:
        """Nothing that waits is stored any more: those who can be told are told ``error``."""
        jobs, self._waiting = [*first, *self._waiting], []
        for job in jobs:
            if job.refused is not None:
                job.refused(error)

    def _retry(self) -> None:
        """Give a refused write again; else ask whether there is room."""
        self._timer = None
        if self.state is DiskState.REFUSED:
            self._enter(DiskEvent.RETRY)
            self.flush()
        else:
            self._begin([], ())

    async def drained(self) -> None:
        """Return once all that was given is stored or refused."""
        if self.state not in WITH_ROOM | WITHOUT_ROOM:  # nothing more is stored
            return
        reached: asyncio.Future[None] = self._loop.create_future()
        self.give(None, lambda: reached.set_result(None), refused=lambda _: reached.set_result(None))
        self.flush()
        await reached

    def close(self) -> None:
        """Begin nothing any more. What is under way is ended. May be repeated."""
        self._enter(DiskEvent.CLOSE)

    def _enter(self, event: DiskEvent, *, retry_s: float = RETRY_S) -> None:
        before, self.state = self.state, after(self.state, event)
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
    """One thread that does what it is given, in order, and tells the event loop in which it was made.

    As ``ThreadPoolExecutor(1)``, with less on the way there and back: one decision at a time waits for it."""

    def __init__(self, name: str) -> None:
        self.ended = False
        """Whether it is given nothing any more."""
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = SimpleQueue()
        # A daemon: a disk that hangs for ever must not keep the process from ending.
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def do(self, job: Callable[[], T]) -> asyncio.Future[T]:
        """The result of ``job``, or what it raised."""
        answer: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put((job, answer))
        return answer

    def end(self) -> None:
        """After all that was given."""
        self.ended = True
        self._jobs.put(None)

    def _run(self) -> None:
        while (given := self._jobs.get()) is not None:
            job, answer = given
            result: Any = None
            error: BaseException | None = None
            try:
                result = job()
            except BaseException as raised:  # noqa: BLE001 - whatever it is belongs to who waits for it
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop was closed without waiting for this
                self._loop.call_soon_threadsafe(_tell, answer, result, error)
            del given, job, answer, result, error


def _tell(answer: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if answer.done():  # whoever waited was cancelled
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(result)
