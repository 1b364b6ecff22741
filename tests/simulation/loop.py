"""An asyncio event loop without selector, threads or real time: one for each simulated process.

It has what asyncio itself and the shipped code ask of a loop; anything else raises ``NotImplementedError``
(from ``asyncio.AbstractEventLoop``), so that nothing real can slip in unnoticed.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import TYPE_CHECKING, Any, TypeVarTuple, Unpack

if TYPE_CHECKING:
    from tests.simulation.scheduler import Process

log = logging.getLogger(__name__)

Ts = TypeVarTuple("Ts")

_numbers = itertools.count(1)


def _stable_hash(self: Any) -> int:
    """By order of first use instead of by address: sets of tasks must not follow the allocator's whims."""
    number: int | None = getattr(self, "simulated_hash", None)
    if number is None:
        number = self.simulated_hash = next(_numbers)
    return number


class SimulatedTask(asyncio.Task[Any]):
    __hash__ = _stable_hash


class SimulatedFuture(asyncio.Future[Any]):
    __hash__ = _stable_hash


def pin_hash(kind: type) -> None:
    """Give instances of a shipped class that lands in sets a stable hash."""
    kind.__hash__ = _stable_hash  # type: ignore[method-assign, assignment]


class ProcessLoop(asyncio.AbstractEventLoop):
    """``network`` is set by :class:`tests.simulation.network.Network`."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.network: Any = None
        self.signals: dict[int, Callable[[], object]] = {}
        self._handler: Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None = None

    # Time.

    def time(self) -> float:
        return self.process.local_time()

    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self.process.post(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        process = self.process
        timer = asyncio.TimerHandle(when, callback, args, self, context)

        def due() -> None:
            if not timer.cancelled():
                process.post(timer)

        process.scheduler.at(process.global_time(when), due, process)
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """asyncio calls it; a cancelled timer is passed over when its time comes."""

    # Futures and tasks.

    def create_future(self) -> asyncio.Future[Any]:
        return SimulatedFuture(loop=self)

    def create_task(  # type: ignore[override]
        self,
        coro: Coroutine[Any, Any, Any],
        *,
        name: str | None = None,
        context: Context | None = None,
        **more: Any,
    ) -> asyncio.Task[Any]:
        return SimulatedTask(coro, loop=self, name=name, context=context, **more)

    # What it is.

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return not self.process.alive

    def get_debug(self) -> bool:
        return False

    def get_exception_handler(self) -> Any:
        return self._handler

    def set_exception_handler(self, handler: Any) -> None:
        self._handler = handler

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        log.error("%s", context.get("message"), exc_info=context.get("exception"))

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self.process.alive:
            return
        if self._handler is not None:
            self._handler(self, context)
        else:
            self.default_exception_handler(context)

    def add_signal_handler(self, sig: int, callback: Callable[..., object], *args: Any) -> None:  # type: ignore[override]
        self.signals[sig] = lambda: callback(*args)

    def remove_signal_handler(self, sig: int) -> bool:
        return self.signals.pop(sig, None) is not None

    # The outside world.

    def run_in_executor(
        self, executor: Any, func: Callable[[Unpack[Ts]], Any], *args: *Ts
    ) -> asyncio.Future[Any]:
        return asyncio.wrap_future(executor.submit(func, *args), loop=self)

    async def create_server(
        self, protocol_factory: Any, host: Any = None, port: Any = None, **more: Any
    ) -> Any:
        return self.network.listen(self.process, protocol_factory, (host, port), more)

    async def create_unix_server(self, protocol_factory: Any, path: Any = None, **more: Any) -> Any:
        return self.network.listen(self.process, protocol_factory, _unix_address(path, more), more)

    async def create_connection(
        self, protocol_factory: Any, host: Any = None, port: Any = None, **more: Any
    ) -> Any:
        return await self.network.connect(self.process, protocol_factory, (host, port), more)

    async def create_unix_connection(self, protocol_factory: Any, path: Any = None, **more: Any) -> Any:
        return await self.network.connect(self.process, protocol_factory, _unix_address(path, more), more)


def _unix_address(path: Any, more: dict[str, Any]) -> Any:
    return path if path is not None else more.pop("sock").address
