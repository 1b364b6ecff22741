"""The tables of a SQLite ledger: log entries, one snapshot, history. Synchronous; not thread-safe.

A command is durable once the transaction that contains its entry has committed (:mod:`.file`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from undoubt.coordinator.errors import LedgerUnavailable, LedgerUnusable
from undoubt.coordinator.ledger import disk, schema
from undoubt.coordinator.ledger.anchor import START, Anchor, Mark, chained
from undoubt.coordinator.ledger.contract import DecisionRecord
from undoubt.coordinator.ledger.sqlite import history, ledger_files, wal
from undoubt.coordinator.ledger.sqlite.file import SqliteFile
from undoubt.participants.ids import TxId, new_ledger_id

log = logging.getLogger(__name__)

WAYS_OUT = (
    "`undoubt ledger restore BACKUP` makes it again from a backup, `undoubt ledger restore` accepts the file"
    " as it is; until then do not end prepared transactions of its participants"
)

_TABLES = frozenset({"alembic_version", "meta", "entry", "snapshot", "history"})

_INSERT = "insert into entry (idx, crc, command) values (?, ?, ?)"


@dataclass(frozen=True, slots=True)
class Loaded:
    """The content of a file when it was opened. ``entries`` follow the snapshot, in order."""

    ledger_id: str
    snapshot: bytes | None
    snapshot_index: int
    entries: list[bytes]
    marks: list[Mark]
    """The mark of the snapshot, then of each entry."""
    anchored: bool
    """Whether an anchor was made for this file."""
    place: str = ""
    """The path at which the file was opened last; empty if the file does not contain it yet."""

    @property
    def last_index(self) -> int:
        return self.snapshot_index + len(self.entries)

    @property
    def last(self) -> Mark:
        return self.marks[-1]

    def lacks(self, mark: Mark) -> bool:
        """Whether the record of ``mark``, which was durable, is missing. A mark from before the snapshot
        cannot be compared, and is not missing: later records are there."""
        at = mark.index - self.snapshot_index
        return at >= len(self.marks) or (at >= 0 and self.marks[at] != mark)


class SqliteStore:
    """The open file of a ledger. The caller must hold the ledger's lock."""

    def __init__(self, path: Path, *, cut: bool = False) -> None:
        """Open an existing file. ``cut``: let SQLite cut the WAL after a damaged frame. Raises
        ``LedgerUnusable``."""
        check_tables(path, found := revision(path, cut=cut))
        schema.SQLITE.check(found, f"ledger {path}")
        self.path = path
        self._anchor: Anchor | None = None
        self._last = START
        """The mark of the last durable record."""
        self._file = SqliteFile(path, f"ledger {path}")
        self._places: dict[Path, tuple[int, int] | None] = {}
        self._removed: str | None = None
        """Why nothing may be written any more: a file was removed while it was in use."""
        self._connection = self._file.connection

    @classmethod
    def create(cls, path: Path) -> SqliteStore:
        """Make the tables in a file that has none, then open the file."""
        upgrade(path)
        return cls(path)

    def load(self) -> Loaded:
        """Read and check the whole file except history. Raises ``LedgerUnusable`` if any part is damaged."""
        try:
            return self._load()
        except (sqlite3.Error, TypeError, ValueError) as error:  # a column of another type, text for a hash
            why = f"ledger {self.path} is damaged: {error}. Nothing was changed. {WAYS_OUT}"
            raise disk.not_opened(error, self.path.parent, f"ledger {self.path}", why) from error

    def _load(self) -> Loaded:
        row = self._connection.execute("select idx, crc, state from snapshot").fetchone()
        index, state = 0, None
        if row is not None:
            index, crc, state = row
            self._check(zlib.crc32(state) == crc, f"its snapshot at entry {index}")
        entries: list[bytes] = []
        known = dict(
            self._connection.execute(
                "select key, value from meta where key in ('chain', 'anchored', 'place')"
            )
        )
        marks = [self._base(index, state, known.get("chain"))]
        for number, crc, command in self._connection.execute(
            "select idx, crc, command from entry order by idx"
        ):
            expected = index + len(entries) + 1
            self._check(number == expected, f"entry {expected}, in whose place is entry {number}")
            self._check(_checksum(number, command) == crc, f"entry {number}")
            entries.append(command)
            marks.append(Mark(number, chained(marks[-1].chain, command)))
        ledger_id = self._ledger_id(new=index == 0 and not entries)
        return Loaded(ledger_id, state, index, entries, marks, "anchored" in known, known.get("place", ""))

    def _base(self, index: int, state: bytes | None, written: str | None) -> Mark:
        """The mark of the snapshot. Version 0.1.0 stored no chain: a hash of the snapshot is used instead."""
        if state is None:
            return START
        if written is None:
            return Mark(index, chained(START.chain, state))
        number, _, chain = written.partition(":")
        self._check(number == str(index), f"its chain, which belongs to entry {number} and not to {index}")
        return Mark(index, bytes.fromhex(chain))

    def hold(self, anchor: Anchor, last: Mark, *, new: bool) -> None:
        """Move ``anchor`` with each write from now on, beginning at ``last``. ``new``: record in the file
        that it has an anchor, and the path of the file."""
        self._anchor, self._last = anchor, last
        if new:
            with self._file.writing():
                self._connection.executemany(
                    "insert or replace into meta (key, value) values (?, ?)",
                    [("anchored", "1"), ("place", str(self.path))],
                )
        # A process that was killed during a sync leaves a WAL that can be read but is not on the disk yet.
        self._connection.execute("pragma wal_checkpoint(full)").fetchone()
        anchor.move(last)
        self._places = {each: _place(each) for each in (self.path, ledger_files.part(self.path, "-wal"))}

    def _ledger_id(self, *, new: bool) -> str:
        row = self._connection.execute("select value from meta where key = 'ledger_id'").fetchone()
        if row is not None:
            return str(row[0])
        self._check(new, "its ledger id, which is missing")
        ledger_id = new_ledger_id()
        with self._file.writing():
            self._connection.execute("insert into meta (key, value) values ('ledger_id', ?)", (ledger_id,))
        return ledger_id

    def _check(self, sound: bool, what: str) -> None:
        if not sound:
            raise LedgerUnusable(f"ledger {self.path} is damaged at {what}. Nothing was changed. {WAYS_OUT}")

    def append(self, first_index: int, commands: Sequence[bytes]) -> None:
        """Write log entries durably, all or none. Raises ``StoreFull`` or ``StoreBroken``."""
        self._check_not_removed()
        rows = [
            (number, _checksum(number, command), command)
            for number, command in enumerate(commands, first_index)
        ]
        if len(rows) == 1:
            with self._file.writing_once():
                self._connection.execute(_INSERT, rows[0])
        else:
            with self._file.writing():
                self._connection.executemany(_INSERT, rows)
        chain = self._last.chain
        for command in commands:
            chain = chained(chain, command)
        self._last = Mark(first_index + len(commands) - 1, chain)
        if self._anchor is not None:
            self._anchor.move(self._last)

    def replace_log(
        self, index: int, state: bytes, finished: Sequence[DecisionRecord], *, now_ms: int, history_ms: int
    ) -> None:
        """Replace the entries up to ``index`` by a snapshot of the state after entry ``index``, and store the
        finished records that only those entries contained. Raises ``StoreFull`` or ``StoreBroken``."""
        self._check_not_removed()
        if self._anchor is not None:
            self._anchor.sync()
        with self._file.writing():
            self._connection.execute(
                "insert or replace into meta (key, value) values ('chain', ?)",
                (f"{index}:{self._last.chain.hex()}",),
            )
            self._connection.execute(
                "insert or replace into snapshot (id, idx, crc, state) values (1, ?, ?, ?)",
                (index, zlib.crc32(state), state),
            )
            self._connection.execute("delete from entry where idx <= ?", (index,))
            history.insert(self._connection, finished, now_ms=now_ms)
            history.prune(self._connection, before_ms=now_ms - history_ms)

    def history_of(self, txid: TxId) -> DecisionRecord | None:
        """The finished record of ``txid``, None if there is none. Raises ``LedgerUnavailable`` if history is
        damaged."""
        with self._reading_history():
            return history.one(self._connection, txid)

    def history(self, limit: int, before: DecisionRecord | None) -> list[DecisionRecord]:
        """At most ``limit`` finished records older than ``before``, newest first by (time of decision,
        session, seq). Raises as :meth:`history_of`."""
        with self._reading_history():
            return history.page(self._connection, limit, before)

    @contextlib.contextmanager
    def _reading_history(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError) as error:
            raise LedgerUnavailable(
                f"the history of finished transactions in ledger {self.path} cannot be read ({error});"
                " decisions are not affected; `undoubt ledger check` checks the whole file"
            ) from error

    def problems(self) -> list[str]:
        """The problems that SQLite's own check of the file finds; empty if it finds none."""
        return self._file.problems()

    def check_in_place(self) -> None:
        """Check that the open files are still those at their paths. Raises ``LedgerUnusable`` if not: what is
        written to a file without a name is lost when this process ends."""
        for path, place in self._places.items():
            if place is None or _place(path) == place:
                continue
            if path == self.path:
                what_to_do = (
                    f"Stop this process, and put the file back with its -wal and its .anchor. {WAYS_OUT}"
                )
            else:
                what_to_do = self._saved_from_wal()
            self._removed = (
                f"{path} was removed or replaced while it was in use: the ledger records nothing from now on."
                f" {what_to_do}"
            )
            raise LedgerUnusable(self._removed)
        if self._anchor is not None and self._anchor.astray:
            log.error("%s was removed while the ledger was in use, and is made again", self._anchor.path)
            try:
                self._anchor.put_back()
            except OSError as error:
                log.warning("%s cannot be made: %s", self._anchor.path, error)

    def _check_not_removed(self) -> None:
        """Refuse a write that was on its way when :meth:`check_in_place` found a file removed. It would move
        the anchor beyond what is in the file, which could not be opened then."""
        if self._removed is not None:
            raise disk.StoreBroken(self._removed)

    def _saved_from_wal(self) -> str:
        """Copy the content of the removed WAL into the file. Returns what to do, for operators."""
        try:
            self._connection.execute("pragma wal_checkpoint(full)").fetchone()
        except sqlite3.Error as error:
            return f"Its content cannot be written to the file ({error}). {WAYS_OUT}"
        return "All records until now are in the file: start this process again"

    def limit_pages(self, pages: int) -> None:
        """Behave as if the disk was full beyond so many pages."""
        self._file.limit_pages(pages)

    def close(self) -> None:
        if self._anchor is not None:
            self._anchor.close()
        self._file.close()


