"""Makes and runs nodes on this machine that keep one ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from undoubt.config import load
from undoubt.coordinator.ledger.cluster.status import survey
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.errors import UndoubtError
from undoubt.serve import bootstrap
from undoubt.serve.local import child
from undoubt.serve.local.ports import free_ports
from undoubt.serve.local.processes import READY_S, ChildFailed, ChildProcess, serving

COUNT = 3
LOOK_S = 0.05

CONFIG = """\
# Written by undoubt for nodes on one machine.
[ledger]
url = "{url}"

[node]
number = {number}
data = "node-{number}"
listen = "{listen}"
"""
QUICK = """\
heartbeat_s = 0.05
election_timeout_s = 0.5
"""


class NodeFailed(UndoubtError):
    """A node ended before it served, or no node became the leader in time."""


class Nodes:
    """Nodes, three unless ``count`` says otherwise, with their files in ``folder``; :meth:`start` starts
    them. With ``keep`` the nodes outlive this process. ``more`` is appended to the configuration of each,
    whose last section is ``[node]``. Without ``ports`` the nodes get free ports. ``reached_at``: the ports at
    which clients and the other nodes reach the nodes, if these are not ``ports``, but a proxy's."""

    def __init__(
        self,
        folder: Path,
        *,
        keep: bool,
        more: str = QUICK,
        ports: Sequence[int] | None = None,
        reached_at: Sequence[int] | None = None,
        count: int = COUNT,
    ) -> None:
        self._folder = folder
        self._more = more
        self._running: set[int] = set()
        self.children: dict[int, ChildProcess] = {
            number: serving(
                f"node {number}", child.NODE, self._config(number), folder / f"node-{number}.log", keep=keep
            )
            for number in range(1, count + 1)
        }
        self.ports = list(ports or free_ports(count))
        self.addresses = [f"127.0.0.1:{port}" for port in reached_at or self.ports]
        self.url = "raft://" + ",".join(self.addresses)

    @property
    def pids(self) -> dict[int, int]:
        return {number: self.children[number].pid for number in sorted(self._running)}

    async def start(self) -> None:
        """Start all nodes, and wait until one of them is the leader. Raises :class:`NodeFailed`."""
        ticket = ""
        for number in self.children:
            config = self._config(number)
            listen = f"127.0.0.1:{self.ports[number - 1]}"
            config.write_text(CONFIG.format(url=self.url, number=number, listen=listen) + self._more)
            config.chmod(0o600)  # a participant's dsn may hold a password
            ticket = bootstrap.init(load(config, env={}), ticket).ticket
        await asyncio.gather(*(self.run(number) for number in self.children))
        await self.leader()

    async def run(self, number: int) -> None:
        """Start or restart one node, and wait until it serves. Raises :class:`NodeFailed`."""
        self._running.add(number)
        try:
            await self.children[number].start()
        except ChildFailed as error:
            raise NodeFailed(str(error)) from error

    async def leader(self) -> int:
        """Wait for a leader; return the number of its node. Raises :class:`NodeFailed`."""
        settings = LedgerSettings(url=self.url, request_timeout_s=1.0)
        try:
            async with asyncio.timeout(READY_S):
                while (number := (await survey(settings)).leader) not in self._running:
                    await asyncio.sleep(LOOK_S)
                return number
        except TimeoutError:
            raise NodeFailed(f"no node leads within {READY_S:g} s") from None

    async def kill(self, number: int) -> int:
        """Kill one node; return the exit status: minus SIGKILL if the signal ended the node."""
        self._running.discard(number)
        return await self.children[number].kill()

    async def close(self) -> None:
        """Kill all running nodes: everything that they have acknowledged is on their disks."""
        await asyncio.gather(*(self.children[number].kill() for number in self._running))
        self._running.clear()

    def _config(self, number: int) -> Path:
        return self._folder / f"node-{number}.toml"
