"""The whole library with one database behind PgBouncer, whose process dies again and again in mid-flight.

The crash matrix kills it between the named steps; here it dies wherever a statement, a PREPARE or a COMMIT
PREPARED happens to be.
"""

from __future__ import annotations

import asyncio
import enum
import itertools
import random
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import undoubt
from tests.pgbouncer import PgBouncer, program_or_skip
from tests.prove.bank import audit, set_up, transfer
from tests.servers import Server, prepared
from undoubt import wiring
from undoubt.config import Settings, load
from undoubt.coordinator.protocols.steps import TwoPhaseStep
from undoubt.participants.postgres.schema import migrate
from undoubt.recovery.service import RecoveryService

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


def configured(
    databases: dict[str, str],
    pooler: PgBouncer,
    folder: Path,
    payments: dict[str, Any],
    protocol: str = "2pc",
) -> Settings:
    """``payments`` through ``pooler``, and what else is set for it."""
    behind = {"dsn": pooler.dsn(databases["payments"].rsplit("/", 1)[1])}
    return load(
        {
            "ledger": {"url": f"sqlite:///{folder}/ledger.db"},
            "participants": {"orders": {"dsn": databases["orders"]}, "payments": behind | payments},
            "coordinator": {"drain_s": 1.0, "protocol": protocol},
            "recovery": {"interval_s": 0.05, "backoff_max_s": 0.2},
        }
    )


async def recovered(settings: Settings) -> None:
    """Recover until nothing is left, by a process that knows nothing but the settings."""
    async with wiring.opened(settings) as (ledger, participants):
        service = RecoveryService(ledger, participants, settings.recovery)
        async with asyncio.timeout(60):
            while True:
                report = await service.run_once()
                done = all(line.result == "done" for line in report.lines)
                if done and not (report.errors or report.unfinished):
                    break
                await asyncio.sleep(0.05)
        assert await ledger.heuristics() == []
        await service.close()


@pytest.mark.parametrize(
    ("driver", "declared", "protocol"),
    [
        ("asyncpg", True, "2pc"),
        ("asyncpg", False, "2pc"),
        ("psycopg", False, "2pc"),
        ("asyncpg", False, "3pc"),
    ],
)
async def test_a_pooler_that_dies_in_mid_flight(
    databases: dict[str, str],
    other_postgres: Server,
    tmp_path: Path,
    driver: str,
    declared: bool,
    protocol: str,
) -> None:
    """Broken if what the pooler took with it is half committed, lost after it was acknowledged, or stays."""
    program_or_skip()
    await set_up(databases)
    rng = random.Random(7)
    async with PgBouncer(databases["payments"]) as pooler:
        payments = {"driver": driver, "pooler": declared, "statement_timeout_s": 3.0}
        settings = configured(databases, pooler, tmp_path, payments, protocol)
        if protocol == "3pc":
            for name, one in settings.participants.items():
                await migrate(name, one)
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
        await recovered(settings)
    found = await audit(databases, load_run.acknowledged, load_run.aborted)
    assert found.clean, found
    assert len(load_run.acknowledged) > WORKERS
    assert load_run.aborted or load_run.unknown, "no kill was felt"


async def delivered(pooler: PgBouncer, dsn: str) -> list[str]:
    """Wait until the pooler has passed on everything that it held; what is prepared then."""
    database = dsn.rsplit("/", 1)[1]
    for _ in range(3):  # each one after whatever came before it
        through = await asyncpg.connect(pooler.dsn(database), statement_cache_size=0)
        await through.fetchval("select 1")
        await through.close()
    direct = await asyncpg.connect(dsn)
    busy = (
        "select count(*) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid() and state <> 'idle'"
    )
    async with asyncio.timeout(30):
        while await direct.fetchval(busy):
            await asyncio.sleep(0.01)
    await direct.close()
    return await prepared(dsn)


@pytest.mark.parametrize("step", [TwoPhaseStep.BEFORE_PREPARE, TwoPhaseStep.BEFORE_SECOND_PHASE])
async def test_a_pooler_that_stops_and_goes_on(
    databases: dict[str, str], other_postgres: Server, tmp_path: Path, step: TwoPhaseStep
) -> None:
    """Broken if a PREPARE that the pooler delivers after everybody has given up on it stays, or if a second
    phase that it delivers late contradicts what has been said meanwhile."""
    program_or_skip()
    await set_up(databases)
    async with PgBouncer(databases["payments"]) as pooler:
        settings = configured(databases, pooler, tmp_path, {"statement_timeout_s": 0.5})
        acknowledged, aborted = [], []

        def stop(at: enum.StrEnum, subject: str) -> None:
            if at is step and ":payments:" in subject:
                pooler.freeze()

        async with undoubt.connect(settings, observe=stop, recover=False) as coordinator:
            try:
                async with coordinator.transaction(timeout=5) as tx:
                    await transfer(tx, 1, "late")
            except undoubt.TransactionAborted:
                aborted.append("late")
            else:
                acknowledged.append("late")
        pooler.thaw()
        still = await delivered(pooler, databases["payments"])
        assert step is TwoPhaseStep.BEFORE_PREPARE or len(still) == 1
        assert (acknowledged, aborted) == (
            ([], ["late"]) if step is TwoPhaseStep.BEFORE_PREPARE else (["late"], [])
        )
        await recovered(settings)
    found = await audit(databases, acknowledged, aborted)
    assert found.clean, found


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_deadlock_across_databases_ends(
    databases: dict[str, str], other_postgres: Server, tmp_path: Path, driver: str, declared: bool
) -> None:
    """Broken if sessions whose process ids nobody knows beforehand are strangers to the detector: both
    transactions would wait until their timeout."""
    program_or_skip()
    await set_up(databases)
    both = asyncio.Barrier(2)
    calls: list[str] = []

    async def update(tx: undoubt.Transaction, first: str, second: str) -> None:
        calls.append(first)
        await (await tx.branch(first)).execute("update account set balance = balance where id = 1")
        if calls.count(first) == 1:
            await both.wait()
        await (await tx.branch(second)).execute("update account set balance = balance where id = 1")

    async with PgBouncer(databases["payments"]) as pooler:
        settings = configured(databases, pooler, tmp_path, {"driver": driver, "pooler": declared})
        pairs = (("orders", "payments"), ("payments", "orders"))
        async with undoubt.connect(settings) as coordinator:
            await asyncio.gather(*(coordinator.run(update, *pair, timeout=60) for pair in pairs))
    assert len(calls) >= 3