def _place(path: Path) -> tuple[int, int] | None:
    """Device and inode of the file at ``path``; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def check_tables(path: Path, found: str | None) -> None:
    """Raises ``LedgerMissing`` if the file has no tables (``found`` is None)."""
    if found is None:
        ledger_files.check_absent(path)
        raise ledger_files.missing(path)


def make(
    path: Path,
    ledger_id: str,
    snapshot: tuple[Mark, bytes] | None = None,
    finished: Sequence[DecisionRecord] = (),
    *,
    now_ms: int = 0,
) -> None:
    """Make a complete, synced file at ``path``, where there is none. ``snapshot``: what it begins with;
    ``finished``: its history, as of ledger time ``now_ms``. The caller makes its anchor, then renames the
    file. Raises ``LedgerUnusable``, ``LedgerUnavailable``."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    store = SqliteStore.create(path)
    try:
        with store._file.writing():
            store._connection.executemany(
                "insert into meta (key, value) values (?, ?)",
                [("ledger_id", ledger_id), ("anchored", "1")],
            )
        if snapshot is not None:
            store._last, state = snapshot
            store.replace_log(store._last.index, state, finished, now_ms=now_ms, history_ms=0)
    finally:
        store.close()


def revision(path: Path, *, cut: bool = False) -> str | None:
    """The revision of the tables in a file; None if the file does not exist, has no tables, or was never
    finished: older versions made the tables in place, one by one, and the revision last.

    SQLite cuts a damaged WAL when it opens the file, and removes it when it closes the file. So the WAL is
    checked first, unless ``cut``. Raises ``LedgerUnusable`` if the WAL is damaged, or if the file is not a
    ledger. Never creates the file. The caller must hold the ledger's lock.
    """
    if ledger_files.is_empty(path):
        return None
    if (damage := wal.damage(path)) and not cut:
        raise LedgerUnusable(f"ledger {path} is damaged: {damage}. Nothing was changed. {WAYS_OUT}")
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            # Otherwise SQLite makes a -shm file, for which a full disk has no room.
            connection.execute("pragma locking_mode = exclusive")
            tables = {
                row[0] for row in connection.execute("select name from sqlite_master where type = 'table'")
            }
            if not tables:
                return None
            row = None
            if "alembic_version" in tables:
                row = connection.execute("select version_num from alembic_version").fetchone()
            if row is None and "alembic_version" in tables <= _TABLES:
                _check_unfinished(connection, path, tables)
                return None
            if row is None or "meta" not in tables:
                raise LedgerUnusable(f"{path} is a SQLite database, but not a ledger; name another file")
            return str(row[0])
    except sqlite3.Error as error:
        why = f"cannot read ledger {path}: {error}. Nothing was changed"
        if getattr(error, "sqlite_errorcode", 0) in {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}:
            why += (
                f". If it is not the ledger's file, correct ledger.url; if it is, it is damaged: {WAYS_OUT}"
            )
        raise disk.not_opened(error, path.parent, f"ledger {path}", why) from error


