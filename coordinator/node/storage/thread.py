"""One thread that does what it is given, in order, and tells the event loop.

As ``ThreadPoolExecutor(1)``, with less on the way there and back: this is what one decision at a time waits
for.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Thread:
    """Belongs to the event loop in which it was made."""

    def __init__(self, name: str) -> None:
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
