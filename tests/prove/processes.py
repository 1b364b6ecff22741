"""Child processes that speak in lines of JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.prove.trap import NEVER, Trap
from undoubt.embedded.places import DEAD, state

TIMEOUT_S = 90.0
ROOT = Path(__file__).resolve().parents[2]


@dataclass(slots=True)
class Heard:
    """What a child has told so far, by kind of message."""

    begun: list[str] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    why: dict[str, str] = field(default_factory=dict)
    """Of what was not told to be committed."""
    at: str | None = None
    last: dict[str, Any] = field(default_factory=dict)

    def take(self, message: dict[str, Any]) -> None:
        for kind in ("begun", "acknowledged", "aborted", "unknown"):
            if kind in message:
                getattr(self, kind).append(message[kind])
                if "why" in message:
                    self.why[message[kind]] = message["why"]
        if "at" in message:
            self.at = message["at"]
        self.last = message


@contextlib.asynccontextmanager
async def within(what: str) -> AsyncIterator[None]:
    """Raises ``TimeoutError``, with what was waited for, after ``TIMEOUT_S``."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            yield
    except TimeoutError as error:
        raise TimeoutError(f"{what}: not within {TIMEOUT_S:g} s") from error


class Child:
    """``python -m module arguments…`` with its lines heard as they come."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.heard = Heard()

    @classmethod
    async def start(cls, module: str, *arguments: str) -> Child:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", module, *arguments,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        return cls(process)

    async def lines(self) -> AsyncIterator[dict[str, Any]]:
        """Messages until the child closes its output. The last one of a child that was killed while it wrote
        is cut short, and was never told."""
        if self._process.stdout is None:
            return
        async for line in self._process.stdout:
            if not line.endswith(b"\n"):
                return
            message = json.loads(line)
            self.heard.take(message)
            yield message

    async def until_at_trap(self) -> bool:
        """True once it waits in its trap, False if it ended without."""
        async with within("a process in its trap"):
            async for message in self.lines():
                if "at" in message:
                    return True
        return False

    async def go_on(self) -> None:
        await self._write(b"")

    async def send(self, message: dict[str, Any]) -> None:
        """A line of JSON on its stdin. A child that has died meanwhile does not read it."""
        with contextlib.suppress(ConnectionError):
            await self._write(json.dumps(message).encode())

    async def _write(self, line: bytes) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(line + b"\n")
            await self._process.stdin.drain()

    def close_input(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()

    async def kill(self) -> int:
        """SIGKILL; as :meth:`ended`."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        return await self.ended()

    def terminate(self) -> None:
        """SIGTERM: it ends in its own order, see :meth:`ended`."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    async def stop(self) -> bool:
        """SIGSTOP: whether it was alive, and runs no more until :meth:`resume`."""
        if self._process.returncode is not None:
            return False
        self._process.send_signal(signal.SIGSTOP)
        while (now := state(self._process.pid)) not in {"T", *DEAD}:
            await asyncio.sleep(0.005)
        return now == "T"

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    async def ended(self) -> int:
        """Its exit status; minus the signal's number if one killed it. A child that hangs is killed."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                async for _ in self.lines():
                    pass
                return await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
            return 999


async def recovered(settings: str) -> list[str]:
    """What recovery leaves in doubt: nothing, once the sessions of killed processes have expired.
    ``settings`` as JSON."""
    never = Trap(NEVER, "-", 0, 1).encode()
    recovery = await Child.start("tests.prove.recovery_process", settings, never, "600", "600", "branches")
    await recovery.ended()
    return [*map(str, recovery.heard.last.get("left", ["recovery died"]))]
