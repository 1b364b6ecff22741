"""One SQLite file that one connection of one thread writes, durably: WAL, ``synchronous=FULL``, exclusive.

What is committed has reached the disk (https://www.sqlite.org/pragma.html#pragma_synchronous). The lock mode
is EXCLUSIVE: nobody else can open the file meanwhile, and SQLite needs no shared memory for its WAL index
(https://www.sqlite.org/wal.html#use_of_wal_without_shared_memory). A WAL's frames carry checksums: what a
crash left half written at its end is cut when the file is opened
(https://www.sqlite.org/fileformat2.html#walformat).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sqlite3
import weakref
from collections.abc import Iterator
from pathlib import Path

from undoubt.coordinator.errors import LedgerUnusable
from undoubt.coordinator.ledger import disk


class SqliteFile:
    """``what`` is the file's name in messages. Open one only while holding a lock on it."""

    def __init__(self, path: Path, what: str) -> None:
        """Raises ``LedgerUnusable``, ``StoreFull``."""
        self.path = path
        self.what = what
        try:
            self.connection = sqlite3.connect(path, isolation_level=None)
            self.connection.execute("pragma locking_mode = exclusive")
            mode = self.connection.execute("pragma journal_mode = wal").fetchone()[0]
            self.connection.execute("pragma synchronous = full")
        except sqlite3.Error as error:
            raise disk.not_opened(error, path.parent, what, f"cannot open {what}: {error}") from error
        if mode != "wal":
            raise LedgerUnusable(f"{what} lies on a filesystem where SQLite cannot use a WAL (mode {mode})")
        _open_files.add(self)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """One transaction, durable at its end, all or nothing. Raises ``StoreFull`` or ``StoreBroken``."""
        try:
            self.connection.execute("begin immediate")
            yield
            self.connection.execute("commit")
        except sqlite3.Error as error:
            self._roll_back_after(error)

    @contextlib.contextmanager
    def writing_once(self) -> Iterator[None]:
        """The same for a single statement, which is a transaction by itself
        (https://www.sqlite.org/lang_transaction.html#implicit_versus_explicit_transactions): what one
        decision at a time waits for is then one call, and not three with the interpreter's lock to be had
        anew after each."""
        try:
            yield
        except sqlite3.Error as error:
            self._roll_back_after(error)

    def _roll_back_after(self, error: sqlite3.Error) -> None:
        try:
            if self.connection.in_transaction:
                self.connection.execute("rollback")
        except sqlite3.Error:
            raise disk.broken(error, self.what) from error
        raise disk.failed(error, self.path.parent, self.what) from error

    def problems(self) -> list[str]:
        """What SQLite's own check of the file finds; empty if it is sound."""
        found = [str(row[0]) for row in self.connection.execute("pragma integrity_check")]
        return [] if found == ["ok"] else found

    def limit_pages(self, pages: int) -> None:
        """Behave as if the disk were full beyond so many pages (https://www.sqlite.org/pragma.html#pragma_max_page_count)."""
        self.connection.execute(f"pragma max_page_count = {int(pages)}")

    def close(self) -> None:
        self.connection.close()


_open_files: weakref.WeakSet[SqliteFile] = weakref.WeakSet()


def _leak_in_child() -> None:
    """A forked child must never close its parent's connection, not even as it exits: SQLite would tidy up the
    WAL under the parent's feet (https://www.sqlite.org/howtocorrupt.html, §2.6). So it keeps it for ever."""
    for file in _open_files:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(file.connection))


os.register_at_fork(after_in_child=_leak_in_child)
