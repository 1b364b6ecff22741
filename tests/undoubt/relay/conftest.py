"""A database with an outbox, and a coordinator that publishes in it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import undoubt
from undoubt.participants.outbox import OutboxReader
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.postgres.schema import migrate
from undoubt.participants.settings import ParticipantSettings


@dataclass
class Shop:
    """``admin`` is a superuser's connection to the database, for looking from outside."""

    folder: Path
    coordinator: undoubt.Coordinator
    admin: asyncpg.Connection[asyncpg.Record]

    def outbox(self) -> OutboxReader:
        participant = self.coordinator.participants.get("orders")
        assert isinstance(participant, PostgresParticipant)
        return participant.outbox()

    async def publish(self, *payloads: object, **options: Any) -> list[str]:
        async with self.coordinator.transaction() as tx:
            return [await tx.publish("orders", payload, **options) for payload in payloads]

    async def left(self) -> list[bytes]:
        rows = await self.admin.fetch("select payload from undoubt.undoubt_outbox order by id")
        return [row["payload"] for row in rows]

    async def break_sessions(self) -> None:
        """End the sessions of relays, as a restart of the server does."""
        await self.admin.execute(
            "select pg_terminate_backend(a.pid) from pg_stat_activity as a join pg_locks as l using (pid)"
            " where l.locktype = 'advisory' and a.datname = current_database() and a.pid <> pg_backend_pid()"
        )


@pytest.fixture
async def shop(database: str, tmp_path: Path) -> AsyncIterator[Shop]:
    await migrate("orders", ParticipantSettings(dsn=database))
    (tmp_path / "undoubt.toml").write_text(
        f'[ledger]\nurl = "sqlite:///{tmp_path}/ledger.db"\n[participants.orders]\ndsn = "{database}"\n'
    )
    admin = await asyncpg.connect(database)
    async with undoubt.connect(tmp_path / "undoubt.toml") as coordinator:
        yield Shop(tmp_path, coordinator, admin)
    await admin.close()
