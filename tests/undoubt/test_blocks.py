"""What a branch's connection tells once its transaction has been aborted around it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import undoubt
import undoubt.sync
from tests.coordinator.node.processes import processes
from tests.undoubt.test_end_to_end import TABLE, run, source
from undoubt import TransactionAborted
from undoubt.participants.postgres.schema import migrate
from undoubt.participants.settings import ParticipantSettings


@pytest.fixture(params=["asyncpg", "psycopg"])
async def coordinator(
    request: pytest.FixtureRequest, tmp_path: Path, databases: dict[str, str]
) -> AsyncIterator[undoubt.Coordinator]:
    for dsn in databases.values():
        await run(dsn, TABLE)
        await run(dsn, "insert into note values (1, 'before')")
    made = source(tmp_path, databases)
    for participant in made["participants"].values():
        participant["driver"] = request.param
    async with undoubt.connect(made) as connected:
        yield connected


async def entered_elsewhere(
    coordinator: undoubt.Coordinator,
) -> AsyncGenerator[undoubt.Transaction, None]:
    async with coordinator.transaction(timeout=0.5) as tx:
        yield tx


@pytest.mark.parametrize("idle", [True, False])
async def test_the_timeout_of_a_transaction_that_a_fixture_entered(
    coordinator: undoubt.Coordinator, databases: dict[str, str], idle: bool
) -> None:
    """Broken if its row locks outlive its timeout, or the task that works with it is not told the reason."""
    fixture = entered_elsewhere(coordinator)
    tx = await asyncio.create_task(fixture.__anext__())
    orders = await tx.branch("orders")
    await orders.execute("update note set text = 'within' where id = 1")
    if idle:
        while tx.active:
            await asyncio.sleep(0.01)
    else:
        with pytest.raises(TransactionAborted, match="timeout"):
            await orders.execute("select pg_sleep(600)")
    # Waits for the row lock, which only the end of the branch frees.
    other = await asyncpg.connect(databases["orders"])
    await other.execute("set lock_timeout = '20s'; update note set text = 'after' where id = 1")
    await other.close()
    with pytest.raises(TransactionAborted, match="timeout"):
        await orders.execute("select 1")
    with pytest.raises(TransactionAborted, match="timeout"):
        await asyncio.create_task(fixture.__anext__())
    rows = await run(databases["orders"], "select text from note")
    assert [row["text"] for row in rows] == ["after"]


async def test_a_body_that_goes_on_after_the_timeout(
    coordinator: undoubt.Coordinator, databases: dict[str, str]
) -> None:
    """Broken if a body that swallows its cancellation works on in a branch that is over, or outside of
    any."""
    with pytest.raises(TransactionAborted, match="timeout"):
        async with coordinator.transaction(timeout=0.5) as tx:
            orders = await tx.branch("orders")
            await orders.execute("update note set text = 'within' where id = 1")
            with contextlib.suppress(asyncio.CancelledError):
                await orders.execute("select pg_sleep(600)")
            with pytest.raises(TransactionAborted, match="timeout"):
                await orders.execute("update note set text = 'later' where id = 1")
    rows = await run(databases["orders"], "select text from note")
    assert [row["text"] for row in rows] == ["before"]


async def write(tx: undoubt.Transaction) -> None:
    for name in ("orders", "payments"):
        await (await tx.branch(name)).execute("update note set text = 'within' where id = 1")


async def text_of(databases: dict[str, str]) -> set[str]:
    return {row["text"] for dsn in databases.values() for row in await run(dsn, "select text from note")}


async def test_a_savepoint_that_is_left_after_the_commit(
    coordinator: undoubt.Coordinator, databases: dict[str, str]
) -> None:
    """Broken if the block that was left open hides, by an error of its own, that the commit succeeded."""
    async with coordinator.transaction() as tx:
        await write(tx)
        async with (await tx.branch("orders")).transaction():
            await tx.commit()
    assert await text_of(databases) == {"within"}


async def test_a_savepoint_that_is_left_after_the_abort(
    coordinator: undoubt.Coordinator, databases: dict[str, str]
) -> None:
    with pytest.raises(TransactionAborted, match="timeout"):
        async with coordinator.transaction(timeout=0.5) as tx:
            await write(tx)
            async with (await tx.branch("orders")).transaction():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(600)
    assert await text_of(databases) == {"before"}


async def test_reset_all_is_told_as_what_it_may_be(
    coordinator: undoubt.Coordinator, databases: dict[str, str]
) -> None:
    """Broken if an application that has ended nothing is told that it has."""
    with pytest.raises(TransactionAborted, match=r"or its marker was reset \(RESET ALL"):
        async with coordinator.transaction() as tx:
            await write(tx)
            await (await tx.branch("orders")).execute("reset all")
    assert await text_of(databases) == {"before"}


WITHIN = "update note set text = 'within' where id = 1"
SLOW = """
    create table pace (seconds float8);
    insert into pace values (1.5);
    create function slow() returns trigger language plpgsql
        as 'begin perform pg_sleep(p.seconds) from pace as p; return null; end';
    create constraint trigger slow after update on note deferrable initially deferred
        for each row execute function slow()
