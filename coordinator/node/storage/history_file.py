"""Stores a node's history of finished decisions in SQLite, for operators. No decision depends on it.

Rows are written without a sync: rows that a crash loses are written again when the log after the last
snapshot is applied again. Before a snapshot becomes the current one, :meth:`HistoryFile.settle` makes all
rows up to there durable, and empties the WAL; so all rows in a WAL that is lost or damaged can be written
again from the log.

A history that is damaged does not stop the node. The damage is logged, and calls for history raise it.
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
"""The structure of a larger file is not checked when it is opened, since that would take seconds."""

FILE_NAME = "node.db"
FORMAT = "3"
"""The format of a file that contains only history."""

_DDL = (
    "create table if not exists meta (key text primary key, value text not null)",
    "create table if not exists history (session integer not null, seq integer not null, nonce text not null,"
    " decided_at real not null, finished_ms integer not null, record blob not null,"
    " primary key (session, seq))",
    "create index if not exists history_newest on history (decided_at, session, seq)",
    "create index if not exists history_oldest on history (finished_ms)",
    # Tables of version 0.1.0, whose contents are in the node's log now.
    *(f"drop table if exists {table}" for table in ("hard_state", "snapshot", "entry", "promise", "mark")),
    "insert or replace into meta (key, value) values ('format', '3')",
)


class HistoryFile:
    """The history file of one node. Only one thread may use it."""

    def __init__(self, folder: Path) -> None:
        """Open or create the file. A damaged file raises no error; ``StoreFull`` if there is no room for a
        new one."""
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
        """Check the structure of the file. Each record has a checksum, but the set of records has none:
        without this check, rows that a flipped bit has hidden would not be missed. Raises
        ``LedgerUnusable``."""
        if self._file is not None and self.path.stat().st_size <= CHECKED_BYTES_MAX:
            problems = self._file.problems()
            if problems:
                raise LedgerUnusable(f"its file is damaged: {problems[0]}")

    def _made(self) -> bool:
        """Whether the tables exist already, so that a node whose disk is full starts without writing."""
        if self._file is None:
            return False
        try:
            found = self._file.connection.execute("select value from meta where key = 'format'").fetchone()
        except sqlite3.OperationalError:  # there are no tables
            return False
        return found is not None and found[0] == FORMAT

    def store(self, finished: Finished) -> None:
        """Store records, and delete old ones. Raises ``StoreFull``."""

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
        """Make everything that was stored durable, in the file itself. Raises ``StoreFull``."""
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
        """Return the decision about ``txid``. Raises ``LedgerUnavailable``."""
        return self._read(lambda connection: history.one(connection, txid))

    def page(self, limit: int, before: DecisionRecord | None) -> Sequence[DecisionRecord]:
        """Return a page of decisions, newest first. Raises ``LedgerUnavailable``."""
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
