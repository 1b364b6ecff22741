"""Plain COMMIT of a single branch, and what may be said when its answer is lost."""

from __future__ import annotations

import asyncio

import pytest

from tests.participants.hands import at, only_the_last, sql_error
from tests.participants.support import (
    KEY,
    WRITE,
    Database,
    new_gid,
    participant_at,
    unreachable_standby,
    waits_for_standby,
)
from undoubt.embedded import EmbeddedServer
from undoubt.participants.contract import Settled
from undoubt.participants.errors import BranchFailed, ParticipantRefused
from undoubt.participants.ids import Gid
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.postgres.schema import migrate, prune
from undoubt.participants.settings import ParticipantSettings


async def test_commit(participant: PostgresParticipant, database: Database, gid: Gid) -> None:
    """Else nothing with one database works."""
    branch = await participant.begin(gid, timeout_s=30)
    await at(branch).execute(WRITE)
    assert await branch.commit_one_phase() is Settled.APPLIED
    assert await database.balance() == 90


async def test_swallowed_error(participant: PostgresParticipant, database: Database, gid: Gid) -> None:
    """COMMIT of a failed transaction answers ROLLBACK and no error."""
    branch = await participant.begin(gid, timeout_s=30)
    await at(branch).execute(WRITE)
    with sql_error("22012"):
        await at(branch).execute("select 1/0")
    with pytest.raises(BranchFailed, match="swallowed"):
        await branch.commit_one_phase()
    await branch.release()
    assert await database.balance() == 100


async def test_tag_other_than_commit(participant: PostgresParticipant, database: Database, gid: Gid) -> None:
    """The tag is looked at too: here the guard is passed and the transaction fails after it."""
    branch = await participant.begin(gid, timeout_s=30)
    await at(branch).execute(WRITE)
    session = branch.session  # type: ignore[attr-defined]
    with sql_error("22012"):
        await session.script("select 1/0", timeout_s=10)
    only_the_last(session)
    with pytest.raises(BranchFailed, match="ROLLBACK"):
        await branch.commit_one_phase()
    assert await database.balance() == 100


@pytest.mark.parametrize("typed", ["commit", "commit; begin", "rollback; begin"])
async def test_ended_by_the_application(
    participant: PostgresParticipant, database: Database, gid: Gid, typed: str
) -> None:
    """What stands in the branch's place is not committed under its name."""
    branch = await participant.begin(gid, timeout_s=30)
    await at(branch).execute(typed)
    if "begin" in typed:
        await at(branch).execute(WRITE)
    with pytest.raises(BranchFailed, match="ended by the application"):
        await branch.commit_one_phase()
    await branch.release()
    assert await database.balance() == 100


async def test_deferred_constraint(participant: PostgresParticipant, database: Database, gid: Gid) -> None:
    """An error of COMMIT itself is a rollback with a reason, not an unknown outcome."""
    await database.admin.execute(
        "create table entry (account int references account deferrable initially deferred)"
    )
    branch = await participant.begin(gid, timeout_s=30)
    await at(branch).execute("insert into entry values (77)")
    with pytest.raises(BranchFailed) as failed:
        await branch.commit_one_phase()
    assert failed.value.sqlstate == "23503"


async def test_unconfirmed_by_the_standby(
    participant: PostgresParticipant, database: Database, gid: Gid
) -> None:
    """Warning 01000 at COMMIT: on this server and perhaps on no other, so not a plain yes."""
    async with unreachable_standby(database):
        branch = await participant.begin(gid, timeout_s=30)
        pid = await at(branch).fetchval("select pg_backend_pid()")
        await at(branch).execute(WRITE)
        commit = asyncio.create_task(branch.commit_one_phase())
        while not await waits_for_standby(database, pid):
            await asyncio.sleep(0.005)
        await database.admin.execute("select pg_cancel_backend($1)", pid)
        assert await commit is Settled.HEURISTIC_HAZARD
        await branch.release()


async def test_row_needs_no_right_of_the_applications_role(
    participant: PostgresParticipant, noted: Database, gid: Gid
) -> None:
    """The role that the application took on may have no right to the table; its COMMIT must not fail."""
    await noted.admin.execute("create role humble; grant all on account to humble")
    branch = await participant.begin(gid, timeout_s=30, key=KEY)
    await at(branch).execute(
        "set local role humble; set local search_path = ''; " + "update public." + WRITE[7:]
    )
    assert await branch.commit_one_phase() is Settled.APPLIED
    await branch.release()
    assert await noted.admin.fetchval("select hash from undoubt.undoubt_note") == KEY.note(gid)
    await noted.admin.execute("drop owned by humble; drop role humble")


async def test_readers_leave_no_row(participant: PostgresParticipant, noted: Database) -> None:
    """Else every read-only transaction would become a write, and fail where it is set to read only."""
    for setting in ("select 1", "set transaction read only", WRITE + "; set transaction read only"):
        branch = await participant.begin(new_gid(), timeout_s=30, key=KEY)
        await at(branch).execute(setting)
        await at(branch).fetch("select * from account")
        assert await branch.commit_one_phase() is Settled.APPLIED
        await branch.release()
    assert await noted.admin.fetchval("select count(*) from undoubt.undoubt_note") == 0


async def test_prune(participant: PostgresParticipant, noted: Database) -> None:
    """The table must not grow for ever, nor lose rows that may still be asked for."""
    for _ in range(3):
        branch = await participant.begin(new_gid(), timeout_s=30, key=KEY)
        await at(branch).execute(WRITE)
        await branch.commit_one_phase()
        await branch.release()
    await noted.admin.execute(
        "update undoubt.undoubt_note set noted_at = noted_at - interval '2 days'"
        " where ctid in (select ctid from undoubt.undoubt_note limit 2)"
    )
    settings = ParticipantSettings(dsn=noted.dsn)
    assert await prune("p", settings, older_than_s=86_400) == 2
    assert await prune("p", settings, older_than_s=86_400) == 0
    assert await noted.admin.fetchval("select count(*) from undoubt.undoubt_note") == 1


async def test_prune_keeps_what_may_still_be_looked_for(
    participant: PostgresParticipant, noted: Database, gid: Gid
) -> None:
    """Broken if a commit whose answer is lost is told as a rollback, because its note was pruned."""
    branch = await participant.begin(gid, timeout_s=30, key=KEY)
    await at(branch).execute(WRITE)
    await branch.commit_one_phase()
    await branch.release()
    assert await prune("p", ParticipantSettings(dsn=noted.dsn), older_than_s=0.0) == 0


async def test_migrate_without_the_right(database: Database, server: EmbeddedServer) -> None:
    """A refusal names the participant and what was missing."""
    await database.admin.execute("create role nobody_much login")
    settings = ParticipantSettings(dsn=server.dsn(database.name, user="nobody_much"))
    with pytest.raises(ParticipantRefused, match=r"'p'.*permission denied"):
        await migrate("p", settings)
    await database.admin.execute("drop role nobody_much")


async def test_synchronous_commit_is_on(database: Database, gid: Gid) -> None:
    """A COMMIT that the server may forget in a crash is none; a role's own setting does not change that."""
    await database.admin.execute(f"alter database {database.name} set synchronous_commit = off")
    participant = participant_at(database.dsn)
    for number in range(2):
        branch = await participant.begin(new_gid(), timeout_s=30)
        assert await at(branch).fetchval("show synchronous_commit") == "on", number
        await branch.rollback()
        await branch.release()
    await participant.close()
