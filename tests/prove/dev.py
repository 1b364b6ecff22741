"""``undoubt dev``: everything that it prints answers, what is killed comes back, and nothing of it stays.

Each process of the system is killed once and has to serve again. Then the command is ended: by SIGTERM, by
SIGKILL while everything serves, and by SIGKILL while it starts. Processes, files, open ports and memory
segments that are left are counted."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from tests.prove.processes import ROOT, TIMEOUT_S, within
from undoubt.coordinator.ledger.cluster.status import survey
from undoubt.coordinator.settings import LedgerSettings
from undoubt.embedded.places import DEAD, children, state

KINDS = ("node-1.toml", "node-2.toml", "node-3.toml", "postgres", "postgres", "sidecar")
"""One word of the command line of each process that is killed."""
GONE_S = 30.0
LOOK_S = 0.02


def add_arguments(parser: argparse.ArgumentParser) -> None:
    del parser


async def main(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    del options
    failures: list[str] = []
    async with dev() as one:
        await one.ready()
        livez, dsns, nodes = await one.answers()
        took = []
        for pid, what in one.victims():
            took.append(await one.killed(pid, what))
            print(f"{what}: serves again after {took[-1]:.2f} s", file=sys.stderr)
        one.process.send_signal(signal.SIGTERM)
        if status := await one.process.wait():
            failures.append(f"SIGTERM: it ended with status {status}: {one.errors[-500:]}")
        left = one.left()
    async with dev() as one:
        await one.ready()
        left += await one.killed_whole()
    async with dev() as one:
        await one.starts_a_server()
        left += await one.killed_whole()
    told = {
        "livez": livez,
        "dsns": dsns,
        "nodes": nodes,
        "killed": len(took),
        "back_within_s": round(max(took), 2),
        "left_behind": len(left),
        "failures": failures + left,
    }
    holds = livez >= 1 and (dsns, nodes, len(took)) == (2, 3, len(KINDS)) and not told["failures"]
    return told, holds


class Dev:
    """The command, in a process whose temporary files are all in ``folder``."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.told: dict[str, Any] = {}
        self.servers: set[int] = set()
        """Processes of servers that were seen."""

    @property
    def errors(self) -> str:
        """Its stderr."""
        return (self.folder / "err").read_text()

    async def ready(self) -> None:
        """Wait for its line, and read it."""
        assert self.process.stdout is not None
        async with within("undoubt dev is ready"):
            line = await self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"undoubt dev did not start: {self.errors}")
        self.told = json.loads(line)

    async def starts_a_server(self) -> None:
        """Wait until the first server runs."""
        async with within("a server starts"):
            while not any(what == "postgres" for _, what in self.victims()):
                await asyncio.sleep(LOOK_S)

    def victims(self) -> list[tuple[int, str]]:
        """The processes that keep the system, each with its word of :data:`KINDS`."""
        found = []
        for pid in children(self.process.pid):
            words = [Path(word).name for word in command(pid)]
            if what := next((kind for kind in KINDS if kind in words), None):
                found.append((pid, what))
                if what == "postgres":
                    self.servers.add(pid)
        return found

    async def answers(self) -> tuple[int, int, int]:
        """How many /livez, databases and nodes do."""
        probes = [self.probe("sidecar"), *map(self.node_answers, range(3)), *map(self.opens, self.dsns)]
        livez, *rest = [await probe for probe in probes]
        return int(livez), sum(rest[3:]), sum(rest[:3])

    @property
    def dsns(self) -> list[str]:
        return list(self.told["participants"].values())

    def probe(self, what: str) -> Awaitable[bool]:
        """Whether that process answers; of a server: whether both do."""
        if what.startswith("node"):
            return self.node_answers(KINDS.index(what))
        return self.both_open() if what == "postgres" else self.lives()

    async def lives(self) -> bool:
        curl = await asyncio.create_subprocess_exec(
            "curl", "-sf", f"{self.told['sidecar']}/livez", stdout=subprocess.DEVNULL
        )
        return await curl.wait() == 0

    async def node_answers(self, index: int) -> bool:
        url = f"raft://{self.told['nodes'][index]}"
        status = await survey(LedgerSettings(url=url, request_timeout_s=1.0))
        return any(seen.address == self.told["nodes"][index] and seen.status for seen in status.nodes)

    async def both_open(self) -> bool:
        return all([await self.opens(dsn) for dsn in self.dsns])

    async def opens(self, dsn: str) -> bool:
        try:
            connection = await asyncpg.connect(dsn, timeout=5)
        except (OSError, asyncpg.PostgresError, TimeoutError):
            return False
        await connection.close()
        return True

    async def killed(self, pid: int, what: str) -> float:
        """Kill it, and wait until it serves again: the seconds."""
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        async with within(f"{what} is back"):
            while state(pid) not in DEAD:
                await asyncio.sleep(0)
            while not await self.probe(what):
                await asyncio.sleep(LOOK_S)
        self.victims()
        return time.monotonic() - began

    async def killed_whole(self) -> list[str]:
        """Kill the command, and wait until nothing is left of it; else what is."""
        self.victims()
        self.process.kill()
        await self.process.wait()
        end = time.monotonic() + GONE_S
        while (left := self.left()) and time.monotonic() < end:
            await asyncio.sleep(LOOK_S)
        return left

    def left(self) -> list[str]:
        """Files, processes, ports that answer, and memory of servers."""
        found = [str(path) for path in self.folder.iterdir() if path.name != "err"]
        found += [" ".join(command(pid)) for pid in self._processes()]
        urls = [self.told.get("sidecar", ""), *self.dsns] if self.told else []
        ports = [urlsplit(url).port for url in urls] + [
            int(address.rpartition(":")[2]) for address in self.told.get("nodes", [])
        ]
        found += [f"port {port}" for port in ports if port is not None and listens(port)]
        segments = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
        found += [f"memory of {pid}" for line in segments if (pid := int(line.split()[4])) in self.servers]
        return found

    def end(self) -> None:
        """Whatever is left of it."""
        for pid in (*([self.process.pid] if self.process.returncode is None else []), *self._processes()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _processes(self) -> list[int]:
        """That name the folder."""
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        return [pid for pid in pids if str(self.folder) in " ".join(command(pid))]


@contextlib.asynccontextmanager
async def dev() -> AsyncIterator[Dev]:
    """It starts; at the end it is killed, and what it has left is removed."""
    folder = Path(tempfile.mkdtemp(prefix="undev-"))
    folder.chmod(0o755)  # the servers' user passes here
    with (folder / "err").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "undoubt", "dev", "-o", "json",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True,
            cwd=folder, env={**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    one = Dev(process, folder)
    try:
        yield one
    finally:
        one.end()
        await process.wait()
        shutil.rmtree(folder, ignore_errors=True)


async def until(what: str, holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait for it. Raises ``TimeoutError`` after :data:`TIMEOUT_S` seconds."""
    async with within(what):
        while not await holds():
            await asyncio.sleep(LOOK_S)


def command(pid: int) -> list[str]:
    """Its words; none of a process that has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    return []


def listens(port: int) -> bool:
    """Whether anybody does there."""
    with socket.socket() as client:
        client.settimeout(TIMEOUT_S)
        return client.connect_ex(("127.0.0.1", port)) == 0
