"""Three-phase commit over two real databases."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import undoubt
from tests.servers import prepared
from tests.undoubt.cli.harness import undoubt as command
from undoubt.participants.postgres.schema import script


def source(databases: dict[str, str], folder: Path) -> dict[str, Any]:
    return {
        "ledger": {"url": f"sqlite:///{folder}/ledger.db"},
        "coordinator": {"protocol": "3pc"},
        "participants": {name: {"dsn": dsn} for name, dsn in databases.items()},
    }


async def run(dsn: str, sql: str) -> Any:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetch(sql) if sql.startswith("select") else await connection.execute(sql)
    finally:
        await connection.close()


async def insert(coordinator: undoubt.Coordinator, number: int, **more: Any) -> undoubt.CommitResult:
    async with coordinator.transaction(**more) as tx:
        for name in ("orders", "payments"):
            await (await tx.branch(name)).execute("insert into item values ($1)", number)
        return await tx.commit()


@pytest.fixture
async def items(databases: dict[str, str]) -> dict[str, str]:
    """Both databases with an empty table ``item``."""
    for dsn in databases.values():
        await run(dsn, "create table item (id int primary key)")
    return databases


async def test_it_commits_and_leaves_nothing_behind(items: dict[str, str], tmp_path: Path) -> None:
    """Broken if the tables as a DBA would make them do not serve, or rows stay after a transaction's end."""
    for dsn in items.values():
        await run(dsn, script())
    async with undoubt.connect(source(items, tmp_path)) as coordinator:
        result = await insert(coordinator, 1)
        assert await coordinator.outcome(result.txid) is undoubt.RecordedDecision.COMMIT
        info = await coordinator.ledger.transaction(result.txid)
        assert info is not None
        assert (info.protocol, len(info.branches)) == ("3", 2)
    for dsn in items.values():
        assert [row["id"] for row in await run(dsn, "select id from item")] == [1]
        assert await run(dsn, "select gid from undoubt.undoubt_branch") == []
        assert await prepared(dsn) == []


async def test_a_vote_against_it_aborts_everywhere(items: dict[str, str], tmp_path: Path) -> None:
    """Broken if a constraint that fails at prepare leaves a half, or a row without a tombstone."""
    for dsn in items.values():
        await run(dsn, script())
    deferred = "create table parent (id int primary key); alter table item add constraint has_parent"
    deferred += " foreign key (id) references parent deferrable initially deferred"
    await run(items["payments"], deferred)
    async with undoubt.connect(source(items, tmp_path)) as coordinator:
        with pytest.raises(undoubt.TransactionAborted):
            await insert(coordinator, 1)
    assert await run(items["orders"], "select id from item") == []
    for dsn in items.values():
        assert await prepared(dsn) == []


async def test_without_its_tables_it_aborts_and_names_the_way_out(
    items: dict[str, str], tmp_path: Path
) -> None:
    """Broken if a user who asks for it before migrating is not told what to do."""
    async with undoubt.connect(source(items, tmp_path)) as coordinator:
        with pytest.raises(undoubt.TransactionAborted, match="undoubt participants migrate"):
            await insert(coordinator, 1)
        await insert(coordinator, 2, protocol="2pc")
    assert [row["id"] for row in await run(items["orders"], "select id from item")] == [2]


async def test_the_command_prints_the_tables(tmp_path: Path) -> None:
    """Broken if a DBA cannot see what would be made."""
    ran = await asyncio.to_thread(command, "participants", "migrate", "--sql", cwd=tmp_path)
    assert ran.status == 0
    assert ran.out == script()
