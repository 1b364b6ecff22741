"""A cluster: one node's disk set back, copied back or lost; all of them; all of them made anew."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from tests.coordinator.node.cluster import Cluster
from tests.prove.setback.sqlite_cases import led_by
from tests.prove.setback.world import Told, World, case
from undoubt.config import Settings, load
from undoubt.coordinator.errors import LedgerUnusable
from undoubt.coordinator.ledger import open_ledger
from undoubt.coordinator.ledger.contract import Ledger
from undoubt.coordinator.node.bootstrap import beginning
from undoubt.coordinator.node.settings import NodeSettings
from undoubt.coordinator.node.storage.contract import DiskIdentity
from undoubt.coordinator.node.storage.node_storage import create
from undoubt.serve.force import force, survey_disks

PATIENT = NodeSettings(heartbeat_s=0.1, election_timeout_s=1.0)
STOPPED_S = 30.0
VERB = "undoubt cluster remove"


class Disks:
    """Three nodes, and copies of their disks."""

    def __init__(self, world: World, name: str = "nodes") -> None:
        self.world = world
        self.place = world.folder / name
        self.place.mkdir()
        self.cluster = Cluster(self.place, 3, node_settings=PATIENT)
        self.settings: Settings = world.settings(
            {"url": self.cluster.settings.url, "request_timeout_s": 30.0}
        )

    async def told(self) -> None:
        """The story, under which all disks are copied at one moment; the nodes run on."""
        await self.cluster.start()
        await self.cluster.leader()
        opened: list[Ledger] = [await open_ledger(self.settings.ledger)]

        async def copy() -> Ledger:
            await opened.pop().close()
            await self.cluster.settled()
            await self.cluster.stop()
            for number in self.cluster.addresses:
                shutil.copytree(self.cluster.place(number), self.copy(number))
            await self.cluster.start()
            await self.cluster.leader()
            opened.append(await open_ledger(self.settings.ledger))
            return opened[0]

        ledger = await self.world.tell(opened[0], copy)
        await self.cluster.settled()
        await ledger.close()

    def copy(self, number: int) -> Path:
        return self.world.folder / f"copy-{number}"

    def set_back(self, number: int) -> None:
        shutil.rmtree(self.cluster.place(number))
        shutil.copytree(self.copy(number), self.cluster.place(number))

    async def follower(self) -> int:
        leader = (await self.cluster.leader()).identity.node
        return next(number for number in self.cluster.addresses if number != leader)


async def _refused(disks: Disks, number: int, told: Told) -> Told:
    """The node does not take part, and says what to do."""
    try:
        await disks.cluster.start(number)
    except LedgerUnusable as error:
        said = str(error)
    else:
        node = disks.cluster.nodes[number]
        try:
            said = str(await asyncio.wait_for(asyncio.shield(node.failed), STOPPED_S))
        except TimeoutError:
            said = ""
    told.said = said
    told.silent += not said
    told.led_to_verb += VERB in said or "remove it from" in said
    return told


@case("raft: nothing but a kill")
async def nothing(world: World) -> Told:
    disks = Disks(world)
    try:
        await disks.told()
        await disks.cluster.stop()
        await disks.cluster.start()
        await disks.cluster.leader()
        told = await world.look(disks.settings)
        told.silent += bool(told.said)
        return told
    finally:
        await disks.cluster.stop()


@case("raft: the files of one node are copied back")
async def copied_back(world: World) -> Told:
    """All but its anchor."""
    disks = Disks(world)
    try:
        await disks.told()
        number = await disks.follower()
        await disks.cluster.stop(number)
        anchor = (disks.cluster.place(number) / "log.anchor").read_bytes()
        disks.set_back(number)
        (disks.cluster.place(number) / "log.anchor").write_bytes(anchor)
        return await _refused(disks, number, await world.look(disks.settings))
    finally:
        await disks.cluster.stop()


@case("raft: the disk of one node is set back")
async def set_back(world: World) -> Told:
    disks = Disks(world)
    try:
        await disks.told()
        number = await disks.follower()
        (await disks.cluster.leader()).replica.note_acknowledged()
        await disks.cluster.stop(number)
        disks.set_back(number)
        return await _refused(disks, number, await world.look(disks.settings))
    finally:
        await disks.cluster.stop()


@case("raft: the disk of one node is lost")
async def lost(world: World) -> Told:
    disks = Disks(world)
    try:
        await disks.told()
        number = await disks.follower()
        await disks.cluster.stop(number)
        shutil.rmtree(disks.cluster.place(number))
        return await _refused(disks, number, await world.look(disks.settings))
    finally:
        await disks.cluster.stop()


@case("raft: the disks of all nodes are set back, cluster restore --force")
async def all_set_back(world: World) -> Told:
    """No disk that is left knows it: the pages lead to the verb."""
    disks = Disks(world)
    try:
        await disks.told()
    finally:
        await disks.cluster.stop()
    for number in disks.cluster.addresses:
        disks.set_back(number)
    again = Disks(world, "again")
    left, image = await survey_disks([disks.cluster.place(number) for number in disks.cluster.addresses])
    ticket = ""
    for number in again.cluster.addresses:
        place = again.cluster.place(number)
        shutil.rmtree(place)
        node = {"number": number, "data": str(place)}
        settings = load({"ledger": {"url": again.cluster.settings.url}, "node": node}, env={})
        ticket = (await force(settings, left, image, ticket)).ticket
    try:
        await again.cluster.start()
        await again.cluster.leader()
        told = await world.look(again.settings)
        told.led_to_verb += led_by("docs/cluster.md", "all nodes were set back", "cluster restore --force")
        return told
    finally:
        await again.cluster.stop()


@case("raft: all disks are new")
async def made_anew(world: World) -> Told:
    """Another cluster, of another ledger, at the same addresses."""
    disks = Disks(world)
    try:
        await disks.told()
    finally:
        await disks.cluster.stop()
    new = Disks(world, "new")
    _make_anew(new)
    try:
        await new.cluster.start()
        await new.cluster.leader()
        return await world.look(new.settings)
    finally:
        await new.cluster.stop()


def _make_anew(disks: Disks) -> None:
    """Its ledger has another id, as one that ``cluster init`` has drawn."""
    for number in disks.cluster.addresses:
        place = disks.cluster.place(number)
        shutil.rmtree(place)
        identity = DiskIdentity("zzzzzzzzzz", number, f"new-disk-{number}")
        create(place, identity, *beginning("zzzzzzzzzz", disks.cluster.addresses))
