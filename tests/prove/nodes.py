"""Nodes as their operators run them: real processes of ``undoubt node``, real commands, real signals."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tests.ports import free_ports
from tests.prove.processes import ROOT, within
from tests.prove.trap import Trap
from undoubt.coordinator.ledger.cluster.ledger import ClusterLedger
from undoubt.coordinator.ledger.cluster.messages import SESSIONS_MAX, HeldCall, NodeStatus, StatusCall
from undoubt.coordinator.ledger.cluster.status import ask, survey
from undoubt.coordinator.ledger.cluster.url import wire_of
from undoubt.coordinator.ledger.contract import SessionState
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.ids import TxId
from undoubt.serve.certs import Folder

COMMAND = (sys.executable, "-m", "undoubt")
TRAPPED = (sys.executable, "-m", "tests.prove.node_process")

CONFIGURATION = """
[ledger]
url = "raft://{url}"
request_timeout_s = 30.0
{tls}
[node]
number = {number}
listen = "{listen}"
data = "node-{number}"
heartbeat_s = {heartbeat_s}
election_timeout_s = {election_s}
"""


class CommandFailed(Exception):
    """A command ended with another status than 0. ``status`` is what it was."""

    def __init__(self, arguments: tuple[str, ...], status: int, told: str) -> None:
        super().__init__(f"undoubt {' '.join(arguments)} ended with {status}: {told}")
        self.status = status


class Nodes:
    """A cluster in ``folder``. ``url`` names the first nodes, as an application's configuration would;
    ``logs`` are what each node has said since it was ready. ``tls``: certificates as by `cluster certs`.
    ``trapped``: they can be armed, see :mod:`tests.prove.node_process`."""

    def __init__(
        self,
        folder: Path,
        count: int = 3,
        *,
        election_s: float = 0.5,
        tls: bool = False,
        trapped: bool = False,
    ) -> None:
        self.tls = tls
        self.trapped = trapped
        self.logs: dict[int, list[str]] = {}
        self.folder = folder
        self.election_s = election_s
        self.addresses = {number: f"127.0.0.1:{port}" for number, port in enumerate(free_ports(count), 1)}
        self.url = ",".join(self.addresses.values())
        self.running: dict[int, asyncio.subprocess.Process] = {}
        self._drains: dict[int, asyncio.Task[None]] = {}

    def configuration(self, number: int) -> str:
        """The path of that node's file; 0 makes one for an operator."""
        if number and number not in self.addresses:
            self.addresses[number] = f"127.0.0.1:{free_ports(1)[0]}"
        path = self.folder / f"node-{number}.toml"
        path.write_text(
            CONFIGURATION.format(
                url=self.url,
                tls=self._tls(number),
                number=number,
                listen=self.addresses.get(number, ""),
                heartbeat_s=self.election_s / 5,
                election_s=self.election_s,
            )
        )
        return str(path)

    def _tls(self, number: int) -> str:
        stem = f"node-{number}" if number else "client-operator"
        lines = (f'tls_{key} = "certs/{name}"' for key, name in zip(
            ("ca", "cert", "key"), ("ca.crt", f"{stem}.crt", f"{stem}.key"), strict=True
        ))  # fmt: skip
        return "\n".join(lines) if self.tls else ""

    async def run(self, number: int, *arguments: str) -> Any:
        """What ``undoubt … -o json`` prints, with that node's configuration. Raises ``CommandFailed``."""
        process = await asyncio.create_subprocess_exec(
            *self.tool(number), *arguments, "--config", self.configuration(number), "-o", "json",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment(),
        )  # fmt: skip
        async with within(f"the answer of {arguments}"):
            out, err = await process.communicate()
        if process.returncode:
            raise CommandFailed(arguments, process.returncode, err.decode())
        return json.loads(out) if out.strip() else None

    async def begin(self, *command: str) -> None:
        """Make the first nodes, by ``cluster init`` unless another command is given."""
        ticket: list[str] = []
        for number in list(self.addresses):
            begun = await self.run(number, *(command or ("cluster", "init")), *ticket)
            if self.tls and not ticket:
                folder = Folder(self.folder / "certs", begun["cluster"])
                folder.issue({each: [] for each in self.addresses}, ["operator"])
            ticket = ["--id", begun["ticket"]]

    async def start(self, *numbers: int) -> None:
        """Start them, and wait until each says that it is ready."""
        for number in numbers:
            self.running[number] = await asyncio.create_subprocess_exec(
                *self.command(number), "node", "--config", self.configuration(number),
                stderr=asyncio.subprocess.PIPE, env=environment(),
            )  # fmt: skip
        for number in numbers:
            async with within(f"node {number} ready"):
                await self._ready(number)

    def tool(self, number: int) -> tuple[str, ...]:
        """What runs a command with that node's configuration, before its arguments."""
        return COMMAND

    def command(self, number: int) -> tuple[str, ...]:
        """What runs that node, before the arguments of the command line."""
        return (*TRAPPED, str(self._trap(number))) if self.trapped else COMMAND

    async def _ready(self, number: int) -> None:
        stderr = self.running[number].stderr
        if stderr is None:
            raise ProcessLookupError(number)
        told = b""
        while line := await stderr.readline():
            told += line
            if b"is ready" in line:
                self.logs[number] = []
                self._drains[number] = asyncio.create_task(_drain(stderr, self.logs[number]))
                return
        raise ProcessLookupError(f"node {number} ended: {told.decode()}")

    async def end(self, *numbers: int, signal_: int = signal.SIGKILL) -> None:
        for number in numbers:
            process = self.running.pop(number)
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal_)
            await process.wait()

    async def killed(self, number: int) -> int:
        """Wait until it has died, and for its last words; the signal that ended it, 0 if none did."""
        status = await self.running[number].wait()
        del self.running[number]
        await self._drains[number]
        return max(-status, 0)

    async def kill(self, number: int) -> int:
        """SIGKILL, unless it has died meanwhile; else as :meth:`killed`."""
        with contextlib.suppress(ProcessLookupError):
            self.running[number].kill()
        return await self.killed(number)

    def led_last(self, number: int) -> bool:
        """Whether a node led at the end of what it has said: by its log, so at its death if it is dead."""
        words = re.compile(rf"node {number} (leads|does not lead) in term \d+$")
        said = [found[1] for line in self.logs[number] if (found := words.search(line))]
        return bool(said) and said[-1] == "leads"

    def arm(self, number: int, trap: Trap) -> None:
        written = self._trap(number).with_suffix(".new")
        written.write_text(trap.encode())
        written.rename(self._trap(number))

    def disarm(self) -> None:
        for number in self.addresses:
            self._trap(number).unlink(missing_ok=True)

    def _trap(self, number: int) -> Path:
        return self.folder / f"trap-{number}"

    def armed(self, number: int) -> bool:
        return self._trap(number).exists()

    def told(self, number: int) -> list[dict[str, Any]]:
        """By its traps, since it was ready."""
        return [json.loads(line) for line in self.logs[number] if line.startswith('{"at"')]

    async def at_trap(self, number: int, subject: str) -> None:
        """Once it has told of that."""
        async with within(f"node {number} in its trap, about {subject}"):
            while not any(told["subject"] == subject for told in self.told(number)):
                await asyncio.sleep(0.01)

    def signal(self, number: int, signal_: int) -> None:
        self.running[number].send_signal(signal_)

    async def leading(self) -> int:
        """As :meth:`leader`, asked by this process itself."""
        settings = LedgerSettings(url=f"raft://{self.url}", request_timeout_s=1.0)
        async with within("a leader that tells"):
            while not (leader := (await survey(settings)).leader):
                await asyncio.sleep(0.02)
        return leader

    async def held(self) -> set[TxId]:
        """Transactions that an acceptor which runs keeps and has not seen recorded."""
        async with self._opened() as ledger:
            sessions = [session.id for session in await ledger.sessions() if session.acceptors]
        asked = [
            ask(
                self.addresses[node],
                HeldCall(tuple(sessions[first : first + SESSIONS_MAX])),
                30.0,
                wire_of(self._patient),
            )
            for node in self.running
            for first in range(0, len(sessions), SESSIONS_MAX)
        ]
        return {txid for told in await asyncio.gather(*asked) for txid in told}

    async def applied_by(self, number: int) -> None:
        """Return once that node has applied all that the leader knows to be committed now."""
        leader = await self._status(await self.leading())
        async with within(f"what node {leader.node} knows, at node {number}"):
            while (await self._status(number)).applied_index < leader.commit_index:
                await asyncio.sleep(0.02)

    async def moved(self, *voters: int) -> None:
        """Return once these are the acceptors of every open session: a coordinator replaces its session some
        time after the voters have changed. Until then its votes are with those that the session began with,
        perhaps fewer, and another node of these may be one too many."""
        async with within(f"sessions that nodes {voters} decide for"), self._opened() as ledger:
            while any(
                session.acceptors and {*session.acceptors} != {*voters}
                for session in await ledger.sessions()
                if session.state is SessionState.OPEN
            ):
                await asyncio.sleep(0.1)

    async def _status(self, number: int) -> NodeStatus:
        status: NodeStatus = await ask(self.addresses[number], StatusCall(), 30.0, wire_of(self._patient))
        return status

    async def has_unfinished(self) -> bool:
        """Whether the ledger has a decision that some branch may not have applied."""
        async with self._opened() as ledger:
            return bool(await ledger.unfinished(limit=1))

    @property
    def _patient(self) -> LedgerSettings:
        return LedgerSettings(url=f"raft://{self.url}", request_timeout_s=30.0)

    @contextlib.asynccontextmanager
    async def _opened(self) -> AsyncIterator[ClusterLedger]:
        ledger = await ClusterLedger.open(self._patient)
        try:
            yield ledger
        finally:
            await ledger.close()

    async def leader(self) -> int:
        """Once somebody leads."""
        async with within("a leader"):
            while True:
                try:
                    return int((await self.run(0, "cluster", "status"))["leader"])
                except CommandFailed:
                    await asyncio.sleep(0.05)

    async def close(self) -> None:
        await self.end(*list(self.running))


async def _drain(stderr: asyncio.StreamReader, lines: list[str]) -> None:
    """Also so that a node's log never fills its pipe."""
    async for line in stderr:
        lines.append(line.decode().rstrip())  # noqa: PERF401 - as they come


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("UNDOUBT_")}
    return kept | {"PYTHONPATH": str(ROOT)}
