"""``undoubt.connect`` over two real databases: what works, and what each mistake gets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import undoubt
from tests.servers import prepared
from undoubt import TransactionAborted
from undoubt.config import ConfigurationError
from undoubt.coordinator.coordinator import ParticipantInUse
from undoubt.coordinator.errors import DistributedDeadlock, TransactionEnded
from undoubt.embedded import EmbeddedServer
from undoubt.participants.contract import Decision, Evidence, Settled
from undoubt.participants.errors import (
    BranchFailed,
    ParticipantRefused,
    ParticipantUnavailable,
    UnknownParticipant,
    UsageError,
)
from undoubt.participants.ids import InvalidName
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.settings import ParticipantSettings

TABLE = "create table note (id int primary key, text text not null default '')"


def source(folder: Path, dsns: dict[str, str], **more: Any) -> dict[str, Any]:
    return {
        "ledger": {"url": f"sqlite:///{folder}/ledger.db"},
        "participants": {name: {"dsn": dsn, "connect_timeout_s": 3} for name, dsn in dsns.items()},
        **more,
    }


@pytest.fixture
async def coordinator(tmp_path: Path, databases: dict[str, str]) -> AsyncIterator[undoubt.Coordinator]:
    for dsn in databases.values():
        await run(dsn, TABLE)
    async with undoubt.connect(source(tmp_path, databases)) as connected:
        yield connected


async def run(dsn: str, statement: str) -> Any:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetch(statement)
    finally:
        await connection.close()


async def ids(databases: dict[str, str]) -> list[list[int]]:
    return [
        [row["id"] for row in await run(dsn, "select id from note order by id")] for dsn in databases.values()
    ]


async def write(tx: undoubt.Transaction, number: int) -> None:
    for name in ("orders", "payments"):
        branch = await tx.branch(name)
        await branch.execute("insert into note (id) values ($1)", number)


async def test_commits_in_both(coordinator: undoubt.Coordinator, databases: dict[str, str]) -> None:
    """The product."""
    async with coordinator.transaction() as tx:
        await write(tx, 1)
        result = await tx.commit()
    assert result.pending == ()
    assert await coordinator.outcome(tx.id) is undoubt.RecordedDecision.COMMIT
    assert await ids(databases) == [[1], [1]]


async def test_an_exception_leaves_both_unchanged(
    coordinator: undoubt.Coordinator, databases: dict[str, str]
) -> None:
    """An application's own error passes through, and nothing stays."""
    with pytest.raises(ZeroDivisionError):
        async with coordinator.transaction() as tx:
            await write(tx, 1)
            1 / 0  # noqa: B018
    assert await ids(databases) == [[], []]


async def test_a_swallowed_sql_error_aborts_everything(
    coordinator: undoubt.Coordinator, databases: dict[str, str]
) -> None:
    """The program that SQLAlchemy's ``twophase=True`` commits in one database only, 40 times."""
    for number in range(40):
        with pytest.raises(TransactionAborted, match="payments" if number % 2 else "orders"):
            async with coordinator.transaction() as tx:
                await write(tx, number)
                branch = await tx.branch("payments" if number % 2 else "orders")
                with pytest.raises(asyncpg.DivisionByZeroError):
                    await branch.execute("select 1/0")
    assert await ids(databases) == [[], []]


async def test_a_deferred_constraint_that_fails_at_prepare_aborts_everything(
    coordinator: undoubt.Coordinator, databases: dict[str, str]
) -> None:
    """The cause is the constraint's violation, with its SQLSTATE."""
    deferred = "alter table note add constraint twice unique (text) deferrable initially deferred"
    await run(databases["payments"], deferred)
    with pytest.raises(TransactionAborted) as raised:
        async with coordinator.transaction() as tx:
            await write(tx, 1)
            branch = await tx.branch("payments")
            await branch.execute("insert into note (id) values (2)")
    assert isinstance(raised.value.cause, BranchFailed)
    assert raised.value.cause.sqlstate == "23505"
    assert await ids(databases) == [[], []]


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("create temp table scratch (a int)", "temporary"),
        ("listen news", "LISTEN"),
        ("declare held cursor with hold for select 1", "WITH HOLD"),
    ],
)
async def test_what_cannot_be_prepared_aborts_everything(
    coordinator: undoubt.Coordinator, databases: dict[str, str], statement: str, named: str
) -> None:
    """PostgreSQL refuses to prepare a few things; the error names them."""
    with pytest.raises(TransactionAborted, match=named):
        async with coordinator.transaction() as tx:
            await write(tx, 1)
            await (await tx.branch("orders")).execute(statement)
    assert await ids(databases) == [[], []]


