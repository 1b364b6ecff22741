"""Delivers to a function of the application: its return acknowledges the message, an exception does not.

Each call of a plain function has a thread of its own, which is not of the event loop's executor: that has few
threads, other work of the program shares them, and the program would wait for them when it ends. A thread
cannot be stopped, so a call goes on after its timeout, like work that it gave to a pool of the application;
until it has ended, messages of its lane are refused."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import importlib
import inspect
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

from undoubt.participants.bounds import OutOfBounds, having
from undoubt.participants.errors import UsageError
from undoubt.participants.outbox import Lane, Message
from undoubt.relay.sink import Undelivered

CALLS_MAX = 1_000
"""Calls that run in threads at once; most of them have timed out if there are so many."""
LAZY = frozenset({"builtins", "itertools"})
"""The modules of the iterators that may stand for work that has not begun: ``map``, ``itertools.chain``."""
ANSWERS_MAX = 10
"""How often the result of what a function returned may be something to wait for again."""


class FunctionSink:
    """Calls ``function`` with each message: a coroutine function in the event loop, any other one in a
    thread. What it returns is waited for if it is awaitable or a ``concurrent.futures.Future``, and then
    what that results in. A generator, or an iterator of Python's own such as ``map(…)``, has delivered
    nothing: ``UsageError``. While a call, or its future, still runs after its timeout, further messages of
    its lane are refused (``Undelivered``)."""

    def __init__(self, function: Callable[[Message], object]) -> None:
        having("function", function, "a function of a message")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise OutOfBounds("function", "must do its work when it is called, and is a generator function")
        self._function = function
        self._awaits = inspect.iscoroutinefunction(function)
        self._running: set[Lane] = set()
        """The lanes with a call that runs in a thread, or with its future."""

    @classmethod
    def named(cls, name: str) -> FunctionSink:
        """The sink of ``module:function``; the current folder is searched first. Raises ``UsageError``."""
        module, separator, attribute = name.partition(":")
        if not separator or not module or not attribute:
            raise OutOfBounds("--to", f"is no URL, nor module:function: {name!r}")
        here = str(Path.cwd())
        if here not in sys.path:
            sys.path.insert(0, here)
        try:
            found: object = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise OutOfBounds("--to", f"names no function: {error}") from error
        if not callable(found):
            raise OutOfBounds("--to", f"names what cannot be called: {name!r}")
        return cls(found)

    async def deliver(self, message: Message) -> None:
        lane = message.lane
        if lane in self._running:
            raise Undelivered("an earlier call for its key has timed out, and still runs")
        answer = self._function(message) if self._awaits else await self._in_thread(message)
        for _ in range(ANSWERS_MAX):
            if isinstance(answer, Future):
                self._running.add(lane)
                answer.add_done_callback(lambda _: self._running.discard(lane))
                answer = await asyncio.wrap_future(answer)
            elif isinstance(answer, Awaitable):
                answer = await answer
            elif _is_lazy(answer):
                raise UsageError(
                    f"the function of messages returned {_a_kind(answer)}, of which nothing has run"
                )
            else:
                return
        if inspect.iscoroutine(answer):
            answer.close()
        raise UsageError("the function of messages returned work whose result is again work, without end")

    async def close(self) -> None:
        """Nothing is open. Calls that still run end with their process at the latest."""

    async def _in_thread(self, message: Message) -> object:
        """What the function returns in a thread; raises what it raises there."""
        lane, loop, context = message.lane, asyncio.get_running_loop(), contextvars.copy_context()
        ended = loop.create_future()

        def call() -> None:
            answer: object = None
            failure: BaseException | None = None
            try:
                answer = context.run(self._function, message)
            except BaseException as error:  # noqa: BLE001 - raised where the delivery is awaited
                failure = error
            self._running.discard(lane)
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(_end, ended, (answer, failure))

        if len(self._running) >= CALLS_MAX:
            raise Undelivered(f"{CALLS_MAX:,} calls have not ended in their threads; none is begun")
        self._running.add(lane)
        try:
            threading.Thread(target=call, name="undoubt-receiver", daemon=True).start()
        except RuntimeError as error:  # the system has no thread left
            self._running.discard(lane)
            raise Undelivered(f"no thread: {error}") from error
        answer, failure = await ended
        if failure is not None:
            raise failure
        return answer


def _end(
    ended: asyncio.Future[tuple[object, BaseException | None]], result: tuple[object, BaseException | None]
) -> None:
    if not ended.done():  # else the delivery has timed out
        ended.set_result(result)


def _is_lazy(answer: object) -> bool:
    """Whether ``answer`` is work that has not begun. A cursor or a file can be iterated over too, and is what
    is left of work that was done."""
    if inspect.isgenerator(answer) or inspect.isasyncgen(answer):
        return True
    return isinstance(answer, Iterator | AsyncIterator) and type(answer).__module__ in LAZY


def _a_kind(answer: object) -> str:
    if inspect.isgenerator(answer) or inspect.isasyncgen(answer):
        return "a generator"
    return f"an iterator ({type(answer).__name__})"
