"""Writes through postgres_fdw that a function hides: they have no transaction id where the branch is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from psycopg.conninfo import conninfo_to_dict

import undoubt
from participants.contract import Settled
from tests.servers import Server, fresh_database
from tests.undoubt.test_end_to_end import run, source

FAR = """
    create table parent (id int primary key);
    create table child (parent int references parent deferrable initially deferred)
"""
NEAR = """
    create extension postgres_fdw; create server far foreign data wrapper postgres_fdw options (host '{host}',
    port '{port}', dbname '{dbname}'); create user mapping for current_user server far
        options (user '{user}', password '{password}', password_required 'false');
    create foreign table child (parent int) server far;
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
