"""The commands, as processes of their own, on a ledger in PostgreSQL beside an application that has it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import undoubt
from tests.servers import Server, fresh_database
from tests.undoubt.cli.harness import Ran
from tests.undoubt.cli.harness import undoubt as command
from undoubt.cli.exits import Exit


@pytest.fixture
async def place(tmp_path: Path, databases: dict[str, str], postgres: Server) -> AsyncIterator[Path]:
    """A folder with a configuration; its ledger is not created yet."""
    async with fresh_database(postgres, "ledger") as ledger:
        tables = {"ledger": f'url = "{ledger.replace("postgresql://", "postgresql+psycopg://")}"'}
        tables |= {f"participants.{name}": f'dsn = "{dsn}"' for name, dsn in databases.items()}
        lines = [f"[{name}]\n{content}\n" for name, content in tables.items()]
        (tmp_path / "undoubt.toml").write_text("\n".join(lines))
        yield tmp_path


async def run(place: Path, *args: str) -> Ran:
    return await asyncio.to_thread(command, *args, cwd=place)


async def test_commands_beside_an_application(place: Path) -> None:
    """Broken if an operator cannot see, or finish, what applications do on a ledger that they share."""
    missing = await run(place, "tx", "list")
    assert (missing.status, "undoubt ledger init" in missing.err) == (Exit.NOT_FOUND, True)
    created = await run(place, "ledger", "init", "-o", "json")
    assert created.status == 0, created.err
    assert created.json["backend"] == "postgresql"
    assert (await run(place, "ledger", "init", "-o", "json")).json["ledger_id"] == created.json["ledger_id"]
    assert (await run(place, "ledger", "migrate", "-o", "json")).json == {"applied": []}
    async with undoubt.connect(place / "undoubt.toml", recover=False) as coordinator:
        async with coordinator.transaction() as tx:
            for name in ("orders", "payments"):
                await (await tx.branch(name)).execute("create table entry (id int)")
        (listed,) = (await run(place, "tx", "list", "-o", "json")).json
        assert (listed["txid"], listed["decision"]) == (str(tx.id), "commit")
        shown = await run(place, "tx", "show", str(tx.id), "-o", "json")
        assert [branch["participant"] for branch in shown.json["branches"]] == ["orders", "payments"]
        assert (await run(place, "indoubt", "list", "-o", "json")).json["branches"] == []
        assert (await run(place, "recover", "--once")).status == 0
    looked_over = await run(place, "ledger", "check", "-o", "json")
    assert [problem for problem in looked_over.json["problems"] if "fsync" not in problem] == []
