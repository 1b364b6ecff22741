"""The lock of a SQLite ledger: the process that holds it owns the ledger.

The lock is a ``flock(2)`` on a file beside the ledger: it ends with its process, however the process ends. A
forked child closes its copy immediately, so that a child that outlives its parent does not keep the lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import sys
import time
import weakref
from pathlib import Path

from undoubt.coordinator.errors import LedgerLocked, LedgerUnusable
from undoubt.coordinator.ledger.sqlite.file import open_files


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


def check_not_open(ledger: Path) -> None:
    """Check, with the lock held, that nothing else has the file of the ledger open: the lock does not show an
    owner beside which the lock file was removed. Raises ``LedgerLocked``."""
    end = time.monotonic() + _ENDING_S
    while found := _opened_by(ledger):
        if time.monotonic() >= end:
            raise LedgerLocked(
                f"ledger {ledger} is open in {found}, and its lock file was removed or replaced: stop that"
                " process first. Nothing was changed. Never remove the .lock file beside a running process"
            )
        time.sleep(_POLL_S)  # in the thread of the ledger; the system does not tell when a lock ends


def _opened_by(ledger: Path) -> str:
    """The process that holds SQLite's own lock on the file, for messages; empty if none does, as far as the
    system tells."""
    if any(file.path == ledger for file in open_files()):
        # Never look further: closing any descriptor of a file ends the locks that this process has on it.
        return f"process {os.getpid()}, which is this one"
    try:
        descriptor = os.open(ledger, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        asked = struct.pack(_FLOCK, *_flock(fcntl.F_WRLCK))
        found = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    except OSError:  # the filesystem has no such locks
        return ""
    finally:
        os.close(descriptor)
    kind, pid = (found[0], found[4]) if _LINUX else (found[3], found[2])
    if kind == fcntl.F_UNLCK:
        return ""
    return f"process {pid}" if pid > 0 else "a process of another container"


_ENDING_S, _POLL_S = 1.0, 0.01
"""A process that was killed loses its locks one after the other."""
_LINUX = sys.platform == "linux"
_FLOCK = "hhqqi4x" if _LINUX else "qqihh"
"""``struct flock`` (fcntl(2)): on Linux type, whence, start, length, process; on macOS and the BSDs start,
length, process, type, whence."""
_LOCK_AT, _LOCK_BYTES = 0x40000000, 512
"""The bytes that SQLite locks: ``PENDING_BYTE`` and those that follow (os.h in its source)."""


def _flock(kind: int) -> tuple[int, ...]:
    if _LINUX:
        return kind, os.SEEK_SET, _LOCK_AT, _LOCK_BYTES, 0
    return _LOCK_AT, _LOCK_BYTES, 0, kind, os.SEEK_SET


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
