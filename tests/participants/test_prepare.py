"""The first phase against a real server: which answers count as PREPARED, and which do not."""

from __future__ import annotations

import pytest

from tests.participants.hands import at, only_the_last, sql_error
from tests.participants.support import WRITE, Database, new_gid
from undoubt.participants.contract import Settled, Vote, Work
from undoubt.participants.errors import BranchFailed
from undoubt.participants.ids import Gid
from undoubt.participants.postgres import PostgresParticipant

KINDS = ("asyncpg", "psycopg", "psycopg-sync")


async def test_prepare_then_commit(participant: PostgresParticipant, database: Database, gid: Gid) -> None:
    """Else: nothing works at all. The write is invisible until commit, prepared with the right evidence."""
    branch = await participant.begin(gid, timeout_s=30)
    await at(branch).execute(WRITE)
    xid = int(await at(branch).fetchval("select pg_current_xact_id()::text"))
    result = await branch.prepare()
    assert result.vote is Vote.PREPARED
    assert await database.prepared() == [str(gid)]
    assert await database.balance() == 100
    system = await database.admin.fetchval("select system_identifier from pg_control_system()")
    assert result.evidence is not None
    assert (result.evidence.xid, result.evidence.system, result.evidence.timeline) == (
        xid,
        system,
        "00000001",
    )
    assert await branch.commit() is Settled.APPLIED
    assert await database.balance() == 90
    assert await database.prepared() == []
    assert await branch.commit() is Settled.APPLIED
    await branch.release()


async def test_prepare_then_rollback(participant: PostgresParticipant, database: Database, gid: Gid) -> None:
    """Else an aborted transaction would leave a prepared branch behind."""
    branch = await participant.begin(gid, timeout_s=30)
    await at(branch).execute(WRITE)
    assert (await branch.prepare()).vote is Vote.PREPARED
    assert await branch.rollback() is Settled.APPLIED
    assert await branch.rollback() is Settled.APPLIED
    assert await database.prepared() == []
    assert await database.balance() == 100


async def test_swallowed_error_is_an_abort_vote(
    participant: PostgresParticipant, database: Database, gid: Gid
) -> None:
    """PREPARE of a failed transaction answers ROLLBACK and no error: who believes it commits half."""
    branch = await participant.begin(gid, timeout_s=30)
    await at(branch).execute(WRITE)
    with sql_error("22012"):
        await at(branch).execute("select 1/0")
    result = await branch.prepare()
    assert result.vote is Vote.ABORT
    assert isinstance(result.reason, BranchFailed)
    assert "swallowed" in str(result.reason)
    assert await branch.rollback() is Settled.APPLIED
    assert await database.prepared() == []


async def test_swallowed_error_fails_the_poll(participant: PostgresParticipant, gid: Gid) -> None:
    """Else a broken branch would pass for a read-only one."""
    branch = await participant.begin(gid, timeout_s=30)
    with sql_error("22012"):
        await at(branch).execute("select 1/0")
    with pytest.raises(BranchFailed, match="swallowed"):
        await branch.poll()
    assert await branch.rollback() is Settled.APPLIED


async def test_tag_other_than_prepare_transaction_is_an_abort_vote(
    participant: PostgresParticipant, database: Database, gid: Gid
) -> None:
    """The tag is looked at too: here the guard is passed and the transaction fails after it."""
    branch = await participant.begin(gid, timeout_s=30)
    session = branch.session  # type: ignore[attr-defined]
    with sql_error("22012"):
        await session.script("select 1/0", timeout_s=10)
    only_the_last(session)
    result = await branch.prepare()
    assert result.vote is Vote.ABORT
    assert "ROLLBACK" in str(result.reason)
    assert await database.prepared() == []


