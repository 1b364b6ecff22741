"""Real processes of two versions, upgraded one after the other under load, and back. Broken if callers
noticed, if anything that they were told were lost, or if the way back were closed before all have gone on.

``node.version_max = 1`` makes a process one of the former version: it offers no other to anybody, and what is
newer in its log would stop it.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.coordinator.node.processes import QUICK, Processes
from tests.coordinator.node.test_processes import BRANCHES, Load, load
from tests.undoubt.cli.harness import undoubt
from undoubt.coordinator.errors import VersionHeldBack
from undoubt.coordinator.ledger.cluster.status import ClusterStatus, survey
from undoubt.coordinator.settings import LedgerSettings
from undoubt.coordinator.wire import VERSIONS
from undoubt.participants.contract import Decision

FORMER = "version_max = 1\n"
NEWEST = VERSIONS.highest


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Processes]:
    """All of the former version."""
    found = Processes(tmp_path, timers=QUICK + FORMER)
    try:
        await found.start()
        yield found
    finally:
        await found.kill()


def configure(nodes: Processes, number: int, *, former: bool) -> None:
    text = nodes.config(number).read_text().replace(FORMER, "")
    nodes.config(number).write_text(text + FORMER if former else text)


async def roll(nodes: Processes, decides: Load, *numbers: int, former: bool = False) -> None:
    """Restart them one after the other, each as of the other version, while decisions go on."""
    for number in numbers:
        assert await nodes.end(number, signal.SIGTERM) == 0, nodes.log(number)
        await decides.more()
        configure(nodes, number, former=former)
        await nodes.start(number)
        await nodes.applied()
        await decides.more()


async def looked(nodes: Processes) -> ClusterStatus:
    await nodes.leader()
    return await survey(LedgerSettings(url=nodes.settings.url, request_timeout_s=5.0))


def versions(found: ClusterStatus) -> list[tuple[int, int]]:
    """Of each node what is agreed on, and what it speaks."""
    told = [seen.status for seen in found.nodes if seen.status is not None]
    return [(one.agreed_version, one.highest_version) for one in told]


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_rolling_upgrade_and_back_under_load(nodes: Processes) -> None:
    """Two of three go forward, and back again; then all three go, and only then there is no way back."""
    async with load(nodes) as decides:
        await roll(nodes, decides, 1, 2)
        found = await looked(nodes)
        assert versions(found) == [(1, NEWEST), (1, NEWEST), (1, 1)]
        assert found.held_up_by == (3,)
        with pytest.raises(VersionHeldBack):
            await decides.ledger.acceptors.open_session("shop", 300.0)
        shown = await asyncio.to_thread(undoubt, "cluster", "status", "--config", str(nodes.config(1)))
        assert f"1 (supports {NEWEST})" in shown.out
        assert f"version {NEWEST} is not agreed on yet; to upgrade: node 3" in shown.err
        await roll(nodes, decides, 1, 2, former=True)
        assert versions(await looked(nodes)) == [(1, 1)] * 3
        await roll(nodes, decides, 2, 3, 1)
        while versions(await looked(nodes)) != [(NEWEST, NEWEST)] * 3:
            await decides.more(20)
        session = await decides.ledger.acceptors.open_session("shop", 300.0)
        assert await decides.ledger.acceptors.vote(session.txid(1), BRANCHES) is Decision.COMMIT
        await decides.more()
        await nodes.end(2, signal.SIGTERM)
        configure(nodes, 2, former=True)
        ran = await asyncio.to_thread(undoubt, "node", "--config", str(nodes.config(2)))
        assert ran.status == 1
        assert f"agreed on version {NEWEST}, and this node supports 1 at most" in ran.err
        configure(nodes, 2, former=False)
        await nodes.start(2)
        await decides.more()
        told = await asyncio.to_thread(
            undoubt, "cluster", "status", "-o", "json", "--config", str(nodes.config(1))
        )
        assert (told.json["version"], told.json["version_held_up_by"]) == (NEWEST, [])
    await nodes.applied()
    assert not any("this node stops" in nodes.log(number) for number in nodes.numbers)
