"""One 32-bit fingerprint for each finished transaction of a session, by sequence number."""

from __future__ import annotations

import sys
from array import array

CHUNK = 1024
"""Sequence numbers of one array. A number is a key, not a size: who finishes number 9e18 makes one array."""

DENSE_CHUNKS = 4096
"""Chunks below this number are stored one behind the other, which is how version 0.1.0 reads all of them."""


class Fingerprints:
    """Sequence numbers count from 1; a fingerprint is never 0."""

    __slots__ = ("_chunks",)

    def __init__(self) -> None:
        self._chunks: dict[int, array[int]] = {}

    def __setitem__(self, seq: int, fingerprint: int) -> None:
        number, place = divmod(seq - 1, CHUNK)
        chunk = self._chunks.get(number)
        if chunk is None:
            chunk = self._chunks[number] = array("I", bytes(4 * CHUNK))
        chunk[place] = fingerprint

    def __getitem__(self, seq: int) -> int:
        """0 where none was set."""
        number, place = divmod(seq - 1, CHUNK)
        chunk = self._chunks.get(number)
        return 0 if chunk is None else chunk[place]

    def dense(self) -> bytes:
        """Those of the chunks below :data:`DENSE_CHUNKS`, four bytes each, little endian, up to the last that
        is set."""
        last = max((number for number in self._chunks if number < DENSE_CHUNKS), default=-1)
        empty = bytes(4 * CHUNK)
        found = b"".join(
            _bytes(self._chunks[number]) if number in self._chunks else empty for number in range(last + 1)
        ).rstrip(b"\0")
        return found + bytes(-len(found) % 4)

    def sparse(self) -> list[tuple[int, bytes]]:
        """The other chunks, by number."""
        return [
            (number, _bytes(self._chunks[number]))
            for number in sorted(self._chunks)
            if number >= DENSE_CHUNKS
        ]

    @classmethod
    def of(cls, dense: bytes, sparse: list[tuple[int, bytes]]) -> Fingerprints:
        """The inverse of :meth:`dense` and :meth:`sparse`."""
        made = cls()
        size = 4 * CHUNK
        chunks = [(at // size, dense[at : at + size]) for at in range(0, len(dense), size)]
        for number, data in [*chunks, *sparse]:
            made._chunks[number] = _array(data + bytes(size - len(data)))
        return made


def _bytes(chunk: array[int]) -> bytes:
    return _swapped(chunk).tobytes()


def _array(data: bytes) -> array[int]:
    chunk = array("I")
    chunk.frombytes(data)
    return _swapped(chunk)


def _swapped(chunk: array[int]) -> array[int]:
    if sys.byteorder == "little":
        return chunk
    copied = array("I", chunk)
    copied.byteswap()
    return copied
