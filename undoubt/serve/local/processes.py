"""Starts a child process, which prints one line on its stdout when it serves."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from undoubt.participants.errors import UndoubtError
from undoubt.serve.local import child

READY_S = 60.0


class ChildFailed(UndoubtError):
    """A node, a sidecar or another child process did not begin to serve."""


class ChildProcess:
    """A child process that runs ``python -m module arguments``, and appends its stderr to ``log``.
    :meth:`start` starts it. With ``keep`` it outlives this process."""

    def __init__(
        self, name: str, module: str, arguments: Sequence[str], log: Path, *, keep: bool = False
    ) -> None:
        self.name = name
        self._command = [sys.executable, "-P", "-m", module, *arguments]
        self._log = log
        self._keep = keep
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """The id of the process that runs or, if none runs, of the last one. Raises :class:`ChildFailed` if
        none was started."""
        if self._process is None:
            raise ChildFailed(f"{self.name} was not started")
        return self._process.pid

    async def start(self) -> None:
        """Start or restart the process, and wait until it serves. Raises :class:`ChildFailed`."""
        with self._log.open("a") as log:
            self._process = process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL if self._keep else asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches only the parent, which ends all processes in order
            )
        try:
            async with asyncio.timeout(READY_S):
                ready = process.stdout is not None and await process.stdout.readline()
        except TimeoutError:
            ready = False
        if not ready:
            raise ChildFailed(f"{self.name} did not start: {self._last_words()}")

    def write(self, text: str) -> None:
        """Write ``text`` to the stdin of the process; it is dropped if the process has ended."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(text.encode())

    async def ended(self) -> int:
        """Wait for the end of the process; return the exit status, or minus the number of the signal that
        ended it."""
        return -1 if self._process is None else await self._process.wait()

    async def terminate(self, within_s: float) -> None:
        """Send SIGTERM, and SIGKILL if the process has not ended after ``within_s`` seconds."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            try:
                async with asyncio.timeout(within_s):
                    await self._process.wait()
            except TimeoutError:
                await self.kill()

    async def kill(self) -> int:
        """Send SIGKILL; return the exit status: minus SIGKILL if the signal ended the process."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        return await self.ended()

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        return lines[-1] if lines else "its log is empty"


def serving(name: str, kind: str, config: Path, log: Path, *, keep: bool = False) -> ChildProcess:
    """A child process that is a node or a sidecar with the configuration file ``config``; ``kind`` is
    ``child.NODE`` or ``child.SIDECAR``."""
    stay = [child.STAY] if keep else []
    return ChildProcess(name, child.__name__, [kind, str(config), *stay], log, keep=keep)
