"""A service manager's socket, to which services report (sd_notify(3))."""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

PATIENCE_S = 150.0


class ServiceManager:
    """Reads the reports that come to a socket in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notify"
        self.door = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.door.bind(str(self.path))
        self.door.settimeout(PATIENCE_S)

    @classmethod
    @contextlib.contextmanager
    def listening(cls) -> Iterator[ServiceManager]:
        with tempfile.TemporaryDirectory(prefix="undoubt-") as folder:
            made = cls(Path(folder))
            try:
                yield made
            finally:
                made.door.close()

    def next(self) -> list[str]:
        """The lines of the next report."""
        return self.door.recv(4096).decode().split("\n")

    def until(self, line: str) -> list[str]:
        """The first report with ``line``; none but signs of life may come before it."""
        while line not in (told := self.next()):
            assert told == ["WATCHDOG=1"]
        return told

    def waiting(self) -> int:
        """How many reports have come and were not read; they are read by this."""
        count = 0
        self.door.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while self.door.recv(4096):
                count += 1
        self.door.settimeout(PATIENCE_S)
        return count
