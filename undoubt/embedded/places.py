"""Makes temporary folders, and removes those of processes that have ended.

A process removes its folders when it ends. A killed process cannot; so a folder's name contains its process,
and the next process that makes a folder removes the folders of processes that no longer run.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import os
import re
import shutil
import tempfile
from pathlib import Path

NOBODY = 65534
DEAD = frozenset({"Z", "X"})
"""States of processes that no longer run, in /proc/PID/stat. A zombie (Z) waits for its parent to collect
it."""
_IPC_RMID = 0  # linux/ipc.h
_NAME = re.compile(r"undoubt-(?:server|template|programs|demo|dev)-(\d+)-(\d+)-(\d+)-\w+")


def server_user() -> int | None:
    """The user to run a server as: None for this process's user, ``NOBODY`` if that is root."""
    return NOBODY if os.geteuid() == 0 else None


def new_place(kind: str, *, keep: bool = False) -> Path:
    """Make a new private folder; ``kind`` is server, template, programs, demo or dev. With ``keep`` the
    folder stays after this process has ended. The folders of ended processes are removed first."""
    _sweep_once(os.getpid())
    if keep:
        return Path(tempfile.mkdtemp(prefix=f"undoubt-kept-{kind}-"))
    place = Path(
        tempfile.mkdtemp(prefix=f"undoubt-{kind}-{_namespace()}-{os.getpid()}-{started(os.getpid())}-")
    )
    atexit.register(_remove_at_exit, place, os.getpid())
    return place


def remove_place(place: Path) -> None:
    """Remove the folder, and the shared memory segment that a killed server has left in the kernel."""
    _remove_memory(place)
    shutil.rmtree(place, ignore_errors=True)


def give(folder: Path, user: int | None) -> None:
    """Make ``user`` the owner of all files in ``folder``, and make the folders private, as PostgreSQL
    requires."""
    for place in (folder, *folder.rglob("*")):
        if user is not None:
            os.chown(place, user, user, follow_symlinks=False)
        if place.is_dir():
            place.chmod(0o700)


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def state(pid: int) -> str:
    """The state of process ``pid`` as one letter, as in ps; ``X`` if there is no such process."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return "X"


def _remove_at_exit(place: Path, owner_pid: int) -> None:
    if os.getpid() == owner_pid:  # a forked child must not remove its parent's folders
        remove_place(place)


@functools.cache
def _sweep_once(_pid: int) -> None:
    sweep()


def sweep() -> bool:
    """Remove the folders of processes that have ended. Returns whether none of them is left: a server whose
    parent was killed may still write while it shuts down."""
    left = False
    mine = {os.geteuid(), NOBODY} if os.geteuid() == 0 else {os.geteuid()}
    for place in Path(tempfile.gettempdir()).glob("undoubt-*"):
        name = _NAME.fullmatch(place.name)
        if name is None or int(name[1]) != _namespace():  # a pid is valid in one namespace
            continue
        with contextlib.suppress(OSError):
            if place.lstat().st_uid in mine and started(int(name[2])) != int(name[3]):
                remove_place(place)
                left = left or place.exists()
    return not left


@functools.cache
def _namespace() -> int:
    """The number of this process's pid namespace, 0 if it is not known."""
    with contextlib.suppress(OSError):
        return Path("/proc/self/ns/pid").stat().st_ino
    return 0


def started(pid: int) -> int:
    """When process ``pid`` was started, in clock ticks since the machine's start; 0 if it does not run. Pid
    and start time together are unique. https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html, field
    22."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return 0 if fields[0] in DEAD else int(fields[19])
    return 0


def _remove_memory(place: Path) -> None:
    """Remove the shared memory segment of a killed server. PostgreSQL itself would remove it only at the next
    start on the same data. Line 7 of postmaster.pid has its key and id (PostgreSQL's
    src/include/utils/pidfile.h)."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        key, identity = (place / "data" / "postmaster.pid").read_text().splitlines()[6].split()
        for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[:2] == [str(int(key)), identity] and fields[6] == "0":
                ctypes.CDLL(None).shmctl(int(identity), _IPC_RMID, None)
