"""Frames: four bytes of length (big-endian, of what follows), one version byte, then the payload.

Length and version are checked as soon as five bytes are there: nothing is kept for a frame that will be
refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from coordinator.wire.errors import RemoteProtocolError

FRAME_BYTES_MAX = 64 * 1024 * 1024
HEADER = struct.Struct("!IB")

_FOREIGN = {
    b"\x16\x03": "it speaks TLS, and this port does not",
    b"GET ": "it speaks HTTP",
    b"POST": "it speaks HTTP",
    b"HEAD": "it speaks HTTP",
}
"""How other protocols begin, for a message that helps whoever mistook the port."""


class FrameReader:
    """Bytes in, payloads out. ``version`` and ``bytes_max`` may be changed between two payloads."""

    def __init__(self, version: int, bytes_max: int = FRAME_BYTES_MAX) -> None:
        self.version = version
        self.bytes_max = bytes_max
        self._kept = bytearray()  # less than one frame
        self._wanted = 0  # bytes without which looking at ``_kept`` again is of no use

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The payloads that are complete now. Raises :class:`RemoteProtocolError`; of no more use then."""
        if self._kept:
            self._kept += data
            if len(self._kept) < self._wanted:
                return
            data = bytes(self._kept)
            self._kept.clear()
        start, size = 0, len(data)
        self._wanted = HEADER.size
        while size - start >= HEADER.size:
            length, version = HEADER.unpack_from(data, start)
            if version != self.version or not 1 <= length <= self.bytes_max:
                raise RemoteProtocolError(self._wrong(length, version, data[start : start + 4]))
            end = start + 4 + length
            if end > size:
                self._wanted = 4 + length
                break
            yield data[start + HEADER.size : end]
            start = end
        if start < size:
            self._kept += data[start:] if start else data

    def _wrong(self, length: int, version: int, begin: bytes) -> str:
        for foreign, why in _FOREIGN.items():
            if begin.startswith(foreign):
                return why
        if not 1 <= length <= self.bytes_max:
            return f"a frame of {length} bytes, from 1 to {self.bytes_max} are taken"
        return f"a frame of version {version}, {self.version} is spoken here"


def header(payload_bytes: int, version: int) -> bytes:
    """What goes before a payload of that size."""
    return HEADER.pack(payload_bytes + 1, version)
