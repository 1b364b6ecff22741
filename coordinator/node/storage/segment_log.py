"""Implements the log of a node in segment files: append-only, preallocated, each record chained to the record
before it.

Guarantees: :meth:`SegmentLog.append` returns once its payload is durable; :meth:`SegmentLog.open` returns
every durable payload, from the first segment that is kept, or raises :class:`Damaged`. A torn tail, which a
crash left half written, is cut; the segment then ends where the tail begins, as the header of the next
segment says.

Damage is distinguished from a torn tail by two facts: a complete record follows the broken one
(:mod:`.record`); or, for the last record, the anchor (:mod:`undoubt.coordinator.ledger.anchor`) contains the
mark of a durable record that is missing."""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from undoubt.coordinator.ledger import disk
from undoubt.coordinator.ledger.anchor import START, Anchor, AnchorUnusable, Mark
from undoubt.coordinator.ledger.durable import sync_folder
from undoubt.coordinator.node.storage import record
from undoubt.coordinator.node.storage.record import Tail
from undoubt.coordinator.node.storage.segment import (
    HEADER_BYTES,
    SPARE_NAME,
    NotASegment,
    Segment,
    SegmentHeader,
    numbers_in,
    path_of,
    set_aside,
)

SEGMENT_BYTES = 4 * 1024 * 1024
SMALL_BYTES = 64 * 1024
"""The size of a segment on a disk that has no room for a larger one."""
ANCHOR_NAME = "log.anchor"


class Damaged(Exception):
    """Durable data cannot be read, or is missing. The text says which data, and where."""


@dataclass(frozen=True, slots=True)
class RecoveredLog:
    """The contents of a log: the payload of each record, and the number of its segment."""

    payloads: list[bytes]
    segments: list[int]
    first_segment: int


@dataclass(frozen=True, slots=True)
class _Last:
    """The newest segment, as it was read; the next record is appended to it."""

    header: SegmentHeader
    data: bytes
    """The bytes from the beginning of the segment to the end of its last record."""
    size_bytes: int
    mark: Mark
    end: int
    tail: Tail


