"""Implements the storage of a node: a log in segment files, snapshots in files, and history in SQLite.

The files of a node, each with the module that reads and writes it::

    log-0000000001.segment …  term and vote, entries, promises, the name of the snapshot: segment_log
    log.anchor                a copy of the last durable record's mark: coordinator.ledger.anchor
    snapshot-…                one snapshot of the state machine: snapshot_files
    node.db                   the history of finished transactions: history_file
    log.spare                 the next segment, made in advance: segment
    node.reserve              space that is freed if the disk is full: reserve
    node.db.lock              locked while the storage is open: coordinator.ledger.sqlite.lock

All files are used in one thread: the event loop never waits for a disk.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from undoubt.coordinator.errors import LedgerLocked, LedgerUnusable
from undoubt.coordinator.ledger import disk
from undoubt.coordinator.ledger.anchor import Anchor
from undoubt.coordinator.ledger.contract import DecisionRecord
from undoubt.coordinator.ledger.disk import StoreFull
from undoubt.coordinator.ledger.group_commit import WriterThread
from undoubt.coordinator.ledger.sqlite.lock import FileLock, holder
from undoubt.coordinator.node.storage import carry_over, logged, salvage, snapshot_files
from undoubt.coordinator.node.storage.contract import (
    DiskIdentity,
    DiskWrite,
    Promises,
    Snapshot,
    StorageDamaged,
    Stored,
)
from undoubt.coordinator.node.storage.history_file import FILE_NAME, HistoryFile
from undoubt.coordinator.node.storage.logged import Gap, LoggedWrite, Replay
from undoubt.coordinator.node.storage.reserve import Reserve
from undoubt.coordinator.node.storage.segment import (
    HEADER_BYTES,
    NotASegment,
    SegmentHeader,
    numbers_in,
    path_of,
)
from undoubt.coordinator.node.storage.segment_log import (
    ANCHOR_NAME,
    SEGMENT_BYTES,
    Damaged,
    RecoveredLog,
    SegmentLog,
)
from undoubt.coordinator.node.storage.segment_log import discard as discard_log
from undoubt.coordinator.raft import HardState
from undoubt.participants.ids import TxId

RESERVE_NAME = "node.reserve"
_encode = msgspec.msgpack.Encoder(order="deterministic").encode
_decode_identity = msgspec.msgpack.Decoder(DiskIdentity).decode


class NodeStorage:
    """The :class:`~undoubt.coordinator.node.storage.contract.Storage` of a node; :meth:`open` makes it."""

    def __init__(self, files: _Files, thread: WriterThread, lock: FileLock) -> None:
        self.files = files
        self.in_thread = thread.do
        """Runs a function in the thread that uses the files."""
        self._thread = thread
        self._lock = lock
        self.reserve = Reserve(files.folder / RESERVE_NAME)

    @classmethod
    async def open(
        cls, folder: Path, *, segment_bytes: int = SEGMENT_BYTES, number: int = 0
    ) -> tuple[NodeStorage, Stored]:
        """Open a disk that :func:`create` or version 0.1.0 of undoubt has made. ``number``: the number of the
        node in its settings, for error messages if the disk does not contain it. Raises ``LedgerUnusable``,
        including ``StorageDamaged``, and ``LedgerLocked``."""
        if not lives_in(folder):
            raise LedgerUnusable(
                f"no node data in {folder}. For the first nodes of a new cluster: `undoubt cluster init`."
                " A node that has lost its disk is never started again under its number: remove it from"
                " the cluster and add a new one"
            )
        lock = _locked(folder)
        thread = WriterThread("undoubt-node-disk")
        try:
            files, stored = await thread.do(lambda: _opened_with_room(folder, segment_bytes, number))
        except BaseException:
            thread.end()
            lock.release()
            raise
        return cls(files, thread, lock), stored

    def write(self, writes: Sequence[DiskWrite]) -> asyncio.Future[bool]:
        return self.in_thread(lambda: self._write(writes))

    def _write(self, writes: Sequence[DiskWrite]) -> bool:
        try:
            self.files.carry_out(writes)
        except StoreFull:
            if not self.reserve.give_up():
                raise
            self.files.carry_out(writes)
        return self.files.log.set_aside() and self.reserve.hold()

    def history_of(self, txid: TxId) -> asyncio.Future[DecisionRecord | None]:
        return self.in_thread(lambda: self.files.history.one(txid))

    def history(self, limit: int, before: DecisionRecord | None) -> asyncio.Future[Sequence[DecisionRecord]]:
        return self.in_thread(lambda: self.files.history.page(limit, before))

    def close(self) -> asyncio.Future[None]:
        closed = self.in_thread(self._close)
        self._thread.end()
        return closed

    def _close(self) -> None:
        try:
            self.files.close()
        finally:
            self._lock.release()


class _Files:
    """The open files of a node. All methods block; they are called in one thread."""

    def __init__(self, folder: Path, log: SegmentLog, replay: Replay, history: HistoryFile) -> None:
        self.folder = folder
        self.log = log
        self.history = history
        self._replay = replay

    def carry_out(self, writes: Sequence[DiskWrite]) -> None:
        """Carry out all of ``writes`` in order, or none. Data in other files is durable before the record
        that refers to it, and can be written repeatedly. Raises ``StoreFull`` or ``StoreBroken``."""
        records: list[LoggedWrite] = []
        snapshot = False
        for write in writes:
            if write.finished is not None:
                self.history.store(write.finished)
            name = None
            if write.snapshot is not None:
                self.history.settle()
                name, snapshot = snapshot_files.store(self.folder, write.snapshot), True
            entry = LoggedWrite.of(write, name)
            if entry != logged.NOTHING:
                records.append(entry)
        if not records:
            return
        self.log.append(logged.payload_of(records))
        for entry in records:
            self._replay.apply(entry, self.log.segment)
        try:
            if snapshot:
                snapshot_files.remove_others(self.folder, self._replay.snapshot)
            self._shorten()
        except OSError as error:
            if not disk.no_room(error, self.folder):  # without room, the next write tries again
                raise disk.broken(error, f"node data in {self.folder}") from error

    def _shorten(self) -> None:
        """Write a checkpoint and remove the segments that are no longer needed, if there are any."""
        needed = self._replay.needed_from(self.log.segment)
        if needed == self.log.first_segment:
            return
        try:
            self.log.append(logged.payload_of([LoggedWrite(checkpoint=self._replay.checkpoint(needed))]))
        except StoreFull:  # the next write tries again
            return
        self.remove_before(needed)

    def remove_before(self, segment: int) -> None:
        """Remove the segments before ``segment``, which the log records as not needed."""
        self._replay.first_segment = segment
        self._replay.dropped_before(segment)
        self.log.drop_before(segment)

    def close(self) -> None:
        self.history.close()
        self.log.close()


def lives_in(folder: Path) -> bool:
    """Whether the folder contains the disk of a node, of any version, or a part of one."""
    return bool(numbers_in(folder)) or (folder / FILE_NAME).exists() or Anchor.used(folder / ANCHOR_NAME)


def create(
    folder: Path,
    identity: DiskIdentity,
    hard_state: HardState,
    snapshot: Snapshot,
    *,
    segment_bytes: int = SEGMENT_BYTES,
) -> None:
    """Make the disk of a new node. Raises ``LedgerUnusable`` if the folder contains one."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = _locked(folder)
    try:
        if lives_in(folder):
            raise LedgerUnusable(f"{folder} contains the data of a node already; nothing was changed")
        begin(folder, identity, [DiskWrite(hard_state=hard_state, snapshot=snapshot)], segment_bytes).close()
        HistoryFile(folder).close()
    finally:
        lock.release()