"""
PACES = (1.0, 4.0, 16.0)
"""Seconds that undoubt's own statements may take, which may be one on a busy machine. At each pace the
deferred check takes half as long again."""


@pytest.fixture
async def slow(tmp_path: Path, databases: dict[str, str]) -> dict[str, Any]:
    """Settings by which undoubt's own statements have less time than the deferred check of *orders* takes."""
    for name, dsn in databases.items():
        await run(dsn, TABLE)
        await run(dsn, "insert into note values (1, 'before')")
        connection = await asyncpg.connect(dsn)
        await connection.execute(SLOW if name == "orders" else "select")
        await connection.close()
        await migrate(name, ParticipantSettings(dsn=dsn))
    made = source(tmp_path, databases)
    await set_pace(made, databases, PACES[0])
    return made


async def set_pace(made: dict[str, Any], databases: dict[str, str], pace: float) -> None:
    for participant in made["participants"].values():
        participant["statement_timeout_s"] = pace
    await run(databases["orders"], f"update pace set seconds = {1.5 * pace}")


async def write_within(made: dict[str, Any], driver: str, names: tuple[str, ...], protocol: str) -> None:
    if driver == "threads":
        coordinator = await asyncio.to_thread(undoubt.sync.connect, made)

        def work(tx: undoubt.sync.Transaction) -> None:
            for name in names:
                tx.branch(name).execute(WITHIN)

        try:
            await asyncio.to_thread(coordinator.run, work, timeout=60, protocol=protocol)
        finally:
            await asyncio.to_thread(coordinator.close)
    else:
        for participant in made["participants"].values():
            participant["driver"] = driver
        given: dict[str, Any] = {"timeout": 60, "protocol": protocol}
        async with undoubt.connect(made) as connected, connected.transaction(**given) as tx:
            for name in names:
                await (await tx.branch(name)).execute(WITHIN)


@pytest.mark.parametrize("protocol", ["2pc", "3pc"])
@pytest.mark.parametrize("names", [("orders",), ("orders", "payments")], ids=["one", "two"])
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg", "threads"])
async def test_what_prepare_and_commit_run_have_the_transactions_time(
    slow: dict[str, Any], databases: dict[str, str], driver: str, names: tuple[str, ...], protocol: str
) -> None:
    """Broken if a deferred constraint that is slow is cut off at statement_timeout_s when two databases
    commit, and not when one does, or by one protocol, or in one door."""
    for pace in PACES:
        await set_pace(slow, databases, pace)
        try:
            await write_within(slow, driver, names, protocol)
            break
        except undoubt.TransactionAborted:
            if pace == PACES[-1]:
                raise
    assert await text_of({name: databases[name] for name in names}) == {"within"}


async def test_paxos_gives_prepare_the_transactions_time(
    slow: dict[str, Any], databases: dict[str, str], tmp_path: Path
) -> None:
    async with processes(tmp_path) as nodes:
        slow["ledger"] = {"url": nodes.settings.url, "request_timeout_s": 60.0}
        given: dict[str, Any] = {"timeout": 60, "protocol": "paxos"}
        async with undoubt.connect(slow) as connected, connected.transaction(**given) as tx:
            for name in databases:
                await (await tx.branch(name)).execute(WITHIN)
    assert await text_of(databases) == {"within"}