@pytest.mark.parametrize(
    "typed",
    [
        "commit",
        "commit; begin",
        "rollback",
        "rollback; begin",
        "commit and chain",
        "prepare transaction 'mine'",
    ],
)
async def test_branch_ended_by_the_application(
    participant: PostgresParticipant, database: Database, gid: Gid, typed: str
) -> None:
    """Without the marker, PREPARE would prepare an empty transaction, or another one, and answer yes."""
    branch = await participant.begin(gid, timeout_s=30)
    await at(branch).execute(WRITE)
    await at(branch).execute(typed)
    if "begin" in typed or "chain" in typed:
        await at(branch).execute("update account set balance = 0 where id = 2")
    result = await branch.prepare()
    assert result.vote is Vote.ABORT
    assert "ended by the application" in str(result.reason)
    assert await branch.rollback() is Settled.APPLIED
    assert str(gid) not in await database.prepared()
    assert await database.balance(2) == 100, "what was opened instead must be rolled back"


@pytest.mark.parametrize("typed", ["commit", "commit; begin"])
async def test_poll_sees_that_the_branch_was_ended(
    participant: PostgresParticipant, gid: Gid, typed: str
) -> None:
    """Else the branch would vote READ_ONLY, although it committed on its own."""
    branch = await participant.begin(gid, timeout_s=30)
    await at(branch).execute(WRITE + "; " + typed)
    with pytest.raises(BranchFailed, match="ended by the application"):
        await branch.poll()


@pytest.mark.parametrize("typed", ["commit; begin", "select 1/0"])
async def test_read_only_commit_is_guarded(
    participant: PostgresParticipant, database: Database, gid: Gid, typed: str
) -> None:
    """A reading branch that is no longer the branch must not commit what was put in its place."""
    branch = await participant.begin(gid, timeout_s=30)
    session = branch.session  # type: ignore[attr-defined]
    assert await branch.poll() is Work.READ_ONLY
    if typed == "select 1/0":
        with sql_error("22012"):
            await session.script(typed, timeout_s=10)
    else:
        await session.script(typed + "; update account set balance = 0 where id = 2", timeout_s=10)
    with pytest.raises(BranchFailed):
        await branch.commit()
    await branch.release()
    assert await database.balance(2) == 100


async def test_read_only_and_serializable(participant: PostgresParticipant, database: Database) -> None:
    """A reader needs no PREPARE, unless it is SERIALIZABLE: its reads may be what makes others fail."""
    reader = await participant.begin(new_gid(), timeout_s=30)
    await at(reader).fetch("select * from account")
    assert await reader.poll() is Work.READ_ONLY
    assert await reader.commit() is Settled.APPLIED

    serializable = await participant.begin(new_gid(), timeout_s=30)
    await at(serializable).execute("set transaction isolation level serializable")
    await at(serializable).fetch("select * from account")
    assert await serializable.poll() is Work.WRITES
    assert (await serializable.prepare()).vote is Vote.PREPARED
    assert await serializable.rollback() is Settled.APPLIED


@pytest.mark.parametrize(
    ("statement", "sure"),
    [
        (WRITE, True),
        ("insert into account values (3, 1)", True),
        ("update account set balance = 0 where id = 999", False),
        ("select * from account", False),
        ("create table other (a int)", False),
    ],
)
async def test_surely_writes(participant: PostgresParticipant, gid: Gid, statement: str, sure: bool) -> None:
    """True spares a round trip; wrongly true would prepare branches that only read."""
    branch = await participant.begin(gid, timeout_s=30)
    await at(branch).execute(statement)
    assert branch.surely_writes is sure
    if sure:
        assert await branch.poll() is Work.WRITES
    assert await branch.rollback() is Settled.APPLIED


async def test_surely_writes_from_returned_rows(participant: PostgresParticipant, gid: Gid) -> None:
    branch = await participant.begin(gid, timeout_s=30)
    sure = []
    for statement in ("select 1", "update account set balance = 0 where id = 1 returning id"):
        await at(branch).fetchrow(statement)
        sure.append(branch.surely_writes)
    assert sure == [False, True]
    assert await branch.rollback() is Settled.APPLIED
