"""A disk that hangs: the threads of a process that wait for it make no progress, and its event loop goes on.

By ptrace (https://man7.org/linux/man-pages/man2/ptrace.2.html), which holds single threads; SIGSTOP only
holds whole processes, and a disk that really hung could not be taken away again.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
from pathlib import Path

_SEIZE, _INTERRUPT, _DETACH = 0x4206, 0x4207, 17
_WALL = 0x40000000
LOOK_S = 0.001

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


class Stall:
    """Of all threads of ``pid`` but its first. All calls from one thread."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._held: list[int] = []

    async def begin(self) -> None:
        """Return once they stand still."""
        threads = [int(task.name) for task in Path(f"/proc/{self._pid}/task").iterdir()]
        for thread in threads:
            if thread != self._pid and _ptrace(_SEIZE, thread) and _ptrace(_INTERRUPT, thread):
                self._held.append(thread)
        for thread in self._held:
            while os.waitpid(thread, _WALL | os.WNOHANG)[0] == 0:
                await asyncio.sleep(LOOK_S)

    async def end(self) -> None:
        """They go on. Of a process that was killed they are only gone after this."""
        held, self._held = self._held, []
        for thread in held:
            while not _ptrace(_DETACH, thread):
                try:
                    if os.waitpid(thread, _WALL | os.WNOHANG)[0]:
                        break
                except ChildProcessError:
                    break
                await asyncio.sleep(LOOK_S)


def _ptrace(request: int, thread: int) -> bool:
    """False if there is no such thread, or not any more."""
    if _libc.ptrace(request, thread, None, None) == 0:
        return True
    if ctypes.get_errno() != errno.ESRCH:
        raise OSError(ctypes.get_errno(), f"ptrace of thread {thread}")
    return False