def _check_unfinished(connection: sqlite3.Connection, path: Path, tables: set[str]) -> None:
    """Check that a file without a revision has no rows: it was never used. Raises ``LedgerUnusable``."""
    for table in sorted(tables):
        if connection.execute(f"select 1 from {table} limit 1").fetchone():  # noqa: S608 - one of _TABLES
            raise LedgerUnusable(
                f"ledger {path} is damaged at the revision of its tables, which is missing. Nothing was"
                f" changed. {WAYS_OUT}"
            )


def upgrade(path: Path) -> None:
    """Upgrade the tables to the newest revision, or make them. Raises ``LedgerUnusable``."""
    import sqlalchemy  # noqa: PLC0415 - see coordinator.ledger.schema

    try:
        engine = sqlalchemy.create_engine(
            sqlalchemy.URL.create("sqlite", database=str(path)), poolclass=sqlalchemy.pool.NullPool
        )
        with engine.begin() as connection:
            schema.SQLITE.upgrade(connection)
        engine.dispose()
    except sqlalchemy.exc.DBAPIError as error:
        why = f"cannot make the tables of ledger {path}: {error.orig}"
        cause = error.orig or error
        raise disk.not_opened(cause, path.parent, f"the tables of ledger {path}", why) from error


def _checksum(number: int, command: bytes) -> int:
    """The CRC-32 of the command and its index, so that an entry at a wrong index is detected."""
    return zlib.crc32(command, zlib.crc32(number.to_bytes(8, "big")))
