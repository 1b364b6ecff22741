"""A node's log of records in segment files: append-only, preallocated, each record chained to the one before.

What it promises: :meth:`SegmentLog.append` returns once its payload is durable; :meth:`SegmentLog.open` gives
back every payload that was, from the first segment that is kept, or raises :class:`Damaged`. A tail that a
crash left half written is cut; the segment is then closed where the tail begins, by the header of a new one.

Damage is told from a torn tail by two things: a whole record behind the broken one (:mod:`.record`), and, for
the last record, the anchor (:mod:`undoubt.coordinator.ledger.anchor`), which names the last record that
became durable."""

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
"""Of a segment on a disk that has no room for more."""
ANCHOR_NAME = "log.anchor"


class Damaged(Exception):
    """What was durable once cannot be read any more, or is not there. The text says what and where."""


@dataclass(frozen=True, slots=True)
class RecoveredLog:
    """What :meth:`SegmentLog.open` read: each record's payload, and the number of the segment that it lies
    in."""

    payloads: list[bytes]
    segments: list[int]
    first_segment: int


@dataclass(frozen=True, slots=True)
class _Last:
    """The segment that is written to next, as it was read."""

    header: SegmentHeader
    data: bytes
    """From its beginning to the end of its last record."""
    size_bytes: int
    mark: Mark
    end: int
    tail: Tail


class SegmentLog:
    """Made by :meth:`create` or :meth:`open`, while the lock on its folder is held. For one thread."""

    def __init__(
        self, folder: Path, active: Segment, sealed: deque[int], anchor: Anchor, size_bytes: int
    ) -> None:
        self._folder = folder
        self._active = active
        self._sealed = sealed
        self._anchor = anchor
        self._size_bytes = size_bytes
        self._mark = anchor.mark
        self._spare = False
        """The next segment was made in advance."""
        self._spoilt = False
        """The active segment may hold half a record behind its end."""

    @classmethod
    def create(
        cls, folder: Path, identity: bytes, owner: str, first: bytes, *, size_bytes: int = SEGMENT_BYTES
    ) -> SegmentLog:
        """A new log whose first record is ``first``. Without its last file, the segment, nothing counts: an
        attempt that died half way may be repeated. Raises ``OSError``."""
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
        """Raises :class:`Damaged`, ``StoreFull``, ``StoreBroken``, ``OSError``."""
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
        """The number of the segment that the last record lies in."""
        return self._active.header.number

    @property
    def first_segment(self) -> int:
        """The oldest segment that is kept."""
        return self._sealed[0] if self._sealed else self.segment

    def append(self, payload: bytes) -> None:
        """Durable when it returns. Raises ``StoreFull``: nothing of it counts, and it may be given again;
        ``StoreBroken``: nobody knows."""
        size = record.size_of(payload)
        if self._spoilt or not self._active.fits(size):
            self._begin_segment(HEADER_BYTES + size)
        data, mark = record.encoded(payload, self._mark, self._active.header.salt)
        try:
            self._active.append(data)
        except OSError as error:
            # Without room on a filesystem that writes to new places, as btrfs does: it is written once more,
            # to another file.
            self._spoilt = True
            raise disk.failed(error, self._folder, _what(self._folder)) from error
        self._mark = mark
        self._move_anchor()

    def set_aside(self) -> bool:
        """Make the next segment in advance. Whether there was room. Raises ``StoreBroken``."""
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
        """Remove the segments before ``number``. The log has to say, durably, that they are not needed.
        Raises ``OSError``; nothing is removed then, or not all."""
        self._anchor.move(self._mark)
        self._anchor.sync()
        while self._sealed and self._sealed[0] < number:
            self._sealed.popleft()
        for old in numbers_in(self._folder):
            if old < number:
                path_of(self._folder, old).unlink()

    def close(self) -> None:
        self._active.close()
        self._anchor.close()

    def _move_anchor(self) -> None:
        """The record is durable. Without room for the anchor, where writing in place takes some, it stays
        behind until the next record: it may be older than the log, never newer. Raises ``StoreBroken``."""
        try:
            self._anchor.move(self._mark)
        except OSError as error:
            if not disk.no_room(error, self._folder):
                raise disk.broken(error, _what(self._folder)) from error

    def _begin_segment(self, bytes_min: int) -> None:
        self._spare = False
        header = SegmentHeader.new(
            self.segment + 1, self._mark, self._active.end, self._active.header.identity
        )
        try:
            following = self._created(header, bytes_min)
        except OSError as error:
            raise disk.failed(error, self._folder, _what(self._folder)) from error
        self._active.close()
        self._sealed.append(self._active.header.number)
        self._active, self._spoilt = following, False

    def _created(self, header: SegmentHeader, bytes_min: int) -> Segment:
        """On a disk that has no room for a whole segment, one that holds little: a vote needs no more, and
        must not wait for others to free space. Raises ``OSError``."""
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
    """Those without a gap up to the newest: a crash while old segments were removed may have left some that
    are older. Whether one is missing that is needed, the records say."""
    run: list[int] = []
    for number in reversed(numbers):
        if run and number != run[0] - 1:
            break
        run.insert(0, number)
    return run


def _read_all(folder: Path, numbers: list[int]) -> tuple[list[bytes], list[int], dict[int, bytes], _Last]:
    """All payloads with the segments that they lie in, and the chain after each record by its number."""
    payloads: list[bytes] = []
    segments: list[int] = []
    read: tuple[SegmentHeader, bytes] = _read(folder, numbers[0])
    chains = {read[0].before.index: read[0].before.chain}
    before = read[0].before
    for number in numbers:
        header, data = read
        if header.before != before:
            raise Damaged(f"{path_of(folder, number).name} does not follow the segment before it")
        whole = record.read(data, HEADER_BYTES, before, header.salt)
        tail, end = whole.tail, whole.end
        if number != numbers[-1]:
            read = _read(folder, number + 1)
            end, tail = read[0].previous_end, Tail.EMPTY
            if whole.end != end:
                raise Damaged(f"{path_of(folder, number).name} is damaged at byte {whole.end}")
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
    """The anchor, whose record is there."""
    try:
        anchor = Anchor.open(folder / ANCHOR_NAME, owner)
    except AnchorUnusable as error:
        if error.denied:  # that says nothing of what is in it
            raise PermissionError(str(error)) from error
        raise Damaged(str(error)) from error
    mark = anchor.mark
    if chains.get(mark.index) == mark.chain:
        return anchor
    anchor.close()
    raise Damaged(
        f"its log lacks record {mark.index}, which was durable: files were set back, or its end is damaged"
        f" (the last record that is there is {max(chains)})"
    )


def _writable(folder: Path, last: _Last, size_bytes: int) -> Segment:
    """The last segment, or a new one that closes it where a torn tail begins."""
    header = last.header
    segment = Segment(path_of(folder, header.number), header, last.end, size_bytes=last.size_bytes)
    try:
        # A process that ended in a sync, or by one that failed, leaves records, and the segment's name, that
        # can be read and are not on the disk.
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
    """Remove a log on which no node ever ran."""
    for path in (*folder.glob("log-*"), *folder.glob(f"{SPARE_NAME}*"), folder / ANCHOR_NAME):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