class SegmentLog:
    """An open log; :meth:`create` or :meth:`open` makes it while the lock on its folder is held. For one
    thread."""

    def __init__(
        self, folder: Path, active: Segment, sealed: deque[int], anchor: Anchor, size_bytes: int
    ) -> None:
        self._folder = folder
        self.active = active
        self._sealed = sealed
        self._anchor = anchor
        self._size_bytes = size_bytes
        self._mark = anchor.mark
        self._spare = False
        """Whether the next segment was made in advance."""
        self._spoilt = False
        """Whether the active segment may contain a part of a record after its end."""

    @classmethod
    def create(
        cls, folder: Path, identity: bytes, owner: str, first: bytes, *, size_bytes: int = SEGMENT_BYTES
    ) -> SegmentLog:
        """Make a new log whose first record is ``first``. The segment is made last, and without it there is
        no log: an interrupted attempt can be repeated. Raises ``OSError``."""
        _remove_unnamed(folder)
        header = SegmentHeader.new(1, START, 0, identity)
        data, mark = record.encoded(first, START, header.salt)
        anchor = Anchor.create(folder / ANCHOR_NAME, owner)
        size = max(size_bytes, HEADER_BYTES + len(data))
        active = Segment.create(folder, header, data, size_bytes=size)
        anchor.move(mark)
        return cls(folder, active, deque(), anchor, size_bytes)

    @classmethod
    def open(
        cls, folder: Path, owner: str, *, size_bytes: int = SEGMENT_BYTES
    ) -> tuple[SegmentLog, RecoveredLog]:
        """Open a log, and read all its records. Raises :class:`Damaged`, ``StoreFull``, ``StoreBroken``,
        ``OSError``."""
        _remove_unnamed(folder)
        numbers = newest_run(numbers_in(folder))
        if not numbers:
            raise Damaged("its log is missing")
        payloads, segments, marks, last = _read_all(folder, numbers)
        anchor = _anchor(folder, owner, marks)
        try:
            active = _writable(folder, last, size_bytes)
            anchor.move(last.mark)
        except BaseException:
            anchor.close()
            raise
        sealed = deque(number for number in numbers if number != active.header.number)
        return cls(folder, active, sealed, anchor, size_bytes), RecoveredLog(payloads, segments, numbers[0])

    @property
    def segment(self) -> int:
        """The number of the segment that contains the last record."""
        return self.active.header.number

    @property
    def first_segment(self) -> int:
        """The number of the oldest segment that is kept."""
        return self._sealed[0] if self._sealed else self.segment

    def append(self, payload: bytes) -> None:
        """Append a record; it is durable when this returns. Raises ``StoreFull``: no part of the record will
        be read, and it may be appended again; ``StoreBroken``: whether the record is durable is unknown."""
        size = record.size_of(payload)
        if self._spoilt or not self.active.fits(size):
            self._begin_segment(HEADER_BYTES + size)
        data, mark = record.encoded(payload, self._mark, self.active.header.salt)
        try:
            self.active.append(data)
        except OSError as error:
            # There may be no room on a filesystem that never overwrites in place, such as btrfs: then the
            # record is written again, to another file.
            self._spoilt = True
            raise disk.failed(error, self._folder, _what(self._folder)) from error
        self._mark = mark
        self._move_anchor()

    def set_aside(self) -> bool:
        """Make the next segment in advance; return whether there was room. Raises ``StoreBroken``."""
        if not self._spare:
            try:
                set_aside(self._folder, self._size_bytes)
            except OSError as error:
                if disk.no_room(error, self._folder):
                    return False
                raise disk.broken(error, _what(self._folder)) from error
            self._spare = True
        return True

    def drop_before(self, number: int) -> None:
        """Remove the segments before ``number``. A durable record must say that they are not needed. Raises
        ``OSError``; some of the segments may be removed then."""
        self._anchor.move(self._mark)
        self._anchor.sync()
        while self._sealed and self._sealed[0] < number:
            self._sealed.popleft()
        for old in numbers_in(self._folder):
            if old < number:
                path_of(self._folder, old).unlink()

    def close(self) -> None:
        self.active.close()
        self._anchor.close()

    def _move_anchor(self) -> None:
        """Write the mark of the last record, which is durable, to the anchor. If there is no room, on a
        filesystem that never overwrites in place, the anchor is written with the next record: it may be older
        than the log, never newer. Raises ``StoreBroken``."""
        try:
            self._anchor.move(self._mark)
        except OSError as error:
            if not disk.no_room(error, self._folder):
                raise disk.broken(error, _what(self._folder)) from error

    def _begin_segment(self, bytes_min: int) -> None:
        self._spare = False
        header = SegmentHeader.new(self.segment + 1, self._mark, self.active.end, self.active.header.identity)
        try:
            following = self._created(header, bytes_min)
        except OSError as error:
            raise disk.failed(error, self._folder, _what(self._folder)) from error
        self.active.close()
        self._sealed.append(self.active.header.number)
        self.active, self._spoilt = following, False

    def _created(self, header: SegmentHeader, bytes_min: int) -> Segment:
        """Make a segment; a small one if the disk has no room for a whole one: a vote fits into it, and must
        not wait until space is freed. Raises ``OSError``."""
        try:
            return Segment.create(self._folder, header, size_bytes=max(self._size_bytes, bytes_min))
        except OSError as error:
            if self._size_bytes <= SMALL_BYTES or not disk.no_room(error, self._folder):
                raise
            return Segment.create(self._folder, header, size_bytes=max(SMALL_BYTES, bytes_min))


def _remove_unnamed(folder: Path) -> None:
    for left in (*folder.glob("log-*.new"), *folder.glob(f"{SPARE_NAME}.new")):
        left.unlink()


def newest_run(numbers: list[int]) -> list[int]:
    """The numbers without a gap up to the newest. Older segments may be left by a crash while old segments
    were removed. The records tell whether a needed segment is missing."""
    run: list[int] = []
    for number in reversed(numbers):
        if run and number != run[0] - 1:
            break
        run.insert(0, number)
    return run


