"""Machines on one network: namespaces on a bridge, and the directions in which nothing gets through.

A packet that is cut is dropped where it would arrive, as on a broken line: whoever sent it hears nothing.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterable

MASK = 24
ADDRESSES = {
    "node-1": "198.18.77.1",
    "node-2": "198.18.77.2",
    "node-3": "198.18.77.3",
    "coordinator-1": "198.18.77.11",
    "coordinator-2": "198.18.77.12",
    "orders": "198.18.77.21",
    "payments": "198.18.77.22",
    "judge": "198.18.77.254",
}
"""Of the range for benchmarks (RFC 2544); nothing of it leaves this network."""
ON_THE_BRIDGE = ("orders", "payments", "judge")
"""In the namespace that the run itself is in. The others have one each."""
MACHINES = tuple(name for name in ADDRESSES if name not in ON_THE_BRIDGE)

_RULES = """
table inet faults {
    set cut {
        type ipv4_addr . ipv4_addr
    }
    chain input {
        type filter hook input priority 0
        ip saddr . ip daddr @cut counter drop
    }
}
"""


class ProgramFailed(Exception):
    """A program that builds the network ended with an error."""


async def ran(*command: str, stdin: str = "") -> str:
    """What it prints. Raises ``ProgramFailed``."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate(stdin.encode())
    if process.returncode:
        raise ProgramFailed(f"{' '.join(command)}: {err.decode().strip()}")
    return out.decode()


class Loopback:
    """No network of its own: every machine is this one, and nothing can be cut."""

    addresses = dict.fromkeys(ADDRESSES, "127.0.0.1")

    async def build(self) -> None:
        """Nothing needs to be built."""

    def prefix(self, machine: str) -> tuple[str, ...]:  # noqa: ARG002 - as Bridge has it
        """What is put before a command so that it runs on ``machine``."""
        return ()

    async def cut(self, pairs: Iterable[tuple[str, str]]) -> None:
        raise NotImplementedError("one machine has no network that could be cut")

    async def mend(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Nothing was cut."""

    async def dropped(self, pairs: Iterable[tuple[str, str]]) -> int:  # noqa: ARG002 - as Bridge has it
        return 0


class Bridge(Loopback):
    """To be built in a network namespace and under a ``/run`` that go when the run does."""

    addresses = ADDRESSES

    def __init__(self) -> None:
        self._cuts: Counter[tuple[str, str]] = Counter()
        self._lock = asyncio.Lock()

    async def build(self) -> None:
        await ran("ip", "link", "set", "dev", "lo", "up")
        await ran("ip", "link", "add", "name", "bridge", "type", "bridge")
        for name in ON_THE_BRIDGE:
            await ran("ip", "address", "add", f"{ADDRESSES[name]}/{MASK}", "dev", "bridge")
        await ran("ip", "link", "set", "dev", "bridge", "up")
        await ran("nft", "-f", "-", stdin=_RULES)
        for name in MACHINES:
            inside = ("ip", "-netns", name)
            await ran("ip", "netns", "add", name)
            cable = ("type", "veth", "peer", "name", "eth0", "netns", name)
            await ran("ip", "link", "add", "name", name, *cable)
            await ran("ip", "link", "set", "dev", name, "master", "bridge", "up")
            await ran(*inside, "address", "add", f"{ADDRESSES[name]}/{MASK}", "dev", "eth0")
            await ran(*inside, "link", "set", "dev", "eth0", "up")
            await ran(*inside, "link", "set", "dev", "lo", "up")
            await ran(*self.prefix(name), "nft", "-f", "-", stdin=_RULES)

    def prefix(self, machine: str) -> tuple[str, ...]:
        return () if machine in ON_THE_BRIDGE else ("ip", "netns", "exec", machine)

    async def cut(self, pairs: Iterable[tuple[str, str]]) -> None:
        """From the first machine to the second of each pair nothing gets through, until it is mended as often
        as it was cut."""
        async with self._lock:
            for pair in pairs:
                self._cuts[pair] += 1
                if self._cuts[pair] == 1:
                    await self._change("add", pair)

    async def mend(self, pairs: Iterable[tuple[str, str]]) -> None:
        async with self._lock:
            for pair in pairs:
                self._cuts[pair] -= 1
                if self._cuts[pair] == 0:
                    await self._change("delete", pair)

    async def _change(self, how: str, pair: tuple[str, str]) -> None:
        source, target = pair
        element = f"{{ {ADDRESSES[source]} . {ADDRESSES[target]} }}"
        await ran(*self.prefix(target), "nft", how, "element", "inet", "faults", "cut", element)

    async def dropped(self, pairs: Iterable[tuple[str, str]]) -> int:
        """Packets so far, wherever the second of a pair is."""
        places = {self.prefix(target) for _, target in pairs}
        told = [await ran(*place, "nft", "list", "chain", "inet", "faults", "input") for place in places]
        return sum(int(count) for text in told for count in re.findall(r"counter packets (\d+)", text))
