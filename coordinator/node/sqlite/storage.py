"""A node's storage in one SQLite file: one connection, in one thread of its own.

The event loop never waits for a disk. Whoever opens it holds a lock on the folder for as long as it is open.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from coordinator.errors import LedgerLocked, LedgerUnusable
from coordinator.ledger.contract import DecisionRecord
from coordinator.ledger.sqlite import history
from coordinator.ledger.sqlite.file import StoreFull
from coordinator.ledger.sqlite.lock import FileLock, holder
from coordinator.node.sqlite.reserve import Reserve
from coordinator.node.sqlite.tables import Tables
from coordinator.node.sqlite.thread import Thread
from coordinator.node.storage import Identity, Snapshot, Stored, Write
from coordinator.raft import HardState
from participants.ids import TxId

FILE_NAME = "node.db"


class SqliteStorage:
    """Implements :class:`~coordinator.node.storage.Storage`. Made by :meth:`open`."""

    def __init__(self, tables: Tables, thread: Thread, lock: FileLock) -> None:
        self.tables = tables
        self.in_thread = thread.do
        """Runs a function where the connection lives."""
        self._thread = thread
        self._lock = lock
        self._reserve = Reserve(tables.path.with_suffix(".reserve"))

    @classmethod
    async def open(cls, folder: Path) -> tuple[SqliteStorage, Stored]:
        """What :func:`create` has made. Raises ``LedgerUnusable``, ``LedgerLocked``."""
        path = folder / FILE_NAME
        if not path.exists():
            raise LedgerUnusable(
                f"no node lives in {folder}. For the first nodes of a new cluster: `undoubt cluster init`."
                " A node that has lost its disk is never started again under its number: remove it from"
                " the cluster and add a new one"
            )
        lock = _locked(path)
        thread = Thread("undoubt-node-disk")
        try:
            tables = await thread.do(lambda: Tables(path))
            try:
                stored = await thread.do(tables.load)
            except BaseException:
                await thread.do(tables.file.close)
                raise
        except BaseException:
            thread.end()
            lock.release()
            raise
        return cls(tables, thread, lock), stored

    def write(self, writes: Sequence[Write]) -> asyncio.Future[bool]:
        return self.in_thread(lambda: self._write(writes))

    def _write(self, writes: Sequence[Write]) -> bool:
        try:
            self.tables.carry_out(writes)
        except StoreFull:
            if not self._reserve.give_up():
                raise
            self.tables.carry_out(writes)
        return self._reserve.hold()

    def history_of(self, txid: TxId) -> asyncio.Future[DecisionRecord | None]:
        return self.in_thread(lambda: history.one(self.tables.file.connection, txid))

    def history(self, limit: int, before: DecisionRecord | None) -> asyncio.Future[Sequence[DecisionRecord]]:
        return self.in_thread(lambda: history.page(self.tables.file.connection, limit, before))

    def close(self) -> asyncio.Future[None]:
        closed = self.in_thread(self._close)
        self._thread.end()
        return closed

    def _close(self) -> None:
        try:
            self.tables.file.close()
        finally:
            self._lock.release()


def create(folder: Path, identity: Identity, hard_state: HardState, snapshot: Snapshot) -> None:
    """Make the file of a new node. Raises ``LedgerUnusable`` if there is one."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / FILE_NAME
    lock = _locked(path)
    try:
        if path.exists():
            raise LedgerUnusable(f"a node lives in {folder} already; nothing was changed")
        new = path.with_suffix(".new")  # it gets its name once it is whole
        for left in folder.glob(new.name + "*"):
            left.unlink()
        tables = Tables(new)
        try:
            tables.create(identity, hard_state, snapshot)
        finally:
            tables.file.close()
        new.chmod(0o600)
        new.rename(path)
        _sync_folder(folder)
    finally:
        lock.release()


def discard(folder: Path) -> None:
    """Take back what :func:`create` made, before any node ran on it. Raises ``LedgerLocked``."""
    path = folder / FILE_NAME
    lock = _locked(path)
    try:
        for left in folder.glob(path.stem + ".*"):
            if left.name != path.name + ".lock":
                left.unlink()
        _sync_folder(folder)
    finally:
        lock.release()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _locked(path: Path) -> FileLock:
    lock = FileLock.take(path)
    if lock is None:
        raise LedgerLocked(f"{path} is in use by process {holder(path)}; stop it first")
    return lock
