"""A backup of a cluster's ledger: one file, checked as a whole.

::

    undoubt-backup 1\n    SHA-256 of the rest    msgpack: About, image

The file holds the state that the nodes agree on: sessions, decisions, heuristic outcomes. Details of finished
transactions are kept by each node for itself and are not part of the backup.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from undoubt.coordinator.errors import LedgerUnusable
from undoubt.coordinator.ledger.durable import write_new

MAGIC = b"undoubt-backup 1\n"


class About(msgspec.Struct, frozen=True):
    """The origin of a backup. ``index`` and ``term`` are those of the last log entry in the backup; ``at`` is
    the wall clock, in seconds since 1970."""

    cluster: str
    ledger_id: str
    index: int
    term: int
    at: float
    version: str


NOT_IN_BACKUP = "not in this backup, which was made before the act had ended"
"""The result, in a restored ledger, of acts that had not ended when the backup was made. The act of making
the backup is always one of them."""


class Backup(msgspec.Struct, frozen=True, array_like=True):
    about: About
    image: bytes

    @property
    def digest(self) -> str:
        """The SHA-256 of the encoded backup, in hexadecimal: equal for equal files."""
        return hashlib.sha256(msgspec.msgpack.encode(self)).hexdigest()


def write(path: Path, backup: Backup) -> int:
    """Write ``backup`` to ``path``, durably and atomically; returns the size in bytes. Raises
    ``LedgerUnusable`` if the file exists, or cannot be written."""
    content = msgspec.msgpack.encode(backup)
    whole = MAGIC + hashlib.sha256(content).digest() + content
    write_new(path, whole, "a backup")
    return len(whole)


@contextlib.contextmanager
def reading_image(what: object) -> Iterator[None]:
    """A context around the restoring of a backup's image. Raises ``LedgerUnusable``, naming ``what``, if this
    version cannot read the image."""
    try:
        yield
    except ValueError as error:  # the base of msgspec's errors
        raise LedgerUnusable(
            f"{what} cannot be read ({error}); was it written by a newer version?"
        ) from error


def read(path: Path) -> Backup:
    """The backup in the file ``path``. Raises ``LedgerUnusable`` if the file cannot be read, is no backup, or
    is damaged."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LedgerUnusable(f"cannot read {path}: {error.strerror or error}") from error
    if not content.startswith(MAGIC):
        raise LedgerUnusable(f"{path} is no backup that this version of undoubt knows")
    digest, rest = content[len(MAGIC) : len(MAGIC) + 32], content[len(MAGIC) + 32 :]
    if hashlib.sha256(rest).digest() != digest:
        raise LedgerUnusable(f"{path} is damaged: it does not match its checksum")
    return msgspec.msgpack.decode(rest, type=Backup)
