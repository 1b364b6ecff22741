"""Ends a child process when its parent ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends (Linux only).
    https://man7.org/linux/man-pages/man2/prctl.2.html"""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def die_with_stdin() -> None:
    """Kill this process when its stdin closes. Stdin must be a pipe from the parent, which closes when the
    parent ends. Works on every system."""
    threading.Thread(target=_watch_stdin, name="undoubt-parent", daemon=True).start()


def _watch_stdin() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGKILL)
