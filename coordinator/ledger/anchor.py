"""A small file beside a store, which shows whether the store was set back: ``Anchor``.

A store that is restored from yesterday's copy is consistent: all its checksums are right. But the records
that were acknowledged since the copy are missing. So the index of the last durable record, and the hash that
chains all records up to it, are written to a second file after each batch. A store without the record that
its anchor names was set back, or has lost the end of its log. Without the anchor both would look like the end
of a log that a crash left half written.

The anchor's file is made once, synced, and from then on overwritten in place, without a sync: it is one
sector, so no crash leaves half of it. It is written after the batch is durable, so after a power failure it
may be older than the store, never newer. Device, inode and times of a file prove nothing: ``cp`` over a file
keeps the inode, and a volume that is attached again has another device.

::

    0    magic, 16 bytes
    16   index of the last durable record, 8 bytes, big endian
    24   hash that chains all records up to it, 16 bytes
    40   id of the store: length (1 byte), ASCII
    508  CRC-32 over everything before
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from undoubt.coordinator.errors import LedgerUnusable
from undoubt.coordinator.ledger.durable import sync_folder

SIZE_BYTES = 512
CHAIN_BYTES = 16
GENESIS = bytes(CHAIN_BYTES)
"""The chain before the first record."""

_MAGIC = b"undoubt-anchor 1"
_OWNER_AT = 40
_OWNER_BYTES_MAX = 255


@dataclass(frozen=True, slots=True)
class Mark:
    """The last durable record: its index, and the hash that chains everything up to it."""

    index: int
    chain: bytes


START = Mark(0, GENESIS)


def chained(chain: bytes, data: bytes) -> bytes:
    """The chain after a record that holds ``data``: BLAKE2b over the chain before it and the record."""
    return blake2b(chain + data, digest_size=CHAIN_BYTES).digest()


class AnchorUnusable(LedgerUnusable):
    """The anchor is missing (``missing``), the process has no permission to open it (``denied``: its content
    is not known), it is damaged, or it belongs to another store."""

    def __init__(self, message: str, *, missing: bool = False, denied: bool = False) -> None:
        super().__init__(message)
        self.missing = missing
        self.denied = denied


class Anchor:
    """The open anchor of one store. Made by :meth:`create` or :meth:`open`; keeps its file open. Not
    thread-safe."""

    def __init__(self, descriptor: int, path: Path, owner: str, mark: Mark) -> None:
        self.path = path
        self.mark = mark
        self._owner = owner
        self._descriptor = descriptor

    @classmethod
    def create(cls, path: Path, owner: str, mark: Mark = START) -> Anchor:
        """Make the file, or replace it, synced with its folder. ``owner``: the id of the store, ASCII, at
        most 255 characters."""
        new = path.with_name(path.name + ".new")
        descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(descriptor, _encoded(owner, mark), 0)
            os.fsync(descriptor)
            new.rename(path)
            sync_folder(path.parent)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(descriptor, path, owner, mark)

    @classmethod
    def open(cls, path: Path, owner: str) -> Anchor:
        """Open the anchor at ``path``, of store ``owner``. Raises :class:`AnchorUnusable`."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise AnchorUnusable(f"{path} is missing", missing=True) from None
        except PermissionError as error:
            raise AnchorUnusable(f"{path} cannot be opened: {error.strerror}", denied=True) from error
        except OSError as error:
            raise AnchorUnusable(f"{path} cannot be read: {error.strerror}") from error
        try:
            mark = _decoded(os.pread(descriptor, SIZE_BYTES, 0), path, owner)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(descriptor, path, owner, mark)

    @property
    def astray(self) -> bool:
        """Whether the open file is no longer the file at ``path``."""
        try:
            there, held = self.path.stat(), os.fstat(self._descriptor)
        except OSError:
            return True
        return (there.st_dev, there.st_ino) != (held.st_dev, held.st_ino)

    def put_back(self) -> None:
        """Make the file again at ``path``, with the current mark. Raises ``OSError``."""
        fresh = Anchor.create(self.path, self._owner, self.mark)
        os.close(self._descriptor)
        self._descriptor = fresh._descriptor

    @staticmethod
    def used(path: Path) -> bool:
        """Whether there is an anchor, of any store, that was moved since it was made: then records were
        acknowledged. True if the file cannot be read."""
        try:
            return path.read_bytes()[:SIZE_BYTES][16:_OWNER_AT] != bytes(_OWNER_AT - 16)
        except FileNotFoundError:
            return False
        except OSError:  # the file exists, and its content is not known
            return True

    @staticmethod
    def owner_of(path: Path) -> str:
        """The id of the store that the anchor at ``path`` belongs to; empty if it cannot be read."""
        try:
            data = path.read_bytes()
        except OSError:
            return ""
        body, crc = data[:-4], data[-4:]
        if len(data) != SIZE_BYTES or zlib.crc32(body).to_bytes(4, "big") != crc:
            return ""
        return body[_OWNER_AT + 1 : _OWNER_AT + 1 + body[_OWNER_AT]].decode("ascii", "replace")

    def move(self, mark: Mark) -> None:
        """Write ``mark``, which is durable in the store. Raises ``OSError``."""
        os.pwrite(self._descriptor, _encoded(self._owner, mark), 0)
        self.mark = mark

    def sync(self) -> None:
        """Sync the file. To be called before records up to the mark are dropped from the store. Raises
        ``OSError``."""
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _encoded(owner: str, mark: Mark) -> bytes:
    name = owner.encode("ascii")
    if len(name) > _OWNER_BYTES_MAX:
        raise ValueError(f"the id of a store has at most {_OWNER_BYTES_MAX} characters, not {len(name)}")
    head = _MAGIC + mark.index.to_bytes(8, "big") + mark.chain + bytes([len(name)]) + name
    body = head.ljust(SIZE_BYTES - 4, b"\0")
    return body + zlib.crc32(body).to_bytes(4, "big")


def _decoded(data: bytes, path: Path, owner: str) -> Mark:
    body, crc = data[:-4], data[-4:]
    if len(data) != SIZE_BYTES or zlib.crc32(body).to_bytes(4, "big") != crc or body[:16] != _MAGIC:
        raise AnchorUnusable(f"{path} is damaged")
    name = body[_OWNER_AT + 1 : _OWNER_AT + 1 + body[_OWNER_AT]]
    if name.decode("ascii") != owner:
        raise AnchorUnusable(f"{path} belongs to {name.decode('ascii')}, not to {owner}")
    return Mark(int.from_bytes(body[16:24], "big"), body[24:_OWNER_AT])
