"""Work that outlives its caller: a task that cancelling does not stop, and what goes on without a task.

Once PREPARE has been sent, a commit must run to its end, whatever happens to its caller: a ``wait_for`` that
times out, a request that is closed, ``asyncio.run``, which cancels all tasks of its loop before it returns. A
task of this kind ignores ``cancel()``; the shutdown of the loop then waits for the task. Only
:meth:`Uncancellable.abandon` stops it, and the coordinator calls that once its drain time is over.

``asyncio.timeout`` works by cancelling its own task. Drivers and clients use it inside such a task, and it
has to work there; otherwise a server that does not answer would be waited for without limit.

A vote and the end of a prepared branch mostly need one answer, and a function that judges it.
:class:`Continued` is the future of that: only what has more to wait for becomes a task. :func:`all_of` and
:func:`all_within` wait for several of both kinds together, and cancel none of them with the caller.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, Generic, Protocol, TypeVar, cast

from undoubt.participants.deadlines import deadlines
from undoubt.participants.invariant import invariant

T = TypeVar("T")
U = TypeVar("U")
T_co = TypeVar("T_co", covariant=True)


_ON_TIMEOUT = asyncio.Timeout._on_timeout.__code__  # type: ignore[attr-defined]


class Uncancellable(asyncio.Task[T]):
    """A task whose ``cancel()`` does nothing, unless an ``asyncio.timeout`` inside it calls it."""

    def cancel(self, msg: Any | None = None) -> bool:
        caller = sys._getframe(1)
        # A timeout of another task, which awaits this one, calls this too, with its own task as ``_task``.
        if caller.f_code is _ON_TIMEOUT and caller.f_locals["self"]._task is self:
            return super().cancel(msg)
        return False

    def abandon(self) -> bool:
        """Cancel the task nevertheless. False if it has ended already."""
        return super().cancel()


def uncancellable(coroutine: Coroutine[Any, Any, T], *, name: str | None = None) -> Uncancellable[T]:
    """Start ``coroutine`` in the running loop as a task that cannot be cancelled."""
    return Uncancellable(coroutine, loop=asyncio.get_running_loop(), name=name)


class Answered(Protocol[T_co]):
    """An answer, or the error in its place: ``result`` returns the one or raises the other."""

    def result(self) -> T_co: ...


class _Value(Generic[T]):
    def __init__(self, value: T) -> None:
        self._value = value

    def result(self) -> T:
        return self._value


class _Error:
    def __init__(self, error: BaseException) -> None:
        self._error = error

    def result(self) -> Any:
        raise self._error


class Continued(asyncio.Future[T]):
    """The answer of ``first``, passed through the judges that :meth:`then` has added, in their order.

    ``cancel()`` cancels what is under way, ``first`` or the task of a judge; the judges see the cancellation
    as any other error. An answer that has come already is judged nevertheless, but waits for nothing more."""

    def __init__(self, first: asyncio.Future[T]) -> None:
        super().__init__(loop=first.get_loop())
        self._judges: deque[Callable[[Answered[Any]], Any]] = deque()
        self._under_way: asyncio.Future[Any] = first
        self._given_up = False
        """``cancel()`` was called."""
        first.add_done_callback(self._go_on)

    @classmethod
    def failed(cls, error: BaseException) -> Continued[Any]:
        """One whose first answer is ``error``."""
        return cls(failed(error))

    def then(self, judge: Callable[[Answered[T]], U | Coroutine[Any, Any, U]]) -> Continued[U]:
        """Add ``judge``, which gets the answer, and returns another one or raises; this future has the answer
        of the last judge. A judge that has to wait returns a coroutine, which runs as an
        :class:`Uncancellable` task. To be called before any other callback of this future is set."""
        invariant(not self.done(), "a judge was added to an answer that is judged already")
        self._judges.append(judge)
        return cast("Continued[U]", self)

    def cancel(self, msg: Any | None = None) -> bool:
        """False if nothing is left to cancel: as for any future, the task that waits for this one is then
        cancelled in its place."""
        if self.done():
            return False
        self._given_up = True
        under_way = self._under_way
        return under_way.abandon() if isinstance(under_way, Uncancellable) else under_way.cancel()

    def _go_on(self, done: asyncio.Future[Any]) -> None:
        try:
            self._judge(done)
        except asyncio.CancelledError:
            super().cancel()
        except BaseException as error:
            # Also of an interrupt: the loop may go on, to end what has begun, and must not wait for ever.
            if not self.done():
                self.set_exception(error)
            if not isinstance(error, Exception) and error is not _error_of(done):
                raise  # the loop has not heard of it yet

    def _judge(self, done: asyncio.Future[Any]) -> None:
        answer: Answered[Any] = done
        while self._judges:
            judge = self._judges.popleft()
            try:
                value = judge(answer)
            except BaseException as error:  # noqa: BLE001 - the next judge's, or the caller's
                answer = _Error(error)
                continue
            if asyncio.iscoroutine(value):
                self._wait_for(uncancellable(value))
                return
            answer = _Value(value)
        self.set_result(answer.result())

    def _wait_for(self, task: Uncancellable[Any]) -> None:
        self._under_way = task
        task.add_done_callback(self._go_on)
        if self._given_up:
            task.abandon()


def _error_of(done: asyncio.Future[Any]) -> BaseException | None:
    return None if done.cancelled() else done.exception()


def failed(error: BaseException) -> asyncio.Future[Any]:
    """A future that has failed with ``error``."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    return future


