"""Participants that lead to one database, which sees no deadlock where their branches wait for each other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest

import undoubt
import undoubt.sync
from tests.coordinator.node.processes import processes
from tests.servers import Server, fresh_database, prepared
from undoubt.coordinator.ledger import maintenance
from undoubt.coordinator.settings import LedgerSettings
from undoubt.errors import DistributedDeadlock, SelfDeadlock, TransactionAborted

TABLES = """
create table account (id int primary key, balance int not null);
insert into account values (1, 100), (2, 100);
create table late (id int);
create function touch() returns trigger language plpgsql as
  $$ begin update account set balance = balance + 1 where id = 1; return null; end $$;
create constraint trigger touch after insert on late deferrable initially deferred
  for each row execute function touch();
"""
ADD = "update account set balance = balance + 1 where id = {}"
TIMEOUT_S = 60
"""Longer than the test may take: what ends before has been noticed."""


def configuration(dsn: str, folder: Path, driver: str) -> dict[str, Any]:
    return {
        "ledger": {"url": f"sqlite:///{folder}/ledger.db"},
        "participants": {name: {"dsn": dsn, "driver": driver} for name in ("one", "same")},
        "recovery": {"deadlock_interval_s": 0.1},
    }


@pytest.fixture(params=["asyncpg", "psycopg"])
async def coordinator(
    request: pytest.FixtureRequest, tmp_path: Path, database: str
) -> AsyncIterator[undoubt.Coordinator]:
    connection = await asyncpg.connect(database)
    await connection.execute(TABLES)
    await connection.close()
    async with undoubt.connect(configuration(database, tmp_path, request.param)) as connected:
        yield connected


async def balances(dsn: str) -> list[int]:
    assert await prepared(dsn) == []
    connection = await asyncpg.connect(dsn)
    try:
        return [row[0] for row in await connection.fetch("select balance from account order by id")]
    finally:
        await connection.close()


async def do(tx: undoubt.Transaction, *steps: tuple[str, str]) -> None:
    for name, statement in steps:
        await (await tx.branch(name)).execute(statement)


@pytest.mark.parametrize("names", [("one", "same"), ("same", "one")])
async def test_both_want_one_row(
    coordinator: undoubt.Coordinator, database: str, names: tuple[str, str]
) -> None:
    """Broken if it waits until its timeout, or nobody says why, or it is run again."""
    calls = 0

    async def work(tx: undoubt.Transaction) -> None:
        nonlocal calls
        calls += 1
        await do(tx, (names[0], ADD.format(1)), (names[1], ADD.format(1)))

    with pytest.raises(TransactionAborted, match="wait for each other in one database") as raised:
        await coordinator.run(work, timeout=TIMEOUT_S)
    assert isinstance(raised.value.cause, SelfDeadlock)
    assert calls == 1
    assert await balances(database) == [100, 100]


async def test_the_one_waits_for_the_prepared_other(coordinator: undoubt.Coordinator, database: str) -> None:
    """A deferred trigger wants the row during PREPARE. Then no statement of the application can be told."""
    calls = 0

    async def work(tx: undoubt.Transaction) -> None:
        nonlocal calls
        calls += 1
        await do(tx, ("one", ADD.format(1)), ("same", "insert into late values (1)"))

    with pytest.raises(TransactionAborted, match="wait for each other in one database") as raised:
        await coordinator.run(work, timeout=TIMEOUT_S)
    assert isinstance(raised.value.cause, SelfDeadlock)
    assert calls == 1
    assert await balances(database) == [100, 100]


async def test_two_transactions_in_opposite_order(coordinator: undoubt.Coordinator, database: str) -> None:
    """The database sees two sessions that wait for two idle ones. One of the two is run again."""
    both = asyncio.Barrier(2)
    calls: list[int] = []

    async def work(tx: undoubt.Transaction, first: int, second: int) -> None:
        calls.append(first)
        await do(tx, ("one", ADD.format(first)))
        if calls.count(first) == 1:
            await both.wait()
        await do(tx, ("same", ADD.format(second)))

    await asyncio.gather(
        coordinator.run(work, 1, 2, timeout=TIMEOUT_S), coordinator.run(work, 2, 1, timeout=TIMEOUT_S)
    )
    assert len(calls) >= 3
    assert await balances(database) == [102, 102]


async def test_a_row_each_is_no_deadlock(coordinator: undoubt.Coordinator, database: str) -> None:
    async with coordinator.transaction() as tx:
        await do(tx, ("one", ADD.format(1)), ("same", ADD.format(2)))
    assert await balances(database) == [101, 101]


def test_a_thread_that_waits_for_its_own_transaction(tmp_path: Path, database: str) -> None:
    """The same without await: the thread is inside libpq."""
    with psycopg.connect(database) as connection:
        connection.execute(TABLES)
    calls = 0

    def work(tx: undoubt.sync.Transaction) -> None:
        nonlocal calls
        calls += 1
        tx.branch("one").execute(ADD.format(1))
        tx.branch("same").execute(ADD.format(1))

    aborted = pytest.raises(TransactionAborted, match="wait for each other in one database")
    with (
        undoubt.sync.connect(configuration(database, tmp_path, "psycopg")) as coordinator,
        aborted as raised,
    ):
        coordinator.run(work, timeout=TIMEOUT_S)
    assert isinstance(raised.value.cause, SelfDeadlock)
    assert isinstance(raised.value.cause, DistributedDeadlock)
    assert calls == 1


@pytest.fixture(params=["sqlite", "postgresql", "raft"])
async def elsewhere(
    request: pytest.FixtureRequest, tmp_path: Path, database: str
) -> AsyncIterator[dict[str, Any]]:
    """Settings of a process in which nobody looks for deadlocks; another one does."""
    connection = await asyncpg.connect(database)
    await connection.execute(TABLES)
    await connection.close()
    made = configuration(database, tmp_path, "asyncpg")
    async with contextlib.AsyncExitStack() as stack:
        if request.param == "raft":
            more = "[recovery]\ndeadlock_interval_s = 0.1\n"
            more += "".join(f'[participants.{name}]\ndsn = "{database}"\n' for name in ("one", "same"))
            nodes = await stack.enter_async_context(processes(tmp_path, more))
            made["ledger"] = {"url": nodes.settings.url, "request_timeout_s": 60.0}
        elif request.param == "postgresql":
            server: Server = request.getfixturevalue("postgres")
            dsn = await stack.enter_async_context(fresh_database(server, "ledger"))
            made["ledger"] = {"url": dsn.replace("postgresql://", "postgresql+psycopg://")}
            await maintenance.init(LedgerSettings(**made["ledger"]))
        if request.param != "raft":
            await stack.enter_async_context(undoubt.connect(made))
        yield made


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_on_nodes_that_know_no_participants(tmp_path: Path, database: str, driver: str) -> None:
    """Broken if it waits out its timeout: nobody but the application's own process can find it."""
    connection = await asyncpg.connect(database)
    await connection.execute(TABLES)
    await connection.close()
    made = configuration(database, tmp_path, driver)
    async with processes(tmp_path) as nodes:
        made["ledger"] = {"url": nodes.settings.url, "request_timeout_s": 60.0}
        async with undoubt.connect(made) as connected:
            with pytest.raises(TransactionAborted, match="wait for each other in one database") as raised:
                async with connected.transaction(timeout=TIMEOUT_S) as tx:
                    await do(tx, ("one", ADD.format(1)), ("same", ADD.format(1)))
    assert isinstance(raised.value.cause, SelfDeadlock)
    assert await balances(database) == [100, 100]


