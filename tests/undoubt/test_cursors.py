"""Cursors of psycopg that are closed after their branch has ended."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import undoubt
import undoubt.sync
from tests.undoubt.test_end_to_end import TABLE, run, source
from undoubt.participants.errors import UsageError


def made(folder: Path, databases: dict[str, str]) -> dict[str, object]:
    chosen = source(folder, databases)
    for participant in chosen["participants"].values():
        participant["driver"] = "psycopg"
    return chosen


@pytest.fixture(autouse=True)
async def filled(databases: dict[str, str]) -> None:
    for dsn in databases.values():
        await run(dsn, TABLE)
        await run(dsn, "insert into note select generate_series(1, 10)")


INSERT = "insert into note values (11)"


async def committed(databases: dict[str, str]) -> bool:
    counts = [len(await run(dsn, "select from note")) for dsn in databases.values()]
    return counts == [11, 11]


@pytest.mark.parametrize("within", [True, False], ids=["within the block", "after it"])
async def test_a_named_cursor_hides_no_success(
    tmp_path: Path, databases: dict[str, str], within: bool
) -> None:
    """Broken if leaving the cursor's block after a successful commit raises."""
    async with undoubt.connect(made(tmp_path, databases)) as coordinator:
        async with coordinator.transaction() as tx:
            for name in ("orders", "payments"):
                await (await tx.branch(name)).execute(INSERT)
            orders: Any = await tx.branch("orders")
            cursor = orders.cursor("c")
            if within:
                async with cursor:
                    await cursor.execute("select * from note")
                    assert await cursor.fetchone()
                    assert (await tx.commit()).pending == ()
            else:
                await cursor.execute("select * from note")
        await cursor.close()
        await cursor.close()
        assert cursor.closed
        with pytest.raises(UsageError):
            await cursor.fetchone()
    assert await committed(databases)


async def test_a_named_cursor_of_a_thread(tmp_path: Path, databases: dict[str, str]) -> None:
    def program() -> None:
        with undoubt.sync.connect(made(tmp_path, databases)) as coordinator:
            with coordinator.transaction() as tx:
                orders, payments = tx.branches("orders", "payments")
                payments.execute(INSERT)
                orders.execute(INSERT)
                with orders.cursor("c") as cursor:
                    cursor.execute("select * from note")
                    assert cursor.fetchone()
                    assert tx.commit().pending == ()
            assert cursor.closed

    await asyncio.to_thread(program)
    assert await committed(databases)
