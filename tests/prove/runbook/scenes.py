"""Scenes in which databases need an operator. Each is prepared, left to the commands of the page, and looked
at afterwards."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from tests.prove.bank import NAMES, audit
from tests.prove.runbook.site import SETTINGS, Site
from tests.prove.trap import KILL, PAUSE
from undoubt.coordinator.protocols.steps import LastAgentStep, TwoPhaseStep
from undoubt.embedded import EmbeddedServer
from undoubt.embedded.binaries import bin_folder
from undoubt.embedded.places import give, new_place, server_user

Prepare = Callable[[Site], AsyncIterator[None]]
Scene = Callable[[Site], AbstractAsyncContextManager[None]]
SCENES: dict[str, Scene] = {}
SHARED: set[str] = set()
"""The headings whose scenes begin with a cluster that runs, and leave one."""


OLD_S = 60.0


class NotRepaired(Exception):
    """After the commands of a section something is still wrong."""


def scene(
    heading: str, into: dict[str, Scene] = SCENES, *, shared: bool = True
) -> Callable[[Prepare], Prepare]:
    """The scene of the section with that heading. ``shared``: the site is whole again after its commands, and
    other sections use it too."""

    def add(prepare: Prepare) -> Prepare:
        into[heading] = asynccontextmanager(prepare)
        if shared:
            SHARED.add(heading)
        return prepare

    return add


async def consistent(site: Site) -> None:
    """Raises :class:`NotRepaired` if a transfer is in one database only, or a branch is still prepared."""
    found = await audit(site.dsns, (), ())
    if not found.clean:
        raise NotRepaired(str(found))


@scene("When the alarm wakes you")
@scene("Size an installation")
@scene("A message is not delivered")
@scene("A background task was restarted")
async def healthy(_: Site) -> AsyncIterator[None]:
    yield


@scene("An outcome is unknown")
async def unknown(site: Site) -> AsyncIterator[None]:
    """It is recorded, and its application has not heard it."""
    shop = await site.stuck(TwoPhaseStep.AFTER_DECIDE, KILL)
    await shop.ended()
    yield
    await consistent(site)


@scene("A branch is in doubt")
async def in_doubt(site: Site) -> AsyncIterator[None]:
    """The coordinator lives, and does not continue. The page looks for what is older than a minute."""
    shop = await site.stuck(TwoPhaseStep.BEFORE_DECIDE, PAUSE, timeout_s=600.0)
    await asyncio.sleep(OLD_S)
    try:
        yield
    finally:
        await shop.kill()
    await consistent(site)


@scene("A database does not answer")
async def database_down(site: Site) -> AsyncIterator[None]:
    shop = await site.stuck(TwoPhaseStep.AFTER_DECIDE, PAUSE)
    await site.servers.by_name["payments"].stop()
    await shop.kill()
    yield
    await consistent(site)


@scene("The agent does not answer")
async def agent_down(site: Site) -> AsyncIterator[None]:
    """It has committed, and nobody else knows it."""
    shop = await site.stuck(
        LastAgentStep.AFTER_AGENT, PAUSE, protocol="last", agent="payments", session_ttl_s=60.0
    )
    await site.servers.by_name["payments"].stop()
    await shop.kill()
    yield
    await consistent(site)


@scene("A prepared transaction is an impostor")
async def impostor(site: Site) -> AsyncIterator[None]:
    """A name of the ledger that was invented."""
    shop = await site.stuck(TwoPhaseStep.BEFORE_DECIDE, PAUSE)
    [name] = await site.prepared("orders")
    await shop.go_on()
    await shop.ended()
    invented = name.replace(".1:1:", ".77:1:")
    await site.execute(
        "orders",
        f"begin; insert into transfer values ('invented'); prepare transaction '{invented}'",
        user="app",
    )
    yield
    await consistent(site)


@scene("The role of a branch is gone")
async def role_gone(site: Site) -> AsyncIterator[None]:
    for name in NAMES:
        await site.execute(name, "grant all on account, transfer to public", user="app")
    await site.execute("orders", "create role clerk login")
    await site.execute("orders", "grant clerk to app")
    theirs = site.servers.by_name["orders"].dsn(site.database, user="clerk")
    ours, site.dsns["orders"] = site.dsns["orders"], theirs
    shop = await site.stuck(TwoPhaseStep.AFTER_DECIDE, PAUSE)
    await site.execute("orders", "drop role clerk")
    site.dsns["orders"] = ours
    await shop.kill()
    yield
    await consistent(site)


@scene("A failover has lost prepared branches", shared=False)
async def failover(site: Site) -> AsyncIterator[None]:
    """The standby was behind. Its primary is gone for good."""
    primary = site.servers.by_name["orders"]
    standby = await standby_of(primary)
    site.extra["orders-2"] = standby
    both = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
    site.dsns["orders"] = site.dsns["orders"].replace(f"127.0.0.1:{primary.port}", both)
    await site.begun()
    await standby.stop()
    shop = await site.stuck(TwoPhaseStep.AFTER_DECIDE, PAUSE, tag="stuck")
    await primary.kill()
    await shop.go_on()
    await shop.ended()
    await standby.start()
    site.name_services({**site.servers.by_name, "orders": standby, "orders-2": standby})
    yield
    site.dsns["orders"] = standby.dsn(site.database, user="postgres")
    await consistent(site)


async def standby_of(primary: EmbeddedServer) -> EmbeddedServer:
    """A streaming standby, asynchronous."""
    standby = EmbeddedServer(SETTINGS)
    standby.folder = new_place("server")
    await programs(
        "pg_basebackup",
        "-d",
        primary.dsn(),
        "-D",
        str(standby.folder / "data"),
        "-R",
        "-X",
        "stream",
        "-c",
        "fast",
    )
    give(standby.folder, server_user())
    return await standby.start()


async def programs(name: str, *arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(
        str(bin_folder() / name), *arguments, stderr=asyncio.subprocess.PIPE
    )
    _, err = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{name}: {err.decode()}")


@scene("A database was cloned or set back", shared=False)
async def set_back(site: Site) -> AsyncIterator[None]:
    """The disk of a server was set back to a snapshot of before."""
    await site.begun()
    server = site.servers.by_name["orders"]
    if server.folder is None:
        raise RuntimeError("the server has no folder")
    await server.stop()
    kept = server.folder / "snapshot"
    shutil.copytree(server.folder / "data", kept, symlinks=True)
    await server.start()
    shop = await site.stuck(TwoPhaseStep.AFTER_FINISH, KILL)
    await shop.ended()
    await server.stop()
    shutil.rmtree(server.folder / "data")
    kept.rename(server.folder / "data")
    give(server.folder, server_user())
    await server.start()
    site.variables["FORMER"] = ""
    yield


@scene("PostgreSQL is restarted or upgraded")
async def restarted(site: Site) -> AsyncIterator[None]:
    shop = await site.stuck(TwoPhaseStep.AFTER_DECIDE, KILL)
    await shop.ended()
    yield
    await consistent(site)
