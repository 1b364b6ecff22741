"""Runs recovery until it has nothing left to do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import undoubt.sync
from undoubt.coordinator.coordinator import Coordinator
from undoubt.coordinator.ledger.pages import every_unfinished
from undoubt.participants.ids import Gid
from undoubt.recovery.service import RecoveryService

RECOVERED_S = 60.0
LOOK_S = 0.1


def recover(
    settings: Mapping[str, Any],
    coordinator: undoubt.sync.Coordinator | None = None,
    timeout: float = RECOVERED_S,
) -> None:
    """Resolve what the ledger of ``settings`` has in doubt, as soon as the sessions of dead processes have
    expired. ``coordinator``: one that is open already. Raises ``TimeoutError`` with what is left."""
    if coordinator is not None:
        coordinator.portal.call(_until_nothing_is_left, coordinator.engine, timeout)
        return
    with undoubt.sync.connect(settings, recover=False) as opened:
        opened.portal.call(_until_nothing_is_left, opened.engine, timeout)


async def _until_nothing_is_left(engine: Coordinator, timeout_s: float) -> None:
    service = RecoveryService(engine.ledger, engine.participants, always=True)
    end = time.monotonic() + timeout_s
    while True:
        await service.run_once()
        left = [str(record.txid) async for record in every_unfinished(engine.ledger)]
        for name in engine.participants.names():
            rows = await engine.participants.get(name).in_doubt()
            left += [
                str(row.gid)
                for row in rows
                if isinstance(row.gid, Gid) and row.gid.ledger == engine.ledger.ledger_id
            ]
        if not left:
            return
        if time.monotonic() > end:
            raise TimeoutError(f"still in doubt after {timeout_s:g} s: {left}")
        await asyncio.sleep(LOOK_S)
