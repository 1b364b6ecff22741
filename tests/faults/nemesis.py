"""Carries out the schedule. A fault counts once it has had its effect, and it is undone in the end.

One machine suffers one fault at a time: a fault that finds its victim busy waits. Nobody else is spared.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

from tests.faults.machines import Machine, MachineFailed, Node, suspend
from tests.faults.network import ADDRESSES
from tests.faults.schedule import DATABASES, Fault, Kind
from tests.faults.stage import Stage
from tests.faults.stall import Stall
from undoubt.embedded import EmbeddedServer, ServerFailed
from undoubt.embedded.places import children

LOOK_S = 0.05
EFFECT_S = 30.0
"""What has had no effect by then has none."""
TURN_S = 120.0
"""By then other faults have let go of a victim, and a leader is elected."""
STALL_S = 0.1
UNDER_WAY = 20
"""So many are acknowledged before all that could have kept them dies."""
PIECE_BYTES = 64 * 1024

M = TypeVar("M", bound=Machine)


class NoEffect(Exception):
    """A fault was brought about and nothing came of it: the run proves less than it says."""


class Nemesis:
    """``counts``: how often each kind has had its effect; ``failures``: what should never have happened."""

    def __init__(self, stage: Stage, faults: Sequence[Fault]) -> None:
        self.counts: Counter[str] = Counter({str(fault.kind): 0 for fault in faults})
        self.failures: list[str] = []
        self._stage = stage
        self._faults = faults
        self._busy_servers: set[str] = set()
        self._began_at = time.monotonic()
        self._do: dict[Kind, Callable[[Fault], Awaitable[None]]] = {
            Kind.KILL_LEADER: self._kill,
            Kind.KILL_FOLLOWER: self._kill,
            Kind.KILL_NODES: self._kill_nodes,
            Kind.KILL_COORDINATOR: self._kill,
            Kind.KILL_DATABASE: self._kill_database,
            Kind.STOP_LEADER: self._stop,
            Kind.STOP_FOLLOWER: self._stop,
            Kind.STOP_COORDINATOR: self._stop,
            Kind.STOP_DATABASE: self._stop_database,
            Kind.CUT_LEADER: self._cut_leader,
            Kind.CUT_FOLLOWER: self._cut_follower,
            Kind.CUT_ONE_WAY: self._cut_one_way,
            Kind.CUT_FLAPPING: self._cut_flapping,
            Kind.CUT_COORDINATOR: self._cut_coordinator,
            Kind.CUT_DATABASE: self._cut_database,
            Kind.STALL_DISK: self._stall_disk,
            Kind.FULL_DISK: self._full_disk,
            Kind.CLOCK_FORWARD: self._jump,
            Kind.CLOCK_BACK: self._jump,
        }

    async def run(self) -> None:
        """All of them; returns when each is over and undone."""
        self._began_at = time.monotonic()
        await asyncio.gather(*(self._one(fault) for fault in self._faults))
        if self._stage.private:
            for machine in self._stage.machines.values():
                with self._noted(machine.name):
                    machine.set_clock(0)

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self._began_at:7.2f} s  {text}", file=sys.stderr, flush=True)

    async def _one(self, fault: Fault) -> None:
        await asyncio.sleep(fault.at_s)
        with self._noted(f"{fault.kind} of {fault.victim}"):
            await self._do[fault.kind](fault)
            self.counts[str(fault.kind)] += 1
            self.say(f"{fault.kind}: over")

    @contextlib.contextmanager
    def _noted(self, what: str) -> Iterator[None]:
        try:
            yield
        except (MachineFailed, NoEffect, ServerFailed, TimeoutError) as error:
            self.failures.append(f"{what}: {type(error).__name__}: {error}")
            self.say(self.failures[-1])

    # Victims.

    @contextlib.asynccontextmanager
    async def _victim(self, fault: Fault) -> AsyncIterator[Machine]:
        """Whoever it is now, once no other fault is at work on it."""
        async with asyncio.timeout(TURN_S):
            while (machine := await self._find(fault.victim)) is None or machine.busy:
                await asyncio.sleep(LOOK_S)
        self.say(f"{fault.kind}: {machine.name}")
        async with self._at_work(machine):
            yield machine

    async def _find(self, victim: str) -> Machine | None:
        if victim in self._stage.machines:
            return self._stage.machines[victim]
        leader = await self._stage.leader()
        if victim == "leader" or leader is None:
            return leader
        followers = [node for node in self._stage.nodes if node is not leader]
        return next((node for node in followers if not node.busy), None)

    @contextlib.asynccontextmanager
    async def _at_work(self, *machines: Machine) -> AsyncIterator[None]:
        for machine in machines:
            machine.busy = True
        try:
            yield
        finally:
            for machine in machines:
                machine.busy = False

    @contextlib.asynccontextmanager
    async def _database(self, fault: Fault) -> AsyncIterator[EmbeddedServer]:
        async with asyncio.timeout(TURN_S):
            while fault.victim in self._busy_servers:
                await asyncio.sleep(LOOK_S)
        self.say(f"{fault.kind}: {fault.victim}")
        self._busy_servers.add(fault.victim)
        try:
            yield self._stage.servers[fault.victim]
        finally:
            self._busy_servers.discard(fault.victim)

    # Signals.

    async def _kill(self, fault: Fault) -> None:
        async with self._victim(fault) as machine:
            await machine.kill()
            await asyncio.sleep(fault.lasts_s)
            await machine.start()

    async def _kill_nodes(self, fault: Fault) -> None:
        nodes = self._stage.nodes
        async with asyncio.timeout(TURN_S):
            while any(node.busy for node in nodes):
                await asyncio.sleep(LOOK_S / 10)
        async with self._at_work(*nodes):
            await self._under_way()
            self.say(f"{fault.kind}: all")
            # The disks hang for a moment: whoever answers without waiting for them has answered too early.
            stalls = [Stall(node.pid) for node in nodes] if self._stage.private else []
            await asyncio.gather(*(stall.begin() for stall in stalls))
            await asyncio.sleep(STALL_S)
            await asyncio.gather(*(node.kill() for node in nodes), *(stall.end() for stall in stalls))
            await asyncio.sleep(fault.lasts_s)
            await asyncio.gather(*(node.start() for node in nodes))

    async def _under_way(self) -> None:
        """Return while transactions are being committed: a standstill could lose nothing."""
        told = self._stage.told
        self._stage.listen()
        before = len(told.acknowledged)
        async with asyncio.timeout(TURN_S):
            while len(told.acknowledged) < before + UNDER_WAY:
                await asyncio.sleep(LOOK_S / 10)
                self._stage.listen()

    async def _stop(self, fault: Fault) -> None:
        async with self._victim(fault) as machine:
            await machine.stop()
            try:
                await asyncio.sleep(fault.lasts_s)
            finally:
                await machine.go_on()

    async def _kill_database(self, fault: Fault) -> None:
        async with self._database(fault) as server:
            if (died_of := await server.kill()) != signal.SIGKILL:
                raise NoEffect(f"the server died of signal {died_of}")
            await asyncio.sleep(fault.lasts_s)
            await server.start()

    async def _stop_database(self, fault: Fault) -> None:
        async with self._database(fault) as server:
            await suspend(server.pid)  # first, so that it starts no more
            started = children(server.pid)
            for pid in started:
                with contextlib.suppress(ProcessLookupError):
                    await suspend(pid)
            try:
                await asyncio.sleep(fault.lasts_s)
            finally:
                for pid in (*started, server.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT)

    # Partitions.

    def _peers(self, of: Machine) -> list[str]:
        return [node.name for node in self._stage.nodes if node is not of]

    async def _cut_leader(self, fault: Fault) -> None:
        async with self._victim(fault) as machine:
            await self._cut(both_ways(machine.name, self._peers(machine)), fault.lasts_s)

    async def _cut_follower(self, fault: Fault) -> None:
        async with self._victim(fault) as machine:
            others = [name for name in ADDRESSES if name not in {machine.name, "judge"}]
            await self._cut(both_ways(machine.name, others), fault.lasts_s)

    async def _cut_one_way(self, fault: Fault) -> None:
        async with self._victim(fault) as machine:
            into = [(peer, machine.name) for peer in self._peers(machine)]
            pairs = into if not fault.extent else [(name, peer) for peer, name in into]
            await self._cut(pairs, fault.lasts_s)

    async def _cut_flapping(self, fault: Fault) -> None:
        async with self._victim(fault) as machine:
            pairs = both_ways(machine.name, self._peers(machine))
            end = time.monotonic() + fault.lasts_s
            while time.monotonic() < end:
                await self._cut(pairs, fault.extent)
                await asyncio.sleep(fault.extent)

    async def _cut_coordinator(self, fault: Fault) -> None:
        async with self._victim(fault) as machine:
            await self._cut(both_ways(machine.name, [n.name for n in self._stage.nodes]), fault.lasts_s)

    async def _cut_database(self, fault: Fault) -> None:
        async with self._database(fault):
            others = [name for name in ADDRESSES if name not in {*DATABASES, "judge"}]
            await self._cut(both_ways(fault.victim, others), fault.lasts_s)

    async def _cut(self, pairs: Sequence[tuple[str, str]], lasts_s: float) -> None:
        """For so long, and until somebody has tried to get through."""
        network = self._stage.network
        before = await network.dropped(pairs)
        await network.cut(pairs)
        try:
            await asyncio.sleep(lasts_s)
            async with asyncio.timeout(EFFECT_S):
                while await network.dropped(pairs) == before:
                    await asyncio.sleep(LOOK_S)
        finally:
            await network.mend(pairs)

    # Disks and clocks.

    async def _stall_disk(self, fault: Fault) -> None:
        """Until it does not lead any more, though it lives."""
        async with self._victim(fault) as machine:
            stall = await self._stalled(_of(Node, machine))
            try:
                async with asyncio.timeout(EFFECT_S):
                    while await self._stage.leader() is machine:
                        await asyncio.sleep(LOOK_S)
                await asyncio.sleep(fault.lasts_s)
            finally:
                await stall.end()

    async def _stalled(self, node: Node) -> Stall:
        """A thread that was held in the middle of Python would hold up the event loop with it: once more."""
        async with asyncio.timeout(EFFECT_S):
            while True:
                stall = Stall(node.pid)
                await stall.begin()
                if await self._stage.answers(node):
                    return stall
                await stall.end()

    async def _full_disk(self, fault: Fault) -> None:
        """Until the kernel says ENOSPC, and again whatever the node gives up."""
        async with self._victim(fault) as machine:
            node = _of(Node, machine)
            filler = node.disk / "fill"
            before, again = node.says("no room on its disk"), node.says("room on its disk again")
            try:
                async with asyncio.timeout(EFFECT_S):
                    while node.says("no room on its disk") == before:
                        fill(str(filler))
                        node.check()
                        await asyncio.sleep(LOOK_S)
                    # It may be elected again later, if the others are worse off.
                    while await self._stage.leader() is node:
                        await asyncio.sleep(LOOK_S)
                await asyncio.sleep(fault.lasts_s)
            finally:
                filler.unlink(missing_ok=True)
            async with asyncio.timeout(EFFECT_S):
                while node.says("room on its disk again") == again:
                    node.check()
                    await asyncio.sleep(LOOK_S)

    async def _jump(self, fault: Fault) -> None:
        """It stays where it jumped to, until the next jump."""
        async with self._victim(fault) as machine:
            machine.set_clock(fault.extent)


def both_ways(one: str, others: Sequence[str]) -> list[tuple[str, str]]:
    return [pair for other in others for pair in ((one, other), (other, one))]


def fill(path: str) -> None:
    """Grow a file until there is no room."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        with contextlib.suppress(OSError):
            while True:
                os.write(descriptor, bytes(PIECE_BYTES))
    finally:
        os.close(descriptor)


def _of(kind: type[M], machine: Machine) -> M:
    if not isinstance(machine, kind):
        raise MachineFailed(f"{machine.name} is no {kind.__name__}")
    return machine
