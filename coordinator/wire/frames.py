"""Frames: four bytes of length (big-endian, of what follows), a version byte, a CRC-32, and what it is of.

Length and version are checked as soon as the header is there: nothing is kept for a frame that will be
refused. The checksum is for wires without TLS: TCP's own has sixteen bits, and a single one is what tells
COMMIT from ABORT.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from zlib import crc32

from undoubt.coordinator.wire.errors import RemoteProtocolError

FRAME_BYTES_MAX = 64 * 1024 * 1024
HEADER = struct.Struct("!IBI")
_BEHIND = HEADER.size - 4
"""Bytes of the header that the length counts."""

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

    @property
    def within(self) -> bool:
        """Whether a frame has begun and not ended."""
        return bool(self._kept)

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
            length, version, checksum = HEADER.unpack_from(data, start)
            if version != self.version or not _BEHIND <= length <= self.bytes_max:
                raise RemoteProtocolError(self._wrong(length, version, data[start : start + 4]))
            end = start + 4 + length
            if end > size:
                self._wanted = 4 + length
                break
            payload = data[start + HEADER.size : end]
            if crc32(payload) != checksum:
                raise RemoteProtocolError(f"a frame of {length} bytes that does not match its checksum")
            yield payload
            start = end
        if start < size:
            self._kept += data[start:] if start else data

    def _wrong(self, length: int, version: int, begin: bytes) -> str:
        for foreign, why in _FOREIGN.items():
            if begin.startswith(foreign):
                return why
        if not _BEHIND <= length <= self.bytes_max:
            return f"a frame of {length} bytes, from {_BEHIND} to {self.bytes_max} are taken"
        return f"a frame of version {version}, {self.version} is spoken here"


def header(payload: bytes, version: int) -> bytes:
    """What goes before a payload."""
    return HEADER.pack(_BEHIND + len(payload), version, crc32(payload))
