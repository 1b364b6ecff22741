"""The whole library with one database behind PgBouncer, whose process dies again and again in mid-flight.

The crash matrix kills it between the named steps; here it dies wherever a statement, a PREPARE or a COMMIT
PREPARED happens to be.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from pathlib import Path
from typing import Any

import pytest

import undoubt
from recovery.service import RecoveryService
from tests.pgbouncer import PgBouncer, program_or_skip
from tests.prove.bank import audit, set_up, transfer
from tests.servers import Server
from undoubt import assemble
from undoubt.config import load

WORKERS, KILLS, BETWEEN = 8, 8, 25
"""``BETWEEN``: transfers that end, one way or the other, between two kills."""


class Load:
    """Transfers until told to stop, and what was said of each."""

    def __init__(self, coordinator: undoubt.Coordinator) -> None:
        self._coordinator = coordinator
        self._names = (f"t{number}" for number in itertools.count())
        self.acknowledged: list[str] = []
        self.aborted: list[str] = []
        self.unknown: list[str] = []
        self.stop = False

    @property
    def ended(self) -> int:
        return len(self.acknowledged) + len(self.aborted) + len(self.unknown)

    async def work(self, account: int) -> None:
        while not self.stop:
            name = next(self._names)
            try:
                async with self._coordinator.transaction(timeout=5) as tx:
                    await transfer(tx, account, name)
            except undoubt.OutcomeUnknown:
                self.unknown.append(name)
            except Exception:  # noqa: BLE001 - TransactionAborted, or what the driver says when its peer is gone
                self.aborted.append(name)
            else:
                self.acknowledged.append(name)


@pytest.mark.parametrize("declared", [True, False])
async def test_a_pooler_that_dies_in_mid_flight(
    databases: dict[str, str], other_postgres: Server, tmp_path: Path, declared: bool
) -> None:
    """Broken if what the pooler took with it is half committed, lost after it was acknowledged, or stays."""
    program_or_skip()
    await set_up(databases)
    rng = random.Random(7)
    port = int(databases["payments"].rsplit(":", 1)[1].split("/")[0])
    async with PgBouncer(port) as pooler:
        payments: dict[str, Any] = {"dsn": pooler.dsn(databases["payments"].rsplit("/", 1)[1])}
        settings = load(
            {
                "ledger": {"url": f"sqlite:///{tmp_path}/ledger.db"},
                "participants": {
                    "orders": {"dsn": databases["orders"]},
                    "payments": payments | {"pooler": declared, "statement_timeout_s": 3.0},
                },
                "recovery": {"interval_s": 0.05, "backoff_max_s": 0.2},
            }
        )
        async with undoubt.connect(settings) as coordinator:
            load_run = Load(coordinator)
            workers = [asyncio.create_task(load_run.work(account)) for account in range(WORKERS)]
            for _ in range(KILLS):
                until = load_run.ended + BETWEEN + rng.randrange(10)
                while load_run.ended < until:
                    await asyncio.sleep(rng.random() / 200)
                await pooler.kill()
                await pooler.start()
            load_run.stop = True
            await asyncio.gather(*workers)
        async with assemble.opened(settings) as (ledger, participants):
            service = RecoveryService(ledger, participants, settings.recovery)
            async with asyncio.timeout(60):
                while True:
                    report = await service.run_once()
                    if not (report.errors or report.unfinished) and all(
                        line.result == "done" for line in report.lines
                    ):
                        break
                    await asyncio.sleep(0.05)
            assert await ledger.heuristics() == []
        await service.close()
    found = await audit(databases, load_run.acknowledged, load_run.aborted)
    assert found.clean, found
    assert len(load_run.acknowledged) > WORKERS
    assert load_run.aborted or load_run.unknown, "no kill was felt"
