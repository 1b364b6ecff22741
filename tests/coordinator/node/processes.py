"""Nodes as processes of their own, started as users start them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from tests.ports import free_ports
from tests.undoubt.cli.harness import COMMAND, environment
from undoubt.config import load
from undoubt.coordinator.ledger.cluster.status import survey
from undoubt.coordinator.settings import LedgerSettings
from undoubt.serve.bootstrap import init

CONFIG = """
[ledger]
url = "{url}"
[node]
number = {number}
data = "data-{number}"
"""
QUICK = "heartbeat_s = 0.05\nelection_timeout_s = 0.5\n"


class Processes:
    """Three of them, in a folder each. ``prefix`` is put before the command of one."""

    def __init__(self, folder: Path, more: str = "", *, count: int = 3, timers: str = QUICK) -> None:
        self.folder = folder
        self.ports = free_ports(count)
        self.numbers = range(1, count + 1)
        self.settings = LedgerSettings(
            url="raft://" + ",".join(f"127.0.0.1:{port}" for port in self.ports), request_timeout_s=60.0
        )
        self.running: dict[int, asyncio.subprocess.Process] = {}
        ticket = ""
        for number in self.numbers:
            self.config(number).write_text(
                CONFIG.format(url=self.settings.url, number=number) + timers + more
            )
            ticket = init(load(self.config(number), env={}), ticket).ticket

    def config(self, number: int) -> Path:
        return self.folder / f"node-{number}.toml"

    def data(self, number: int) -> Path:
        return self.folder / f"data-{number}"

    def log(self, number: int) -> str:
        return (self.folder / f"node-{number}.log").read_text()

    async def start(self, *numbers: int, prefix: Sequence[str] = (), arguments: Sequence[str] = ()) -> None:
        """Returns once each has said that it is ready."""
        for number in numbers or self.numbers:
            with (self.folder / f"node-{number}.log").open("w") as log:
                self.running[number] = await asyncio.create_subprocess_exec(
                    *prefix, *COMMAND, "node", "--config", str(self.config(number)), *arguments,
                    stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, env=environment(),
                )  # fmt: skip
        for number in numbers or self.numbers:
            while "is ready at" not in self.log(number):
                assert self.running[number].returncode is None, self.log(number)
                await asyncio.sleep(0.02)

    async def end(self, number: int, how: signal.Signals) -> int:
        """Its exit status."""
        process = self.running.pop(number)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(how)
        return await process.wait()

    async def kill(self) -> None:
        """All that run, also those that were stopped, or have ended by themselves."""
        for number in list(self.running):
            with contextlib.suppress(ProcessLookupError):
                self.signal(number, signal.SIGCONT)
            await self.end(number, signal.SIGKILL)

    def signal(self, number: int, how: signal.Signals) -> None:
        os.kill(self.running[number].pid, how)

    async def leader(self, *, but: int = 0) -> int:
        """Once one leads, other than ``but``."""
        while True:
            asked = await survey(LedgerSettings(url=self.settings.url, request_timeout_s=0.5))
            if asked.leader not in (0, but):
                return asked.leader
            await asyncio.sleep(0.05)

    async def applied(self) -> None:
        """Once all that run have applied the same, up to what the leader has committed."""
        while True:
            asked = await survey(LedgerSettings(url=self.settings.url, request_timeout_s=0.5))
            told = [one.status for one in asked.nodes if one.status is not None]
            applied = {one.applied_index for one in told}
            if len(told) == len(self.running) and applied == {max(one.commit_index for one in told)}:
                return
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def processes(folder: Path, more: str = "") -> AsyncIterator[Processes]:
    """``more`` is added to the configuration of each."""
    found = Processes(folder, more)
    try:
        await found.start()
        yield found
    finally:
        await found.kill()


def why_no_mounts() -> str | None:
    """Why this user cannot give a process a small disk of its own; None if it can."""
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        return "util-linux (unshare, nsenter) is not installed"
    if os.geteuid() != 0:
        return "only root can mount a small disk"
    status = os.waitstatus_to_exitcode(os.system("unshare -m true 2>/dev/null"))
    return None if status == 0 else "this machine allows no mount namespaces"
