"""Finds damage in the WAL beside a SQLite file, which is not just an end that a crash left half written.

SQLite reads a WAL up to the first frame whose checksum is wrong, and ignores all frames after it as half
written (https://www.sqlite.org/fileformat2.html#walformat). So one flipped bit undoes all transactions that
were committed after it. But a transaction is written only after the transaction before it was synced
(``synchronous=FULL``). So a valid frame after the commit of the transaction with the broken frame proves
damage. Frames after a broken frame can be recognized because the checksum of each frame continues the
checksum that is *stored* in the frame before it.

No frames follow the last transaction of a WAL. Damage to it is found by the anchor
(:mod:`undoubt.coordinator.ledger.anchor`).
"""

from __future__ import annotations

import functools
import struct
from operator import mul
from pathlib import Path

_HEADER_BYTES, _FRAME_BYTES = 32, 24
_MAGIC_LITTLE, _MAGIC_BIG = 0x377F0682, 0x377F0683
_WORD = 0xFFFFFFFF
_PAGE_BYTES = frozenset(1 << power for power in range(9, 17))


def damage(path: Path) -> str:
    """A description of the damage in the WAL of the SQLite file at ``path``, for operators; empty if there is
    none. It must be called before SQLite opens the database, by the holder of the ledger's lock. Raises
    ``OSError``."""
    wal = path.with_name(path.name + "-wal")
    try:
        data = wal.read_bytes()
    except FileNotFoundError:
        return ""
    if len(data) < _HEADER_BYTES + _FRAME_BYTES:
        return ""
    found = _Frames(data)
    broken = found.first_broken()
    if broken is None or not found.goes_on_behind(broken):
        return ""
    if broken < 0:
        return f"the header of {wal.name}, which is followed by whole transactions"
    return f"frame {broken + 1} of {wal.name}, which is followed by whole transactions"


class _Frames:
    """The frames of a WAL, counted from 0; -1 is its header."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        magic, _, page, _, self._salt1, self._salt2, first, second = struct.unpack_from(">8I", data)
        self._order = ">" if magic == _MAGIC_BIG else "<"
        self._header_sound = (
            magic in {_MAGIC_LITTLE, _MAGIC_BIG}
            and page in _PAGE_BYTES
            and self._sum(data[: _HEADER_BYTES - 8], 0, 0) == (first, second)
        )
        self._page_bytes = page if page in _PAGE_BYTES else _guessed_page(data)
        self._count = (len(data) - _HEADER_BYTES) // (_FRAME_BYTES + self._page_bytes)
        if not self._header_sound and self._count:
            self._salt1, self._salt2 = self._words(0)[2:4]

    def first_broken(self) -> int | None:
        """The first frame that SQLite would not read; None if SQLite reads all frames."""
        if not self._header_sound:
            return -1
        before: tuple[int, int] = struct.unpack_from(">2I", self._data, _HEADER_BYTES - 8)
        for number in range(self._count):
            if not self._follows(number, before):
                return number
            before = self._stored(number)
        return None

    def goes_on_behind(self, broken: int) -> bool:
        """Whether the WAL contains a transaction that was begun after the one with the broken frame: a commit
        at or after the broken frame, and directly after the commit a frame that continues its checksum."""
        if broken >= 0 and self._goes_on_from_computed(broken):
            return True
        for number in range(max(broken, 0), self._count - 1):
            pages_after_commit = self._words(number)[1]
            if (pages_after_commit or number == broken) and self._follows(number + 1, self._stored(number)):
                return True
        return False

    def _goes_on_from_computed(self, broken: int) -> bool:
        """Whether the next frame continues the checksum that the broken frame should contain: then only the
        stored checksum is broken."""
        at = self._at(broken) - self._page_bytes - _FRAME_BYTES + 16 if broken else _HEADER_BYTES - 8
        before: tuple[int, int] = struct.unpack_from(">2I", self._data, at)
        return broken + 1 < self._count and self._follows(broken + 1, self._computed(broken, before))

    def _follows(self, number: int, before: tuple[int, int]) -> bool:
        if self._words(number)[2:4] != (self._salt1, self._salt2):
            return False
        return self._computed(number, before) == self._stored(number)

    def _computed(self, number: int, before: tuple[int, int]) -> tuple[int, int]:
        at = self._at(number)
        head = self._sum(self._data[at : at + 8], *before)
        return self._sum(self._data[at + _FRAME_BYTES : at + _FRAME_BYTES + self._page_bytes], *head)

    def _stored(self, number: int) -> tuple[int, int]:
        words = self._words(number)
        return words[4], words[5]

    def _words(self, number: int) -> tuple[int, ...]:
        return struct.unpack_from(">6I", self._data, self._at(number))

    def _at(self, number: int) -> int:
        return _HEADER_BYTES + number * (_FRAME_BYTES + self._page_bytes)

    def _sum(self, data: bytes, first: int, second: int) -> tuple[int, int]:
        """The checksum of the WAL format: over pairs of words, in the byte order that the magic number
        gives."""
        count = len(data) // 4
        words = struct.unpack(f"{self._order}{count}I", data)
        of_first, of_second = _factors(count)
        return (
            sum(map(mul, of_first, (first, second, *words))) & _WORD,
            sum(map(mul, of_second, (first, second, *words))) & _WORD,
        )


@functools.cache
def _factors(count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The factors of both initial sums and of each word in the two sums after ``count`` words.

    The checksum adds, for each pair of words, ``first += even + second`` and ``second += odd + first``. This
    is linear, so each sum is one product of vectors, which takes a quarter of the time of a loop."""
    first, second = [0] * (count + 2), [0] * (count + 2)
    first[0] = second[1] = 1
    for even in range(2, count + 2, 2):
        first = [(one + other) & _WORD for one, other in zip(first, second, strict=True)]
        first[even] += 1
        second = [(one + other) & _WORD for one, other in zip(first, second, strict=True)]
        second[even + 1] += 1
    return tuple(first), tuple(second)


def _guessed_page(data: bytes) -> int:
    """The page size at which the second frame has the salts of the first; SQLite's default size if there is
    none."""
    first = data[_HEADER_BYTES + 8 : _HEADER_BYTES + 16]
    for size in sorted(_PAGE_BYTES):
        at = _HEADER_BYTES + _FRAME_BYTES + size + 8
        if data[at : at + 8] == first:
            return size
    return 4096