async def test_the_application_that_ends_its_branch_itself_is_caught(
    coordinator: undoubt.Coordinator, databases: dict[str, str]
) -> None:
    """After ``commit; begin`` PREPARE would prepare something else; what was committed cannot be undone, and
    the error says who did it."""
    with pytest.raises(TransactionAborted, match="ended by the application"):
        async with coordinator.transaction() as tx:
            await write(tx, 1)
            await (await tx.branch("orders")).execute("commit; begin; insert into note (id) values (99)")
    orders, payments = await ids(databases)
    assert (orders, payments) == ([1], [])


async def test_use_after_the_end_is_refused(coordinator: undoubt.Coordinator) -> None:
    """A connection that went back to the pool belongs to somebody else's transaction by now."""
    async with coordinator.transaction() as tx:
        branch = await tx.branch("orders")
        await branch.execute("insert into note (id) values (1)")
        await tx.commit()
        with pytest.raises(UsageError):
            await branch.execute("insert into note (id) values (2)")
        with pytest.raises(TransactionEnded):
            await tx.commit()
        with pytest.raises(TransactionEnded):
            await tx.branch("payments")


async def test_unknown_participants_are_named(coordinator: undoubt.Coordinator) -> None:
    with pytest.raises(UnknownParticipant, match=r"'stock'.*orders, payments"):
        async with coordinator.transaction() as tx:
            await tx.branch("stock")


async def test_a_name_that_fits_no_gid_is_refused_early(tmp_path: Path, database: str) -> None:
    """At prepare it would be too late."""
    with pytest.raises((ConfigurationError, InvalidName), match="63"):
        async with undoubt.connect(source(tmp_path, {"n" * 64: database})):
            pass


async def test_unknown_keys_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"ledger\.retries"):
        async with undoubt.connect({"ledger": {"url": f"sqlite:///{tmp_path}/l.db", "retries": 3}}):
            pass


async def test_a_participant_that_is_down_aborts_at_begin(tmp_path: Path, database: str) -> None:
    """The other database stays as it is, and the error names the one that is down."""
    await run(database, TABLE)
    dsns = {"orders": database, "payments": "postgresql://postgres@127.0.0.1:1/x"}
    async with undoubt.connect(source(tmp_path, dsns), create=True) as coordinator:
        with pytest.raises(ParticipantUnavailable, match="'payments'"):
            async with coordinator.transaction() as tx:
                await (await tx.branch("orders")).execute("insert into note (id) values (1)")
                await tx.branch("payments")
    assert await run(database, "select * from note") == []


async def test_a_wrong_password_is_told_without_the_password(tmp_path: Path) -> None:
    """And the way out is not to wait."""
    async with EmbeddedServer(durable=False) as server:
        await run(server.dsn(), "create role carol login password 'right'")
        dsn = f"postgresql://carol:wr0ng@127.0.0.1:{server.port}/postgres"
        async with undoubt.connect(source(tmp_path, {"orders": dsn}), create=True) as coordinator:
            with pytest.raises(ParticipantRefused, match="password") as raised:
                async with coordinator.transaction() as tx:
                    await tx.branch("orders")
        assert "wr0ng" not in str(raised.value)


@pytest.mark.parametrize("room", [0, 1])
async def test_no_room_for_prepared_transactions_is_told_with_the_line_to_set(
    tmp_path: Path, room: int
) -> None:
    """PostgreSQL's default is 0: everybody meets this one first."""
    async with EmbeddedServer({"max_prepared_transactions": str(room)}, durable=False) as server:
        dsns = {name: await server.create_database(name) for name in ("orders", "payments")}
        for dsn in dsns.values():
            await run(dsn, TABLE)
        async with undoubt.connect(source(tmp_path, dsns)) as coordinator:
            with pytest.raises(TransactionAborted, match=r"max_prepared_transactions"):
                async with coordinator.transaction() as tx:
                    await write(tx, 1)
        assert await ids(dsns) == [[], []]
        assert await prepared(dsns["orders"]) == []


async def test_a_dba_who_finishes_a_branch_by_hand_is_recorded_and_shown(
    tmp_path: Path, databases: dict[str, str]
) -> None:
    """Committed in one database, rolled back by hand in the other: what nobody can mend must be seen."""
    for dsn in databases.values():
        await run(dsn, TABLE)
    reached = asyncio.Event()
    go_on = asyncio.Event()

    async def observe(step: object, subject: str) -> None:
        if str(step) == "after_decide":
            reached.set()
            await go_on.wait()

    async with undoubt.connect(source(tmp_path, databases), observe=observe, recover=False) as coordinator:

        async def transaction() -> None:
            async with coordinator.transaction() as tx:
                await write(tx, 1)

        task = asyncio.create_task(transaction())
        await reached.wait()
        (gid,) = await prepared(databases["payments"])
        await run(databases["payments"], f"rollback prepared '{gid}'")
        go_on.set()
        with pytest.raises(undoubt.HeuristicOutcome) as raised:
            await task
        assert raised.value.kind in {Settled.HEURISTIC_MIXED, Settled.HEURISTIC_ROLLBACK}
        (heuristic,) = await coordinator.ledger.heuristics()
        assert (str(heuristic.gid), heuristic.kind) == (gid, Settled.HEURISTIC_ROLLBACK)
    assert await ids(databases) == [[1], []]


