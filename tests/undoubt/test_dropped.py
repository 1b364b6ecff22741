"""Transactions that were begun and that nobody ends: their timeout does."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import undoubt
import undoubt.sync

TABLE = "create table account (id int primary key, balance int not null); insert into account values (1, 100)"
ADD = "update account set balance = balance + 1 where id = 1"


@pytest.mark.parametrize("kind", ["asyncpg", "psycopg", "sync"])
@pytest.mark.parametrize("kept", [False, True])
async def test_what_was_started_and_forgotten(
    databases: dict[str, str], tmp_path: Path, kind: str, kept: bool
) -> None:
    """Broken if its connections never come back, or a session of the database keeps its row locks."""
    admins = {name: await asyncpg.connect(dsn) for name, dsn in databases.items()}
    for admin in admins.values():
        await admin.execute(TABLE)
    driver = "psycopg" if kind == "sync" else kind
    source = {
        "ledger": {"url": f"sqlite:///{tmp_path}/ledger.db"},
        "participants": {
            name: {"dsn": dsn, "driver": driver, "connections_max": 1} for name, dsn in databases.items()
        },
    }
    forgotten: list[Any] = []
    if kind == "sync":
        await asyncio.to_thread(_in_a_thread, source, forgotten, kept)
    else:
        async with undoubt.connect(source) as coordinator:
            tx = await coordinator.transaction(timeout=0.3).start()
            for name in databases:
                await (await tx.branch(name)).execute(ADD)
            forgotten += [tx] if kept else []
            del tx
            gc.collect()
            async with coordinator.transaction(timeout=60) as after:  # the only connections
                for name in databases:
                    await (await after.branch(name)).execute(ADD)
    for admin in admins.values():
        assert await admin.fetchval("select balance from account") == 101
        await admin.close()


def _in_a_thread(source: dict[str, Any], forgotten: list[Any], kept: bool) -> None:
    with undoubt.sync.connect(source) as coordinator:
        tx = coordinator.transaction(timeout=0.3).start()
        for name in source["participants"]:
            tx.branch(name).execute(ADD)
        forgotten += [tx] if kept else []
        del tx
        gc.collect()
        with coordinator.transaction(timeout=60) as after:
            for name in source["participants"]:
                after.branch(name).execute(ADD)
