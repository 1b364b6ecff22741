"""Classifies a failed write to a disk: :func:`failed` is the only place that decides.

===============  =============================================  ==========================================
error            what is known                                  what is done
===============  =============================================  ==========================================
``StoreFull``    no part of the write counts                    the write may be repeated; it is enough to
                                                                free space
``StoreBroken``  which part of the write is on the disk is      no further write; until a restart the
                 unknown                                        process ends, or only reads
===============  =============================================  ==========================================

An fsync that failed is never repeated: Linux marks the pages as clean although they are not on the disk, so
the next fsync succeeds without having written them (https://wiki.postgresql.org/wiki/Fsync_Errors,
"fsyncgate"; Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020). When the store
is opened again, everything in it is written once more.

:func:`usable` is for files that cannot be examined, opened, made or moved at all.
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
"""No space on the filesystem; the quota of the user or project is used up."""
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
"""SQLite's codes for a file that cannot be made or extended, whatever the reason."""
_PROBE_BYTES = 64 * 1024


class StoreBroken(LedgerUnavailable):
    """A write failed, and which part of it is on the disk is unknown. The file has to be opened again."""


class StoreFull(LedgerUnavailable):
    """There is no room: no part of the last write is on the disk."""


@contextlib.contextmanager
def usable(ledger: Path) -> Iterator[None]:
    """A context around work with the files of the SQLite ledger at ``ledger``. Errors of the system and of
    SQLite are raised as ``LedgerUnusable``, or as ``LedgerUnavailable`` if there is no room, with the file
    and the cause."""
    try:
        yield
    except TimeoutError:  # an OSError of the event loop, about no file
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
    message = f"ledger {ledger} cannot be used: {named}{error.strerror or error}"
    if error.errno in _NO_ROOM:
        return StoreFull(f"{message}. Free some space on that disk")
    if isinstance(error, PermissionError):
        message += ". That file, and its folder, must belong to the user of this process"
    return LedgerUnusable(message)


def no_room(error: BaseException, folder: Path) -> bool:
    """Whether ``error``, raised by a write to a file in ``folder``, means that there is no room.

    SQLite reports ENOSPC as SQLITE_FULL if it writes pages. If a quota is used up, or the WAL's index cannot
    be made, it reports a general IO error (``unixWrite``, ``unixShmMap`` in its os_unix.c); then a test file
    of a few pages in the same folder shows whether there is room."""
    if isinstance(error, OSError):
        return error.errno in _NO_ROOM
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF == sqlite3.SQLITE_FULL or (code in _MAYBE_NO_ROOM and _spent(folder))


def not_opened(error: BaseException, folder: Path, ledger: str, why: str) -> LedgerError:
    """The error to raise if ``ledger`` cannot be read or made because of ``error``. A lack of room is not
    reported as damage; ``why`` is the message for every other error."""
    if no_room(error, folder):
        return failed(error, folder, ledger)
    return LedgerUnusable(why)


def failed(error: BaseException, folder: Path, what: str) -> StoreFull | StoreBroken:
    """The error to raise if a write failed with ``error``. ``what`` names the file in the message."""
    if no_room(error, folder):
        return StoreFull(f"no room for {what}: nothing was recorded. Free some space on that disk")
    return broken(error, what)


def broken(error: BaseException, what: str) -> StoreBroken:
    """The error to raise if a write failed after a part of it was written."""
    return StoreBroken(
        f"writing to {what} failed ({error}), and which part of it is on the disk is unknown. Repair the"
        " disk, then start this process again"
    )


def _spent(folder: Path) -> bool:
    """Whether there is no room for a small file."""
    probe = folder / f".undoubt-room-{os.getpid()}"
    try:
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, bytes(_PROBE_BYTES))
            os.write(descriptor, bytes(1))  # the first write may be shortened without an error
        finally:
            os.close(descriptor)
            probe.unlink()
    except OSError as error:
        return error.errno in _NO_ROOM
    return False
