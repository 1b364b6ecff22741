"""A small client of the sidecar: one HTTP/1.1 connection, which is kept open, with one request at a time.

It does only what the sidecar's answers need (a status and a body of known length), so that a benchmark
measures the sidecar rather than its client.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any, NamedTuple, cast

import msgspec

IDLE_S = 2.0
"""A connection that was not used for this time is opened anew: a server may be about to close it."""
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)\r\n", re.IGNORECASE)
_HEAD_END = b"\r\n\r\n"


class HttpAnswer(NamedTuple):
    """``body`` is decoded JSON."""

    status: int
    body: Any


class SidecarConnection(asyncio.Protocol):
    """Connect with :meth:`over_socket`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._used_s = 0.0
        self._over = asyncio.Event()
        self._over.set()
        self._waiting: asyncio.Future[HttpAnswer] | None = None

    @classmethod
    async def over_socket(cls, path: str) -> SidecarConnection:
        """Raises ``OSError``."""
        made = cls(path)
        await made.open()
        return made

    async def open(self) -> None:
        """For the first time, or again. Raises ``OSError``."""
        self.close()
        await self._over.wait()  # what the former transport tells last is not about the next one
        self._over.clear()
        await asyncio.get_running_loop().create_unix_connection(lambda: self, self._path)

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> HttpAnswer:
        """Send a request and wait for its answer. Raises ``ConnectionError``; ``OSError`` if it has to
        connect anew."""
        if time.monotonic() - self._used_s > IDLE_S:
            await self.open()
        return await self.send(method, path, body, **headers)

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> asyncio.Future[HttpAnswer]:
        """Send a request; the answer is what the future gives. Raises ``ConnectionError``, as the future
        does. ``body`` is sent as JSON."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the connection to the sidecar is closed")
        content = b"" if body is None else msgspec.json.encode(body)
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        if body is not None:
            lines += "Content-Type: application/json\r\n"
        head = f"{method} {path} HTTP/1.1\r\nHost: sidecar\r\n{lines}Content-Length: {len(content)}\r\n\r\n"
        self._transport.write(head.encode() + content)
        self._waiting = asyncio.get_running_loop().create_future()
        return self._waiting

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._used_s = time.monotonic()
        self._buffer = b""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are of no class of asyncio's

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(_HEAD_END)
        if end < 0:
            return
        begin = end + len(_HEAD_END)
        length = _LENGTH.search(self._buffer, 0, begin)
        size = 0 if length is None else int(length[1])
        if len(self._buffer) < begin + size:
            return
        status, content = int(self._buffer[9:12]), self._buffer[begin : begin + size]
        self._buffer = self._buffer[begin + size :]
        self._used_s = time.monotonic()
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(HttpAnswer(status, msgspec.json.decode(content) if content else None))

    def connection_lost(self, exc: Exception | None) -> None:
        self._over.set()
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_exception(ConnectionResetError(f"the sidecar closed the connection: {exc}"))
