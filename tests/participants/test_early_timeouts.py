"""Timeouts that the owner of a database has set, and that end a session before it can set its own."""

from __future__ import annotations

import psycopg
import pytest

from tests.participants.hands import at
from tests.participants.proxy import Proxy
from tests.participants.support import WRITE, Database, new_gid, participant_at
from undoubt.participants.alembic_lock import engine_over
from undoubt.participants.contract import Decision, Settled, Vote
from undoubt.participants.postgres import schema
from undoubt.participants.settings import ParticipantSettings

WAYS = ("",)

TIMEOUTS = {
    "statement_timeout": 0,
    "lock_timeout": 0,
    "idle_in_transaction_session_timeout": 0,
    "idle_session_timeout": 140000,
    "transaction_timeout": 170000,
}
"""With the server's version since which they are known."""
LATE_S = 0.005
"""The servers' answers take longer than these timeouts, so that each session is ended in its first pause."""


async def hasten(database: Database) -> None:
    """New sessions of this database are ended after a millisecond of anything."""
    version = int(await database.admin.fetchval("show server_version_num"))
    for name, since in TIMEOUTS.items():
        if version >= since:
            await database.admin.execute(f"alter database {database.name} set {name} = '1ms'")


@pytest.mark.parametrize("options", ["", "?options=-c%20extra_float_digits%3D0"])
async def test_recovery_goes_on(database: Database, options: str) -> None:
    """Broken if the owner of a database can keep branches in doubt there, with a setting that no session of
    undoubt's wants."""
    application, gid = participant_at(database.dsn), new_gid()
    branch = await application.begin(gid, timeout_s=30)
    await at(branch).execute(WRITE)
    assert (await branch.prepare()).vote is Vote.PREPARED
    await application.close()
    await hasten(database)
    async with Proxy(database.dsn, LATE_S) as proxy:
        participant = participant_at(proxy.dsn + options)
        [listed] = await participant.in_doubt()
        assert listed.gid == gid
        assert await participant.settle(gid, Decision.COMMIT, None) is Settled.APPLIED
        await participant.close()
    assert await database.balance() == 90


async def test_tables_are_made(database: Database) -> None:
    """Broken if the tables of a participant cannot be made there."""
    await hasten(database)
    async with Proxy(database.dsn, LATE_S) as proxy:
        settings = ParticipantSettings(dsn=proxy.dsn)
        await schema.migrate("p", settings)
        assert await schema.prune("p", settings, older_than_s=1.0) == 0
    assert await database.admin.fetchval("select to_regclass('undoubt.undoubt_branch')") is not None


async def test_tables_are_made_where_idle_sessions_are_ended(database: Database) -> None:
    """Broken if the session that makes the tables can be ended between two of its transactions, each of which
    turns the timeout off for itself alone."""
    await database.admin.execute(f"alter database {database.name} set idle_session_timeout = '300ms'")
    await schema.migrate("p", ParticipantSettings(dsn=database.dsn))
    engine = engine_over(lambda options: psycopg.connect(database.dsn, options=options))
    with engine.connect() as connection:
        session = connection.connection.driver_connection
        assert session is not None
        session.rollback()
        assert session.execute("show idle_session_timeout").fetchone() == ("0",)
