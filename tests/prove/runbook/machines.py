"""The machines of the page: a shell on each, and the programs in it that are not undoubt's own.

``systemctl``, ``journalctl``, ``pip`` and ``scp`` would act on a whole machine. In these shells they are one
script, which asks this process to do it: to send the signals, to start the processes, to copy the file.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.prove.processes import TIMEOUT_S
from undoubt.embedded.binaries import bin_folder

LOOK_S = 0.05
ASKING = ("systemctl", "journalctl", "pip", "scp")
Serve = Callable[[str, list[str]], Awaitable[str]]

_UNDOUBT = f"""#!/bin/sh
exec {shlex.quote(sys.executable)} -P -m undoubt "$@"
"""
_ASKING = """#!/bin/bash
asked="$ASKED/$BASHPID"
printf '%s\\n' "$MACHINE" "${0##*/}" "$@" > "$asked.new"
mv "$asked.new" "$asked.ask"
while [ ! -e "$asked.said" ]; do sleep 0.05; done
tail -n +2 "$asked.said"
exit "$(head -n 1 "$asked.said")"
"""


class Refused(Exception):
    """A program of a machine was asked for what it cannot do."""


class Machines:
    """``serve(machine, words)`` does what such a program is asked for, and returns what it prints."""

    def __init__(self, folder: Path, serve: Serve) -> None:
        self.folder = folder
        self._serve = serve
        self._bin, self._asked = folder / "bin", folder / "asked"
        for place in (self._bin, self._asked):
            place.mkdir()
        for name, text in [("undoubt", _UNDOUBT), *((name, _ASKING) for name in ASKING)]:
            path = self._bin / name
            path.write_text(text)
            path.chmod(0o755)
        self._answering = asyncio.create_task(self._answer())

    def home(self, machine: str) -> Path:
        """The folder of its configuration, in which its shell begins."""
        place = self.folder / machine
        place.mkdir(exist_ok=True)
        return place

    async def run(self, machine: str, command: str, variables: dict[str, str]) -> tuple[int, str]:
        """The exit status, and what was printed. Variables that the commands set stay set on that machine.
        Each question is answered by yes."""
        state = self.folder / f"{machine}.variables"
        ours = {
            **variables,
            "PATH": f"{self._bin}:{bin_folder()}:{os.environ['PATH']}",
            "MACHINE": machine,
            "ASKED": str(self._asked),
            "UNDOUBT_CONFIG": str(self.home(machine) / "undoubt.toml"),
        }
        told = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in ours.items())
        script = (
            f"set -a; [ ! -e {state} ] || . {state}\n{told}set -o pipefail\n"
            f"trap 'export -p > {state}' EXIT\ncd {self.home(machine)}\n{command}\n"
        )
        return await _bash(script)

    async def _answer(self) -> None:
        while True:
            for path in sorted(self._asked.glob("*.ask")):
                machine, *words = path.read_text().splitlines()
                path.unlink()
                try:
                    said, status = await self._serve(machine, words), 0
                except (Refused, OSError, RuntimeError, TimeoutError) as error:
                    said, status = f"{words[0]}: {error}", 1
                new = path.with_suffix(".answer")
                new.write_text(f"{status}\n{said}" + "\n" * bool(said))
                new.rename(path.with_suffix(".said"))
            await asyncio.sleep(LOOK_S)

    async def close(self) -> None:
        self._answering.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._answering


async def _bash(script: str) -> tuple[int, str]:
    """On a terminal, since undoubt asks its questions nowhere else."""
    ours, its = os.openpty()
    os.write(ours, b"y\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("UNDOUBT_", "PG"))}
    try:
        process = await asyncio.create_subprocess_exec(
            "bash", "-c", script, env=kept, stdin=its,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            async with asyncio.timeout(2 * TIMEOUT_S):
                out, _ = await process.communicate()
        except TimeoutError:
            os.killpg(process.pid, 9)
            out, _ = await process.communicate()
            return 124, f"{out.decode(errors='replace')}(no end)"
    finally:
        os.close(ours)
        os.close(its)
    return process.returncode or 0, out.decode(errors="replace")
