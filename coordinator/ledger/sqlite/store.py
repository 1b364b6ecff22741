"""The file of a SQLite ledger: log entries, one snapshot, history. Synchronous; for one thread.

A command is durable when the transaction that holds its entry has committed (:mod:`.file`).
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from undoubt.coordinator.errors import LedgerUnavailable, LedgerUnusable
from undoubt.coordinator.ledger import disk, schema
from undoubt.coordinator.ledger.anchor import START, Anchor, Mark, chained
from undoubt.coordinator.ledger.contract import DecisionRecord
from undoubt.coordinator.ledger.sqlite import former, history, wal
from undoubt.coordinator.ledger.sqlite.file import SqliteFile
from undoubt.participants.ids import TxId, new_ledger_id

log = logging.getLogger(__name__)

WAYS_OUT = (
    "`undoubt ledger restore BACKUP` makes it anew from a backup, `undoubt ledger restore` believes the file"
    " as it is; until then leave the prepared transactions of its participants alone"
)

_INSERT = "insert into entry (idx, crc, command) values (?, ?, ?)"


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a file held when it was opened. ``entries`` follow the snapshot, in order."""

    ledger_id: str
    snapshot: bytes | None
    snapshot_index: int
    entries: list[bytes]
    marks: list[Mark]
    """Of the snapshot, then of each entry."""
    anchored: bool
    """An anchor was made for this file."""
    place: str = ""
    """The path at which it was opened last; empty for a file that has not noted it yet."""

    @property
    def last_index(self) -> int:
        return self.snapshot_index + len(self.entries)

    @property
    def last(self) -> Mark:
        return self.marks[-1]

    def lacks(self, mark: Mark) -> bool:
        """Whether ``mark``, which was durable, is not there. One from before the snapshot cannot be compared
        any more: what came after it is there."""
        at = mark.index - self.snapshot_index
        return at >= len(self.marks) or (at >= 0 and self.marks[at] != mark)


class SqliteStore:
    """Open one only while holding the ledger's lock."""

    def __init__(self, path: Path, *, cut: bool = False) -> None:
        """``cut``: leave out what stands behind damage in the WAL, as SQLite does. Raises
        ``LedgerUnusable``."""
        check_tables(path, found := revision(path, cut=cut))
        schema.SQLITE.check(found, f"ledger {path}")
        self.path = path
        self._anchor: Anchor | None = None
        self._last = START
        """Of what is durable."""
        self._file = SqliteFile(path, f"ledger {path}")
        self._places: dict[Path, tuple[int, int] | None] = {}
        self._connection = self._file.connection

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
            self._check(number == expected, f"entry {expected}, in whose place stands {number}")
            self._check(_checksum(number, command) == crc, f"entry {number}")
            entries.append(command)
            marks.append(Mark(number, chained(marks[-1].chain, command)))
        ledger_id = self._ledger_id(new=index == 0 and not entries)
        return Loaded(ledger_id, state, index, entries, marks, "anchored" in known, known.get("place", ""))

    def _base(self, index: int, state: bytes | None, written: str | None) -> Mark:
        """The chain up to the snapshot. Version 0.1.0 wrote none: a hash of the snapshot takes its place."""
        if state is None:
            return START
        if written is None:
            return Mark(index, chained(START.chain, state))
        number, _, chain = written.partition(":")
        self._check(number == str(index), f"its chain, which is that of entry {number} and not of {index}")
        return Mark(index, bytes.fromhex(chain))

    def hold(self, anchor: Anchor, last: Mark, *, new: bool) -> None:
        """Move ``anchor`` from now on, beginning at ``last``. ``new``: note in the file that it has one, and
        where it lies."""
        self._anchor, self._last = anchor, last
        if new:
            with self._file.writing():
                self._connection.executemany(
                    "insert or replace into meta (key, value) values (?, ?)",
                    [("anchored", "1"), ("place", str(self.path))],
                )
        # A process that was killed in a sync leaves a WAL that can be read and is not on the disk yet.
        self._connection.execute("pragma wal_checkpoint(full)").fetchone()
        anchor.move(last)
        self._places = {each: _place(each) for each in (self.path, former.part(self.path, "-wal"))}

    def _ledger_id(self, *, new: bool) -> str:
        row = self._connection.execute("select value from meta where key = 'ledger_id'").fetchone()
        if row is not None:
            return str(row[0])
        self._check(new, "its identity, which is missing")
        ledger_id = new_ledger_id()
        with self._file.writing():
            self._connection.execute("insert into meta (key, value) values ('ledger_id', ?)", (ledger_id,))
        return ledger_id

    def _check(self, sound: bool, what: str) -> None:
        if not sound:
            raise LedgerUnusable(f"ledger {self.path} is damaged at {what}. Nothing was changed. {WAYS_OUT}")

    def append(self, first_index: int, commands: Sequence[bytes]) -> None:
        """Write log entries, durably, all or none. Raises ``StoreFull`` or ``StoreBroken``."""
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
        """Write a snapshot of the state after entry ``index`` in place of the entries up to there, together
        with the finished records that only those entries held. Raises ``StoreFull`` or ``StoreBroken``."""
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
        """Raises ``LedgerUnavailable`` for history that is damaged; as :meth:`history`."""
        with self._reading_history():
            return history.one(self._connection, txid)

    def history(self, limit: int, before: DecisionRecord | None) -> list[DecisionRecord]:
        """Newest first by (time of decision, session, seq), older than ``before``."""
        with self._reading_history():
            return history.page(self._connection, limit, before)

    @contextlib.contextmanager
    def _reading_history(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError) as error:
            raise LedgerUnavailable(
                f"the history of finished transactions in ledger {self.path} cannot be read ({error});"
                " decisions are not affected, and `undoubt ledger check` looks at all of the file"
            ) from error

    def problems(self) -> list[str]:
        """What SQLite's own check of the file finds; empty if it is sound."""
        return self._file.problems()

    def check_in_place(self) -> None:
        """While it is open: that its files are still those that were opened. What is written to another one,
        or to none, is gone with this process. Raises ``LedgerUnusable``."""
        for path, place in self._places.items():
            if place is None or _place(path) == place:
                continue
            if path == self.path:
                what_to_do = (
                    f"Stop this process, and put the file back with its -wal and its .anchor. {WAYS_OUT}"
                )
            else:
                what_to_do = self._saved_from_wal()
            raise LedgerUnusable(
                f"{path} was removed or replaced while it was in use: nothing more is recorded in the ledger."
                f" {what_to_do}"
            )
        if self._anchor is not None and self._anchor.astray:
            log.error("%s was removed while the ledger was in use, and is made anew", self._anchor.path)
            try:
                self._anchor.put_back()
            except OSError as error:
                log.warning("%s cannot be made: %s", self._anchor.path, error)

    def _saved_from_wal(self) -> str:
        """Get into the file what the WAL holds, which has no name any more. What to do, for people."""
        try:
            self._connection.execute("pragma wal_checkpoint(full)").fetchone()
        except sqlite3.Error as error:
            return f"What it held cannot be written to the file ({error}). {WAYS_OUT}"
        return "What was recorded until now is in the file: start this process again"

    def limit_pages(self, pages: int) -> None:
        """Behave as if the disk were full beyond so many pages."""
        self._file.limit_pages(pages)

    def close(self) -> None:
        if self._anchor is not None:
            self._anchor.close()
        self._file.close()


