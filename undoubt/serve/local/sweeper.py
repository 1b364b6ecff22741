"""Cleans up after a parent that was killed.

``python -m undoubt.serve.local.sweeper FOLDER`` waits until its stdin, a pipe from the parent, closes. It
then ends the processes that it was told of, waits until they and the parent are dead, and removes the
parent's temporary folders, of which FOLDER is one. A parent that ends in order has nothing left to remove by
then. On stdin, one line each: ``PID SIGNAL``, a process and the number of the signal that ends it."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

from undoubt.embedded.places import remove_place, started, sweep

LOOK_S = 0.02
WAIT_S = 30.0
"""How long the processes may take to end; a server's immediate shutdown takes far less."""


def main(folder: Path) -> None:
    """Until the parent has ended and nothing of it is left."""
    parent = os.getppid()
    known = {parent: (started(parent), 0)}
    print("ready", flush=True)
    for line in sys.stdin:
        pid, number = (int(word) for word in line.split())
        known[pid] = (started(pid), number)
    for pid, (since, number) in known.items():
        if number and since and started(pid) == since:  # else another process has that id now
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
    end = time.monotonic() + WAIT_S
    while any(since and started(pid) == since for pid, (since, _) in known.items()):
        if time.monotonic() > end:
            break
        time.sleep(LOOK_S)
    sweep()
    remove_place(folder)  # also where processes have no known start, so that `sweep` cannot judge


if __name__ == "__main__":
    main(Path(sys.argv[1]))
