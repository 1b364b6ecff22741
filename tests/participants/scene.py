"""A database in which a thief knows every name that was ever prepared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import asyncpg

from tests.participants.hands import at
from tests.participants.support import WRITE, Database, participant_at
from undoubt.embedded import EmbeddedServer
from undoubt.participants.contract import Evidence, PreparedBranch, Vote
from undoubt.participants.ids import Gid
from undoubt.participants.postgres import PostgresParticipant


@dataclass
class Scene:
    """``thief`` may connect, and knows every gid that was ever prepared."""

    database: Database
    server: EmbeddedServer
    thief: asyncpg.Connection[asyncpg.Record]

    async def forge(self, gid: Gid) -> None:
        """The thief prepares a branch of that name."""
        await self.thief.execute(f"begin; select pg_current_xact_id(); prepare transaction '{gid}'")

    def at(self, user: str, **settings: Any) -> PostgresParticipant:
        return participant_at(self.server.dsn(self.database.name, user=user), **settings)

    async def forged(self) -> list[str]:
        rows = await self.database.admin.fetch("select gid from pg_prepared_xacts where owner = 'thief'")
        return [row["gid"] for row in rows]


async def prepare(participant: PostgresParticipant, gid: Gid, before: str = "") -> Evidence:
    branch = await participant.begin(gid, timeout_s=30)
    if before:
        await at(branch).execute(before)
    await at(branch).execute(WRITE)
    result = await branch.prepare()
    await branch.release()
    assert result.vote is Vote.PREPARED, result.reason
    assert result.evidence is not None
    return result.evidence


async def listed(participant: PostgresParticipant) -> list[PreparedBranch]:
    return list(await participant.in_doubt())


async def set_role(scene: Scene) -> None:
    await scene.thief.execute(f"alter database {scene.database.name} set role = thief")
