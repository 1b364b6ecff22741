"""Last-agent commit beside what else a transaction can do: locks, messages, keys. Each test's docstring says
what is broken if it fails."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import undoubt
from tests.servers import prepared
from tests.undoubt.cli.harness import undoubt as command
from tests.undoubt.test_end_to_end import TABLE, run, source
from tests.undoubt.test_last_agent import found
from undoubt import StaleLock, TransactionAborted, UsageError
from undoubt.coordinator.ledger.contract import RecordedDecision
from undoubt.participants.postgres.schema import migrate
from undoubt.participants.settings import ParticipantSettings

BOTH = ("orders", "payments")
LAST = {"protocol": "last", "agent": "payments"}
LATER_HOLDER = "update undoubt.undoubt_lock set token = token + 1"
MESSAGES = "select topic from undoubt.undoubt_outbox order by topic"


@pytest.fixture
async def migrated(databases: dict[str, str]) -> dict[str, str]:
    for name, dsn in databases.items():
        await run(dsn, TABLE)
        await migrate(name, ParticipantSettings(dsn=dsn))
    return databases


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_the_agent_guards_a_lock_and_publishes(
    tmp_path: Path, migrated: dict[str, str], driver: str
) -> None:
    """Broken if the row of the agent keeps a stale holder from being refused, or a message is there of a
    transaction that is not, or is missing of one that is."""
    chosen = source(tmp_path, migrated, coordinator=LAST)
    for settings in chosen["participants"].values():
        settings["driver"] = driver
    async with undoubt.connect(chosen) as coordinator, coordinator.lock("stock") as lock:
        for number in (1, 2):
            async with coordinator.transaction() as tx:
                for name in BOTH:
                    branch = await tx.branch(name)
                    await lock.guard(branch)
                    await branch.execute(f"insert into note (id) values ({number})")
                    await tx.publish(name, b"", topic=f"{name} {number}", key="one")
        await run(migrated["payments"], LATER_HOLDER)
        with pytest.raises(TransactionAborted):
            async with coordinator.transaction() as tx:
                await (await tx.branch("orders")).execute("insert into note (id) values (3)")
                await tx.publish("orders", b"", topic="orders 3")
                with pytest.raises(StaleLock):
                    await lock.guard(await tx.branch("payments"))
    assert await found(migrated) == {"orders": [1, 2], "payments": [1, 2]}
    for name in BOTH:
        assert [row["topic"] for row in await run(migrated[name], MESSAGES)] == [f"{name} 1", f"{name} 2"]
        assert await prepared(migrated[name]) == []


async def test_a_key_is_refused_with_a_reason(tmp_path: Path, migrated: dict[str, str]) -> None:
    """Broken if a transaction with a key commits by a row that holds no key: it would run twice."""
    async with undoubt.connect(source(tmp_path, migrated, coordinator=LAST)) as coordinator:

        async def nothing(tx: undoubt.Transaction) -> None:
            pytest.fail("it has begun")

        with pytest.raises(UsageError, match="2pc"):
            coordinator.transaction(key="k")
        with pytest.raises(UsageError, match="2pc"):
            await coordinator.run(nothing, key="k")
        async with coordinator.transaction(protocol="2pc", key="k") as tx:  # beside an agent in the settings
            for name in BOTH:
                await (await tx.branch(name)).execute("insert into note (id) values (1)")
    assert await found(migrated) == {"orders": [1], "payments": [1]}


async def test_tx_show_names_the_agent(tmp_path: Path, migrated: dict[str, str]) -> None:
    """Broken if an operator takes the agent for a database that had no part in the transaction."""
    (tmp_path / "undoubt.toml").write_text(f'[ledger]\nurl = "sqlite:///{tmp_path}/ledger.db"\n')
    async with undoubt.connect(source(tmp_path, migrated, coordinator=LAST)) as coordinator:
        async with coordinator.transaction() as tx:
            for name in BOTH:
                await (await tx.branch(name)).execute("insert into note (id) values (1)")
        while await coordinator.outcome(tx.id) is RecordedDecision.NOT_RECORDED:
            await asyncio.sleep(0.01)
    words = ("tx", "show", str(tx.id))
    shown = await asyncio.to_thread(command, *words, "-o", "json", cwd=tmp_path)
    assert shown.json["agent"] == "payments", shown.err
    assert [branch["participant"] for branch in shown.json["branches"]] == ["orders"]
    page = await asyncio.to_thread(command, *words, cwd=tmp_path)
    assert "payments, whose branch commits with the decision" in page.out
