"""Writes files and names durably: they are on the disk when the function returns."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from undoubt.coordinator.errors import LedgerUnavailable
from undoubt.participants.errors import UsageError

_OF_THE_PATH = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR),
        *(errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP),
    }
)
"""Errors that another path would not have had."""


def sync_folder(folder: Path) -> None:
    """Make names durable that were added, changed or removed in ``folder`` (fsync(2), on directories)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_new(path: Path, content: bytes, what: str) -> None:
    """Write a new file of mode 0600, durably and atomically. Raises ``UsageError`` if the file exists or
    cannot be made at that path, and ``LedgerUnavailable`` if there is no room or the disk fails; ``what``
    names the kind of file in the message. Both are the same to a client of the ledger's owner."""
    try:
        fresh = path.with_name(path.name + f".{os.getpid()}.new")
        fresh.unlink(missing_ok=True)  # left by a killed process with the same id
    except (OSError, ValueError) as error:  # not a valid name of a file, or too long
        raise UsageError(f"cannot write {str(path)[:200]!r}: {error}") from None
    try:
        with fresh.open("xb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(fresh)  # unlike a rename, this overwrites nothing
        finally:
            fresh.unlink()
        sync_folder(path.parent)
    except FileExistsError:
        raise UsageError(f"{path} exists already; {what} overwrites no file") from None
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        kind = UsageError if error.errno in _OF_THE_PATH else LedgerUnavailable
        raise kind(f"cannot write {path}: {error.strerror or error}") from error
