"""A node's history of finished decisions: SQLite, for people. Nothing is decided by what is in it.

Rows are written without a sync: what is lost by a crash is written again when the log behind the last
snapshot is applied again. Before a snapshot counts, :meth:`HistoryFile.settle` makes everything durable up to
there, and empties the WAL; so a WAL that is lost or damaged takes nothing with it that the log does not bring
back.

A history that is damaged does not stop the node. The damage is logged, and told to whoever asks for history.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from undoubt.coordinator.errors import LedgerUnavailable, LedgerUnusable
from undoubt.coordinator.ledger.contract import DecisionRecord
from undoubt.coordinator.ledger.disk import StoreBroken, StoreFull, no_room
from undoubt.coordinator.ledger.sqlite import history
from undoubt.coordinator.ledger.sqlite.file import SqliteFile
from undoubt.coordinator.node.storage.contract import Finished
from undoubt.participants.ids import TxId

log = logging.getLogger(__name__)

T = TypeVar("T")

CHECKED_BYTES_MAX = 64 * 1024 * 1024
"""Of a larger file the structure is not looked at when it is opened: that would take seconds."""

FILE_NAME = "node.db"
FORMAT = "3"
"""Of a file that holds history alone."""

_DDL = (
    "create table if not exists meta (key text primary key, value text not null)",
    "create table if not exists history (session integer not null, seq integer not null, nonce text not null,"
    " decided_at real not null, finished_ms integer not null, record blob not null,"
    " primary key (session, seq))",
    "create index if not exists history_newest on history (decided_at, session, seq)",
    "create index if not exists history_oldest on history (finished_ms)",
    # What version 0.1.0 kept here too is in the node's log now.
    *(f"drop table if exists {table}" for table in ("hard_state", "snapshot", "entry", "promise", "mark")),
    "insert or replace into meta (key, value) values ('format', '3')",
)


class HistoryFile:
    """For one thread."""

    def __init__(self, folder: Path) -> None:
        """Open or make it. Raises nothing for a damaged one; ``StoreFull`` without room for a new one."""
        self.path = folder / FILE_NAME
        self._file: SqliteFile | None = None
        self._damage = ""
        existed = self.path.exists()
        try:
            self._file = SqliteFile(self.path, f"the history {self.path}")
            self._check()
            if not self._made():
                with self._file.writing():
                    for statement in _DDL:
                        self._file.connection.execute(statement)
            self._file.connection.execute("pragma synchronous = normal")
        except (LedgerUnusable, StoreBroken, sqlite3.Error) as error:
            self._failed(error)
        if not existed:
            log.info("%s is new: it holds no history", self.path)

    def _check(self) -> None:
        """Each record has a checksum, and the set of them has none: rows that a flipped bit has hidden would
        be missed by nothing else. Raises ``LedgerUnusable``."""
        if self._file is not None and self.path.stat().st_size <= CHECKED_BYTES_MAX:
            problems = self._file.problems()
            if problems:
                raise LedgerUnusable(f"its file is damaged: {problems[0]}")

    def _made(self) -> bool:
        """Whether everything is there already: a node whose disk is full starts without writing."""
        if self._file is None:
            return False
        try:
            found = self._file.connection.execute("select value from meta where key = 'format'").fetchone()
        except sqlite3.OperationalError:  # there are no tables
            return False
        return found is not None and found[0] == FORMAT

    def store(self, finished: Finished) -> None:
        """Raises ``StoreFull``."""

        def do(file: SqliteFile) -> None:
            with file.writing():
                history.insert(file.connection, finished.records, now_ms=finished.now_ms)
                history.prune(file.connection, before_ms=finished.now_ms - finished.history_ms)

        if self._file is not None:
            try:
                do(self._file)
            except StoreBroken as error:
                self._failed(error)

    def settle(self) -> None:
        """Everything that was stored is durable, and in the file itself."""
        if self._file is None:
            return
        try:
            self._file.connection.execute("pragma wal_checkpoint(truncate)").fetchone()
        except sqlite3.Error as error:
            if no_room(error, self.path.parent):
                raise StoreFull(
                    f"no room for the history {self.path}. Free some space on that disk"
                ) from error
            self._failed(error)

    def one(self, txid: TxId) -> DecisionRecord | None:
        """Raises ``LedgerUnavailable``."""
        return self._read(lambda connection: history.one(connection, txid))

    def page(self, limit: int, before: DecisionRecord | None) -> Sequence[DecisionRecord]:
        """Raises ``LedgerUnavailable``."""
        return self._read(lambda connection: history.page(connection, limit, before))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _read(self, reading: Callable[[sqlite3.Connection], T]) -> T:
        if self._file is not None:
            try:
                return reading(self._file.connection)
            except (sqlite3.Error, ValueError) as error:
                self._failed(error)
        raise LedgerUnavailable(self._damage)

    def _failed(self, error: Exception) -> None:
        self._damage = (
            f"the history of finished transactions, {self.path}, cannot be used ({error}). Decisions are not"
            " affected. To begin a new history, stop this node, move the file away together with its -wal,"
            " and start the node"
        )
        log.error("%s", self._damage)
        if self._file is not None:
            self._file.close()
            self._file = None
