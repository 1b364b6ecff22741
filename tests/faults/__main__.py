"""``python -m tests.faults``: everything that goes wrong, for a minute, and then the account.

Exit status 0: nothing was lost, split or left in doubt. 1: something was, see ``failures``. 2: it cannot run
here. 130: it was interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import SystemRandom
from types import FrameType
from typing import NoReturn

from tests.faults.inside import ORDERLY_S, arguments
from tests.faults.machines import faketime_library
from tests.undoubt.cli.harness import REPOSITORY

PREFIX = "undoubt-faults-"
WORLD = ("unshare", "--mount", "--net", "--pid", "--ipc", "--fork", "--kill-child", "--mount-proc")
PROGRAMS = {
    "unshare": "util-linux",
    "mount": "mount",
    "ip": "iproute2",
    "nft": "nftables",
    "mkfs.ext4": "e2fsprogs",
}
"""And their packages in Debian."""
SBIN = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def missing() -> list[str]:
    """Why there cannot be networks, disks and clocks of one's own here, and the way out; nothing if there
    can."""
    if os.geteuid() != 0:
        return ["only root can make network namespaces and mounts: run it with sudo, or with --signals-only"]
    packages = {package for program, package in PROGRAMS.items() if shutil.which(program, path=SBIN) is None}
    if faketime_library() is None:
        packages.add("faketime")
    if packages:
        names = " ".join(sorted(packages))
        return [f"not installed: {names}. On Debian or Ubuntu: apt-get install {names}"]
    tried = subprocess.run([*WORLD, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        return [f"this machine allows root no namespaces ({tried.stderr.strip()}): use --signals-only"]
    return []


@contextlib.contextmanager
def own_place() -> Iterator[tuple[Path, int]]:
    """A folder for one run, and its lock, which is held for as long as anybody lives who needs it. What runs
    that were killed have left is removed first."""
    sweep_left(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    folder.chmod(0o711)  # PostgreSQL's servers run as another user
    with (folder / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield folder, lock.fileno()
        finally:
            sweep(folder)


def sweep_left(place: Path) -> None:
    """Remove the folders that nobody holds any more."""
    for left in place.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), (left / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            sweep(left)


def sweep(folder: Path) -> None:
    """End every process that works in ``folder``, also one that was stopped, and remove it."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if Path(os.readlink(process / "cwd")).is_relative_to(folder):
                os.kill(int(process.name), signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def keep(folder: Path, logs: Path) -> None:
    logs.mkdir(parents=True, exist_ok=True)
    for pattern in ("*.log", "told-*", "*.toml"):
        for file in folder.glob(pattern):
            shutil.copy(file, logs)


def interrupted(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def run(folder: Path, lock: int, given: argparse.Namespace) -> int:
    """In a world of its own; its exit status."""
    command = [sys.executable, "-m", "tests.faults.inside", "--seed", str(given.seed)]
    command += ["--seconds", str(given.seconds), "--protocol", given.protocol]
    command = [*command, "--signals-only"] if given.signals_only else [*WORLD, *command]
    # A session of its own: Ctrl-C is this process's, and the end of its input is the word to the other.
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env={**os.environ, "TMPDIR": str(folder), "PATH": SBIN},
        stdin=subprocess.PIPE, pass_fds=(lock,), start_new_session=True,
    )  # fmt: skip
    try:
        return process.wait()
    except KeyboardInterrupt:
        print("interrupted: everything is being removed", file=sys.stderr)
        if process.stdin is not None:
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(ORDERLY_S * 2)
        process.kill()
        process.wait()
        return 130


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    arguments(parser)
    parser.add_argument("--logs", type=Path, help="a folder where all logs, and all that was told, are left")
    given = parser.parse_args()
    if given.seed is None:
        given.seed = SystemRandom().randrange(1_000_000)
    if not given.signals_only and (reasons := missing()):
        print("\n".join(reasons), file=sys.stderr)
        return 2
    signal.signal(signal.SIGINT, interrupted)
    signal.signal(signal.SIGTERM, interrupted)
    with own_place() as (folder, lock):
        try:
            return run(folder, lock, given)
        finally:
            if given.logs is not None:
                keep(folder, given.logs)


if __name__ == "__main__":
    sys.exit(main())
