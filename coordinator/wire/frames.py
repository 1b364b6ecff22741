"""Frames: four bytes of length (big-endian, of what follows), one version byte, then msgpack.

A peer that sends anything else is cut off with one log line; the length is bounded before anything is kept.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

log = logging.getLogger(__name__)

VERSION = 1
FRAME_BYTES_MAX = 64 * 1024 * 1024
_HEADER_BYTES = 5


class RemoteProtocolError(Exception):
    """The peer sent what cannot be a frame, or not one of this protocol."""


class FrameReader:
    """Bytes in, payloads out."""

    def __init__(self, bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads that are complete now. Raises :class:`RemoteProtocolError`."""
        self._buffer += data
        payloads, start = [], 0
        while len(self._buffer) - start >= _HEADER_BYTES:
            length = int.from_bytes(self._buffer[start : start + 4], "big")
            if not 1 <= length <= self._bytes_max:
                raise RemoteProtocolError(f"a frame of {length} bytes, at most {self._bytes_max} are taken")
            if self._buffer[start + 4] != VERSION:
                raise RemoteProtocolError(
                    f"wire version {self._buffer[start + 4]}, this one speaks {VERSION}"
                )
            end = start + 4 + length
            if len(self._buffer) < end:
                break
            payloads.append(bytes(self._buffer[start + _HEADER_BYTES : end]))
            start = end
        del self._buffer[:start]
        return payloads


def frame(payload: bytes) -> bytes:
    return (len(payload) + 1).to_bytes(4, "big") + bytes((VERSION,)) + payload


class FrameProtocol(asyncio.Protocol):
    """One connection that speaks frames. What is sent within one turn of the loop leaves in one write.

    ``on_payload`` may raise :class:`RemoteProtocolError` (or ``ValueError``, which msgspec's are): the
    connection is closed. ``on_lost`` is called once, however it ends.
    """

    def __init__(self, on_payload: Callable[[bytes], None], on_lost: Callable[[], None]) -> None:
        self._on_payload = on_payload
        self._on_lost = on_lost
        self._reader = FrameReader()
        self._outgoing: list[bytes] = []
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self.transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for payload in self._reader.feed(data):
                self._on_payload(payload)
        except (RemoteProtocolError, ValueError) as error:
            log.warning("closing a connection that does not speak our protocol: %s", error)
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the signature is asyncio's
        self.transport = None
        self._outgoing.clear()
        self._on_lost()

    def send(self, payload: bytes) -> None:
        """Queue one payload; dropped if the connection is gone."""
        if self.transport is None:
            return
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outgoing.append(frame(payload))

    def _flush(self) -> None:
        if self.transport is not None and self._outgoing:
            self.transport.write(b"".join(self._outgoing))
        self._outgoing.clear()

    def abort(self) -> None:
        """Close at once; nothing more is read or sent."""
        if self.transport is not None:
            self.transport.abort()