def begin(
    folder: Path, identity: DiskIdentity, writes: Sequence[DiskWrite], segment_bytes: int = SEGMENT_BYTES
) -> SegmentLog:
    """Store the snapshots of ``writes``, and make a log that begins with ``writes``. The first segment of the
    log is made last: without it, the folder contains no node."""
    records = [
        LoggedWrite.of(
            write, None if write.snapshot is None else snapshot_files.store(folder, write.snapshot)
        )
        for write in writes
    ]
    first = logged.payload_of(records)
    return SegmentLog.create(folder, _encode(identity), identity.disk, first, size_bytes=segment_bytes)


def discard(folder: Path) -> None:
    """Remove a disk that :func:`create` has made and on which no node has run. Raises ``LedgerLocked``."""
    lock = _locked(folder)
    try:
        discard_log(folder)
        snapshot_files.remove_others(folder, None)
        for left in folder.glob("node.*"):
            if not left.name.endswith(".lock"):
                left.unlink()
    finally:
        lock.release()


def _opened_with_room(folder: Path, segment_bytes: int, number: int) -> tuple[_Files, Stored]:
    """The same as :func:`_opened`, but gives up the reserve if there is no room otherwise. Raises
    ``StoreFull`` too."""
    try:
        return _opened(folder, segment_bytes, number)
    except StoreFull:
        if not Reserve(folder / RESERVE_NAME).give_up():
            raise
        return _opened(folder, segment_bytes, number)


