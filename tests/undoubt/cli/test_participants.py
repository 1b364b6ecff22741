"""``undoubt participants`` on a real database."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg

from tests.undoubt.cli.harness import Ran, undoubt


async def run(folder: Path, dsn: str, *arguments: str) -> Ran:
    (folder / "undoubt.toml").write_text(f'[participants.orders]\ndsn = "{dsn}"\n')
    return await asyncio.to_thread(undoubt, "participants", *arguments, cwd=folder)


async def test_migrate_makes_the_tables_and_may_be_repeated(tmp_path: Path, database: str) -> None:
    """Without them a lost COMMIT of a single database stays unknown."""
    for _ in range(2):
        ran = await run(tmp_path, database, "migrate", "-o", "json")
        assert (ran.status, ran.json) == (0, {"migrated": ["orders"]}), ran.err
    connection = await asyncpg.connect(database)
    assert await connection.fetchval("select count(*) from undoubt.undoubt_note") == 0
    await connection.execute(
        "insert into undoubt.undoubt_note (hash, noted_at)"
        " values ('old', now() - interval '2 days'), ('new', now());"
        "insert into undoubt.undoubt_commit (txid, participant, noted_at)"
        " values ('of 0.1.0', 'orders', now() - interval '2 days')"
    )
    await connection.close()
    ran = await run(tmp_path, database, "prune", "-o", "json")
    assert (ran.status, ran.json) == (0, {"orders": 2}), ran.err


async def test_restored_draws_another_history(tmp_path: Path, database: str) -> None:
    """Broken if an operator cannot say that a server was cloned, or set back."""
    assert (await run(tmp_path, database, "migrate")).status == 0
    connection = await asyncpg.connect(database)
    before = await connection.fetchval("select undoubt.current_history()")
    ran = await run(tmp_path, database, "restored", "orders", "-o", "json")
    after = await connection.fetchval("select undoubt.current_history()")
    await connection.close()
    assert (ran.status, ran.json) == (0, {"participant": "orders", "history": after}), ran.err
    assert None not in {before, after}
    assert before != after
    ran = await run(tmp_path, database, "restored", "stock")
    assert ran.status == 3


async def test_an_unknown_name_is_not_found(tmp_path: Path, database: str) -> None:
    ran = await run(tmp_path, database, "migrate", "stock")
    assert ran.status == 3
    assert "'stock'" in ran.err


async def test_an_unreachable_database_is_named(tmp_path: Path) -> None:
    ran = await run(tmp_path, "postgresql://postgres@127.0.0.1:1/x", "migrate")
    assert ran.status == 4
    assert "'orders'" in ran.err
