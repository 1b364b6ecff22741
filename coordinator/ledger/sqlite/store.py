"""The file of a SQLite ledger: log entries, one snapshot, history. Synchronous; for one thread.

A command is durable when the transaction that holds its entry has committed with ``synchronous=FULL`` in WAL
mode (https://www.sqlite.org/pragma.html#pragma_synchronous). The lock mode is EXCLUSIVE: nobody else can open
the file meanwhile, and SQLite needs no shared memory for its WAL index
(https://www.sqlite.org/wal.html#use_of_wal_without_shared_memory).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sqlite3
import weakref
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from coordinator.errors import LedgerUnavailable, LedgerUnusable
from coordinator.ledger import schema
from coordinator.ledger.contract import DecisionRecord
from participants.ids import TxId, new_ledger_id

_encode = msgspec.msgpack.Encoder().encode
_decode_record = msgspec.msgpack.Decoder(DecisionRecord).decode


class StoreBroken(LedgerUnavailable):
    """A write failed and nobody knows what of it is on the disk. The file has to be opened again."""


class StoreFull(LedgerUnavailable):
    """No room: nothing of the last write is there."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a file held when it was opened. ``entries`` follow the snapshot, in order."""

    ledger_id: str
    snapshot: bytes | None
    snapshot_index: int
    entries: list[bytes]

    @property
    def last_index(self) -> int:
        return self.snapshot_index + len(self.entries)


class SqliteStore:
    """Open one only while holding the ledger's lock."""

    def __init__(self, path: Path) -> None:
        """Raises ``LedgerUnusable``."""
        self.path = path
        self._connection = _connect(path)
        _open_stores.add(self)

    @classmethod
    def create(cls, path: Path) -> SqliteStore:
        """Make the tables if the file has none, then open it."""
        if revision(path) is None:
            upgrade(path)
            path.chmod(0o600)
        return cls(path)

    def load(self) -> Loaded:
        """Read everything and check it. Raises ``LedgerUnusable`` on anything that is damaged."""
        try:
            return self._load()
        except sqlite3.Error as error:
            raise LedgerUnusable(f"cannot read ledger {self.path}: {error}") from error

    def _load(self) -> Loaded:
        row = self._connection.execute("select idx, crc, state from snapshot").fetchone()
        index, state = 0, None
        if row is not None:
            index, crc, state = row
            self._check(zlib.crc32(state) == crc, f"its snapshot at entry {index}")
        entries: list[bytes] = []
        for number, crc, command in self._connection.execute(
            "select idx, crc, command from entry order by idx"
        ):
            expected = index + len(entries) + 1
            self._check(number == expected, f"entry {expected}, in whose place stands {number}")
            self._check(_checksum(number, command) == crc, f"entry {number}")
            entries.append(command)
        return Loaded(self._ledger_id(new=index == 0 and not entries), state, index, entries)

    def _ledger_id(self, *, new: bool) -> str:
        row = self._connection.execute("select value from meta where key = 'ledger_id'").fetchone()
        if row is not None:
            return str(row[0])
        self._check(new, "its identity, which is missing")
        ledger_id = new_ledger_id()
        with self._writing():
            self._connection.execute("insert into meta (key, value) values ('ledger_id', ?)", (ledger_id,))
        return ledger_id

    def _check(self, sound: bool, what: str) -> None:
        if not sound:
            raise LedgerUnusable(
                f"ledger {self.path} is damaged at {what}. Nothing was changed. Restore the file from a"
                " backup; until then leave the prepared transactions of its participants alone"
            )

    def append(self, first_index: int, commands: Sequence[bytes]) -> None:
        """Write log entries, durably, all or none. Raises ``StoreFull`` or ``StoreBroken``."""
        rows = [
            (number, _checksum(number, command), command)
            for number, command in enumerate(commands, first_index)
        ]
        with self._writing():
            self._connection.executemany("insert into entry (idx, crc, command) values (?, ?, ?)", rows)

    def replace_log(
        self, index: int, state: bytes, history: Sequence[DecisionRecord], *, now_ms: int, history_ms: int
    ) -> None:
        """Write a snapshot of the state after entry ``index`` in place of the entries up to there, together
        with the finished records that only those entries held. Raises ``StoreFull`` or ``StoreBroken``."""
        rows = [
            (*_key(record.txid), record.txid.nonce, record.decided_at, now_ms, _encode(record))
            for record in history
        ]
        with self._writing():
            self._connection.execute(
                "insert or replace into snapshot (id, idx, crc, state) values (1, ?, ?, ?)",
                (index, zlib.crc32(state), state),
            )
            self._connection.execute("delete from entry where idx <= ?", (index,))
            self._connection.executemany(
                "insert or replace into history (session, seq, nonce, decided_at, finished_ms, record)"
                " values (?, ?, ?, ?, ?, ?)",
                rows,
            )
            self._connection.execute("delete from history where finished_ms < ?", (now_ms - history_ms,))

    def history_of(self, txid: TxId) -> DecisionRecord | None:
        row = self._connection.execute(
            "select record from history where session = ? and seq = ? and nonce = ?",
            (*_key(txid), txid.nonce),
        ).fetchone()
        return None if row is None else _decode_record(row[0])

    def history(self, limit: int, before: DecisionRecord | None) -> list[DecisionRecord]:
        """Newest first by (time of decision, session, seq), older than ``before``."""
        where = "" if before is None else "where (decided_at, session, seq) < (?, ?, ?)"
        given = () if before is None else (before.decided_at, *_key(before.txid))
        rows = self._connection.execute(
            f"select record from history {where} order by decided_at desc, session desc, seq desc limit ?",  # noqa: S608
            (*given, limit),
        )
        return [_decode_record(record) for (record,) in rows]

    def problems(self) -> list[str]:
        """What SQLite's own check of the file finds; empty if it is sound."""
        found = [str(row[0]) for row in self._connection.execute("pragma integrity_check")]
        return [] if found == ["ok"] else found

    def limit_pages(self, pages: int) -> None:
        """Behave as if the disk were full beyond so many pages (https://www.sqlite.org/pragma.html#pragma_max_page_count)."""
        self._connection.execute(f"pragma max_page_count = {int(pages)}")

    def close(self) -> None:
        self._connection.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            self._connection.execute("begin immediate")
            yield
            self._connection.execute("commit")
        except sqlite3.Error as error:
            self._roll_back_after(error)

    def _roll_back_after(self, error: sqlite3.Error) -> None:
        full = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
        try:
            if self._connection.in_transaction:
                self._connection.execute("rollback")
        except sqlite3.Error:
            full = False
        if full:
            raise StoreFull(
                f"no room for ledger {self.path}: nothing was recorded. Free some space on that disk"
            ) from error
        raise StoreBroken(
            f"writing to ledger {self.path} failed ({error}); it stays readable, and takes commands again"
            " once this process is restarted with the disk mended"
        ) from error


