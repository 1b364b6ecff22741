"""Work that outlives its caller: a task that cancelling does not stop, and what goes on without a task.

Once PREPARE has been sent, a commit must run to its end, whatever happens to its caller: a ``wait_for`` that
times out, a request that is closed, ``asyncio.run``, which cancels all tasks of its loop before it returns. A
task of this kind ignores ``cancel()``; the shutdown of the loop then waits for the task. Only
:meth:`Uncancellable.abandon` stops it, and the coordinator calls that once its drain time is over.

``asyncio.timeout`` works by cancelling its own task. Drivers and clients use it inside such a task, and it
has to work there; otherwise a server that does not answer would be waited for without limit.

A vote and the end of a prepared branch mostly need one answer, and a function that judges it.
:class:`Continued` is the future of that: only what has more to wait for becomes a task.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, Protocol, TypeVar, cast

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

    def abandon(self) -> None:
        """Cancel the task nevertheless."""
        super().cancel()


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
    as any other error."""

    def __init__(self, first: asyncio.Future[T]) -> None:
        super().__init__(loop=first.get_loop())
        self._judges: deque[Callable[[Answered[Any]], Any]] = deque()
        self._under_way: asyncio.Future[Any] = first
        first.add_done_callback(self._go_on)

    @classmethod
    def failed(cls, error: Exception) -> Continued[Any]:
        """One whose first answer is ``error``."""
        return cls(failed(error))

    def then(self, judge: Callable[[Answered[T]], U | Coroutine[Any, Any, U]]) -> Continued[U]:
        """Add ``judge``, which gets the answer, and returns another one or raises; this future has the answer
        of the last judge. A judge that has to wait returns a coroutine, which runs as an
        :class:`Uncancellable` task. To be called before any other callback of this future is set."""
        self._judges.append(judge)
        return cast("Continued[U]", self)

    def cancel(self, msg: Any | None = None) -> bool:
        if self.done():
            return False
        if isinstance(self._under_way, Uncancellable):
            self._under_way.abandon()
        else:
            self._under_way.cancel()
        return True

    def _go_on(self, done: asyncio.Future[Any]) -> None:
        answer: Answered[Any] = done
        while self._judges:
            judge = self._judges.popleft()
            try:
                value = judge(answer)
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the next judge's, or the caller's
                answer = _Error(error)
                continue
            if asyncio.iscoroutine(value):
                self._under_way = uncancellable(value)
                self._under_way.add_done_callback(self._go_on)
                return
            answer = _Value(value)
        try:
            self.set_result(answer.result())
        except asyncio.CancelledError:
            super().cancel()
        except Exception as error:  # noqa: BLE001 - raised where this future is awaited
            self.set_exception(error)


def failed(error: Exception) -> asyncio.Future[Any]:
    """A future that has failed with ``error``."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    return future


def started(call: Callable[[], Awaitable[T]]) -> Awaitable[T]:
    """What ``call`` returns; if it raises at once, a future that has failed: others that were started before
    have to be awaited."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001 - raised where the future is awaited
        return failed(error)
