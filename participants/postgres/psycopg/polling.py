"""Waits for a generator of psycopg's (``psycopg.generators``) with callbacks of the event loop: without a
task, and without a timer of its own.

An event loop may not tell of all that happens: if libuv finds data and an error at a socket, as of a server
that has told why it ends the session and has not read everything, it looks at the socket no more
(``uv__poll_io`` in ``src/unix/poll.c``), and with uvloop the reader is called once, for the data. So a socket
that was waited for in vain is looked at again and again, as psycopg's own ``wait_async`` does."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Generator
from typing import Any

from psycopg.waiting import Ready, Wait

from undoubt.participants.deadlines import deadlines

LOOK_S = 0.5
"""How long to wait for the event loop before the socket is looked at."""


class Polling(asyncio.Future[Any]):
    """The result of ``generator``, which waits for the socket ``fd``; ``TimeoutError`` if it is not done
    after ``timeout_s`` seconds. Once this future is done, or was cancelled, the loop no longer looks at the
    socket, and the generator has ended: the connection may be closed."""

    def __init__(self, generator: Generator[Wait, Ready | int, Any], fd: int, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(loop=loop)
        self._generator = generator
        self._fd = fd
        self._waits = 0
        """What the loop looks for at the socket: a :class:`Wait`, or nothing."""
        self._expires = loop.time() + timeout_s
        self._deadline = deadlines().call_at(min(self._expires, loop.time() + LOOK_S), self._look)
        self._step(None)

    def cancel(self, msg: Any | None = None) -> bool:
        if not self.done():
            self._end()
        return super().cancel(msg)

    def fail(self, error: BaseException) -> None:
        """End with ``error``, unless it has ended."""
        if not self.done():
            self._end()
            self.set_exception(error)

    def _look(self) -> None:
        now = self.get_loop().time()
        if self._waits & Wait.R and _is_readable(self._fd):
            self._step(Ready.R)
        if self.done():
            return
        if now >= self._expires:
            self.fail(TimeoutError("no answer in time"))
        else:
            self._deadline = deadlines().call_at(min(self._expires, now + LOOK_S), self._look)

    def _step(self, ready: Ready | None) -> None:
        if self.done():
            return  # a callback that the loop had called for already
        try:
            self._look_for(self._generator.send(ready))  # type: ignore[arg-type]
        except StopIteration as stop:
            self._end()
            self.set_result(stop.value)
        except Exception as error:  # noqa: BLE001 - raised where this future is awaited
            self.fail(error)
        except BaseException as error:
            self.fail(error)  # an interrupt: the loop hears of it too
            raise

    def _look_for(self, waits: int) -> None:
        """``add_reader`` and ``add_writer`` are system calls: only changes are given to the loop."""
        loop, before, self._waits = self.get_loop(), self._waits, waits
        if waits & Wait.R and not before & Wait.R:
            loop.add_reader(self._fd, self._step, Ready.R)
        elif before & Wait.R and not waits & Wait.R:
            loop.remove_reader(self._fd)
        if waits & Wait.W and not before & Wait.W:
            loop.add_writer(self._fd, self._step, Ready.W)
        elif before & Wait.W and not waits & Wait.W:
            loop.remove_writer(self._fd)

    def _end(self) -> None:
        self._deadline.cancel()
        self._look_for(0)
        self._generator.close()


def _is_readable(fd: int) -> bool:
    """Whether something can be read from the socket, if only its end or its error."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))
