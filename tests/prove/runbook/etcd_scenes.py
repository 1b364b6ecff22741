"""Scenes in which the etcd of the ledger needs an operator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from tests.etcd import NAMES
from tests.prove.runbook.scenes import Scene, consistent, scene
from tests.prove.runbook.site import Site
from tests.prove.trap import KILL, PAUSE
from undoubt.coordinator.protocols.steps import TwoPhaseStep

ETCD_SCENES: dict[str, Scene] = {}


@scene("etcd does not answer", ETCD_SCENES, shared=False)
async def silent(site: Site) -> AsyncIterator[None]:
    """A majority of the members was killed while a transaction was committed."""
    etcd = await site.begun_in_etcd()
    shop = await site.stuck(TwoPhaseStep.AFTER_DECIDE, KILL)
    await shop.ended()
    etcd.kill(*NAMES[1:])
    yield
    await consistent(site)


@scene("etcd is restored from a snapshot", ETCD_SCENES, shared=False)
async def restored(site: Site) -> AsyncIterator[None]:
    """What was decided after the snapshot is forgotten: payments has committed, orders is still prepared."""
    etcd = await site.begun_in_etcd()
    await asyncio.to_thread(etcd.save, site.folder / "snapshot")
    shop = await site.stuck(TwoPhaseStep.AFTER_DECIDE, PAUSE)
    await site.servers.by_name["orders"].stop()
    await shop.go_on()
    await shop.ended()
    etcd.close()
    await site.servers.by_name["orders"].start()
    await asyncio.to_thread(etcd.restore, site.folder / "snapshot")
    await asyncio.to_thread(etcd.start)
    yield
    await consistent(site)
