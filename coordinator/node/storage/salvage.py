"""Reads a damaged log up to the first damage, also without its anchor.

A node never runs on the result, since the missing records may have been acknowledged. ``cluster restore
--force`` uses it if this disk is the newest that is left: a new cluster continues from it, as a new
incarnation, and the damage is reported."""

from __future__ import annotations

from pathlib import Path

from undoubt.coordinator.ledger.anchor import Anchor, AnchorUnusable, Mark
from undoubt.coordinator.node.storage import record
from undoubt.coordinator.node.storage.record import Tail
from undoubt.coordinator.node.storage.segment import (
    HEADER_BYTES,
    NotASegment,
    SegmentHeader,
    numbers_in,
    path_of,
)
from undoubt.coordinator.node.storage.segment_log import ANCHOR_NAME, RecoveredLog, newest_run


def read_log(folder: Path, owner: str) -> tuple[RecoveredLog, str]:
    """Return the undamaged beginning of the log, and the reason why it may be incomplete; empty if it is
    complete. ``owner``: the expected owner of the anchor. Changes nothing. Raises ``OSError``, including
    ``PermissionError`` if the anchor may not be opened."""
    payloads: list[bytes] = []
    segments: list[int] = []
    last: Mark | None = None
    chains: dict[int, bytes] = {}
    why = ""
    numbers = newest_run(numbers_in(folder))
    for number in numbers:
        name = path_of(folder, number).name
        data = path_of(folder, number).read_bytes()
        try:
            header = SegmentHeader.decoded(data)
        except NotASegment:
            why = f"{name} is damaged in its header"
            break
        if last is not None and header.before != last:
            why = f"{name} does not follow the records before it"
            break
        if number != numbers[-1]:
            data = data[: _end_in(folder, number + 1)]
        read = record.read(data, HEADER_BYTES, header.before, header.salt)
        payloads += read.payloads
        segments += [number] * len(read.payloads)
        chains |= {mark.index: mark.chain for mark in (header.before, *read.marks)}
        last = read.marks[-1] if read.marks else header.before
        if number == numbers[-1] and read.tail is Tail.DAMAGED:
            why = f"{name} is damaged at byte {read.end}"
    log = RecoveredLog(payloads, segments, numbers[0] if numbers else 0)
    return log, why or _lacks(folder, owner, chains)


def _end_in(folder: Path, following: int) -> int | None:
    """Where the records of a segment end, as the segment after it says; None if that is not readable."""
    try:
        return SegmentHeader.decoded(path_of(folder, following).read_bytes()).previous_end
    except NotASegment:
        return None


def _lacks(folder: Path, owner: str, chains: dict[int, bytes]) -> str:
    try:
        anchor = Anchor.open(folder / ANCHOR_NAME, owner)
    except AnchorUnusable as error:
        if error.denied:
            raise PermissionError(str(error)) from error
        return f"{error}, so whether the end of the log is complete is unknown"
    anchor.close()
    if chains.get(anchor.mark.index) == anchor.mark.chain:
        return ""
    return f"its log lacks record {anchor.mark.index}, which was durable"
