"""Last-agent commit through the library, with real databases. Each test's docstring says what is broken if
it fails."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import undoubt
from tests.servers import prepared
from tests.undoubt.test_end_to_end import TABLE, run, source
from undoubt import TransactionAborted
from undoubt.coordinator.ledger.contract import Session, SessionState
from undoubt.coordinator.protocols.steps import STEPS, LastAgentStep, TwoPhaseStep
from undoubt.embedded import EmbeddedServer
from undoubt.errors import UndoubtError
from undoubt.participants.ids import Protocol
from undoubt.participants.postgres.schema import migrate
from undoubt.participants.settings import ParticipantSettings
from undoubt.recovery.service import RecoveryService

ROWS = "select decision from undoubt.undoubt_agent"


class Steps:
    """Notes the steps; at ``kill`` it breaks ``connection``, which is the agent's."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.at: dict[Any, Any] = {}

    async def observe(self, step: Any, subject: str) -> None:
        self.passed.append(str(step))
        if step in self.at:
            await self.at.pop(step)()


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
    async with undoubt.connect(source(tmp_path, databases), observe=steps.observe) as connected:
        yield connected


async def insert(coordinator: undoubt.Coordinator, number: int = 1) -> undoubt.CommitResult:
    async with coordinator.transaction(protocol="last", agent="payments") as tx:
        for name in ("orders", "payments"):
            await (await tx.branch(name)).execute("insert into note (id) values ($1)", number)
        return await tx.commit()


async def found(databases: dict[str, str]) -> dict[str, list[int]]:
    ask = "select id from note order by id"
    return {name: [row["id"] for row in await run(dsn, ask)] for name, dsn in databases.items()}


async def test_both_commit_or_none(coordinator: undoubt.Coordinator, databases: dict[str, str]) -> None:
    """Broken if a database commits alone."""
    result = await insert(coordinator)
    assert result.pending == ()
    with pytest.raises(asyncpg.UniqueViolationError):
        await insert(coordinator)
    assert await found(databases) == {"orders": [1], "payments": [1]}
    assert str(await coordinator.outcome(result.txid)) == "commit"


async def test_every_step_is_passed_and_the_row_is_deleted(
    coordinator: undoubt.Coordinator, databases: dict[str, str], steps: Steps
) -> None:
    """Broken if the agent's table grows with each transaction, or a step of the crash matrix does not
    exist."""
    rows: list[Any] = []

    async def look() -> None:
        rows.extend(await run(databases["payments"], ROWS))

    steps.at[LastAgentStep.AFTER_AGENT] = look
    await insert(coordinator)
    await coordinator.close()
    assert [row["decision"] for row in rows] == ["commit"]
    assert {str(step) for step in STEPS[Protocol.LAST]} <= set(steps.passed)
    assert await run(databases["payments"], ROWS) == []


async def test_a_deferred_constraint_of_the_agent_aborts_both(
    coordinator: undoubt.Coordinator, databases: dict[str, str]
) -> None:
    """Broken if the others stay in doubt, or commit, when the COMMIT of the agent is refused."""
    await run(databases["payments"], "alter table note add unique (text) deferrable initially deferred")
    with pytest.raises(TransactionAborted, match="unique"):
        async with coordinator.transaction(protocol="last", agent="payments") as tx:
            await (await tx.branch("orders")).execute("insert into note (id) values (1)")
            await (await tx.branch("payments")).execute(
                "insert into note (id, text) values (1, 'x'), (2, 'x')"
            )
    assert await found(databases) == {"orders": [], "payments": []}
    assert await prepared(databases["orders"]) == []


async def test_a_read_only_agent_is_refused_before_any_prepare(
    coordinator: undoubt.Coordinator, databases: dict[str, str], steps: Steps
) -> None:
    with pytest.raises(TransactionAborted, match="read only"):
        async with coordinator.transaction(protocol="last", agent="payments", prepares_all=True) as tx:
            await (await tx.branch("orders")).execute("insert into note (id) values (1)")
            await (await tx.branch("payments")).execute("set transaction read only")
            await tx.commit()
    assert TwoPhaseStep.BEFORE_PREPARE not in steps.passed
    assert await found(databases) == {"orders": [], "payments": []}


