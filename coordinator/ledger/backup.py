"""A backup of a cluster's ledger: one file, checked as a whole.

::

    undoubt-backup 1\n    SHA-256 of what follows    msgpack: About, image

It holds what the nodes agree on: sessions, decisions, heuristic outcomes. Details of finished transactions
are each node's own and not part of it.
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
    """``index`` and ``term`` are the log's up to which it goes; ``at`` is wall clock, seconds since 1970."""

    cluster: str
    ledger_id: str
    index: int
    term: int
    at: float
    version: str


NOT_IN_BACKUP = "not in this backup, which was made before the act had ended"
"""What a restored ledger knows of the end of an act that was under way: that of making the backup is one."""


class Backup(msgspec.Struct, frozen=True, array_like=True):
    about: About
    image: bytes

    @property
    def digest(self) -> str:
        """Equal for equal files."""
        return hashlib.sha256(msgspec.msgpack.encode(self)).hexdigest()


def write(path: Path, backup: Backup) -> int:
    """Durable, whole, under its name or not at all; its size in bytes. Raises ``LedgerUnusable`` if there is
    such a file, or no room."""
    content = msgspec.msgpack.encode(backup)
    whole = MAGIC + hashlib.sha256(content).digest() + content
    write_new(path, whole, "a backup")
    return len(whole)


@contextlib.contextmanager
def reading_image(what: object) -> Iterator[None]:
    """Around restoring a backup's image. Raises ``LedgerUnusable``, naming ``what``, if the image is none
    that this version can read."""
    try:
        yield
    except ValueError as error:  # msgspec's are
        raise LedgerUnusable(
            f"{what} cannot be read ({error}); was it written by a newer version?"
        ) from error


def read(path: Path) -> Backup:
    """Raises ``LedgerUnusable`` if it cannot be read, or is not what was written."""
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
