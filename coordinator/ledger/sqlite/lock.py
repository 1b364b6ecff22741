"""The lock of a SQLite ledger: the process that holds it owns the ledger.

The lock is a ``flock(2)`` on a file beside the ledger: it ends with its process, however the process ends. A
forked child closes its copy immediately, so that a child that outlives its parent does not keep the lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import weakref
from pathlib import Path

from undoubt.coordinator.errors import LedgerUnusable


class FileLock:
    """The lock, held from a successful :meth:`take` until ``release``."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        _held.add(self)

    @classmethod
    def take(cls, ledger: Path) -> FileLock | None:
        """Take the lock of ``ledger``. None if another process (or another ledger object of this process) has
        it. Raises ``LedgerUnusable`` if the lock file cannot be made or locked."""
        path = ledger.with_name(ledger.name + ".lock")
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LedgerUnusable(
                f"cannot use {path}: {error.strerror}; the ledger's folder must exist and be writable"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            os.close(descriptor)
            raise LedgerUnusable(f"cannot lock {path}: {error.strerror}") from error
        with contextlib.suppress(OSError):  # the disk may be full; the number is only for messages
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return cls(descriptor)

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def holder(ledger: Path) -> str:
    """The id of the process that last took the lock, for messages."""
    try:
        return ledger.with_name(ledger.name + ".lock").read_text(errors="replace").strip() or "unknown"
    except OSError:
        return "unknown"


_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _release_in_child() -> None:
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_release_in_child)
