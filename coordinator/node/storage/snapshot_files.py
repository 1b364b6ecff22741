"""Stores snapshots of a node's state machine, one file each, named by its index and its digest.

A file gets its name once it is complete and durable. The log names the current snapshot (:mod:`.logged`); the
others are removed.

::

    0    magic, 16 bytes
    16   length of the meta data, 4 bytes, little endian; meta data (msgpack); image
    end  BLAKE2b over everything before, 16 bytes: its digest
"""

from __future__ import annotations

import contextlib
import os
from hashlib import blake2b
from pathlib import Path

import msgspec

from undoubt.coordinator.ledger import disk
from undoubt.coordinator.ledger.durable import sync_folder
from undoubt.coordinator.node.storage.contract import Snapshot
from undoubt.coordinator.node.storage.logged import SnapshotName
from undoubt.coordinator.node.storage.segment_log import Damaged
from undoubt.coordinator.raft import SnapshotMeta

_MAGIC = b"undoubt-snapshot"
_DIGEST_BYTES = 16
_encode = msgspec.msgpack.Encoder(order="deterministic").encode
_decode = msgspec.msgpack.Decoder(SnapshotMeta).decode


def path_of(folder: Path, name: SnapshotName) -> Path:
    return folder / f"snapshot-{name.index:010}-{name.digest.hex()}"


def store(folder: Path, snapshot: Snapshot) -> SnapshotName:
    """Store ``snapshot``; it is durable when this returns. Raises ``StoreFull``, ``StoreBroken``."""
    meta = _encode(snapshot.meta)
    head = _MAGIC + len(meta).to_bytes(4, "little") + meta
    digest = _digest(head, snapshot.image)
    name = SnapshotName(snapshot.meta.index, snapshot.meta.term, digest)
    path = path_of(folder, name)
    new = path.with_name(path.name + ".new")
    try:
        with open(new, "wb", opener=_private) as file:  # noqa: PTH123 - with the rights that it is to have
            file.writelines((head, snapshot.image, digest))
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
        sync_folder(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink()
        raise disk.failed(error, folder, f"a snapshot in {folder}") from error
    return name


def load(folder: Path, name: SnapshotName) -> Snapshot:
    """Read a snapshot. Raises :class:`~undoubt.coordinator.node.storage.segment_log.Damaged`."""
    path = path_of(folder, name)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise Damaged(f"its snapshot {path.name} is missing") from None
    length = int.from_bytes(data[16:20], "little")
    head, image, digest = data[: 20 + length], data[20 + length : -_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if digest != name.digest or _digest(head, image) != digest or head[:16] != _MAGIC:
        raise Damaged(f"its snapshot {path.name} does not match its checksum")
    return Snapshot(_decode(head[20:]), image)


def remove_others(folder: Path, kept: SnapshotName | None) -> None:
    """Remove all snapshots but ``kept``, and files of unfinished attempts. Raises ``OSError``."""
    for path in folder.glob("snapshot-*"):
        if kept is None or path != path_of(folder, kept):
            path.unlink()


def _digest(head: bytes, image: bytes) -> bytes:
    hashed = blake2b(head, digest_size=_DIGEST_BYTES)
    hashed.update(image)
    return hashed.digest()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
