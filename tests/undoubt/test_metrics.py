"""Metrics: what a monitoring system is told is what happened, and nothing in it grows without bound."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.recovery.world import FAST, World, until
from undoubt.coordinator import supervision
from undoubt.coordinator.coordinator import Coordinator
from undoubt.coordinator.errors import HeuristicOutcome, LedgerUnavailable, OutcomeUnknown, TransactionAborted
from undoubt.coordinator.settings import CoordinatorSettings
from undoubt.metrics import Metrics
from undoubt.participants.contract import Decision, PreparedBranch, Settled, Vote, Work
from undoubt.participants.errors import ParticipantUnavailable, UsageError
from undoubt.participants.ids import Gid
from undoubt.recovery.service import RecoveryService


class Told:
    """Metrics with a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)

    def __call__(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)

    def outcomes(self) -> dict[str, float]:
        return {
            sample.labels["outcome"]: sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == "undoubt_transactions_total"
        }

    def phases(self) -> set[str]:
        return {
            sample.labels["phase"]
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == "undoubt_transaction_phase_seconds_count"
        }


@pytest.fixture
async def world() -> World:
    return await World().open()


@pytest.fixture
def told() -> Told:
    return Told()


def coordinator(world: World, told: Told, **settings: Any) -> Coordinator:
    return Coordinator(
        told.metrics.timed(world.ledger), world.registry, CoordinatorSettings(**settings), meter=told.metrics
    )


async def transfer(coordinator: Coordinator, **options: Any) -> None:
    async with coordinator.transaction(**options) as tx:
        await tx.branch("orders")
        await tx.branch("payments")


async def test_a_commit(world: World, told: Told) -> None:
    async with coordinator(world, told) as ours:
        await transfer(ours)
    assert told.outcomes() == {"committed": 1}
    assert told("undoubt_transactions_total", protocol="2pc", outcome="committed") == 1
    assert told.phases() == {"work", "vote", "decide", "apply"}
    for phase in told.phases():
        assert told("undoubt_transaction_phase_seconds_count", protocol="2pc", phase=phase) == 1
    assert told("undoubt_ledger_request_seconds_count", request="decide") == 1
    assert told("undoubt_ledger_request_seconds_count", request="open_session") == 1


async def test_phases_add_up_to_the_transaction(world: World, told: Told) -> None:
    """Broken if time is told of the wrong phase, or of two at once."""
    loop = asyncio.get_running_loop()

    async def before(call: str, _: Gid) -> None:
        await asyncio.sleep({"begin": 0.01, "prepare": 0.03, "commit": 0.05}.get(call, 0.0))

    for database in world.databases.values():
        database.before = before
    async with coordinator(world, told) as ours:
        began = loop.time()
        await transfer(ours)
        elapsed = loop.time() - began
    spent = {
        phase: told("undoubt_transaction_phase_seconds_sum", protocol="2pc", phase=phase) or 0.0
        for phase in told.phases()
    }
    assert spent["work"] >= 0.018
    assert spent["vote"] >= 0.028
    assert spent["apply"] >= 0.048
    assert sum(spent.values()) <= elapsed


async def test_every_other_outcome(world: World, told: Told) -> None:
    """Told by what became of it: broken if an alert on lost outcomes could not see one."""
    async with coordinator(world, told) as ours:
        world.payments.script.prepare = Vote.ABORT
        with pytest.raises(TransactionAborted):
            await transfer(ours)
        assert told.outcomes() == {"aborted": 1}
        assert "undo" in told.phases()
        world.payments.script.prepare = None

        tx = await ours.transaction().start()
        await tx.branch("orders")
        await tx.rollback()
        assert told.outcomes() == {"aborted": 1, "rolled_back": 1}

        with pytest.raises(TransactionAborted):
            async with ours.transaction() as tx:
                await tx.branch("orders")
                ours.cancel(tx.id, UsageError("as told"))
                await until(lambda: False)
        assert told.outcomes()["aborted"] == 2

        world.payments.script.commit = [Settled.HEURISTIC_ROLLBACK]
        with pytest.raises(HeuristicOutcome):
            await transfer(ours)
        world.payments.script.commit = []
        assert told.outcomes()["heuristic_mixed"] == 1
        assert told("undoubt_heuristics_total", participant="payments", kind="heuristic_rollback") == 1

        world.payments.script.work = Work.READ_ONLY
        world.orders.script.one_phase = ParticipantUnavailable("orders", "lost")
        with pytest.raises(OutcomeUnknown):
            await transfer(ours)
        assert told.outcomes()["unknown"] == 1


async def test_the_ledgers_failures(world: World, told: Told) -> None:
    ledger = told.metrics.timed(world.ledger)
    with pytest.raises(LedgerUnavailable):
        await told.metrics.timed(Broken()).unfinished()
    assert told("undoubt_ledger_request_failures_total", request="unfinished") == 1
    assert ledger.ledger_id == world.ledger.ledger_id
    assert ledger.leads


class Broken:
    def __getattr__(self, name: str) -> Any:
        async def fail(*_: object, **__: object) -> None:
            raise LedgerUnavailable("as told")

        return fail