@pytest.mark.parametrize("at", ["a statement", "a swallowed statement", "prepare"])
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg", "threads"])
async def test_another_process_finds_it(
    elsewhere: dict[str, Any], database: str, driver: str, at: str
) -> None:
    """Broken if the coordinator hears of a cancelled statement alone, or runs it again."""
    calls = 0
    first, second = ADD.format(1), "insert into late values (1)" if at == "prepare" else ADD.format(1)

    async def work(tx: undoubt.Transaction) -> None:
        nonlocal calls
        calls += 1
        await (await tx.branch("one")).execute(first)
        branch = await tx.branch("same")
        with contextlib.suppress(Exception) if "swallowed" in at else contextlib.nullcontext():
            await branch.execute(second)

    def work_in_a_thread(tx: undoubt.sync.Transaction) -> None:
        nonlocal calls
        calls += 1
        tx.branch("one").execute(first)
        branch = tx.branch("same")
        with contextlib.suppress(Exception) if "swallowed" in at else contextlib.nullcontext():
            branch.execute(second)

    with pytest.raises(TransactionAborted, match="wait for each other in one database") as raised:
        if driver == "threads":
            coordinator = await asyncio.to_thread(undoubt.sync.connect, elsewhere, recover=False)
            try:
                await asyncio.to_thread(coordinator.run, work_in_a_thread, timeout=TIMEOUT_S)
            finally:
                await asyncio.to_thread(coordinator.close)
        else:
            for participant in elsewhere["participants"].values():
                participant["driver"] = driver
            async with undoubt.connect(elsewhere, recover=False) as connected:
                await connected.run(work, timeout=TIMEOUT_S)
    assert isinstance(raised.value.cause, SelfDeadlock)
    assert calls == 1
    assert await balances(database) == [100, 100]
