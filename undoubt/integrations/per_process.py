"""One synchronous coordinator for each process: servers and workers fork after they have loaded the
application."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from os import PathLike
from typing import Any

import undoubt.sync
from undoubt.config import Settings
from undoubt.integrations import validation
from undoubt.sync import Coordinator

Source = str | PathLike[str] | Mapping[str, Any] | Settings | None


class PerProcess:
    """Opens a coordinator when it is first asked for in a process. The interpreter's exit closes it.
    ``coordinator``: one that the application opens itself. Raises ``UsageError``."""

    def __init__(self, source: Source = None, coordinator: Coordinator | None = None) -> None:
        validation.source(source)
        if coordinator is not None:
            validation.synchronous(coordinator)
        self._source = source
        self._lock = threading.Lock()
        self._given = coordinator
        self._opened: tuple[int, Coordinator] | None = None

    def get(self) -> Coordinator:
        """The coordinator of this process. Raises ``ConfigurationError``, ``LedgerError``."""
        if self._given is not None:
            return self._given
        with self._lock:
            pid = os.getpid()
            if self._opened is None or self._opened[0] != pid:
                self._opened = (pid, self._open())
            return self._opened[1]

    def _open(self) -> Coordinator:
        return undoubt.sync.connect(self._source)

    def close(self) -> None:
        """Close the coordinator of this process, if one was opened here. The next call opens another."""
        with self._lock:
            opened, self._opened = self._opened, None
        if opened is not None and opened[0] == os.getpid():
            opened[1].close()
