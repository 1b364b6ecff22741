"""Reads the SQLite file of a node of version 0.1.0, so that its contents are written to a new log, once.

::

    meta(key, value)                    format, cluster, node, disk; the disks of other nodes: "disk of 2"
    hard_state(id = 1, term, vote)
    snapshot(id = 1, idx, term, configuration, crc, image)
    entry(idx, term, kind, crc, data)
    promise(session, seq, nonce, crc, record)
    mark(id = 1, crc, marks)
    history(...)                        :mod:`undoubt.coordinator.ledger.sqlite.history`; it stays in the file

The term, the vote and the identity have no checksum, and the end of the WAL is recorded nowhere: damage there
that leaves a valid file cannot be detected.
"""

from __future__ import annotations

import sqlite3
import zlib
from pathlib import Path

import msgspec

from undoubt.coordinator.errors import LedgerUnusable
from undoubt.coordinator.ledger.sqlite import wal
from undoubt.coordinator.ledger.sqlite.file import SqliteFile
from undoubt.coordinator.node.storage.contract import DiskIdentity, Snapshot, StorageDamaged, Stored
from undoubt.coordinator.node.storage.history_file import FILE_NAME
from undoubt.coordinator.node.storage.history_file import FORMAT as NEW_FORMAT
from undoubt.coordinator.node.storage.segment import numbers_in
from undoubt.coordinator.paxos import AcceptorRecord, Marks, RestoredAcceptor
from undoubt.coordinator.raft import Configuration, Entry, HardState, Kind, SnapshotMeta

FORMAT = "2"
DISK_OF = "disk of "
_decode_record = msgspec.msgpack.Decoder(AcceptorRecord).decode
_decode_marks = msgspec.msgpack.Decoder(Marks).decode
_decode_configuration = msgspec.msgpack.Decoder(Configuration).decode


class LogMissing(Exception):
    """The file has the present format, which contains only history, and the log beside it is missing."""


class _Mismatch(Exception):
    """A row differs from the row that was written."""


def wanted(folder: Path) -> bool:
    """Whether the folder has a file of version 0.1.0 that was not carried over yet. The first segment of the
    new log gets its name only once it contains everything."""
    return (folder / FILE_NAME).exists() and not numbers_in(folder)


def load(folder: Path, number: int = 0) -> Stored:
    """Read and check the file. ``number``: the number of the node, for error messages if the file does not
    contain it. Raises ``LedgerUnusable``, including ``StorageDamaged``, and :class:`LogMissing`."""
    path = folder / FILE_NAME
    if damage := wal.damage(path):  # before SQLite opens the file, and cuts its WAL
        raise StorageDamaged(
            f"node data {path} is damaged: {damage}. What is missing may have been acknowledged: this node"
            " must not run on this disk again. Add it again under a new number: `undoubt cluster remove"
            f" {number or 'NUMBER'}` and then `undoubt cluster add`, on an empty folder"
        )
    tables = _Tables(path, number)
    try:
        return tables.load()
    finally:
        tables.file.close()


