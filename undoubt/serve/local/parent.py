"""How a child notices that its parent has died, and ends too."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent() -> None:
    """By the kernel's signal, on Linux. https://man7.org/linux/man-pages/man2/prctl.2.html"""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def die_with_stdin() -> None:
    """On every system, where stdin is a pipe from the parent: the pipe closes when the parent ends."""
    threading.Thread(target=_watch_stdin, name="undoubt-parent", daemon=True).start()


def _watch_stdin() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGKILL)
