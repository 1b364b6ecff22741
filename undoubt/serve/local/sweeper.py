"""Cleans up after a parent process that was killed.

``python -m undoubt.serve.local.sweeper FOLDER`` waits until its stdin, a pipe from the parent, closes. It
then ends the processes that were listed on stdin, waits until these processes and the parent have ended, and
removes the parent's temporary folders, of which FOLDER is one. A parent that ends in order has removed
everything by then. Each line on stdin is ``PID SIGNAL``: a process, and the number of the signal that ends
it."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

from undoubt.embedded.places import remove_place, started, sweep

LOOK_S = 0.02
WAIT_S = 30.0
"""The longest wait for the end of the processes; a server's immediate shutdown takes far less."""


def main(folder: Path) -> None:
    """Wait for the end of the parent, then end its processes and remove its folders."""
    parent = os.getppid()
    known = {parent: (started(parent), 0)}
    print("ready", flush=True)
    for line in sys.stdin:
        pid, number = (int(word) for word in line.split())
        known[pid] = (started(pid), number)
    for pid, (since, number) in known.items():
        if number and since and started(pid) == since:  # otherwise the id now belongs to another process
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
    end = time.monotonic() + WAIT_S
    while any(since and started(pid) == since for pid, (since, _) in known.items()):
        if time.monotonic() > end:
            break
        time.sleep(LOOK_S)
    # A server that was being started is not on the list: it ends with its parent, and writes until then.
    while not sweep() and time.monotonic() < end:
        time.sleep(LOOK_S)
    remove_place(folder)  # also where processes have no known start, so that `sweep` cannot judge


if __name__ == "__main__":
    main(Path(sys.argv[1]))
