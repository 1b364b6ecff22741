"""Starts worker processes, and reads what they print."""

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
"""How much longer than requested a worker may take until it ends or is killed."""


class WorkerFailed(UndoubtError):
    """A worker did not end as expected."""


@dataclass(slots=True)
class Reported:
    """What all workers have reported: names of transfers."""

    begun: set[str] = field(default_factory=set)
    acknowledged: set[str] = field(default_factory=set)
    aborted: set[str] = field(default_factory=set)


class WorkerProcess:
    """One worker process. Its reports are added to ``reported``; ``at`` is the step at which it killed
    itself."""

    def __init__(self, process: asyncio.subprocess.Process, reported: Reported) -> None:
        self.pid = process.pid
        self.at: str | None = None
        self.reported = reported
        self.working = asyncio.Event()
        self._process = process
        self._listening = asyncio.create_task(self._listen())

    async def killed_at(self, step: str, within_s: float) -> None:
        """Wait for the process to end. Raises :class:`WorkerFailed` unless SIGKILL ended it at ``step``."""
        status = await self.ended(within_s)
        if status != -signal.SIGKILL or self.at != step:
            raise WorkerFailed(f"a worker ended with status {status} at {self.at}, not by SIGKILL at {step}")

    async def ended(self, within_s: float) -> int:
        """Wait for the process to end, and return its status: minus the signal's number if a signal ended it.
        Raises :class:`WorkerFailed` if it does not end in time."""
        try:
            async with asyncio.timeout(within_s + GRACE_S):
                await self._listening
                return await self._process.wait()
        except TimeoutError:
            raise WorkerFailed(f"a worker did not end within {within_s + GRACE_S:g} s") from None

    async def kill(self) -> None:
        """Kill the process, whatever it is doing."""
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
                    self.reported.begun.add(name)
                case "acknowledged":
                    self.reported.acknowledged.add(name)
                case "aborted":
                    self.reported.aborted.add(name)
                case "at":
                    self.at = name
                case _:
                    self.working.set()


@contextlib.asynccontextmanager
async def working(
    config: Path, reported: Reported, *, seconds: float, tag: int, step: str = worker.NEVER
) -> AsyncIterator[WorkerProcess]:
    """A running worker, which is killed at the block's end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", worker.__name__, str(config), f"{seconds:.3f}", step, str(tag),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C must reach only the parent, which ends all in order
    )  # fmt: skip
    child = WorkerProcess(process, reported)
    try:
        yield child
    finally:
        await child.kill()