_open_stores: weakref.WeakSet[SqliteStore] = weakref.WeakSet()


def _leak_in_child() -> None:
    """A forked child must never close its parent's connection, not even as it exits: SQLite would tidy up the
    WAL under the parent's feet (https://www.sqlite.org/howtocorrupt.html, §2.6). So it keeps it for ever."""
    for store in _open_stores:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(store._connection))


os.register_at_fork(after_in_child=_leak_in_child)


def revision(path: Path) -> str | None:
    """The revision of the tables in that file, None for a file without tables or none at all.

    Raises ``LedgerUnusable`` if it is something else than a ledger. Never creates it.
    """
    if not path.exists():
        return None
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            tables = {
                row[0] for row in connection.execute("select name from sqlite_master where type = 'table'")
            }
            if not tables:
                return None
            if not {"alembic_version", "meta"} <= tables:
                raise LedgerUnusable(f"{path} is a SQLite database, but not a ledger; name another file")
            row = connection.execute("select version_num from alembic_version").fetchone()
            return None if row is None else str(row[0])
    except sqlite3.Error as error:
        raise LedgerUnusable(f"cannot read ledger {path}: {error}") from error


def upgrade(path: Path) -> None:
    """Bring its tables to the newest revision, or make them. Raises ``LedgerUnusable``."""
    import sqlalchemy  # noqa: PLC0415 - see coordinator.ledger.schema

    try:
        schema.upgrade(sqlalchemy.URL.create("sqlite", database=str(path)).render_as_string())
    except sqlalchemy.exc.DBAPIError as error:
        raise LedgerUnusable(f"cannot make the tables of ledger {path}: {error.orig}") from error


def _connect(path: Path) -> sqlite3.Connection:
    schema.check_revision(revision(path), f"ledger {path}")
    try:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("pragma locking_mode = exclusive")
        mode = connection.execute("pragma journal_mode = wal").fetchone()[0]
        connection.execute("pragma synchronous = full")
    except sqlite3.Error as error:
        raise LedgerUnusable(f"cannot open ledger {path}: {error}") from error
    if mode != "wal":
        raise LedgerUnusable(
            f"ledger {path} lies on a filesystem where SQLite cannot use a WAL (mode {mode})"
        )
    return connection


def _key(txid: TxId) -> tuple[int, int]:
    return (txid.session, txid.seq)


def _checksum(number: int, command: bytes) -> int:
    """CRC-32 over the command and its place, so that neither can be another's."""
    return zlib.crc32(command, zlib.crc32(number.to_bytes(8, "big")))
