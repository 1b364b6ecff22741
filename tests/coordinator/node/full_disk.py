"""A node's disk that has no room for another file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from undoubt.coordinator.node.storage import segment
from undoubt.coordinator.node.storage.node_storage import NodeStorage


class FullDisk:
    """While ``full`` no segment can be made in ``folder``, as if other files had taken all the room there
    is."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        allocate = segment.allocate

        def refuse(path: Path, size_bytes: int) -> None:
            if self.full and path.parent == folder:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            allocate(path, size_bytes)

        monkeypatch.setattr(segment, "allocate", refuse)


def without_room(storage: NodeStorage) -> None:
    """The next write needs a new segment, and there is no reserve to be given up for it."""
    active = storage.files.log.active
    active.size_bytes = active.end
    (storage.files.folder / segment.SPARE_NAME).unlink(missing_ok=True)
    storage.reserve.give_up = lambda: False  # type: ignore[method-assign]
