"""An operator and a recovery beside a last-agent commit that is under way, with real databases. Each test's
docstring says what is broken if it fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import undoubt
from tests.servers import prepared
from tests.undoubt.test_end_to_end import TABLE, run, source
from undoubt import TransactionAborted
from undoubt.coordinator.ledger.contract import Session
from undoubt.coordinator.protocols.steps import LastAgentStep, TwoPhaseStep
from undoubt.participants.contract import Decision
from undoubt.participants.ids import Gid
from undoubt.participants.postgres.schema import migrate
from undoubt.participants.settings import ParticipantSettings
from undoubt.recovery.errors import Conflict, NotPrepared
from undoubt.recovery.operator.resolve import Operator
from undoubt.recovery.operator.transaction import Resolver
from undoubt.recovery.service import RecoveryService

ROWS = "select decision from undoubt.undoubt_agent"
LATCH = """
create function latch() returns trigger language plpgsql as
    'begin perform pg_catalog.pg_advisory_xact_lock(77); return new; end';
create trigger latch after insert on undoubt.undoubt_agent for each row when (new.decision = 'commit')
    execute function latch();
"""
"""Whoever writes the row of a COMMIT waits, with the row written, for whoever has the lock."""


class Steps:
    """Notes the branch that is prepared, and awaits ``before_agent`` before COMMIT is sent to the agent."""

    def __init__(self) -> None:
        self.gids: list[Gid] = []
        self.before_agent: Any = None

    async def observe(self, step: Any, subject: str) -> None:
        gid = Gid.parse(subject)
        if step is TwoPhaseStep.AFTER_PREPARE and isinstance(gid, Gid):
            self.gids.append(gid)
        if step is LastAgentStep.BEFORE_AGENT and self.before_agent is not None:
            await self.before_agent()


@pytest.fixture
def steps() -> Steps:
    return Steps()


@pytest.fixture
async def coordinator(
    tmp_path: Path, databases: dict[str, str], steps: Steps
) -> AsyncIterator[undoubt.Coordinator]:
    for name, dsn in databases.items():
        await run(dsn, TABLE)
        await migrate(name, ParticipantSettings(dsn=dsn))
    given = source(tmp_path, databases, recovery={"interval_s": 600.0})
    async with undoubt.connect(given, observe=steps.observe) as connected:
        yield connected


async def insert(coordinator: undoubt.Coordinator) -> undoubt.CommitResult:
    async with coordinator.transaction(protocol="last", agent="payments", timeout=60) as tx:
        for name in ("orders", "payments"):
            await (await tx.branch(name)).execute("insert into note (id) values (1)")
        return await tx.commit()


async def end_session(coordinator: undoubt.Coordinator, gid: Gid) -> None:
    """As if it had expired."""
    [found] = [one for one in await coordinator.ledger.sessions() if one.id == gid.txid.session]
    await coordinator.ledger.close_session(Session(found.id, found.nonce, found.name, found.ttl_s))


async def execute(dsn: str, script: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(script)
    finally:
        await connection.close()


async def found(databases: dict[str, str]) -> dict[str, list[int]]:
    ask = "select id from note order by id"
    return {name: [row["id"] for row in await run(dsn, ask)] for name, dsn in databases.items()}


@asynccontextmanager
async def in_flight(dsn: str, committing: asyncio.Task[Any]) -> AsyncIterator[None]:
    """The COMMIT of the agent has written its row, and is not over before this is."""
    connection = await asyncpg.connect(dsn)
    try:
        while not await connection.fetchval(
            "select exists (select from pg_locks where locktype = 'advisory' and not granted)"
        ):
            assert not committing.done(), committing.exception()
            await asyncio.sleep(0.01)
        yield
    finally:
        await connection.close()


@asynccontextmanager
async def latched(dsn: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    await execute(dsn, LATCH)
    connection = await asyncpg.connect(dsn)
    await connection.execute("select pg_advisory_lock(77)")
    try:
        yield connection
    finally:
        await connection.close()


@pytest.mark.parametrize("whole", [False, True])
async def test_a_rollback_by_hand_meets_a_commit_that_was_not_sent(
    coordinator: undoubt.Coordinator, databases: dict[str, str], steps: Steps, whole: bool
) -> None:
    """Broken if ABORT is recorded without a tombstone: the coordinator lives, and its COMMIT commits the
    agent alone."""

    async def roll_back() -> None:
        [gid] = steps.gids
        if whole:
            await Resolver(coordinator.ledger, coordinator.participants).end(gid.txid, Decision.ABORT)
        else:
            await Operator(coordinator.ledger, coordinator.participants).roll_back(gid)

    steps.before_agent = roll_back
    with pytest.raises(TransactionAborted, match="recovery or an operator has aborted"):
        await insert(coordinator)
    assert await found(databases) == {"orders": [], "payments": []}
    assert await prepared(databases["orders"]) == []
    assert str(await coordinator.outcome(steps.gids[0].txid)) == "abort"
    assert [row["decision"] for row in await run(databases["payments"], ROWS)] == ["abort"]


async def test_a_rollback_by_hand_meets_a_commit_in_flight(
    coordinator: undoubt.Coordinator, databases: dict[str, str], steps: Steps
) -> None:
    """Broken if ABORT is recorded, or the other branch rolled back, while the COMMIT of the agent is being
    executed: its row is not visible yet, and the agent commits alone."""
    async with latched(databases["payments"]) as latch:
        committing = asyncio.create_task(insert(coordinator))
        operator = Operator(coordinator.ledger, coordinator.participants)
        async with in_flight(databases["payments"], committing):
            [gid] = steps.gids
            with pytest.raises(Conflict, match="is writing the row of this transaction"):
                await operator.roll_back(gid)
            assert str(await coordinator.outcome(gid.txid)) == "not_recorded"
            assert await prepared(databases["orders"]) == [str(gid)]
        await latch.execute("select pg_advisory_unlock(77)")
        assert (await committing).pending == ()
    assert await found(databases) == {"orders": [1], "payments": [1]}
    with pytest.raises(NotPrepared):
        await operator.roll_back(gid)


async def test_recovery_ends_the_commit_of_a_coordinator_that_is_gone(
    coordinator: undoubt.Coordinator, databases: dict[str, str], steps: Steps
) -> None:
    """Broken if a session that hangs in the COMMIT of the agent keeps the others in doubt although its
    coordinator is gone; or if its end is not what decides."""
    async with latched(databases["payments"]):
        committing = asyncio.create_task(insert(coordinator))
        async with in_flight(databases["payments"], committing):
            [gid] = steps.gids
            recovery = RecoveryService(coordinator.ledger, coordinator.participants)
            await recovery.run_once()
            assert await prepared(databases["orders"]) == [str(gid)], "its coordinator is alive"
            await end_session(coordinator, gid)
            while await prepared(databases["orders"]):
                await recovery.run_once()
        with pytest.raises(TransactionAborted):
            await committing
    assert await found(databases) == {"orders": [], "payments": []}
    assert str(await coordinator.outcome(gid.txid)) == "abort"


async def test_a_coordinator_that_had_expired_commits_nothing(
    coordinator: undoubt.Coordinator, databases: dict[str, str], steps: Steps
) -> None:
    """Broken if a coordinator that was stopped, and goes on after recovery has ended its transaction, commits
    the agent alone."""

    async def expire() -> None:
        [gid] = steps.gids
        await end_session(coordinator, gid)
        while await prepared(databases["orders"]):
            await RecoveryService(coordinator.ledger, coordinator.participants).run_once()

    steps.before_agent = expire
    with pytest.raises(TransactionAborted):
        await insert(coordinator)
    assert await found(databases) == {"orders": [], "payments": []}


async def test_a_row_that_was_left_is_copied_to_the_ledger(
    coordinator: undoubt.Coordinator, databases: dict[str, str], steps: Steps
) -> None:
    """Broken if the row of a coordinator that has died stays for ever, or is deleted before the ledger has
    its COMMIT; or if a role without rights can keep it there."""
    await insert(coordinator)
    txid = steps.gids[0].txid
    await run(databases["payments"], "create role forger login")
    try:
        await execute(
            databases["payments"],
            f"set role forger; select undoubt.note_agent('\\x01', '{coordinator.ledger_id}', '{txid}', '')",
        )
        await end_session(coordinator, steps.gids[0])
        service = RecoveryService(coordinator.ledger, coordinator.participants)
        terminator = service.context.terminator
        payments = coordinator.participants.get("payments")
        await terminator.agents.tidy(payments, terminator.alive)
        assert await run(databases["payments"], ROWS) == []
        assert str(await coordinator.outcome(txid)) == "commit"
    finally:
        await run(databases["payments"], "drop role forger")
