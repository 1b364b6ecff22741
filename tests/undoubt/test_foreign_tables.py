"""Writes through postgres_fdw that a function hides: they have no transaction id where the branch is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from psycopg.conninfo import conninfo_to_dict

import undoubt
import undoubt.sync
from tests.prove.wire_proxy import Fault, Strike, Wire
from tests.servers import Server, fresh_database
from tests.undoubt.test_end_to_end import run, source
from undoubt.participants.contract import Settled

FAR = """
    create table slow (n int);
    create function wait() returns trigger language plpgsql as
        $$ begin perform pg_catalog.pg_sleep(60); return null; end $$;
    create constraint trigger wait after insert on slow deferrable initially deferred
        for each row execute function wait();
    create table parent (id int primary key);
    create table child (parent int references parent deferrable initially deferred)
"""
NEAR = """
    create extension postgres_fdw; create server far foreign data wrapper postgres_fdw options (host '{host}',
    port '{port}', dbname '{dbname}'); create user mapping for current_user server far
        options (user '{user}', password '{password}', password_required 'false');
    create foreign table child (parent int) server far;
    create foreign table slow (n int) server far;
    create function far_slow() returns int language sql as 'insert into slow values (1) returning n';
    create table note (n int);
    create function far_child(p int) returns int language sql
        as 'insert into child values (p) returning parent'
"""


@pytest.fixture
async def far(postgres: Server, databases: dict[str, str]) -> AsyncIterator[str]:
    async with fresh_database(postgres, "far") as dsn:
        connection = await asyncpg.connect(dsn)
        await connection.execute(FAR)
        await connection.close()
        place = {"port": 5432, "password": "", **conninfo_to_dict(dsn)}
        for near in databases.values():
            connection = await asyncpg.connect(near)
            await connection.execute(NEAR.format(**place))
            await connection.close()
        yield dsn
        for near in databases.values():  # their sessions keep connections to the far database
            await run(near, "drop extension postgres_fdw cascade")


async def far_child(branch: Any) -> None:
    """There is no such parent: the far database refuses it when it commits."""
    await branch.execute("select far_child(7)")


async def note(branch: Any) -> None:
    await branch.execute("insert into note values (1)")


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_hidden_write_that_is_lost_is_told(
    tmp_path: Path, databases: dict[str, str], far: str, driver: str
) -> None:
    """Broken if ``commit`` returns although what a branch wrote through a foreign table is nowhere."""
    made = source(tmp_path, databases)
    for participant in made["participants"].values():
        participant["driver"] = driver
    async with undoubt.connect(made) as coordinator:

        async def commit(orders: Any, payments: Any) -> None:
            async with coordinator.transaction(timeout=30) as tx:
                await orders(await tx.branch("orders"))
                await payments(await tx.branch("payments"))

        with pytest.raises(undoubt.TransactionAborted, match="child_parent_fkey"):
            await commit(far_child, far_child)
        with pytest.raises(undoubt.HeuristicOutcome) as raised:
            await commit(far_child, note)
        assert raised.value.kind is Settled.HEURISTIC_MIXED
        assert [gid.participant for gid in raised.value.branches] == ["orders"]
        assert len(await coordinator.ledger.heuristics()) == 1
    assert await run(far, "select * from child") == []
    assert len(await run(databases["payments"], "select * from note")) == 1


READERS_COMMIT = "P commit"
"""What undoubt sends to end a branch that counts as reading, behind the guard in the same pipeline; a session
parses it once."""


@pytest.mark.parametrize("fault", [Fault.CUT_BEFORE, Fault.ANSWER_LOST])
@pytest.mark.parametrize("door", ["asyncpg", "psycopg", "sync"])
async def test_the_answers_to_hidden_writes_are_lost(
    tmp_path: Path, databases: dict[str, str], far: str, door: str, fault: Fault
) -> None:
    """Broken if ``commit`` returns, or calls it aborted, although nobody knows what became of the writes."""
    await run(far, "insert into parent values (7)")
    async with AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(Wire(dsn)) for dsn in databases.values()]
        made = source(tmp_path, dict(zip(databases, (wire.dsn for wire in wires), strict=True)))
        for participant in made["participants"].values():
            participant["driver"] = "asyncpg" if door == "asyncpg" else "psycopg"

        def in_a_thread() -> None:
            with undoubt.sync.connect(made) as coordinator, coordinator.transaction(timeout=30) as tx:
                for name in databases:
                    tx.branch(name).execute("select far_child(7)")

        async def in_this_loop() -> None:
            async with undoubt.connect(made) as coordinator, coordinator.transaction(timeout=30) as tx:
                for name in databases:
                    await far_child(await tx.branch(name))

        for wire in wires:
            wire.arm(Strike(READERS_COMMIT, fault, hold_s=0.0))
        with pytest.raises(undoubt.OutcomeUnknown, match=r"(?s)COMMIT was lost.*orders.*payments"):
            await (asyncio.to_thread(in_a_thread) if door == "sync" else in_this_loop())
        assert [wire.struck for wire in wires] == [True, True]
    assert len(await run(far, "select * from child")) == (2 if fault is Fault.ANSWER_LOST else 0)


@pytest.mark.parametrize("door", ["asyncpg", "psycopg"])
async def test_the_sessions_of_hidden_writes_are_ended_while_they_commit(
    tmp_path: Path, databases: dict[str, str], far: str, door: str
) -> None:
    """Broken if a COMMIT that the server answers by ending the session is taken for one that took effect."""
    made = source(tmp_path, databases)
    for participant in made["participants"].values():
        participant["driver"] = door
    committing = """
        from pg_catalog.pg_stat_activity where datname = current_database() and state = 'active'
        and query = 'commit' and pid <> pg_catalog.pg_backend_pid()"""

    async def end() -> None:
        admins = [await asyncpg.connect(dsn) for dsn in databases.values()]
        for admin in admins:
            while not await admin.fetchval("select count(*)" + committing):
                await asyncio.sleep(0.02)
        for admin in admins:
            await admin.fetch("select pg_catalog.pg_terminate_backend(pid)" + committing)
            await admin.close()

    async with undoubt.connect(made, recover=False) as coordinator:
        ending = asyncio.create_task(end())
        with pytest.raises(undoubt.OutcomeUnknown, match="administrator"):
            async with coordinator.transaction(timeout=30) as tx:
                for name in databases:
                    await (await tx.branch(name)).execute("select far_slow()")
        await ending
    assert await run(far, "select * from slow") == []
