"""Tables are made while others look on, who may take every lock that is not guarded by a right."""

from __future__ import annotations

import pytest

from tests.participants.support import Database
from undoubt.participants.errors import ParticipantUnavailable
from undoubt.participants.postgres.schema import migrate
from undoubt.participants.settings import ParticipantSettings

WAYS = ("",)

KINDS = ("asyncpg",)
"""Migrations have a connection of their own, whatever the participant's driver."""

UNDOUBT = 0x756E646F756274


async def test_an_advisory_lock_that_somebody_holds(database: Database) -> None:
    """Broken if any role of the server can keep a migration waiting for ever, without a word."""
    settings = ParticipantSettings(dsn=database.dsn, statement_timeout_s=0.2)
    await database.admin.execute(f"select pg_advisory_lock({UNDOUBT})")
    with pytest.raises(ParticipantUnavailable, match=f"advisory lock {UNDOUBT}"):
        await migrate("p", settings)
    await database.admin.execute(f"select pg_advisory_unlock({UNDOUBT})")
    await migrate("p", settings)
    assert await database.admin.fetchval("select to_regclass('undoubt.undoubt_branch')") is not None
