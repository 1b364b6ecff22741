"""Worker processes as their parent sees them."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from undoubt.demo import worker
from undoubt.participants.errors import UndoubtError

GRACE_S = 30.0
"""How much longer than asked a worker may take to end, or to die."""


class WorkerFailed(UndoubtError):
    """A worker ended otherwise than the story has it."""


@dataclass(slots=True)
class Heard:
    """What all workers have told, by names of transfers."""

    begun: set[str] = field(default_factory=set)
    acknowledged: set[str] = field(default_factory=set)
    aborted: set[str] = field(default_factory=set)


class WorkerProcess:
    """One process. ``heard`` is filled as it speaks; ``at`` is the step at which it killed itself."""

    def __init__(self, process: asyncio.subprocess.Process, heard: Heard) -> None:
        self.pid = process.pid
        self.at: str | None = None
        self.heard = heard
        self.working = asyncio.Event()
        self._process = process
        self._listening = asyncio.create_task(self._listen())

    async def killed_at(self, step: str, within_s: float) -> None:
        """Wait for its death. Raises :class:`WorkerFailed` unless SIGKILL ended it at that step."""
        status = await self.ended(within_s)
        if status != -signal.SIGKILL or self.at != step:
            raise WorkerFailed(f"a worker ended with status {status} at {self.at}, not by SIGKILL at {step}")

    async def ended(self, within_s: float) -> int:
        """Its status, minus the signal's number if one ended it. Raises :class:`WorkerFailed` if it hangs."""
        try:
            async with asyncio.timeout(within_s + GRACE_S):
                await self._listening
                return await self._process.wait()
        except TimeoutError:
            raise WorkerFailed(f"a worker did not end within {within_s + GRACE_S:g} s") from None

    async def kill(self) -> None:
        """Whatever it is at."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await asyncio.gather(self._listening, return_exceptions=True)
        await self._process.wait()

    async def _listen(self) -> None:
        if self._process.stdout is None:
            return
        async for line in self._process.stdout:
            what, _, name = line.decode().rstrip().partition(" ")
            match what:
                case "begun":
                    self.heard.begun.add(name)
                case "acknowledged":
                    self.heard.acknowledged.add(name)
                case "aborted":
                    self.heard.aborted.add(name)
                case "at":
                    self.at = name
                case _:
                    self.working.set()


@contextlib.asynccontextmanager
async def working(
    config: Path, heard: Heard, *, seconds: float, tag: int, step: str = worker.NEVER
) -> AsyncIterator[WorkerProcess]:
    """A worker that is at work; killed at the block's end if it still is."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", worker.__name__, str(config), f"{seconds:.3f}", step, str(tag),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is the parent's: it ends everything in order
    )  # fmt: skip
    child = WorkerProcess(process, heard)
    try:
        yield child
    finally:
        await child.kill()