def _place(path: Path) -> tuple[int, int] | None:
    """What a path leads to; None if it leads nowhere."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def check_tables(path: Path, found: str | None) -> None:
    """Raises ``LedgerUnusable`` if the file has no tables (``found`` is None): there is nothing to
    believe."""
    if found is None:
        raise LedgerUnusable(
            f"ledger {path} is empty: it has no tables. Nothing was changed. {former.ways_out(path)}"
        )


def make(path: Path, ledger_id: str, state: bytes, base: Mark) -> None:
    """A new file that begins with a snapshot. Raises ``LedgerUnusable``, ``LedgerUnavailable``."""
    store = SqliteStore.create(path)
    try:
        with store._file.writing():
            store._connection.executemany(
                "insert into meta (key, value) values (?, ?)",
                [("ledger_id", ledger_id), ("anchored", "1")],
            )
        store._last = base
        store.replace_log(base.index, state, (), now_ms=0, history_ms=0)
    finally:
        store.close()


def revision(path: Path, *, cut: bool = False) -> str | None:
    """The revision of the tables in that file, None for a file without tables or none at all.

    SQLite cuts a WAL that is damaged, and removes it, when the file is opened and closed: so that is looked
    for first, unless ``cut``. Raises ``LedgerUnusable`` for that, and if it is something else than a ledger.
    Never creates it. Only while holding the ledger's lock.
    """
    if former.is_empty(path):
        return None
    if (damage := wal.damage(path)) and not cut:
        raise LedgerUnusable(f"ledger {path} is damaged: {damage}. Nothing was changed. {WAYS_OUT}")
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            # Else SQLite makes a -shm, for which a full disk has no room.
            connection.execute("pragma locking_mode = exclusive")
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
        why = f"cannot read ledger {path}: {error}"
        raise disk.not_opened(error, path.parent, f"ledger {path}", why) from error


def upgrade(path: Path) -> None:
    """Bring its tables to the newest revision, or make them. Raises ``LedgerUnusable``."""
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
    """CRC-32 over the command and its place, so that neither can be another's."""
    return zlib.crc32(command, zlib.crc32(number.to_bytes(8, "big")))
