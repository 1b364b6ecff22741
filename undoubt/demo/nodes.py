"""Three nodes on this machine that keep a ledger, the demo's or a benchmark's, as their parent sees them."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from pathlib import Path

from undoubt.config import load
from undoubt.coordinator.ledger.cluster.status import survey
from undoubt.coordinator.settings import LedgerSettings
from undoubt.demo import node
from undoubt.participants.errors import UndoubtError
from undoubt.serve import bootstrap

COUNT = 3
READY_S = 60.0
LOOK_S = 0.05

CONFIG = """\
# Written by `undoubt demo` or `undoubt bench`.
[ledger]
url = "{url}"

[node]
number = {number}
data = "node-{number}"
"""
QUICK = """\
heartbeat_s = 0.05
election_timeout_s = 0.5
"""


class NodeFailed(UndoubtError):
    """A node ended, or nobody leads."""


class Nodes:
    """Made in ``folder``; nothing runs before :meth:`start`. With ``keep`` they outlive this process.
    ``more`` is added to the configuration of each, what belongs to ``[node]`` first."""

    def __init__(self, folder: Path, *, keep: bool, more: str = QUICK) -> None:
        self._folder = folder
        self._keep = keep
        self._more = more
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self.url = "raft://" + ",".join(f"127.0.0.1:{port}" for port in free_ports(COUNT))

    @property
    def pids(self) -> dict[int, int]:
        return {number: process.pid for number, process in sorted(self._running.items())}

    async def start(self) -> None:
        """All of them, and wait until one leads. Raises :class:`NodeFailed`."""
        ticket = ""
        for number in range(1, COUNT + 1):
            config = self._config(number)
            config.write_text(CONFIG.format(url=self.url, number=number) + self._more)
            ticket = bootstrap.init(load(config, env={}), ticket).ticket
        await asyncio.gather(*(self.run(number) for number in range(1, COUNT + 1)))
        await self.leader()

    async def run(self, number: int) -> None:
        """Start one, for the first time or again. Raises :class:`NodeFailed`."""
        stay = [node.STAY] if self._keep else []
        with (self._folder / f"node-{number}.log").open("a") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", node.__name__, str(self._config(number)), *stay,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=log,
                start_new_session=True,  # Ctrl-C is the parent's: it ends everything in order
            )  # fmt: skip
        self._running[number] = process
        try:
            async with asyncio.timeout(READY_S):
                ready = process.stdout is not None and await process.stdout.readline()
        except TimeoutError:
            ready = False
        if not ready:
            raise NodeFailed(f"node {number} did not start: {self._log(number)}")

    async def leader(self) -> int:
        """The number of the one that leads, once one does. Raises :class:`NodeFailed`."""
        settings = LedgerSettings(url=self.url, request_timeout_s=1.0)
        try:
            async with asyncio.timeout(READY_S):
                while (number := (await survey(settings)).leader) not in self._running:
                    await asyncio.sleep(LOOK_S)
                return number
        except TimeoutError:
            raise NodeFailed(f"no node leads within {READY_S:g} s") from None

    async def kill(self, number: int) -> int:
        """Its exit status: minus SIGKILL, if that ended it."""
        process = self._running.pop(number)
        process.kill()
        return await process.wait()

    async def close(self) -> None:
        """End all of them, at once: what they have answered is on their disks."""
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
        await asyncio.gather(*(process.wait() for process in self._running.values()))
        self._running.clear()

    def _config(self, number: int) -> Path:
        return self._folder / f"node-{number}.toml"

    def _log(self, number: int) -> str:
        lines = (self._folder / f"node-{number}.log").read_text().splitlines()
        return lines[-1] if lines else "it said nothing"


def free_ports(count: int) -> list[int]:
    """Nobody's at this moment, all of them different."""
    with contextlib.ExitStack() as stack:
        doors = [stack.enter_context(socket.socket()) for _ in range(count)]
        for door in doors:
            door.bind(("127.0.0.1", 0))
        return [door.getsockname()[1] for door in doors]
