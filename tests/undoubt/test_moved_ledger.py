"""A ledger is moved to a cluster, whose nodes recover. Each test's docstring says what breaks if it fails."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from tests.coordinator.node.processes import Processes
from tests.prove.bank import audit, set_up
from tests.prove.processes import Child
from tests.prove.trap import KILL, Trap
from undoubt.coordinator.ledger import maintenance
from undoubt.coordinator.ledger.moving import move as moving
from undoubt.coordinator.settings import LedgerSettings


async def test_the_nodes_of_the_new_place_end_what_the_old_one_left(
    databases: dict[str, str], tmp_path: Path
) -> None:
    """A node goes on to recover the ledger that it was made with, and branches of the one that was moved
    there stay prepared."""
    await set_up(databases)
    source = LedgerSettings(url=f"sqlite:///{tmp_path}/ledger.db")
    await maintenance.init(source)
    settings = json.dumps(
        {
            "ledger": {"url": source.url},
            "participants": {name: {"dsn": dsn} for name, dsn in databases.items()},
        }
    )
    trap = Trap(KILL, "after_decide", 0, 1).encode()
    child = await Child.start("tests.prove.coordinator_process", settings, trap, "moved", "1", "1")
    await child.ended()
    assert child.heard.at == "after_decide"
    more = "".join(f'[participants.{name}]\ndsn = "{dsn}"\n' for name, dsn in databases.items())
    nodes = Processes(tmp_path, f"[recovery]\ninterval_s = 0.2\n{more}", count=1)
    try:
        await nodes.start()
        assert (await audit(databases, (), ())).prepared
        await moving.move(source, nodes.settings.url)
        while (found := await audit(databases, child.heard.begun, ())).prepared:
            await asyncio.sleep(0.1)
        assert found.clean
    finally:
        await nodes.kill()