async def test_the_agents_connection_dies_before_its_commit(
    coordinator: undoubt.Coordinator, databases: dict[str, str], steps: Steps
) -> None:
    """Broken if a COMMIT whose answer is missing leaves one database committed."""

    async def kill() -> None:
        await run(
            databases["payments"],
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
            " and state = 'idle in transaction'",
        )

    steps.at[LastAgentStep.BEFORE_AGENT] = kill
    with pytest.raises(TransactionAborted):
        await insert(coordinator)
    assert await found(databases) == {"orders": [], "payments": []}
    assert await prepared(databases["orders"]) == []


async def test_the_settings_name_the_agent(tmp_path: Path, databases: dict[str, str]) -> None:
    for name, dsn in databases.items():
        await run(dsn, TABLE)
        await migrate(name, ParticipantSettings(dsn=dsn))
    chosen = {"protocol": "last", "agent": "orders"}
    async with undoubt.connect(source(tmp_path, databases, coordinator=chosen)) as coordinator:
        async with coordinator.transaction() as tx:
            for name in databases:
                await (await tx.branch(name)).execute("insert into note (id) values (1)")
        assert tx.lease.agent is not None and tx.lease.agent.participant == "orders"
    assert await found(databases) == {"orders": [1], "payments": [1]}


async def test_only_the_agents_database_needs_tables(
    tmp_path: Path, databases: dict[str, str], steps: Steps
) -> None:
    """Broken if the other databases have to be migrated for a commit, or for recovery, against what the
    documentation says; or if nobody tells that the agent's has to be."""
    for dsn in databases.values():
        await run(dsn, TABLE)
    await migrate("payments", ParticipantSettings(dsn=databases["payments"]))
    given = source(tmp_path, databases, recovery={"interval_s": 600.0})
    async with undoubt.connect(given, observe=steps.observe) as coordinator:

        async def expire() -> None:
            assert len(await prepared(databases["orders"])) == 1
            for one in await coordinator.ledger.sessions():
                if one.state is SessionState.OPEN:
                    await coordinator.ledger.close_session(Session(one.id, one.nonce, one.name, one.ttl_s))
            while await prepared(databases["orders"]):
                await RecoveryService(coordinator.ledger, coordinator.participants).run_once()

        await insert(coordinator)
        steps.at[LastAgentStep.BEFORE_AGENT] = expire
        with pytest.raises(TransactionAborted):
            await insert(coordinator, 2)
        with pytest.raises(UndoubtError, match="undoubt participants migrate orders"):
            async with coordinator.transaction(protocol="last", agent="orders") as tx:
                await tx.branch("payments")
    assert await found(databases) == {"orders": [1], "payments": [1]}
    assert await run(databases["orders"], "select to_regnamespace('undoubt') as made") == [(None,)]


async def test_an_agent_that_cannot_prepare_takes_part(tmp_path: Path, database: str) -> None:
    """Broken if a database with max_prepared_transactions = 0 cannot be the agent."""
    async with EmbeddedServer({"max_prepared_transactions": "0"}, durable=False) as server:
        dsns = {"orders": database, "payments": server.dsn()}
        for name, dsn in dsns.items():
            await run(dsn, TABLE)
            await migrate(name, ParticipantSettings(dsn=dsn))
        async with undoubt.connect(source(tmp_path, dsns, coordinator={"protocol": "last"})) as coordinator:
            async with coordinator.transaction() as tx:  # nothing names the agent
                for name in dsns:
                    await (await tx.branch(name)).execute("insert into note (id) values (1)")
                assert tx.lease.agent is not None and tx.lease.agent.participant == "payments"
            for number, (protocol, agent) in enumerate((("2pc", None), ("last", "orders"))):
                with pytest.raises(TransactionAborted, match="max_prepared_transactions"):
                    async with coordinator.transaction(protocol=protocol, agent=agent) as tx:
                        for name in dsns:
                            await (await tx.branch(name)).execute(
                                f"insert into note (id) values ({number + 2})"
                            )
            for isolation, cause in (("serializable", "max_prepared_transactions"), ("repeatable read", "")):
                with nullcontext() if not cause else pytest.raises(TransactionAborted, match=cause):
                    async with coordinator.transaction(agent="orders") as tx:
                        reader = await tx.branch("payments")
                        await reader.execute(f"set transaction isolation level {isolation}")
                        await reader.fetch("select id from note")
                        await (await tx.branch("orders")).execute("insert into note (id) values (9)")
            assert await prepared(database) == []
        assert await found(dsns) == {"orders": [1, 9], "payments": [1]}
