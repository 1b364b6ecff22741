"""Scenes in which nodes, their disks, clocks or certificates need an operator."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import io
import os
import shutil
import signal
import zipfile
from collections.abc import AsyncIterator

from tests.prove.processes import within
from tests.prove.releases import WHEEL
from tests.prove.runbook.scenes import NotRepaired, Scene, consistent, scene
from tests.prove.runbook.site import Site
from tests.prove.trap import KILL, PAUSE
from undoubt.coordinator.ledger.cluster.status import survey
from undoubt.coordinator.protocols.steps import TwoPhaseStep
from undoubt.coordinator.settings import LedgerSettings
from undoubt.serve.certs import Folder

NODE_SCENES: dict[str, Scene] = {}
SMALL = "80m"
"""A node holds 16 MB in reserve while there are twice as many to be had."""
LEFT_BYTES = 16 * 1024 * 1024
"""Enough to begin, and not for the reserve."""
A_DAY_S = 86_400


async def leads(site: Site, *members: int) -> None:
    """Raises :class:`NotRepaired` unless these nodes all answer, and a transfer commits."""
    told = await site.run(0, "cluster", "status")
    answering = {node.get("node") for node in told["nodes"] if not node["error"]}
    if not answering >= set(members):
        raise NotRepaired(f"not all of nodes {members} answer: {told}")
    shop = await site.stuck(TwoPhaseStep.AFTER_FINISH, KILL)
    await shop.ended()
    await consistent(site)


@scene("A node is down or behind", NODE_SCENES)
async def down(site: Site) -> AsyncIterator[None]:
    await site.end(2)
    await site.leading()
    yield
    await leads(site, 1, 2, 3)


@scene("No node leads", NODE_SCENES)
async def leaderless(site: Site) -> AsyncIterator[None]:
    shop = await site.stuck(TwoPhaseStep.BEFORE_DECIDE, PAUSE)
    await site.end(2, 3)
    await shop.kill()
    await site.leaderless()
    yield
    await leads(site, 1, 2, 3)


@scene("A node is replaced", NODE_SCENES, shared=False)
async def replaced(site: Site) -> AsyncIterator[None]:
    """The disk of node 3 is lost; node 4 is a new machine."""
    await site.begun()
    await site.end(3)
    await site.leading()
    shutil.rmtree(site.machines.home("node-3") / "data")
    site.configuration(4)
    yield
    await leads(site, 1, 2, 4)


@scene("A backup is taken", NODE_SCENES)
async def backed_up(site: Site) -> AsyncIterator[None]:
    yield
    if not list((site.folder / "backups").iterdir()):
        raise NotRepaired("there is no backup")


@scene("The ledger is restored from a backup", NODE_SCENES, shared=False)
async def restored(site: Site) -> AsyncIterator[None]:
    """What was decided after the backup is forgotten: payments has committed, orders is still prepared."""
    await site.begun()
    await site.run(0, "cluster", "backup", str(site.folder / "backups" / "ledger.backup"))
    await half_committed(site)
    yield
    await leads(site, 1, 2, 3)


async def half_committed(site: Site) -> None:
    """A transfer whose branch in orders waits for its database, until all nodes have stopped."""
    shop = await site.stuck(TwoPhaseStep.AFTER_DECIDE, PAUSE)
    await site.servers.by_name["orders"].stop()
    await shop.go_on()
    await shop.ended()
    await site.end(*site.running)
    await site.servers.by_name["orders"].start()


@scene("A majority of the nodes is lost", NODE_SCENES, shared=False)
async def majority(site: Site) -> AsyncIterator[None]:
    """Two disks burned down; the newest one is left."""
    await site.begun()
    await site.end(2, 3)
    for lost in ("node-2", "node-3"):
        shutil.rmtree(site.machines.home(lost) / "data")
    yield
    await leads(site, 1, 2, 3)


@scene("A release is installed", NODE_SCENES, shared=False)
async def upgraded(site: Site) -> AsyncIterator[None]:
    """From the last release."""
    last = site.folder / "last-release"
    with zipfile.ZipFile(WHEEL) as wheel:
        wheel.extractall(last)
    site.releases = dict.fromkeys(site.addresses, last)
    await site.begun()
    yield
    await leads(site, 1, 2, 3)


@scene("The disk of a node is full", NODE_SCENES, shared=False)
async def full(site: Site) -> AsyncIterator[None]:
    """Another file has used the space of node 2's file system."""
    place = site.folder / "small"
    place.mkdir()
    await mounted("mount", "-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", str(place))
    try:
        site.data[2] = place / "node"
        with (place / "core.4711").open("wb", buffering=0) as file:
            fill(file, LEFT_BYTES)
            await site.begun()
            await noticed(site, 2)
            fill(file, 0)
        yield
        await leads(site, 1, 2, 3)
    finally:
        await site.end(*site.running, signal_=signal.SIGKILL)
        await mounted("umount", str(place))


def fill(file: io.FileIO, left_bytes: int) -> None:
    """Write to ``file`` until its file system has no more than so much room."""
    room = os.fstatvfs(file.fileno())
    with contextlib.suppress(OSError):
        while room.f_bavail * room.f_frsize > left_bytes:
            file.write(bytes(65_536))
            room = os.fstatvfs(file.fileno())


async def noticed(site: Site, number: int) -> None:
    """Once that node reports that its disk is full."""
    settings = LedgerSettings(url=f"raft://{site.url}", request_timeout_s=5.0)
    async with within("a node that reports a full disk"):
        while True:
            told = [seen.status for seen in (await survey(settings)).nodes if seen.status is not None]
            if any(each.node == number and each.disk_full for each in told):
                return
            await asyncio.sleep(0.1)


async def mounted(*words: str) -> None:
    process = await asyncio.create_subprocess_exec(*words, stderr=asyncio.subprocess.PIPE)
    _, err = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{words[0]}: {err.decode()}")


@scene("A clock has jumped", NODE_SCENES, shared=False)
async def jumped(site: Site) -> AsyncIterator[None]:
    """Of node 1, by ten days."""
    site.clocks = {number: site.folder / f"clock-{number}" for number in site.addresses}
    for clock in site.clocks.values():
        clock.write_text("+0\n")
    await site.begun()
    site.clocks[1].write_text(f"+{10 * A_DAY_S}\n")
    yield
    await leads(site, 1, 2, 3)


@scene("A certificate expires", NODE_SCENES, shared=False)
async def expires(site: Site) -> AsyncIterator[None]:
    """All of them end in some days."""
    await site.begun(tls=True)
    certs = site.folder / "certs"
    folder = Folder(certs, "", days=5)
    folder.renew()
    for number in (0, *site.addresses):
        stem = f"node-{number}" if number else "client-operator"
        shutil.copy(certs / f"{stem}.crt", site.machines.home(site.machine(number)))
    shutil.copytree(certs, site.machines.home("admin") / "certs")
    yield
    told = await site.run(0, "cluster", "status")
    soon = datetime.datetime.now(datetime.UTC).timestamp() + 300 * A_DAY_S
    if not all(node["certificate_until"] > soon for node in told["nodes"]):
        raise NotRepaired(f"certificates still end soon: {told}")
