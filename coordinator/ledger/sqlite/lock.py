"""Who owns a SQLite ledger: an exclusive lock beside the file, and the folder of the owner's socket.

The lock is ``flock(2)``: it ends with its process however that ends. A forked child closes its copy at once,
so that a child that outlives its parent does not keep the ledger from everybody.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import weakref
from pathlib import Path

from undoubt.coordinator.errors import LedgerUnusable


class FileLock:
    """Held from a successful :meth:`take` until ``release``."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        _held.add(self)

    @classmethod
    def take(cls, ledger: Path) -> FileLock | None:
        """The lock of the ledger at that path, or None if another process (or another ledger object of this
        one) has it. Raises ``LedgerUnusable`` if there is no place for a lock file."""
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
        with contextlib.suppress(OSError):  # a full disk: the number is for messages
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return cls(descriptor)

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def holder(ledger: Path) -> str:
    """For messages: the process that last took the lock."""
    try:
        return ledger.with_name(ledger.name + ".lock").read_text(errors="replace").strip() or "unknown"
    except OSError:
        return "unknown"


_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _release_in_child() -> None:
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_release_in_child)
