"""Writes and syncs one file of a node's log: a header, records, and zeros up to its fixed size.

A file is filled with zeros and synced before it gets its name, so that later syncs write only data and no
metadata. The next file, the *spare*, is made in advance, so that a new segment needs no room when the disk is
full. ``salt`` is random, so that a record of another file, or of a former file in the same place on the disk,
is not accepted as a record of this file.

Header, little endian, ``HEADER_BYTES`` long: magic (16 bytes), number of the segment (8), index and chain of
the last record before it (8, 16), where the records of the segment before it end (8), salt (16), length of
the identity (2), identity; CRC-32 of everything before in the last 4 bytes.
"""

from __future__ import annotations

import os
import secrets
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from undoubt.coordinator.errors import LedgerUnusable
from undoubt.coordinator.ledger.anchor import Mark
from undoubt.coordinator.ledger.durable import sync_folder

HEADER_BYTES = 512
SALT_BYTES = 16
_MAGIC = b"undoubt-segment1"
_HEAD = struct.Struct("<16sQQ16sQ16sH")
SPARE_NAME = "log.spare"
_PREFIX, _SUFFIX, _DIGITS = "log-", ".segment", 10


class NotASegment(Exception):
    """The header of a file is incomplete or damaged."""


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """The header of a segment. ``before`` is the last record of the previous segment, whose records end at
    ``previous_end``. ``identity`` is the identity of the disk, as the storage encodes it."""

    number: int
    before: Mark
    previous_end: int
    salt: bytes
    identity: bytes

    @classmethod
    def new(cls, number: int, before: Mark, previous_end: int, identity: bytes) -> SegmentHeader:
        """Return a header with a new salt."""
        return cls(number, before, previous_end, secrets.token_bytes(SALT_BYTES), identity)

    def encoded(self) -> bytes:
        head = _HEAD.pack(
            _MAGIC, self.number, self.before.index, self.before.chain, self.previous_end, self.salt,
            len(self.identity),
        )  # fmt: skip
        body = (head + self.identity).ljust(HEADER_BYTES - 4, b"\0")
        if len(body) != HEADER_BYTES - 4:
            raise ValueError(f"an identity of {len(self.identity)} bytes does not fit into a header")
        return body + zlib.crc32(body).to_bytes(4, "little")

    @classmethod
    def decoded(cls, data: bytes) -> SegmentHeader:
        """Decode a header. Raises :class:`NotASegment`; ``LedgerUnusable`` for a later format."""
        body, crc = data[: HEADER_BYTES - 4], data[HEADER_BYTES - 4 : HEADER_BYTES]
        if len(data) < HEADER_BYTES or zlib.crc32(body).to_bytes(4, "little") != crc:
            raise NotASegment
        magic, number, index, chain, end, salt, length = _HEAD.unpack_from(body)
        if magic != _MAGIC:
            raise LedgerUnusable("the node's log was written by a newer version of undoubt; use that version")
        identity = body[_HEAD.size : _HEAD.size + length]
        return cls(number, Mark(index, chain), end, salt, identity)


def path_of(folder: Path, number: int) -> Path:
    return folder / f"{_PREFIX}{number:0{_DIGITS}}{_SUFFIX}"


def numbers_in(folder: Path) -> list[int]:
    """The numbers of the segments in ``folder``, in order."""
    names = [path.name for path in folder.glob(f"{_PREFIX}*{_SUFFIX}")]
    digits = [name.removeprefix(_PREFIX).removesuffix(_SUFFIX) for name in names]
    return sorted(int(each) for each in digits if len(each) == _DIGITS and each.isdecimal())


def allocate(path: Path, size_bytes: int) -> None:
    """Create a file of zeros, and sync it. Raises ``OSError``; then no file is left."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        remaining = size_bytes
        while remaining:
            remaining -= os.write(descriptor, _ZEROS[: min(remaining, len(_ZEROS))])
        os.fsync(descriptor)
    except BaseException:
        path.unlink()
        raise
    finally:
        os.close(descriptor)


def set_aside(folder: Path, size_bytes: int) -> None:
    """Make the spare, unless it exists. Raises ``OSError``."""
    spare = folder / SPARE_NAME
    if _size(spare) < size_bytes:
        new = spare.with_name(spare.name + ".new")
        allocate(new, size_bytes)
        new.rename(spare)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


_ZEROS = memoryview(bytes(1 << 20))


class Segment:
    """A segment that is open for writing."""

    def __init__(self, path: Path, header: SegmentHeader, end: int, *, size_bytes: int) -> None:
        self.path = path
        self.header = header
        self.end = end
        """The offset at which the next record begins."""
        self.size_bytes = size_bytes
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)

    @classmethod
    def create(
        cls,
        folder: Path,
        header: SegmentHeader,
        records: bytes = b"",
        *,
        size_bytes: int,
    ) -> Segment:
        """Create a segment that contains ``records``, durable with its name. Raises ``OSError``; then there
        is no segment."""
        path = path_of(folder, header.number)
        new = path.with_suffix(".new")
        spare = folder / SPARE_NAME
        if _size(spare) >= size_bytes:
            spare.rename(new)
        else:
            allocate(new, size_bytes)
        with new.open("r+b") as file:
            file.write(header.encoded() + records)
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
        sync_folder(folder)
        return cls(path, header, HEADER_BYTES + len(records), size_bytes=size_bytes)

    def fits(self, size_bytes: int) -> bool:
        return self.end + size_bytes <= self.size_bytes

    def append(self, record: bytes) -> None:
        """Append ``record``, which is durable when this returns. Raises ``OSError``; then the contents of the
        disk are not known."""
        self._write(record, self.end)
        self.end += len(record)

    def rewrite(self, data: bytes) -> None:
        """Write ``data``, which was read from the beginning of the file, again, and sync. A sync alone is not
        enough: after a failed sync the kernel treats the file as written. Raises ``OSError``."""
        self._write(data, 0)

    def _write(self, data: bytes, at: int) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._descriptor, view, at)
            view, at = view[written:], at + written
        self.sync()

    def sync(self) -> None:
        """Make written data durable. Raises ``OSError``; then it must never be called again."""
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