def _opened(folder: Path, segment_bytes: int, number: int) -> tuple[_Files, Stored]:
    """Open the files and read their state. Raises ``LedgerUnusable``, including ``StorageDamaged``."""
    if carry_over.wanted(folder):
        _carry_over(folder, number)
    identity = _identity(folder, number)
    _check_owner(folder, identity, number)
    try:
        log, found = SegmentLog.open(folder, identity.disk, size_bytes=segment_bytes)
        try:
            files, stored = _loaded(folder, identity, log, found)
        except BaseException:
            log.close()
            raise
    except (Damaged, Gap, ValueError) as error:
        raise StorageDamaged(_damage(folder, identity.node, str(error))) from error
    except OSError as error:
        raise LedgerUnusable(f"node data in {folder} cannot be read: {error}") from error
    return files, stored


def _check_owner(folder: Path, identity: DiskIdentity, number: int) -> None:
    """Check that the log is of the node ``number``, 0 if that is not known, and of the disk of its anchor.
    Otherwise files of another disk lie here: they are not judged, and their node may be well. Raises
    ``StorageDamaged``."""
    anchored = Anchor.owner_of(folder / ANCHOR_NAME)
    strange = anchored not in {"", identity.disk}
    if number in {0, identity.node} and not strange:
        return
    whose = f"node {number}" if number else "this node"
    found = f"its log (log-*) is of node {identity.node}, disk {identity.disk}"
    if strange:
        found += f"; its anchor is of disk {anchored}"
    raise StorageDamaged(
        f"files of another node or disk lie in {folder}, the folder of {whose}: {found}. Nothing was changed."
        " If they were put there by mistake, put back the files that belong here, or correct node.data and"
        f" node.number. If its own log is lost, {whose} is to be added again under a new number, and not the"
        " other one"
    )


def _loaded(
    folder: Path, identity: DiskIdentity, log: SegmentLog, found: RecoveredLog
) -> tuple[_Files, Stored]:
    """Replay the log, and open the other files. Raises :class:`Gap`, :class:`Damaged`, ``ValueError``,
    ``OSError``."""
    replay, stored = _stored(folder, identity, found)
    replay.entries = []  # from now on the Raft core holds them
    snapshot_files.remove_others(folder, replay.snapshot)
    files = _Files(folder, log, replay, HistoryFile(folder))
    files.remove_before(replay.first_segment)
    return files, stored