async def test_a_deadlock_across_databases_is_found_and_ended(
    tmp_path: Path, databases: dict[str, str]
) -> None:
    """PostgreSQL never sees it: without the detector both hang until their timeouts."""
    for dsn in databases.values():
        await run(dsn, TABLE)
        await run(dsn, "insert into note (id) values (1)")
    settings = source(tmp_path, databases, recovery={"deadlock_interval_s": 0.05})
    both = asyncio.Barrier(2)
    causes: list[object] = []

    async with undoubt.connect(settings) as coordinator:

        async def update(first: str, second: str) -> bool:
            try:
                async with coordinator.transaction(timeout=60) as tx:
                    await (await tx.branch(first)).execute("update note set text = text || 'x'")
                    await both.wait()
                    await (await tx.branch(second)).execute("update note set text = text || 'x'")
            except TransactionAborted as error:
                causes.append(error.cause)
                return False
            return True

        done = await asyncio.gather(update("orders", "payments"), update("payments", "orders"))
    assert sorted(done) == [False, True]
    assert isinstance(causes[0], DistributedDeadlock)
    assert [await run(dsn, "select text from note") for dsn in databases.values()] == [[("x",)], [("x",)]]


async def test_run_retries_deadlocks(tmp_path: Path, databases: dict[str, str]) -> None:
    """With ``run`` an application need not know about them: every transfer gets through."""
    for dsn in databases.values():
        await run(dsn, TABLE)
        await run(dsn, "insert into note (id) values (1)")
    settings = source(tmp_path, databases, recovery={"deadlock_interval_s": 0.05})
    async with undoubt.connect(settings) as coordinator:

        async def update(tx: undoubt.Transaction, first: str, second: str) -> None:
            await (await tx.branch(first)).execute("update note set text = text || 'x'")
            await (await tx.branch(second)).execute("update note set text = text || 'x'")

        orders = [("orders", "payments"), ("payments", "orders")] * 3
        await asyncio.gather(*(coordinator.run(update, *order, retries=50, timeout=60) for order in orders))
    assert [await run(dsn, "select text from note") for dsn in databases.values()] == [[("x" * 6,)]] * 2


async def test_participants_come_and_go(
    coordinator: undoubt.Coordinator, databases: dict[str, str], database: str
) -> None:
    """Added while the system runs; removed only when nothing of it is unresolved."""
    await run(database, TABLE)
    stock = PostgresParticipant("stock", ParticipantSettings(dsn=database), ledger_id=coordinator.ledger_id)
    coordinator.add_participant(stock)
    async with coordinator.transaction() as tx:
        await write(tx, 1)
        await (await tx.branch("stock")).execute("insert into note (id) values (1)")
        with pytest.raises(ParticipantInUse, match=str(tx.id)):
            await coordinator.remove_participant("stock")
    await coordinator.remove_participant("stock")
    with pytest.raises(UnknownParticipant):
        async with coordinator.transaction() as tx:
            await tx.branch("stock")


async def test_readers_and_single_writers_cost_no_prepare(
    coordinator: undoubt.Coordinator, databases: dict[str, str]
) -> None:
    """One database that writes needs no ledger, and no prepare."""
    async with coordinator.transaction() as tx:
        await (await tx.branch("orders")).execute("insert into note (id) values (1)")
        assert await (await tx.branch("payments")).fetchval("select count(*) from note") == 0
    assert await coordinator.outcome(tx.id) is undoubt.RecordedDecision.NOT_RECORDED
    assert await ids(databases) == [[1], []]


async def test_settling_by_contract_is_idempotent(
    coordinator: undoubt.Coordinator, databases: dict[str, str]
) -> None:
    """Two recoveries at once do no harm."""
    async with coordinator.transaction() as tx:
        await write(tx, 1)
    (record,) = [info for info in await coordinator.ledger.transactions(limit=10) if info.txid == tx.id]
    participant = coordinator.participants.get("orders")
    gid = undoubt.Gid.parse(f"undoubt:{coordinator.ledger_id}:2:{tx.id}:1:orders")
    assert isinstance(gid, undoubt.Gid)
    branch = record.branches[0]
    assert branch.xid is not None
    assert branch.system is not None
    assert branch.timeline is not None
    evidence = Evidence(branch.xid, branch.system, branch.timeline)
    for _ in range(2):
        assert await participant.settle(gid, Decision.COMMIT, evidence) is Settled.APPLIED
