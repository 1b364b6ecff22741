"""The tables of a node's file, and what is read from and written to them. Synchronous; for one thread.

::

    meta(key, value)                    format, cluster, node, disk; the disks of other nodes: "disk of 2"
    hard_state(id = 1, term, vote)
    snapshot(id = 1, idx, term, configuration, crc, image)
    entry(idx, term, kind, crc, data)
    promise(...), mark(...)             :mod:`.promises`
    history(...)                        :mod:`coordinator.ledger.sqlite.history`

SQLite cuts a tail that a crash left half written, by the checksums of its WAL: such a write was never
reported as durable, so nothing depended on it. Whatever stands in the tables, though, was durable once and
may have been acknowledged. If its checksum is wrong it must not be cut: a majority that counted on it would
be none any more (Alagappan et al., "Protocol-Aware Recovery for Consensus-Based Storage", FAST 2018, §2.2).
The node stops.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from coordinator.errors import LedgerUnusable
from coordinator.ledger.sqlite import history
from coordinator.ledger.sqlite.file import SqliteFile
from coordinator.node.sqlite import promises
from coordinator.node.storage import Identity, Snapshot, StorageDamaged, Stored, Write
from coordinator.paxos import Record
from coordinator.raft import Configuration, Entry, HardState, Kind, SnapshotMeta

FORMAT = "2"
DISK_OF = "disk of "
_DDL = (
    "create table meta (key text primary key, value text not null)",
    "create table hard_state (id integer primary key check (id = 1), term integer not null,"
    " vote integer not null)",
    "create table snapshot (id integer primary key check (id = 1), idx integer not null,"
    " term integer not null, configuration blob not null, crc integer not null, image blob not null)",
    "create table entry (idx integer primary key, term integer not null, kind integer not null,"
    " crc integer not null, data blob not null)",
    *promises.DDL,
    "create table history (session integer not null, seq integer not null, nonce text not null,"
    " decided_at real not null, finished_ms integer not null, record blob not null,"
    " primary key (session, seq))",
    "create index history_newest on history (decided_at, session, seq)",
    "create index history_oldest on history (finished_ms)",
)

_INSERT = "insert into entry (idx, term, kind, crc, data) values (?, ?, ?, ?, ?)"

_encode = msgspec.msgpack.Encoder(order="deterministic").encode
_decode_configuration = msgspec.msgpack.Decoder(Configuration).decode


class Tables:
    """Open one only while holding the lock on its file."""

    def __init__(self, path: Path) -> None:
        """Raises ``LedgerUnusable``."""
        self.path = path
        self.file = SqliteFile(path, f"node data {path}")
        self._connection = self.file.connection
        self._last_index: int | None = None
        """No entry behind it is stored; None: not known."""

    def create(self, identity: Identity, hard_state: HardState, snapshot: Snapshot) -> None:
        """Make the tables of a new node, with what it begins with. All or nothing."""
        with self.file.writing():
            for statement in _DDL:
                self._connection.execute(statement)
            known = {
                "format": FORMAT,
                "cluster": identity.cluster,
                "node": identity.node,
                "disk": identity.disk,
            }
            self._connection.executemany(
                "insert into meta (key, value) values (?, ?)",
                [(key, str(value)) for key, value in known.items()],
            )
            self._carry_out(Write(hard_state=hard_state, snapshot=snapshot), None)

    def load(self) -> Stored:
        """Read everything and check it. Raises ``LedgerUnusable``, ``StorageDamaged`` among it."""
        try:
            identity = self._identity()
            term, vote = self._connection.execute("select term, vote from hard_state").fetchone()
            snapshot = self._snapshot()
            entries = self._entries(snapshot.meta)
            acceptor = promises.load(self._connection)
            return Stored(identity, HardState(term, vote), snapshot, entries, self._disks(), acceptor)
        except promises.Mismatch as error:
            raise self._damaged(str(error), None) from error
        except (sqlite3.Error, TypeError, ValueError) as error:
            raise self._damaged(f"{type(error).__name__}: {error}", None) from error

    def _identity(self) -> Identity:
        known = dict(self._connection.execute("select key, value from meta"))
        if known.get("format") != FORMAT:
            raise LedgerUnusable(
                f"{self.file.what} has format {known.get('format')}, this version of undoubt knows {FORMAT};"
                " use the version that wrote it"
            )
        return Identity(known["cluster"], int(known["node"]), known["disk"])

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

    def _damaged(self, what: str, index: int | None) -> StorageDamaged:
        known = self._connection_meta()
        number = known.get("node", "of this number")
        where = "" if index is None else f" (index {index}; it may be committed, so it cannot be cut)"
        return StorageDamaged(
            f"{self.file.what} is damaged: {what}{where}. Node {number} must not run on it any more."
            f" Let it rejoin under a new number: `undoubt cluster remove {number}` and then"
            " `undoubt cluster add`, on an empty folder"
        )

    def _connection_meta(self) -> dict[str, str]:
        try:
            return dict(self._connection.execute("select key, value from meta"))
        except sqlite3.Error:
            return {}

    def carry_out(self, writes: Sequence[Write]) -> None:
        """All of them in order, or none. Raises ``StoreFull`` or ``StoreBroken``."""
        if not writes:
            return
        last, self._last_index = self._last_index, None  # not known if this fails
        if (entry := _only_entry(writes)) is not None and last is not None and entry.index > last:
            with self.file.writing_once():
                self._connection.execute(_INSERT, _row(entry))
            last = entry.index
        elif (record := _only_record(writes)) is not None:
            with self.file.writing_once():
                promises.store_one(self._connection, record)
        else:
            with self.file.writing():
                for write in writes:
                    last = self._carry_out(write, last)
        self._last_index = last

    def _carry_out(self, write: Write, last: int | None) -> int | None:
        """``last``: no entry behind it is stored, None: who knows. What that is afterwards."""
        connection = self._connection
        if (state := write.hard_state) is not None:
            connection.execute(
                "insert or replace into hard_state (id, term, vote) values (1, ?, ?)",
                (state.term, state.vote),
            )
        if write.promises is not None:
            promises.store(connection, write.promises)
        for node, disk in write.disks.items():
            connection.execute("insert into meta (key, value) values (?, ?)", (f"{DISK_OF}{node}", disk))
        if (finished := write.finished) is not None:
            history.insert(connection, finished.records, now_ms=finished.now_ms)
            history.prune(connection, before_ms=finished.now_ms - finished.history_ms)
        if (snapshot := write.snapshot) is not None:
            self._store_snapshot(snapshot)
        if write.replaces_log:
            connection.execute("delete from entry")
            last = 0
        if write.keep_from:
            connection.execute("delete from entry where idx < ?", (write.keep_from,))
        if write.entries:
            first = write.entries[0].index
            if last is None or first <= last:
                connection.execute("delete from entry where idx >= ?", (first,))
            connection.executemany(_INSERT, [_row(entry) for entry in write.entries])
            last = write.entries[-1].index
        return last

    def _store_snapshot(self, snapshot: Snapshot) -> None:
        meta = snapshot.meta
        configuration = _encode(meta.configuration)
        crc = _snapshot_checksum(meta.index, meta.term, configuration, snapshot.image)
        self._connection.execute(
            "insert or replace into snapshot (id, idx, term, configuration, crc, image)"
            " values (1, ?, ?, ?, ?, ?)",
            (meta.index, meta.term, configuration, crc, snapshot.image),
        )


def _only_entry(writes: Sequence[Write]) -> Entry | None:
    """If one entry is all there is to be written."""
    entries = writes[0].entries
    if len(writes) == 1 and len(entries) == 1 and writes[0] == Write(entries=entries):
        return entries[0]
    return None


def _only_record(writes: Sequence[Write]) -> Record | None:
    """If one of an acceptor's records is."""
    accepted = writes[0].promises
    if accepted is None or len(writes) > 1 or len(accepted.records) != 1:
        return None
    alone = writes[0] == Write(promises=accepted) and not accepted.dropped and accepted.marks is None
    return accepted.records[0] if alone else None


def _row(entry: Entry) -> tuple[object, ...]:
    return (entry.index, entry.term, entry.kind, entry.crc, entry.data)


def _snapshot_checksum(index: int, term: int, configuration: bytes, image: bytes) -> int:
    head = index.to_bytes(8, "big") + term.to_bytes(8, "big") + configuration
    return zlib.crc32(image, zlib.crc32(head))
