"""Runs an event loop in its own thread, and takes calls from any other thread.

A call that is interrupted in its thread (Ctrl-C) goes on in the loop: the loop drives transactions to their
ends, and no caller can stop that. Each call waits on a lock; calls that arrive while the loop is busy wake it
only once. So a call costs hardly more than two thread switches.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures.thread  # noqa: F401 - before the hook at the end of this file
import contextlib
import importlib
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from undoubt.coordinator.errors import CoordinatorClosed, WrongProcess
from undoubt.participants.errors import UsageError

log = logging.getLogger(__name__)

T = TypeVar("T")

IN_A_LOOP = (
    "undoubt.sync would block the event loop that runs in this thread; use 'async with undoubt.connect(…)'"
    " here, or await asyncio.to_thread(function) with a function that uses undoubt.sync"
)


GREEN = (
    "{0} has replaced threads and sockets in this process, and undoubt's engine needs real ones: it would"
    " hang. Use undoubt in a process without it (gunicorn -k gthread or -k sync, celery -P prefork or -P"
    " threads)"
)
_GREEN = (
    ("gevent.monkey", "is_module_patched", "threading"),
    ("gevent.monkey", "is_module_patched", "socket"),
    ("eventlet.patcher", "is_monkey_patched", "thread"),
    ("eventlet.patcher", "is_monkey_patched", "socket"),
)
"""A module, its function that returns whether a part is replaced, and the name of the part
(https://www.gevent.org/api/gevent.monkey.html, https://eventlet.readthedocs.io/en/latest/patching.html)."""


WAKE_S = 0.2
"""How much later than Ctrl-C ``KeyboardInterrupt`` may be raised in a waiting thread."""


class _Call(Generic[T]):
    """One coroutine to run, and the thread that waits for it."""

    __slots__ = ("_arguments", "_error", "_function", "_lock", "_result")

    _result: T

    def __init__(self, function: Callable[..., Coroutine[Any, Any, T]], arguments: tuple[Any, ...]) -> None:
        self._function = function
        self._arguments = arguments
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._lock.acquire()

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.create_task(self._function(*self._arguments)).add_done_callback(self._done)

    def _done(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self.fail(CoordinatorClosed())  # only the end of the loop cancels a call
        elif (error := task.exception()) is not None:
            self.fail(error)
        else:
            self._result = task.result()
            self._lock.release()

    def fail(self, error: BaseException) -> None:
        self._error = error
        self._lock.release()

    def wait(self) -> T:
        # With a timeout: a signal that arrives just before the thread begins to wait does not end the wait.
        while not self._lock.acquire(timeout=WAKE_S):
            pass
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # otherwise the error and this frame would refer to each other
        return self._result


class Portal:
    """An event loop in its own thread, open from construction until ``close``. At the interpreter's exit
    ``at_exit`` is called, which has to close it."""

    def __init__(self, name: str, at_exit: Callable[[], None]) -> None:
        """Raises ``UsageError`` in a thread that runs an event loop, and if ``gevent`` or ``eventlet`` has
        replaced threads or sockets."""
        _refuse_green_threads()
        _refuse_in_a_loop()
        self.pid = os.getpid()
        self._calls: deque[_Call[Any]] = deque()
        self._woken = False
        self._ending = False
        """Set in the loop's thread: from now on no call is begun."""
        self._ended = False
        self._loop = _new_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        _open[self] = at_exit

    def call(self, function: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
        """The result of ``await function(*arguments)`` in the loop. Raises the errors of ``function``;
        ``CoordinatorClosed``; ``UsageError`` in a thread that runs an event loop; ``WrongProcess`` in a fork.
        """
        self.check()
        call = _Call(function, arguments)
        self._send(call)
        return call.wait()

    def post(self, function: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any) -> None:
        """Run ``function`` in the loop without waiting for its result. Does nothing once the loop has
        ended."""
        self._send(_Call(function, arguments))

    def flush(self) -> None:
        """Return once all calls that were sent before, also calls that were interrupted in their threads,
        have begun. Raises as :meth:`call`."""
        self.call(_nothing)

    def check(self) -> None:
        """Raise the error with which ``call`` would be refused, if any."""
        if self.elsewhere:
            raise WrongProcess(
                f"this coordinator belongs to process {self.pid}, not {os.getpid()}; open one after the fork"
            )
        _refuse_green_threads()
        _refuse_in_a_loop()
        if self._ending:
            raise CoordinatorClosed

    @property
    def elsewhere(self) -> bool:
        """Whether the loop belongs to another process, of which this process is a fork."""
        return os.getpid() != self.pid

    @property
    def ended(self) -> bool:
        return self._ended

    def close(self) -> None:
        """End the loop; calls that still run raise ``CoordinatorClosed``. May be repeated."""
        _open.pop(self, None)
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(self._end)
        self._thread.join()

    def _send(self, call: _Call[Any]) -> None:
        self._calls.append(call)
        if not self._woken:
            try:
                self._woken = True
                with contextlib.suppress(RuntimeError):  # the loop is closed: see below
                    self._loop.call_soon_threadsafe(self._take)
            except BaseException:  # raised by the handler of a signal: otherwise no call would wake the loop
                self._woken = False
                raise
        if self._ended:
            self._fail_all()

    def _take(self) -> None:
        self._woken = False  # first: a call queued after the while below must wake the loop again
        if self._ending:
            self._fail_all()
        while self._calls:
            self._calls.popleft().begin(self._loop)

    def _fail_all(self) -> None:
        """Fail all queued calls: the loop will not begin them. Each call is popped, and failed, once."""
        while True:
            try:
                call = self._calls.popleft()
            except IndexError:
                return
            call.fail(CoordinatorClosed())

    def _end(self) -> None:
        self._ending = True
        self._loop.stop()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.get_loop().run_forever()
        self._ended = True
        self._fail_all()


async def _nothing() -> None:
    pass


def _refuse_in_a_loop() -> None:
    if asyncio._get_running_loop() is not None:
        raise UsageError(IN_A_LOOP)


def _refuse_green_threads() -> None:
    """Raise ``UsageError`` if threads are greenlets: one that waits for the loop would block the thread in
    which the loop has to run."""
    for module, asked, name in _GREEN:
        if (patched := getattr(sys.modules.get(module), asked, None)) is not None and patched(name):
            raise UsageError(GREEN.format(module.partition(".")[0]))


def _new_loop() -> asyncio.AbstractEventLoop:
    """A new event loop: uvloop's if it is installed. The application does not use this loop."""
    try:
        made: asyncio.AbstractEventLoop = importlib.import_module("uvloop").new_event_loop()
    except ImportError:
        return asyncio.new_event_loop()
    return made


_open: dict[Portal, Callable[[], None]] = {}


def _at_exit() -> None:
    for portal, close in list(_open.items()):
        if not portal.elsewhere:
            try:
                close()
            except Exception:  # no caller is left to handle it; other portals must be closed too
                log.exception("closing at the interpreter's exit failed")


# Running commits need the ledger's executor, and concurrent.futures ends all executors before the functions
# of atexit are called: by threading's hook, whose functions run in reverse order of registration. The
# function of concurrent.futures was registered by the import of concurrent.futures.thread above, so this one
# runs before it.
getattr(threading, "_register_atexit", atexit.register)(_at_exit)
