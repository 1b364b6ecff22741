"""``undoubt participants`` on a real database."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg

from tests.undoubt.cli.harness import Ran, undoubt
from undoubt.participants.ids import Gid, Protocol, SessionKey, TxId

LOST = "abcdefghij"


async def run(folder: Path, dsn: str, *arguments: str) -> Ran:
    (folder / "undoubt.toml").write_text(f'[participants.orders]\ndsn = "{dsn}"\n')
    return await asyncio.to_thread(undoubt, "participants", *arguments, cwd=folder)


async def test_migrate_makes_the_tables_and_may_be_repeated(tmp_path: Path, database: str) -> None:
    """Without them a lost COMMIT of a single database stays unknown."""
    for applied in (True, False):
        ran = await run(tmp_path, database, "migrate", "-o", "json")
        assert (ran.status, ran.json["migrated"]) == (0, ["orders"]), ran.err
        assert bool(ran.json["applied"]["orders"]) is applied, "it says what it did"
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


async def test_rows_of_a_lost_ledger(tmp_path: Path, databases: dict[str, str]) -> None:
    """Broken if rows of last-agent commit that no recovery will ever delete cannot be found or deleted, or
    some are deleted that recovery, an adoption, another installation or a coordinator that was stopped still
    needs."""
    database = databases["orders"]
    assert (await run(tmp_path, database, "migrate")).status == 0
    own = await asyncio.to_thread(undoubt, "ledger", "init", "-o", "json", cwd=tmp_path)
    own_id = own.json["ledger_id"]
    connection = await asyncpg.connect(database)
    old = "insert into undoubt.undoubt_agent values ($1, 'abort', $2, '', '', now() - $3 * interval '1 day')"
    for key, (ledger, days) in enumerate([(LOST, 8), (LOST, 6), (own_id, 8), ("klmnopqrst", 8)]):
        await connection.execute(old, bytes([key]), ledger, days)

    async def keys() -> list[int]:
        rows = await connection.fetch("select key from undoubt.undoubt_agent order by key")
        return [row["key"][0] for row in rows]

    ran = await run(tmp_path, database, "prune", "-o", "json")
    assert (ran.status, ran.json) == (0, {"orders": 0}), ran.err
    assert f"orders: 2 rows of last-agent commit of another ledger, {LOST}" in ran.err
    assert own_id not in ran.err
    gid = Gid(LOST, Protocol.LAST, TxId(1, "0123456789abcdef", 1), 1, "orders").tagged(SessionKey.drawn())
    await connection.execute(f"begin; create table note (id int); prepare transaction '{gid}'")
    ran = await run(tmp_path, database, "prune", "--lost-ledger", LOST)
    assert (ran.status, "--adopt" in ran.err) == (5, True), ran.err
    await connection.execute(f"rollback prepared '{gid}'")
    ran = await run(tmp_path, database, "prune", "--lost-ledger", own_id)
    assert (ran.status, "of this installation" in ran.err) == (5, True), ran.err
    assert await keys() == [0, 1, 2, 3]
    ran = await run(tmp_path, database, "prune", "--lost-ledger", LOST, "--older-than", "1s", "-o", "json")
    assert (ran.status, ran.json) == (0, {"orders": 1}), ran.err
    assert await keys() == [1, 2, 3]
    await connection.close()


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


async def test_who_changed_participants_is_recorded(tmp_path: Path, database: str) -> None:
    """Broken if nobody can tell who drew another history, or pruned notes; or if tables cannot be made before
    there is a ledger."""
    ran = await run(tmp_path, database, "migrate")
    assert ran.status == 0
    assert "participants migrate is not recorded: no ledger" in ran.err
    assert (await asyncio.to_thread(undoubt, "ledger", "init", "--note", "new", cwd=tmp_path)).status == 0
    for words in (["migrate"], ["restored", "orders"], ["prune"]):
        ran = await run(tmp_path, database, *words, "--note", "why")
        assert (ran.status, "not recorded" in ran.err) == (0, False), ran.err
    ran = await asyncio.to_thread(undoubt, "audit", "-o", "json", cwd=tmp_path)
    told = [(act["verb"], act["note"], act["result"]) for act in ran.json]
    assert told == [
        ("participants prune", "why", "nothing: no note is that old"),
        ("participants restored", "why", "done"),
        ("participants migrate", "why", "nothing: all are up to date"),
        ("ledger init", "new", "done"),
    ]


async def test_nothing_is_restored_that_cannot_be_recorded(tmp_path: Path, database: str) -> None:
    """Broken if another history is drawn while no ledger can be told who did it; tables are added though."""
    (tmp_path / "undoubt.toml").write_text(
        f'[ledger]\nurl = "raft://127.0.0.1:1"\nrequest_timeout_s = 0.5\n'
        f'[participants.orders]\ndsn = "{database}"\n'
    )
    ran = await asyncio.to_thread(undoubt, "participants", "migrate", cwd=tmp_path)
    assert (ran.status, "participants migrate is not recorded" in ran.err) == (0, True), ran.err
    ran = await asyncio.to_thread(undoubt, "participants", "restored", "orders", cwd=tmp_path)
    assert ran.status == 4, ran.err
    (tmp_path / "undoubt.toml").write_text(
        f'[ledger]\nurl = "mysql://x"\n[participants.orders]\ndsn = "{database}"\n'
    )
    ran = await asyncio.to_thread(undoubt, "participants", "migrate", cwd=tmp_path)
    assert ran.status == 2, ran.err


async def test_an_unknown_name_is_not_found(tmp_path: Path, database: str) -> None:
    ran = await run(tmp_path, database, "migrate", "stock")
    assert ran.status == 3
    assert "'stock'" in ran.err


async def test_an_unreachable_database_is_named(tmp_path: Path) -> None:
    ran = await run(tmp_path, "postgresql://postgres@127.0.0.1:1/x", "migrate")
    assert ran.status == 4
    assert "'orders'" in ran.err