def _stored(folder: Path, identity: DiskIdentity, found: RecoveredLog) -> tuple[Replay, Stored]:
    """Replay the log and load its snapshot. Raises :class:`Gap`, :class:`Damaged`, ``ValueError``,
    ``OSError``."""
    replay = _replayed(found)
    if replay.snapshot is None:
        raise Damaged("its log names no snapshot")
    snapshot = snapshot_files.load(folder, replay.snapshot)
    entries = replay.kept_entries()
    return replay, Stored(identity, replay.hard_state, snapshot, entries, dict(replay.disks), replay.acceptor)


def salvaged(folder: Path) -> tuple[Stored, str]:
    """Read as much as possible of a disk on which no node may run again, for a new cluster that continues
    from it. Returns the state, and the reason why it may be incomplete; empty if it is complete. Changes
    nothing. Raises ``LedgerUnusable``, ``LedgerLocked``."""
    lock = _locked(folder)
    try:
        identity = _identity(folder, 0)
        found, why = salvage.read_log(folder, identity.disk)
        return _stored(folder, identity, found)[1], why
    except (StorageDamaged, Damaged, Gap, ValueError) as error:
        cause = "no segment of its log can be read" if isinstance(error, StorageDamaged) else error
        raise LedgerUnusable(
            f"node data in {folder} is damaged, and no cluster can continue from it: {cause}. Name another"
            " disk that is left, or a backup: `undoubt cluster restore FILE`"
        ) from error
    except OSError as error:
        raise LedgerUnusable(f"node data in {folder} cannot be read: {error}") from error
    finally:
        lock.release()


def _replayed(found: RecoveredLog) -> Replay:
    """Apply all records of the log in order. Raises :class:`Gap`, :class:`Damaged`, ``ValueError``."""
    replay = Replay()
    for payload, segment in zip(found.payloads, found.segments, strict=True):
        replay.read(payload, segment)
    if found.first_segment > replay.first_segment:
        raise Damaged(f"segment {replay.first_segment} of its log is missing")
    return replay


def _identity(folder: Path, node: int) -> DiskIdentity:
    """Read the identity from the header of any readable segment, so that the error about a damaged log
    contains the number of its node. Raises ``StorageDamaged`` if no header can be read."""
    for number in reversed(numbers_in(folder)):
        with (
            contextlib.suppress(NotASegment, ValueError, OSError),
            path_of(folder, number).open("rb") as file,
        ):
            return _decode_identity(SegmentHeader.decoded(file.read(HEADER_BYTES)).identity)
    raise StorageDamaged(_damage(folder, node, "its log is missing, or damaged in every header"))


def _damage(folder: Path, node: int, what: str) -> str:
    """The message about damage ``what``. ``node``: the number of the node, 0 if it is unknown."""
    who = f"node {node}" if node else "the node that ran on it"
    return (
        f"node data in {folder} is damaged or was set back: {what}. What is missing may have been"
        f" acknowledged, so it cannot be cut, and {who} must not run on this disk again. Add it"
        f" again under a new number: `undoubt cluster remove {node or 'NUMBER'}` and then"
        " `undoubt cluster add`, on an empty folder. If a majority is lost, a new cluster can continue"
        f" from what can be read: `undoubt cluster restore --force {folder}`, with an empty node.data"
    )


def _carry_over(folder: Path, number: int) -> None:
    """Write a new log with the contents of the file of version 0.1.0."""
    try:
        old = carry_over.load(folder, number)
    except carry_over.LogMissing:
        raise StorageDamaged(_damage(folder, number, "its log is missing (log-*)")) from None
    discard_log(folder)
    whole = DiskWrite(
        hard_state=old.hard_state,
        snapshot=old.snapshot,
        entries=old.entries,
        disks=old.disks,
        promises=Promises(old.acceptor.records, (), old.acceptor.marks),
    )
    begin(folder, old.identity, [whole]).close()


def _locked(folder: Path) -> FileLock:
    lock = FileLock.take(folder / FILE_NAME)
    if lock is None:
        raise LedgerLocked(f"{folder} is in use by process {holder(folder / FILE_NAME)}; stop it first")
    return lock
