"""Machines with one process each: a node, or an application that coordinates."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import functools
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.faults.network import Loopback
from tests.undoubt.cli.harness import COMMAND, REPOSITORY, environment
from undoubt.config import load
from undoubt.embedded.places import DEAD, state
from undoubt.serve.bootstrap import init

START_S = 60.0
"""A process that has not said that it is ready by then does not start."""
END_S = 120.0
DECISION_S = 5.0
LOOK_S = 0.02


class MachineFailed(Exception):
    """A process did what none of ours should: it ended by itself, or did not start."""


@functools.cache
def faketime_library() -> Path | None:
    """In Debian's place for it; None where it is not installed."""
    return next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)


class Machine(abc.ABC):
    """``folder`` has its files. ``clocked``: its wall clock can be set, else it is this machine's."""

    def __init__(self, name: str, folder: Path, network: Loopback, *, clocked: bool) -> None:
        self.name = name
        self.folder = folder
        self.busy = False
        """Some fault is at work on it."""
        self.starts = 0
        self._network = network
        self._clock = folder / f"{name}.clock"
        self._clock.write_text("+0\n")
        self._clocked = clocked
        self.process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        if self.process is None:
            raise MachineFailed(f"{self.name} does not run")
        return self.process.pid

    @property
    def log(self) -> Path:
        """What its process says, of this start."""
        return self.folder / f"{self.name}.{self.starts}.log"

    @abc.abstractmethod
    async def start(self) -> None:
        """Return once it is ready. Raises ``MachineFailed``."""

    async def _launch(self, *command: str, stdout: Path | None = None, env: Mapping[str, str]) -> None:
        self.starts += 1
        if self._clocked:
            command = ("env", *(f"{name}={value}" for name, value in self._fake_time().items()), *command)
        with self.log.open("wb") as log, (stdout or self.log).open("ab") as out:
            self.process = await asyncio.create_subprocess_exec(
                *self._network.prefix(self.name), *command, cwd=self.folder, env=env,
                stdin=asyncio.subprocess.PIPE, stdout=out, stderr=log, start_new_session=True,
            )  # fmt: skip

    def _fake_time(self) -> dict[str, str]:
        """https://github.com/wolfcw/libfaketime: offsets are read anew each second. A wall clock can jump;
        the monotonic one, that asyncio, uvloop and time-outs go by, cannot, so it is left as it is. Without
        the last of these every wait for Python's interpreter lock would go by the wall clock."""
        return {
            "LD_PRELOAD": str(faketime_library()),
            "FAKETIME_TIMESTAMP_FILE": str(self._clock),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
        }

    async def _until_it_says(self, word: str, where: Path) -> None:
        async with asyncio.timeout(START_S):
            while word not in where.read_text(errors="replace"):
                self.check()
                await asyncio.sleep(LOOK_S)

    def check(self) -> None:
        """Raises ``MachineFailed`` if its process has ended and nobody has killed it."""
        if self.process is not None and self.process.returncode is not None:
            raise MachineFailed(
                f"{self.name} ended with status {self.process.returncode}: {self.log.read_text()[-2000:]}"
            )

    async def kill(self) -> None:
        """SIGKILL. Raises ``MachineFailed`` if it died of anything else."""
        self.check()
        process, self.process = self.process, None
        if process is None:
            raise MachineFailed(f"{self.name} does not run")
        process.kill()
        if (status := await process.wait()) != -signal.SIGKILL:
            raise MachineFailed(f"{self.name} was to be killed, and ended with {status}")

    async def stop(self) -> None:
        """SIGSTOP; return once it stands still."""
        self.check()
        await suspend(self.pid)

    async def go_on(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def set_clock(self, offset_s: float) -> None:
        """From now on its wall clock is so far off. Raises ``MachineFailed`` if its process would not
        notice."""
        self.check()
        library = faketime_library()
        if library is None or library.name not in Path(f"/proc/{self.pid}/maps").read_text():
            raise MachineFailed(f"{self.name} does not run with libfaketime")
        new = self._clock.with_suffix(".new")
        new.write_text(f"{offset_s:+.0f}\n")
        new.replace(self._clock)


async def suspend(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    while state(pid) not in {"T", *DEAD}:
        await asyncio.sleep(0)


NODE_CONFIG = """\
[ledger]
url = "{url}"

[node]
number = {number}
data = "{data}"
heartbeat_s = 0.1
election_timeout_s = 1.0
snapshot_log_bytes = 262144
trailing_entries = 200

[recovery]
interval_s = 0.5
backoff_max_s = 2.0
"""
PARTICIPANT_CONFIG = """
[participants.{name}]
dsn = "{dsn}"
connect_timeout_s = 3.0
statement_timeout_s = 3.0
"""


class Node(Machine):
    """A member of the cluster at ``url``; what leads also recovers in the participants of ``dsns``."""

    def __init__(self, number: int, folder: Path, network: Loopback, *, clocked: bool) -> None:
        super().__init__(f"node-{number}", folder, network, clocked=clocked)
        self.number = number
        self.disk = folder / f"disk-{number}"
        self.disk.mkdir()

    def make(self, url: str, dsns: Mapping[str, str], ticket: str) -> str:
        """Begin its disk; the ticket for the others."""
        text = NODE_CONFIG.format(url=url, number=self.number, data=self.disk / "node")
        text += "".join(PARTICIPANT_CONFIG.format(name=name, dsn=dsn) for name, dsn in dsns.items())
        self._config.write_text(text)
        return init(load(self._config, env={}), ticket).ticket

    @property
    def _config(self) -> Path:
        return self.folder / f"{self.name}.toml"

    async def start(self) -> None:
        command = (*COMMAND, "node", "--insecure", "--config", str(self._config))
        await self._launch(*command, env=environment())
        await self._until_it_says("is ready at", self.log)

    def says(self, words: str) -> int:
        """How often, since its start."""
        return self.log.read_text(errors="replace").count(words)


class Coordinator(Machine):
    """An application (:mod:`tests.faults.application`) that is told to end by the end of its input."""

    def __init__(
        self, name: str, folder: Path, network: Loopback, settings: Mapping[str, Any], *, clocked: bool
    ) -> None:
        super().__init__(name, folder, network, clocked=clocked)
        self._settings = json.dumps(settings)

    @property
    def told(self) -> Path:
        """Where its process tells what it does, of this start."""
        return self.folder / f"told-{self.name}.{self.starts}"

    async def start(self) -> None:
        tag = f"{self.name}.{self.starts + 1}"
        told = self.folder / f"told-{tag}"
        command = (sys.executable, "-m", "tests.faults.application", self._settings, tag, str(self.folder))
        await self._launch(*command, stdout=told, env={**environment(), "PYTHONPATH": str(REPOSITORY)})
        await self._until_it_says('"ready"', told)

    async def stop(self) -> None:
        """It stops itself before its next decision; where none is near, it is stopped."""
        self.check()
        os.kill(self.pid, signal.SIGUSR1)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DECISION_S):
                while state(self.pid) not in {"T", *DEAD}:
                    await asyncio.sleep(LOOK_S)
        await super().stop()

    async def go_on(self) -> None:
        """Also if it stops itself once more, before it has heard that it need not."""
        os.kill(self.pid, signal.SIGUSR2)
        for _ in range(20):
            await super().go_on()
            await asyncio.sleep(LOOK_S)

    async def end(self) -> None:
        """In an orderly way. Raises ``MachineFailed`` if it cannot."""
        self.check()
        process, self.process = self.process, None
        if process is None or process.stdin is None:
            raise MachineFailed(f"{self.name} does not run")
        process.stdin.close()
        try:
            async with asyncio.timeout(END_S):
                status = await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise MachineFailed(f"{self.name} was told to end {END_S:g} s ago, and did not") from None
        if status or '"ended"' not in self.told.read_text():
            raise MachineFailed(f"{self.name} ended with {status}: {self.log.read_text()[-2000:]}")
