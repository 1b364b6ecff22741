"""Encodes one record of a segment, and reads the records of a segment. Pure: bytes in, values out.

A record contains one batch of writes: one write to the disk, one sync. Layout, little endian, at a multiple
of eight bytes::

    0    magic, 4 bytes
    4    length of the payload, 4 bytes
    8    number of the record, 8 bytes: counted from 1 over the life of the disk
    16   chain, 16 bytes: hash over the chain before it and the payload (coordinator.ledger.anchor)
    32   CRC-32 over the segment's salt, everything above and the payload, 4 bytes
    36   payload, then zeros up to a multiple of eight

A crash in the middle of a write leaves a record whose CRC is wrong, or none: a *torn tail*, of which nothing
was ever acknowledged. A damaged record looks the same, but the records after it still exist. A record is
written only after everything before it was synced, so a whole record after a broken one proves damage. Each
record has its own CRC, besides the chain, so that records after a broken one can be recognized without that
record. (Alagappan et al., "Protocol-Aware Recovery for Consensus-Based Storage", FAST 2018, §3.3.1,
distinguish the two cases in the same way.)
"""

from __future__ import annotations

import enum
import struct
import zlib
from dataclasses import dataclass

from undoubt.coordinator.ledger.anchor import Mark, chained

ALIGNMENT_BYTES = 8
_MAGIC = b"\xc1und"
_HEAD = struct.Struct("<4sIQ16s")
_CRC = struct.Struct("<I")
HEAD_BYTES = _HEAD.size + _CRC.size


class Tail(enum.Enum):
    """What follows the last undamaged record of a segment."""

    EMPTY = "nothing"
    TORN = "a write that was never finished"
    DAMAGED = "a record that was durable and can no longer be read"


@dataclass(frozen=True, slots=True)
class Read:
    """The undamaged records of a segment: their ``payloads`` and their ``marks``. ``end`` is the offset at
    which the next record would begin."""

    payloads: list[bytes]
    marks: list[Mark]
    end: int
    tail: Tail


def encoded(payload: bytes, before: Mark, salt: bytes) -> tuple[bytes, Mark]:
    """Return the record for ``payload``, and its mark."""
    mark = Mark(before.index + 1, chained(before.chain, payload))
    head = _HEAD.pack(_MAGIC, len(payload), mark.index, mark.chain)
    return _padded(head + _CRC.pack(_checksum(salt, head, payload)) + payload), mark


def size_of(payload: bytes) -> int:
    """Return the size of the record for ``payload``, in bytes."""
    return -(-(HEAD_BYTES + len(payload)) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def read(data: bytes, start: int, before: Mark, salt: bytes) -> Read:
    """Return all records of ``data`` from ``start`` on; the first is the record after ``before``."""
    payloads: list[bytes] = []
    marks: list[Mark] = []
    at, mark = start, before
    while (found := _at(data, at, salt)) is not None:
        number, chain, payload = found
        following = Mark(mark.index + 1, chained(mark.chain, payload))
        if following != Mark(number, chain):
            return Read(payloads, marks, at, Tail.DAMAGED)
        payloads.append(payload)
        marks.append(following)
        mark, at = following, at + size_of(payload)
    return Read(payloads, marks, at, _tail(data, at, mark, salt))


def _tail(data: bytes, end: int, last: Mark, salt: bytes) -> Tail:
    rest = data[end:]
    if not rest.strip(b"\0"):
        return Tail.EMPTY
    at = rest.find(_MAGIC)
    while at >= 0:
        found = _at(rest, at, salt)
        if found is not None and found[0] > last.index:
            return Tail.DAMAGED
        at = rest.find(_MAGIC, at + 1)
    return Tail.TORN


def _at(data: bytes, at: int, salt: bytes) -> tuple[int, bytes, bytes] | None:
    """Return number, chain and payload of the record at ``at``; None if there is no whole record."""
    if len(data) - at < HEAD_BYTES:
        return None
    magic, length, number, chain = _HEAD.unpack_from(data, at)
    (crc,) = _CRC.unpack_from(data, at + _HEAD.size)
    begin = at + HEAD_BYTES
    if magic != _MAGIC or begin + length > len(data):
        return None
    payload = data[begin : begin + length]
    if _checksum(salt, data[at : at + _HEAD.size], payload) != crc:
        return None
    if any(data[begin + length : at + size_of(payload)]):
        return None
    return number, chain, payload


def _checksum(salt: bytes, head: bytes, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(head, zlib.crc32(salt)))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT_BYTES)