def _read_all(folder: Path, numbers: list[int]) -> tuple[list[bytes], list[int], dict[int, bytes], _Last]:
    """Read all segments. Returns the payloads; their segments; the chained hash after each record, by the
    index of the record; and the newest segment. Raises :class:`Damaged`, ``OSError``."""
    payloads: list[bytes] = []
    segments: list[int] = []
    read: tuple[SegmentHeader, bytes] = _read(folder, numbers[0])
    chains = {read[0].before.index: read[0].before.chain}
    before = read[0].before
    for number in numbers:
        header, data = read
        if header.before != before:
            raise Damaged(f"{path_of(folder, number).name} does not follow the segment before it")
        sealed_at: int | None = None
        if number != numbers[-1]:
            # Behind the last record there may be another whole one, whose sync found no room: it was refused.
            read = _read(folder, number + 1)
            sealed_at = read[0].previous_end
            data = data[:sealed_at]
        whole = record.read(data, HEADER_BYTES, before, header.salt)
        tail, end = whole.tail, whole.end
        if sealed_at is not None and end != sealed_at:
            raise Damaged(f"{path_of(folder, number).name} is damaged at byte {end}")
        if tail is Tail.DAMAGED:
            raise Damaged(f"{path_of(folder, number).name} is damaged at byte {end}")
        payloads += whole.payloads
        segments += [number] * len(whole.payloads)
        chains |= {mark.index: mark.chain for mark in whole.marks}
        before = whole.marks[-1] if whole.marks else before
    return payloads, segments, chains, _Last(header, data[:end], len(data), before, end, tail)


def _read(folder: Path, number: int) -> tuple[SegmentHeader, bytes]:
    path = path_of(folder, number)
    data = path.read_bytes()
    try:
        header = SegmentHeader.decoded(data)
    except NotASegment:
        raise Damaged(f"{path.name} is damaged in its header") from None
    if header.number != number:
        raise Damaged(f"{path.name} holds segment {header.number}")
    return header, data


def _anchor(folder: Path, owner: str, chains: dict[int, bytes]) -> Anchor:
    """Open the anchor, and check that the log contains its record. Raises :class:`Damaged`, and
    ``PermissionError``."""
    try:
        anchor = Anchor.open(folder / ANCHOR_NAME, owner)
    except AnchorUnusable as error:
        if error.denied:  # the contents may be intact
            raise PermissionError(str(error)) from error
        raise Damaged(str(error)) from error
    mark = anchor.mark
    if chains.get(mark.index) == mark.chain:
        return anchor
    anchor.close()
    raise Damaged(
        f"its log lacks record {mark.index}, which was durable: files were set back, or its end is damaged"
        f" (its last record is {max(chains)})"
    )


def _writable(folder: Path, last: _Last, size_bytes: int) -> Segment:
    """Open the newest segment for writing; if it has a torn tail, make a new segment whose header says where
    the tail begins. Raises ``StoreFull``, ``StoreBroken``."""
    header = last.header
    segment = Segment(path_of(folder, header.number), header, last.end, size_bytes=last.size_bytes)
    try:
        # After a process that ended during a sync, or because of a failed one, records and the name of the
        # segment may be readable from the cache without being on the disk.
        segment.rewrite(last.data)
        sync_folder(folder)
        if last.tail is Tail.EMPTY:
            return segment
        segment.close()
        following = SegmentHeader.new(header.number + 1, last.mark, last.end, header.identity)
        return Segment.create(folder, following, size_bytes=size_bytes)
    except OSError as error:
        segment.close()
        raise disk.failed(error, folder, _what(folder)) from error


def _what(folder: Path) -> str:
    return f"node data in {folder}"


def discard(folder: Path) -> None:
    """Remove the files of a log on which no node has run."""
    for path in (*folder.glob("log-*"), *folder.glob(f"{SPARE_NAME}*"), folder / ANCHOR_NAME):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
