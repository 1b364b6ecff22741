"""One SQLite file, written durably by one connection in one thread: WAL, ``synchronous=FULL``, exclusive.

A committed transaction is on the disk (https://www.sqlite.org/pragma.html#pragma_synchronous). The lock mode
is EXCLUSIVE: no other connection can use the file meanwhile, and SQLite needs no shared memory for its WAL
index (https://www.sqlite.org/wal.html#use_of_wal_without_shared_memory). The frames of a WAL have checksums:
frames that a crash left half written at its end are cut when the file is opened
(https://www.sqlite.org/fileformat2.html#walformat)."""

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
    """The open file. ``what`` names it in messages. The caller must hold the ledger's lock."""

    def __init__(self, path: Path, what: str) -> None:
        """Open or make the file. Raises ``LedgerUnusable``, ``StoreFull``."""
        self.path = path
        self.what = what
        self.closed = False
        try:
            self.connection = sqlite3.connect(path, isolation_level=None)
            self.connection.execute("pragma locking_mode = exclusive")
            mode = self.connection.execute("pragma journal_mode = wal").fetchone()[0]
            self.connection.execute("pragma synchronous = full")
        except sqlite3.Error as error:
            raise disk.not_opened(error, path.parent, what, f"cannot open {what}: {error}") from error
        if mode != "wal":
            raise LedgerUnusable(f"{what} is on a filesystem on which SQLite cannot use a WAL (mode {mode})")
        _open_files.add(self)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """A context for one transaction, atomic and durable at its end. Raises ``StoreFull`` or
        ``StoreBroken``."""
        try:
            self.connection.execute("begin immediate")
            yield
            self.connection.execute("commit")
        except sqlite3.Error as error:
            self._roll_back_after(error)

    @contextlib.contextmanager
    def writing_once(self) -> Iterator[None]:
        """As :meth:`writing`, for a single statement, which is a transaction by itself
        (https://www.sqlite.org/lang_transaction.html#implicit_versus_explicit_transactions). A single
        decision then waits for one call instead of three, after each of which the thread has to get the
        interpreter's lock again."""
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
        """The problems that SQLite's own check of the file finds; empty if it finds none."""
        found = [str(row[0]) for row in self.connection.execute("pragma integrity_check")]
        return [] if found == ["ok"] else found

    def limit_pages(self, pages: int) -> None:
        """Behave as if the disk was full beyond so many pages (https://www.sqlite.org/pragma.html#pragma_max_page_count)."""
        self.connection.execute(f"pragma max_page_count = {int(pages)}")

    def close(self) -> None:
        self.connection.close()
        self.closed = True


_open_files: weakref.WeakSet[SqliteFile] = weakref.WeakSet()


def open_files() -> list[SqliteFile]:
    """The files that this process has open."""
    return [file for file in _open_files if not file.closed]


def _leak_in_child() -> None:
    """Keep the parent's connections open for ever in a forked child. If the child closed them, even when it
    exits, SQLite would remove the WAL while the parent uses it (https://www.sqlite.org/howtocorrupt.html,
    §2.6)."""
    for file in _open_files:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(file.connection))
    _open_files.clear()


os.register_at_fork(after_in_child=_leak_in_child)