def started(call: Callable[[], Awaitable[T]]) -> Awaitable[T]:
    """What ``call`` returns; if it raises at once, a future that has failed: others that were started before
    have to be awaited. The loop hears of an interrupt as well, when the caller next waits."""
    try:
        return call()
    except (KeyboardInterrupt, SystemExit) as error:
        asyncio.get_running_loop().call_soon(_interrupt, error)
        return Continued.failed(error)
    except Exception as error:  # noqa: BLE001 - raised where the future is awaited
        return Continued.failed(error)


def _interrupt(error: BaseException) -> None:
    raise error


async def all_done(futures: Sequence[asyncio.Future[Any]], timeout_s: float | None = None) -> None:
    """Return once all ``futures`` are done, or the time is over. Cancels none of them, also if the caller is
    cancelled.

    The same as ``asyncio.wait`` with less work: every transaction calls this several times.
    """
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()
    left = 0

    def done(_: asyncio.Future[Any]) -> None:
        nonlocal left
        left -= 1
        if not left:
            _release(waiter)

    for future in futures:
        if not future.done():
            left += 1
            future.add_done_callback(done)
    if not left:
        return
    timer = None
    if timeout_s is not None:
        timer = deadlines().call_at(loop.time() + timeout_s, partial(_release, waiter))
    try:
        await waiter
    finally:
        if timer is not None:
            timer.cancel()
        if left:
            for future in futures:
                future.remove_done_callback(done)


def _release(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def all_of(awaitables: Iterable[Awaitable[T]]) -> list[T | BaseException]:
    """Wait for ``awaitables``, which run concurrently, and ignore cancellation; returns results or exceptions
    in the given order. A future costs no task.

    If the caller itself is abandoned, the awaitables are abandoned too, and their ends are awaited.
    """
    return await _ends([_future(each) for each in awaitables], None)


async def all_within(awaitables: Iterable[Awaitable[T]], timeout_s: float) -> list[T | BaseException]:
    """Like :func:`all_of`, but what is not done after ``timeout_s`` seconds is cancelled. Its results are
    what it returns or raises then: usually ``CancelledError``."""
    return await _ends([_future(each) for each in awaitables], max(timeout_s, 0))


def _future(each: Awaitable[T]) -> asyncio.Future[T]:
    if isinstance(each, asyncio.Future):
        return each
    return uncancellable(each if asyncio.iscoroutine(each) else _awaited(each))


async def _awaited(each: Awaitable[T]) -> T:
    return await each


async def _ends(futures: Sequence[asyncio.Future[T]], timeout_s: float | None) -> list[T | BaseException]:
    try:
        await all_done(futures, timeout_s)
        if timeout_s is not None:
            await _abandoned(futures)
    except asyncio.CancelledError:
        await _abandoned(futures)
        for future in futures:
            _result(future)  # otherwise the loop would log the exception as never retrieved
        raise
    ends: list[T | BaseException] = []
    for future in futures:
        end = _result(future)
        ends.append(end)
    return ends


async def _abandoned(futures: Sequence[asyncio.Future[T]]) -> None:
    """Cancel the futures that are not done, and wait for their ends."""
    late = [future for future in futures if not future.done()]
    for future in late:
        if isinstance(future, Uncancellable):
            future.abandon()
        else:
            future.cancel()
    await all_done(late)


def _result(future: asyncio.Future[T]) -> T | BaseException:
    if future.cancelled():
        return asyncio.CancelledError()
    return future.exception() or future.result()
