"""Reserves disk space that is released when the disk is full.

With the released space, a node that has no room for new entries can still store its term and its vote, and so
take part in elections. The space is reserved again once there is room for it twice, since less free space
would be used up immediately; until then the disk counts as full.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

RESERVE_BYTES = 16 * 1024 * 1024


class Reserve:
    def __init__(self, path: Path, size: int = RESERVE_BYTES) -> None:
        self._path = path
        self._size = size
        self.held = False

    def give_up(self) -> bool:
        """Release the space. Returns whether there was a reserve."""
        self.held = False
        try:
            self._path.unlink()
        except OSError:  # there is none, or it cannot be removed
            return False
        return True

    def hold(self) -> bool:
        """Reserve the space if it is not reserved, and if as much again stays free. Returns whether it is
        reserved."""
        if not self.held:
            self.held = self._take()
        return self.held

    def _take(self) -> bool:
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return False
        try:
            taken = self._allocated(descriptor)
        finally:
            os.close(descriptor)
        if not taken:
            with contextlib.suppress(OSError):
                self._path.unlink()
        return taken

    def _allocated(self, descriptor: int) -> bool:
        try:
            room = os.fstatvfs(descriptor)
            missing = self._size - os.fstat(descriptor).st_size
            if missing > 0 and room.f_bavail * room.f_frsize < self._size + missing:
                return False
            os.posix_fallocate(descriptor, 0, self._size)
        except OSError:
            return False
        return True
