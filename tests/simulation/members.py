"""Members of a simulated cluster come and go, by the operator's own calls, while all else goes wrong."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.simulation.nodes import SimulatedNode
from undoubt.coordinator.errors import LedgerError
from undoubt.coordinator.ledger.cluster import admin
from undoubt.coordinator.ledger.cluster.messages import MemberChange
from undoubt.coordinator.ledger.cluster.status import survey
from undoubt.coordinator.wire import VERSIONS

if TYPE_CHECKING:
    from tests.simulation.scheduler import Process
    from tests.simulation.world import World

VOTERS_MAX = 5


class MembersProcess:
    """A person who grows, shrinks and mends the cluster. What is half done when it dies, it finds again."""

    def __init__(self, world: World, process: Process) -> None:
        assert world.cluster is not None
        self.world, self.process, self.random = world, process, world.random
        self.cluster = world.cluster

    async def main(self) -> None:
        while not self.world.peace:
            await asyncio.sleep(self.random.expovariate(0.5))
            await self.attempt()
        while not await self.tidy():
            await asyncio.sleep(1.0)
        self.cluster.tidy = True

    async def attempt(self) -> None:
        acts = [self.grow, self.grow, self.transfer, self.snapshot, self.look, self.shrink, self.lose_a_disk]
        act = self.random.choice(acts)
        try:
            await self.mend()
            await act()
        except LedgerError as error:
            self.world.trace(self.process.name, f"{act.__name__}: {type(error).__name__}: {error}")
        else:
            self.world.counts[f"cluster {act.__name__}"] += 1

    async def change(self, *changes: MemberChange) -> tuple[int, ...]:
        """The voters afterwards."""
        told = ", ".join(f"{change.kind} {change.node}" for change in changes)
        self.world.trace(self.process.name, f"asks to {told}")
        status = await admin.change_members(self.world.settings, changes)
        self.world.trace(self.process.name, f"has {told}: voters {status.voters}, learners {status.learners}")
        return status.voters

    async def grow(self) -> None:
        """A new node, as a learner first."""
        seen = await survey(self.world.settings)
        if len(seen.nodes) > VOTERS_MAX:
            return
        number = max(self.cluster.nodes) + 1
        disk = f"{number:016x}"
        member = SimulatedNode(self.cluster, number, self.cluster.empty_disk(number, disk))
        address = self.cluster.join(member)
        member.start()
        await self.change(MemberChange("add", number, str(address), disk, VERSIONS.highest))
        await self.change(MemberChange("promote", number))

    async def shrink(self) -> None:
        seen = await survey(self.world.settings)
        leading = next(
            (one.status for one in seen.nodes if one.status and one.status.node == seen.leader), None
        )
        if leading is None or len(leading.voters) <= 3 or self.in_doubt:
            return
        number = self.random.choice(leading.voters)
        if ({*leading.voters} - {number}) & self.cluster.first:
            await self.change(MemberChange("remove", number))
            self.cluster.nodes[number].retire()

    async def lose_a_disk(self) -> None:
        """A machine is gone for ever; somebody may even start it again, empty, under its old number."""
        seen = await survey(self.world.settings)
        leading = next(
            (one.status for one in seen.nodes if one.status and one.status.node == seen.leader), None
        )
        if leading is None or len(leading.voters) < 3 or self.cluster.lost:
            return
        number = self.random.choice(leading.voters)
        if not ({*leading.voters} - {number}) & self.cluster.first or not self.cluster.can_lose(number):
            return
        self.cluster.lost.add(number)
        self.world.trace(self.process.name, f"node {number} has lost its disk")
        self.cluster.nodes[number].lose(again=self.random.random() < 0.4)
        await self.mend()

    async def mend(self) -> None:
        """Remove the member whose disk is lost."""
        for number in sorted(self.cluster.lost) if not self.in_doubt else ():
            await self.change(MemberChange("remove", number))
            self.cluster.nodes[number].retire()
            self.cluster.lost.discard(number)

    @property
    def in_doubt(self) -> bool:
        """Whether Paxos Commit has left anything prepared: who lets a node go looks for that before."""
        prepared = [work for disk in self.world.disks.values() for work in disk.prepared.values()]
        return any(":p:" in work.name and not work.impostor for work in prepared)

    async def transfer(self) -> None:
        await admin.transfer(self.world.settings)

    async def snapshot(self) -> None:
        address = self.random.choice(sorted(self.cluster.addresses.values()))
        await admin.snapshot(self.world.settings, str(address))
        _, _, image = await admin.image(self.world.settings)
        assert image

    async def look(self) -> None:
        await survey(self.world.settings)

    async def tidy(self) -> bool:
        """Once all is quiet: whoever is no member any more, or never became one, is switched off."""
        try:
            await self.mend()
            members = {*(await admin.change_members(self.world.settings, [])).nodes}
        except LedgerError as error:
            self.world.trace(self.process.name, f"tidying: {error}")
            return False
        if self.cluster.lost:
            return False
        for number, member in self.cluster.nodes.items():
            if number not in members:
                member.retire()
        return True
