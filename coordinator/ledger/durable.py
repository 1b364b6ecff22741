"""Writes files and names durably: they are on the disk when the function returns."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from undoubt.coordinator.errors import LedgerUnusable


def sync_folder(folder: Path) -> None:
    """Make names durable that were added, changed or removed in ``folder`` (fsync(2), on directories)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_new(path: Path, content: bytes, what: str) -> None:
    """Write a new file of mode 0600, durably and atomically. Raises ``LedgerUnusable`` if the file exists or
    cannot be written; ``what`` names the kind of file in that message."""
    try:
        fresh = path.with_name(path.name + f".{os.getpid()}.new")
        fresh.unlink(missing_ok=True)  # left by a killed process with the same id
    except (OSError, ValueError) as error:  # not a valid name of a file, or too long
        raise LedgerUnusable(f"cannot write {str(path)[:200]!r}: {error}") from None
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
        raise LedgerUnusable(f"{path} exists already; {what} overwrites no file") from None
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise LedgerUnusable(f"cannot write {path}: {error.strerror or error}") from error
