"""``undoubt node`` on a disk that can be told to hang, to be slow, to fail and to be full.

Arguments: the file that tells what is wrong, then those of the command line. While that file exists its
:class:`Trouble` holds. The disk is that of the machine; between it and the node's storage lies a layer that
delays or refuses the calls of the operating system. When trouble meets a call first, it is told as a line on
stderr, beside the log.

A sync that fails loses what it should have written, as Linux does: it stays readable in the page cache,
later syncs succeed without it, and it is gone after a power failure. The layer keeps what the disk would hold
without it in a file, ``FILE.lost``; :func:`power_fails` puts that back. What is written once more, and
synced, is not lost any more.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, cast

import msgspec

from tests.stand_in import put
from undoubt.cli import main
from undoubt.coordinator.ledger import anchor
from undoubt.coordinator.node.storage import reserve, segment, snapshot_files
from undoubt.coordinator.node.storage.contract import Stored
from undoubt.coordinator.node.storage.node_storage import NodeStorage
from undoubt.serve import node as serve

SEGMENT_BYTES = 32 * 1024
"""Small, so that new ones are begun all the time."""
LOOK_S = 0.005
RECORD, SEGMENT, SNAPSHOT = "record", "segment", "snapshot"


class Trouble(msgspec.Struct, frozen=True):
    """``sync_s``: each sync takes so much longer; below 0, until this trouble is over. ``code``: the error
    that calls fail with. ``at``: which calls: the sync of a ``record``, of a new ``segment``, of a
    ``snapshot``; empty: all that take room."""

    sync_s: float = 0.0
    code: int = 0
    at: str = ""

    def write(self, path: Path) -> None:
        new = path.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(self))
        new.rename(path)


class Layer:
    """Between the storage and the operating system. Only the disk's thread calls it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lost_path = lost_of(path)
        self._told: Trouble | None = None
        self._failed = False
        self._unsynced: dict[str, list[tuple[int, bytes]]] = {}
        """By file: what stood there before each write since the last sync."""

    def trouble(self) -> Trouble | None:
        try:
            found = msgspec.json.decode(self._path.read_bytes(), type=Trouble)
        except FileNotFoundError:
            return None
        return found

    def _meets(self, trouble: Trouble, where: str) -> None:
        if self._told != trouble:
            self._told = trouble
            os.write(2, json.dumps({"met": where}).encode() + b"\n")

    def sync(self, where: str, descriptor: int) -> None:
        """Raises what the trouble has to say."""
        if self._failed:
            os.write(2, json.dumps({"synced_again": where}).encode() + b"\n")
        trouble = self.trouble()
        if trouble is not None and trouble.sync_s:
            self._meets(trouble, where)
            self._wait(trouble)
        if trouble is not None and trouble.code and trouble.at == where:
            self._meets(trouble, where)
            self._fail()
            raise OSError(trouble.code, os.strerror(trouble.code))
        self._kept(os.readlink(f"/proc/self/fd/{descriptor}"))

    def _wait(self, trouble: Trouble) -> None:
        end = time.monotonic() + trouble.sync_s if trouble.sync_s > 0 else float("inf")
        while time.monotonic() < end and self.trouble() == trouble:
            time.sleep(LOOK_S)  # in the thread that syncs: a sync that hangs holds exactly this thread

    def room(self, where: str) -> None:
        """Raises if there is none."""
        trouble = self.trouble()
        if trouble is not None and trouble.code and not trouble.at:
            self._meets(trouble, where)
            raise OSError(trouble.code, os.strerror(trouble.code))

    def writes(self, descriptor: int, size: int, at: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        with Path(path).open("rb") as file:
            file.seek(at)
            self._unsynced.setdefault(path, []).append((at, file.read(size)))

    def _fail(self) -> None:
        self._failed = True
        lost = {path: [(at, old.hex()) for at, old in each] for path, each in self._unsynced.items()}
        self._write_lost(lost)

    def _write_lost(self, lost: dict[str, list[tuple[int, str]]]) -> None:
        new = self._lost_path.with_suffix(".lost-new")
        new.write_text(json.dumps(lost))
        new.rename(self._lost_path)

    def _kept(self, path: str) -> None:
        """What was written to ``path`` is on the disk now."""
        written = self._unsynced.pop(path, [])
        if not self._lost_path.exists():
            return
        lost = json.loads(self._lost_path.read_text())
        lost[path] = [
            (at, old)
            for at, old in lost.get(path, [])
            if not any(begin <= at and at + len(old) // 2 <= begin + len(new) for begin, new in written)
        ]
        self._write_lost(lost)


def lost_of(path: Path) -> Path:
    return path.with_suffix(".lost")


def power_fails(path: Path) -> int:
    """What syncs that failed did not write is not there. How many writes that is. While no node runs."""
    lost = lost_of(path)
    if not lost.exists():
        return 0
    count = 0
    for name, writes in json.loads(lost.read_text()).items():
        for at, old in reversed(writes):
            count += 1
            with Path(name).open("r+b") as file:
                file.seek(at)
                file.write(bytes.fromhex(old))
    lost.unlink()
    return count


class Calls:
    """``os`` as one module of the storage sees it. ``where``: what its ``fsync`` is about."""

    def __init__(self, layer: Layer, where: str) -> None:
        self._layer = layer
        self._where = where

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fdatasync(self, descriptor: int) -> None:
        self._layer.sync(RECORD, descriptor)
        os.fdatasync(descriptor)

    def fsync(self, descriptor: int) -> None:
        if self._where == SNAPSHOT:
            self._layer.room(SNAPSHOT)
        self._layer.sync(self._where, descriptor)
        os.fsync(descriptor)

    def pwrite(self, descriptor: int, data: bytes, at: int) -> int:
        self._layer.writes(descriptor, len(data), at)
        return os.pwrite(descriptor, data, at)

    def write(self, descriptor: int, data: bytes) -> int:
        self._layer.room(SEGMENT)
        return os.write(descriptor, data)

    def posix_fallocate(self, descriptor: int, offset: int, size: int) -> None:
        self._layer.room("reserve")
        os.posix_fallocate(descriptor, offset, size)


class SmallSegments(NodeStorage):
    @classmethod
    async def open(
        cls, folder: Path, *, segment_bytes: int = SEGMENT_BYTES, number: int = 0
    ) -> tuple[NodeStorage, Stored]:
        return await super().open(folder, segment_bytes=segment_bytes, number=number)


def no_room(code: int = errno.ENOSPC) -> Trouble:
    """Nothing new fits, though calls that need no room go on; also what the node gives up is used at once."""
    return Trouble(code=code)


if __name__ == "__main__":
    made = Layer(Path(sys.argv[1]))
    for module, what in ((segment, SEGMENT), (snapshot_files, SNAPSHOT), (reserve, "reserve")):
        module.os = cast("Any", Calls(made, what))  # type: ignore[attr-defined]
    anchor.os = cast("Any", Calls(made, "anchor"))  # type: ignore[attr-defined]
    put(serve, "NodeStorage", SmallSegments)
    sys.argv = ["undoubt", *sys.argv[2:]]
    main()