async def test_what_recovery_sees_and_does(world: World, told: Told) -> None:
    """Broken if a branch in doubt is not counted, or still counted when it is none any more."""
    await world.left()
    service = RecoveryService(world.ledger, world.registry, FAST, meter=told.metrics)
    async with service:
        await until(lambda: told("undoubt_in_doubt_branches", participant="orders", standing="active") == 1)
        age = told("undoubt_in_doubt_oldest_age_seconds", participant="orders")
        assert age is not None
        assert age >= 1.0
        await until(lambda: (told("undoubt_in_doubt_oldest_age_seconds", participant="orders") or 0.0) > age)
        assert told("undoubt_in_doubt_branches", participant="orders", standing="aborted") == 0
        await world.end_session()
        await until(
            lambda: told("undoubt_recovery_actions_total", participant="orders", action="rollback") == 1
        )
        await until(lambda: told("undoubt_in_doubt_oldest_age_seconds", participant="orders") == 0.0)
        assert told("undoubt_in_doubt_branches", participant="orders", standing="active") == 0
        assert (told("undoubt_recovery_last_pass_timestamp_seconds", participant="orders") or 0) > 1.7e9
        assert (told("undoubt_recovery_passes_total", participant="orders", result="done") or 0) > 0


async def test_impostors_are_counted_by_themselves(world: World, told: Told) -> None:
    """Broken if whoever forges names can fill the graphs of what is in doubt, or raise its alert."""
    gids = await world.left()
    for gid in (replace(gids[0], tag="0" * 20), replace(gids[0], branch=9), gids[1]):
        world.orders.foreign.append(PreparedBranch(gid, "somebody", "orders", 0.0, 9_999.0, 77))
    async with RecoveryService(world.ledger, world.registry, FAST, meter=told.metrics):
        await until(lambda: told("undoubt_impostor_branches", participant="orders") == 3)
        await until(lambda: told("undoubt_impostor_branches", participant="payments") == 0)
        assert told("undoubt_in_doubt_branches", participant="orders", standing="impostor") is None
        assert told("undoubt_in_doubt_branches", participant="orders", standing="active") == 1
        assert (told("undoubt_in_doubt_oldest_age_seconds", participant="orders") or 0.0) < 1_000
        world.registry.remove("payments")
        await until(lambda: told("undoubt_impostor_branches", participant="payments") is None)


async def test_a_participant_that_cannot_be_asked_keeps_its_branches(world: World, told: Told) -> None:
    """Broken if an outage silences the alert on the branches that it holds."""
    await world.left()
    async with RecoveryService(world.ledger, world.registry, FAST, meter=told.metrics):
        await until(lambda: told("undoubt_in_doubt_branches", participant="orders", standing="active") == 1)
        world.orders.down = ParticipantUnavailable("orders", "down")
        await until(
            lambda: (told("undoubt_recovery_passes_total", participant="orders", result="failed") or 0) > 0
        )
        age = told("undoubt_in_doubt_oldest_age_seconds", participant="orders") or 0.0
        assert told("undoubt_in_doubt_branches", participant="orders", standing="active") == 1
        await until(lambda: (told("undoubt_in_doubt_oldest_age_seconds", participant="orders") or 0.0) > age)


async def test_who_is_not_looked_after_is_not_told_of(world: World, told: Told) -> None:
    """Broken if a process that no longer leads shows for ever what it saw last."""
    await world.left()
    async with RecoveryService(world.ledger, world.registry, FAST, meter=told.metrics):
        await until(lambda: told("undoubt_in_doubt_branches", participant="payments", standing="active") == 1)
        world.registry.remove("payments")
        await until(
            lambda: told("undoubt_in_doubt_branches", participant="payments", standing="active") is None
        )
    for name in ("undoubt_in_doubt_oldest_age_seconds", "undoubt_recovery_last_pass_timestamp_seconds"):
        assert told(name, participant="orders") is None


async def test_heuristics_that_recovery_finds(world: World, told: Told) -> None:
    gids = await world.left(Decision.COMMIT)
    world.orders.finish_by_hand(gids[0], Decision.ABORT)
    async with RecoveryService(world.ledger, world.registry, FAST, meter=told.metrics):
        await until(
            lambda: told("undoubt_heuristics_total", participant="orders", kind="heuristic_rollback") == 1
        )
        await until(
            lambda: told("undoubt_recovery_actions_total", participant="payments", action="commit") == 1
        )


async def test_no_label_names_a_transaction(world: World, told: Told) -> None:
    """Each would be a time series for ever."""
    async with coordinator(world, told) as ours:
        await transfer(ours)
    async with RecoveryService(world.ledger, world.registry, FAST, meter=told.metrics):
        await world.left()
        await until(lambda: told("undoubt_in_doubt_oldest_age_seconds", participant="orders") is not None)
        for family in told.registry.collect():
            assert family.name.startswith("undoubt_")
            for sample in family.samples:
                assert set(sample.labels) <= {
                    "protocol", "outcome", "phase", "request", "participant", "kind", "standing", "result",
                    "action", "le", "task",
                }  # fmt: skip
                for value in sample.labels.values():
                    assert world.ledger.ledger_id not in value
                    assert world.session.nonce not in value


async def test_restarts_of_background_tasks_are_counted(told: Told) -> None:
    """Broken if a task that fails again and again is seen by nobody."""
    supervision.restarts["some task"] += 2
    assert told("undoubt_task_restarts_total", task="some task") == 2
    del supervision.restarts["some task"]