class _Tables:
    """The tables of the file. The caller holds the lock on the file."""

    def __init__(self, path: Path, number: int) -> None:
        """Raises ``LedgerUnusable``."""
        self.file = SqliteFile(path, f"node data {path}")
        self._connection = self.file.connection
        self._number = number

    def load(self) -> Stored:
        """Read and check all tables. Raises ``LedgerUnusable``, including ``StorageDamaged``."""
        try:
            self._check_file()
            identity = self._identity()
            snapshot = self._snapshot()
            entries = self._entries(snapshot.meta)
            hard_state = self._hard_state(entries[-1].term if entries else snapshot.meta.term)
            return Stored(identity, hard_state, snapshot, entries, self._disks(), self._acceptor())
        except _Mismatch as error:
            raise self._damaged(str(error), None) from error
        except (sqlite3.Error, TypeError, ValueError) as error:
            raise self._damaged(f"{type(error).__name__}: {error}", None) from error

    def _check_file(self) -> None:
        if problems := self.file.problems():
            raise _Mismatch(f"SQLite's own check finds: {problems[0]}")

    def _hard_state(self, newest: int) -> HardState:
        """Read term and vote. ``newest``: the term of the last entry; the stored term must not be lower."""
        term, vote = self._connection.execute("select term, vote from hard_state").fetchone()
        if term < newest:
            raise _Mismatch(f"its term {term} is older than that of its log, {newest}")
        return HardState(term, vote)

    def _identity(self) -> DiskIdentity:
        known = dict(self._connection.execute("select key, value from meta"))
        if known.get("format") == NEW_FORMAT:
            raise LogMissing
        if known.get("format") != FORMAT:
            raise LedgerUnusable(
                f"{self.file.what} has format {known.get('format')}, this version of undoubt reads {FORMAT};"
                " use the version that wrote it"
            )
        return DiskIdentity(known["cluster"], int(known["node"]), known["disk"])

    def _disks(self) -> dict[int, str]:
        known = self._connection.execute("select key, value from meta where key like ?", (f"{DISK_OF}%",))
        return {int(key.removeprefix(DISK_OF)): value for key, value in known}

    def _snapshot(self) -> Snapshot:
        index, term, configuration, crc, image = self._connection.execute(
            "select idx, term, configuration, crc, image from snapshot"
        ).fetchone()
        if _snapshot_checksum(index, term, configuration, image) != crc:
            raise self._damaged(f"its snapshot at index {index} does not match its checksum", index)
        return Snapshot(SnapshotMeta(index, term, _decode_configuration(configuration)), image)

    def _entries(self, snapshot: SnapshotMeta) -> tuple[Entry, ...]:
        entries: list[Entry] = []
        rows = self._connection.execute("select idx, term, kind, crc, data from entry order by idx")
        for index, term, kind, crc, data in rows:
            if entries and index != entries[-1].index + 1:
                raise self._damaged(f"the entry {entries[-1].index + 1} is missing", index)
            entry = Entry(index, term, Kind(kind), data, crc)
            if not entry.intact:
                raise self._damaged(f"the entry {index} does not match its checksum", index)
            entries.append(entry)
        if entries and entries[0].index > snapshot.index + 1:
            raise self._damaged(f"the entry {snapshot.index + 1} is missing", entries[0].index)
        return tuple(entries)

    def _acceptor(self) -> RestoredAcceptor:
        marks = Marks()
        for crc, data in self._connection.execute("select crc, marks from mark"):
            if zlib.crc32(data) != crc:
                raise _Mismatch("the marks of its acceptor do not match their checksum")
            marks = _decode_marks(data)
        records = []
        rows = self._connection.execute(
            "select session, seq, crc, record from promise order by session, seq, nonce"
        )
        for session, seq, crc, data in rows:
            if zlib.crc32(data) != crc:
                raise _Mismatch(f"the record of its acceptor for {session}.{seq} does not match its checksum")
            records.append(_decode_record(data))
        return RestoredAcceptor(marks, tuple(records))

    def _damaged(self, what: str, index: int | None) -> StorageDamaged:
        known = self._connection_meta()
        number = known.get("node") or self._number or "NUMBER"
        where = "" if index is None else f" (index {index}; it may be committed, so it cannot be cut)"
        return StorageDamaged(
            f"{self.file.what} is damaged: {what}{where}. Node {number} must not run on it again."
            f" Add it again under a new number: `undoubt cluster remove {number}` and then"
            " `undoubt cluster add`, on an empty folder"
        )

    def _connection_meta(self) -> dict[str, str]:
        try:
            return dict(self._connection.execute("select key, value from meta"))
        except sqlite3.Error:
            return {}


def _snapshot_checksum(index: int, term: int, configuration: bytes, image: bytes) -> int:
    head = index.to_bytes(8, "big") + term.to_bytes(8, "big") + configuration
    return zlib.crc32(image, zlib.crc32(head))
