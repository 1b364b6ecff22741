"""One child of this process, which says on its stdout, in one line, when it serves."""

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
    """A node, a sidecar or another child ended before it served."""


class ChildProcess:
    """Runs ``python -m module arguments``; its stderr is added to ``log``. Nothing runs before
    :meth:`start`."""

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
        """Of the process that runs, or ran last."""
        if self._process is None:
            raise ChildFailed(f"{self.name} was not started")
        return self._process.pid

    async def start(self) -> None:
        """For the first time or again, and wait until it serves. Raises :class:`ChildFailed`."""
        with self._log.open("a") as log:
            self._process = process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL if self._keep else asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is the parent's: it ends everything in order
            )
        try:
            async with asyncio.timeout(READY_S):
                ready = process.stdout is not None and await process.stdout.readline()
        except TimeoutError:
            ready = False
        if not ready:
            raise ChildFailed(f"{self.name} did not start: {self._last_words()}")

    def write(self, text: str) -> None:
        """To its stdin; dropped if the child has ended."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(text.encode())

    async def ended(self) -> int:
        """Wait for its end; the exit status, minus the signal if one ended it."""
        return -1 if self._process is None else await self._process.wait()

    async def terminate(self, within_s: float) -> None:
        """SIGTERM, and SIGKILL if it has not ended within that time."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            try:
                async with asyncio.timeout(within_s):
                    await self._process.wait()
            except TimeoutError:
                await self.kill()

    async def kill(self) -> int:
        """Its exit status: minus SIGKILL, if that ended it."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        return await self.ended()

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        return lines[-1] if lines else "it said nothing"


def serving(name: str, kind: str, config: Path, log: Path, *, keep: bool = False) -> ChildProcess:
    """A node or a sidecar of that configuration; ``kind`` is one of :mod:`.child`'s."""
    stay = [child.STAY] if keep else []
    return ChildProcess(name, child.__name__, [kind, str(config), *stay], log, keep=keep)
