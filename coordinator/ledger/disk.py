"""What it means when a disk does not take a write: :func:`failed` is the one place that tells.

===============  =============================================  ==========================================
error            what is known                                  what is done
===============  =============================================  ==========================================
``StoreFull``    nothing of the write counts                    it may be given again; freeing space is
                                                                enough
``StoreBroken``  nobody knows what of the write is on the disk  nothing is written any more; the process
                                                                ends, or stays readable, until a restart
===============  =============================================  ==========================================

A synchronisation that failed is never repeated: Linux marks the pages as clean although they are not on the
disk, so the next one succeeds without having written them
(https://wiki.postgresql.org/wiki/Fsync_Errors, "fsyncgate"; Rebello et al., "Can Applications Recover from
fsync Failures?", USENIX ATC 2020). What was written is written once more, all of it, when the store is opened
again.

:func:`usable` is for files that cannot be looked at, opened, made or moved at all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from undoubt.coordinator.errors import LedgerError, LedgerUnavailable, LedgerUnusable

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
"""No space on the filesystem; the user's or the project's quota is spent."""
_MAYBE_NO_ROOM = frozenset(
    {
        sqlite3.SQLITE_IOERR_WRITE,
        sqlite3.SQLITE_IOERR_SHMOPEN,
        sqlite3.SQLITE_IOERR_SHMSIZE,
        sqlite3.SQLITE_IOERR_SHMMAP,
        sqlite3.SQLITE_IOERR_TRUNCATE,
        sqlite3.SQLITE_CANTOPEN,
    }
)
"""What SQLite says where a file cannot be made or does not grow, for whatever reason."""
_PROBE_BYTES = 64 * 1024


class StoreBroken(LedgerUnavailable):
    """A write failed and nobody knows what of it is on the disk. The file has to be opened again."""


class StoreFull(LedgerUnavailable):
    """No room: nothing of the last write is there."""


@contextlib.contextmanager
def usable(ledger: Path) -> Iterator[None]:
    """Around work with the files of the SQLite ledger at ``ledger``: what the system or SQLite refuses is
    raised with the file that it is about and the cause, as ``LedgerUnusable``, or as ``LedgerUnavailable``
    where there is no room."""
    try:
        yield
    except TimeoutError:  # an OSError of the event loop's, of no file
        raise
    except OSError as error:
        raise _refused(ledger, error) from error
    except sqlite3.Error as error:
        if no_room(error, ledger.parent):
            raise failed(error, ledger.parent, f"ledger {ledger}") from error
        raise LedgerUnusable(f"ledger {ledger} cannot be used: {error}") from error


def _refused(ledger: Path, error: OSError) -> LedgerError:
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    named = f"{' to '.join(names)}: " if names else ""
    told = f"ledger {ledger} cannot be used: {named}{error.strerror or error}"
    if error.errno in _NO_ROOM:
        return StoreFull(f"{told}. Free some space on that disk")
    if isinstance(error, PermissionError):
        told += ". That file, and its folder, must belong to the user of this process"
    return LedgerUnusable(told)


def no_room(error: BaseException, folder: Path) -> bool:
    """Whether ``error``, of a write to a file in ``folder``, says that there is no room.

    SQLite reports ENOSPC as SQLITE_FULL where it writes pages, and as an error like any other where a quota
    is spent, or the WAL's index cannot be made (``unixWrite``, ``unixShmMap`` in its os_unix.c); then a file
    of a few pages in the same folder tells."""
    if isinstance(error, OSError):
        return error.errno in _NO_ROOM
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF == sqlite3.SQLITE_FULL or (code in _MAYBE_NO_ROOM and _spent(folder))


def not_opened(error: BaseException, folder: Path, ledger: str, why: str) -> LedgerError:
    """What to raise for ``error`` where ``ledger`` cannot be read or made: no room is no damage. ``why``:
    what is said of everything else."""
    if no_room(error, folder):
        return failed(error, folder, ledger)
    return LedgerUnusable(why)


def failed(error: BaseException, folder: Path, what: str) -> StoreFull | StoreBroken:
    """What to raise for ``error``. ``what`` is what was written to, for people."""
    if no_room(error, folder):
        return StoreFull(f"no room for {what}: nothing was recorded. Free some space on that disk")
    return broken(error, what)


def broken(error: BaseException, what: str) -> StoreBroken:
    """As :func:`failed`, where a part was written already."""
    return StoreBroken(
        f"writing to {what} failed ({error}), and what of it is on the disk is not known. Once the disk is"
        " mended, start this process again"
    )


def _spent(folder: Path) -> bool:
    """Whether there is no room for a small file."""
    probe = folder / f".undoubt-room-{os.getpid()}"
    try:
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, bytes(_PROBE_BYTES))
            os.write(descriptor, bytes(1))  # the first may be cut short without an error
        finally:
            os.close(descriptor)
            probe.unlink()
    except OSError as error:
        return error.errno in _NO_ROOM
    return False
