"""Defines the contents of a record of a node's log, and computes the disk's state after all records. Pure.

A record is a list of :class:`LoggedWrite`. A *checkpoint* repeats the contents of all earlier records, except
for entries of the Raft log; segments before it are removed once no entry in them is needed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import msgspec

from undoubt.coordinator.node.storage.contract import DiskWrite, Promises
from undoubt.coordinator.paxos import AcceptorRecord, Marks, RestoredAcceptor
from undoubt.coordinator.raft import Entry, HardState
from undoubt.participants.ids import TxId


class SnapshotName(msgspec.Struct, frozen=True, array_like=True):
    """The current snapshot: its last index and term, and the digest of its file."""

    index: int
    term: int
    digest: bytes


class Checkpoint(msgspec.Struct, frozen=True, array_like=True):
    """The whole state except entries. ``first_segment``: the segments before it are not needed."""

    first_segment: int
    hard_state: HardState
    snapshot: SnapshotName
    keep_from: int
    disks: dict[int, str]
    acceptor: RestoredAcceptor


class LoggedWrite(msgspec.Struct, frozen=True, array_like=True):
    """A :class:`~undoubt.coordinator.node.storage.contract.DiskWrite` as the log keeps it: the image of a
    snapshot is in a separate file, finished decisions are in the file of the history."""

    hard_state: HardState | None = None
    snapshot: SnapshotName | None = None
    replaces_log: bool = False
    keep_from: int = 0
    entries: tuple[Entry, ...] = ()
    disks: dict[int, str] = {}
    promises: Promises | None = None
    checkpoint: Checkpoint | None = None

    @classmethod
    def of(cls, write: DiskWrite, snapshot: SnapshotName | None) -> LoggedWrite:
        return cls(
            write.hard_state,
            snapshot,
            write.replaces_log,
            write.keep_from,
            write.entries,
            write.disks,
            write.promises,
        )


NOTHING = LoggedWrite()

encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[LoggedWrite]).decode


class Gap(Exception):
    """Records do not fit together: something between them is missing."""


class Replay:
    """The state of a disk after all records that were read so far."""

    def __init__(self) -> None:
        self.hard_state = HardState()
        self.snapshot: SnapshotName | None = None
        self.keep_from = 0
        self.first_segment = 1
        self.entries: list[Entry] = []
        self.disks: dict[int, str] = {}
        self._marks = Marks()
        self._promises: dict[TxId, AcceptorRecord] = {}
        self._newest: dict[int, int] = {}
        """By segment: the highest index of its entries. Segments without entries are not in it."""

    def read(self, payload: bytes, segment: int) -> None:
        """Process a record that was read. Raises :class:`Gap`, or ``ValueError`` for an incomplete record."""
        for logged in _decode(payload):
            for entry in logged.entries:
                if not entry.intact:
                    raise Gap(f"the entry {entry.index} does not match its checksum")
            self.apply(logged, segment)
            self._keep(logged)

    def apply(self, logged: LoggedWrite, segment: int) -> None:
        """Process all parts of a write except its entries, which a running node keeps in its core."""
        if logged.checkpoint is not None:
            self._begin(logged.checkpoint)
        if logged.hard_state is not None:
            self.hard_state = logged.hard_state
        if logged.snapshot is not None:
            self.snapshot = logged.snapshot
        if logged.replaces_log:
            self._newest.clear()
        self.keep_from = max(self.keep_from, logged.keep_from)
        if logged.entries:
            self._newest[segment] = max(self._newest.get(segment, 0), logged.entries[-1].index)
        self.disks |= logged.disks
        if logged.promises is not None:
            self._promise(logged.promises)

    def _begin(self, checkpoint: Checkpoint) -> None:
        self.first_segment = checkpoint.first_segment
        self.hard_state, self.snapshot = checkpoint.hard_state, checkpoint.snapshot
        self.keep_from, self.disks = checkpoint.keep_from, dict(checkpoint.disks)
        self._marks = checkpoint.acceptor.marks
        self._promises = {record.txid: record for record in checkpoint.acceptor.records}

    def _promise(self, promises: Promises) -> None:
        for record in promises.records:
            self._promises[record.txid] = record
        for txid in promises.dropped:
            self._promises.pop(txid, None)
        if promises.marks is not None:
            self._marks = promises.marks

    def _keep(self, logged: LoggedWrite) -> None:
        """Process the entries of a write, which replace all entries from their first index on."""
        if logged.replaces_log:
            self.entries = []
        new = logged.entries
        if not new:
            return
        if self.entries:
            kept = new[0].index - self.entries[0].index
            if kept > len(self.entries):
                raise Gap(f"the entry {self.entries[-1].index + 1} is missing")
            del self.entries[max(kept, 0) :]
        self.entries += new

    @property
    def acceptor(self) -> RestoredAcceptor:
        return RestoredAcceptor(self._marks, tuple(self._promises[txid] for txid in sorted(self._promises)))

    def kept_entries(self) -> tuple[Entry, ...]:
        """Return the entries that are needed. Raises :class:`Gap`."""
        kept = tuple(entry for entry in self.entries if entry.index >= self.keep_from)
        if any(after.index != before.index + 1 for before, after in itertools.pairwise(kept)):
            raise Gap(f"entries are missing between {kept[0].index} and {kept[-1].index}")
        if kept and self.snapshot is not None and kept[0].index > self.snapshot.index + 1:
            raise Gap(f"the entry {self.snapshot.index + 1} is missing")
        return kept

    def needed_from(self, newest_segment: int) -> int:
        """Return the oldest segment that contains a needed entry."""
        holding = [number for number, index in self._newest.items() if index >= self.keep_from]
        return min(holding, default=newest_segment)

    def checkpoint(self, first_segment: int) -> Checkpoint:
        if self.snapshot is None:
            raise Gap("no snapshot was ever stored")
        return Checkpoint(
            first_segment, self.hard_state, self.snapshot, self.keep_from, dict(self.disks), self.acceptor
        )

    def dropped_before(self, segment: int) -> None:
        """Note that the segments before ``segment`` were removed."""
        self._newest = {number: index for number, index in self._newest.items() if number >= segment}


def payload_of(logged: Sequence[LoggedWrite]) -> bytes:
    return encode(list(logged))
