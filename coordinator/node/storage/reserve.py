"""Disk space that is set aside, to be given up when the disk is full.

With it a node that has no room for new entries can still store its term and its vote, and so stays a member
that elects. It is set aside again, and the disk counts as full until then, once there is room for it twice:
what is free by less would be used up at once.
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
        """Make room. Whether there was any to make."""
        self.held = False
        try:
            self._path.unlink()
        except OSError:  # there is none, or it cannot be removed
            return False
        return True

    def hold(self) -> bool:
        """Set the space aside if it is not, and leaves as much again to others. Whether it is."""
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
