"""What an application leaves in its session is gone while the session is idle, not only when it is lent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.participants.hands import at, spoil
from tests.participants.support import WRITE, Database, new_gid, participant_at
from undoubt.participants.contract import Branch, Settled, Vote
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.postgres.pool import Slot

_TEMPORARY = "exists (select from pg_catalog.pg_class where relpersistence = 't')"
PROBES = {
    "set search_path = pg_catalog": "current_setting('search_path') = 'pg_catalog'",
    "set lock_timeout = '17s'": "current_setting('lock_timeout') = '17s'",
    "set role pg_monitor": "current_user = 'pg_monitor'",
    "select set_config('app.tenant', 'x', false)": "current_setting('app.tenant', true) = 'x'",
    "select pg_advisory_lock(99)": "exists (select from pg_locks where locktype = 'advisory')",
    "listen something": "exists (select from pg_listening_channels())",
    "create temp table t (x int)": _TEMPORARY,
    "create temp sequence s; select nextval('s')": _TEMPORARY,
    "declare c cursor with hold for select 1": "exists (select from pg_cursors where is_holdable)",
}
"""What an application does, and whether that is left."""


@pytest.fixture
async def one(database: Database) -> Any:
    """A participant with one connection."""
    participant = participant_at(database.dsn, connections_max=1)
    yield participant
    await participant.close()


PREPARING = """
create or replace function preparing() returns int language plpgsql as
$$ begin execute 'prepare mine as select 1'; return 1; end $$
"""


async def left(participant: PostgresParticipant) -> Slot[Any] | None:
    """The only connection, once the application's last branch has been cleaned out of it; None if closed."""
    pool = participant.pool
    async with asyncio.timeout(20):
        while pool.cleaning or any(slot.used for slot in pool.idle):
            await asyncio.sleep(0.001)
    return pool.idle[0] if pool.idle else None


async def ended(branch: Branch, how: str) -> None:
    if how == "prepared":
        await at(branch).execute(WRITE)
        assert (await branch.prepare()).vote is Vote.PREPARED
        assert await branch.commit() is Settled.APPLIED
    elif how == "one phase":
        assert await branch.commit_one_phase() is Settled.APPLIED
    elif how == "reader":
        await branch.poll()
        assert await branch.commit() is Settled.APPLIED
    else:
        await branch.rollback()
    await branch.release()


@pytest.mark.parametrize("statement", PROBES)
async def test_an_idle_session_is_clean(one: PostgresParticipant, statement: str) -> None:
    """Broken if a lock, a temporary table or a tenant's setting waits in the pool for the next branch."""
    branch = await one.begin(new_gid(), timeout_s=30)
    pid = at(branch).get_server_pid()
    await at(branch).execute(statement)
    await ended(branch, "one phase")
    slot = await left(one)
    assert slot is not None
    assert slot.session.pid == pid
    [row] = await slot.session.rows(f"select {PROBES[statement]} as left", timeout_s=10)
    assert row["left"] is not True
    after = await one.begin(new_gid(), timeout_s=30)
    assert await at(after).fetchval("select current_setting('lock_timeout')") == "20s"
    await at(after).execute(WRITE)
    await ended(after, "prepared")


@pytest.mark.parametrize("how", ["prepared", "one phase", "reader", "rolled back", "failed"])
async def test_a_lock_of_the_session_ends_with_the_branch(
    one: PostgresParticipant, database: Database, how: str
) -> None:
    """However the branch ends: such a lock outlives a rollback, a COMMIT and a PREPARE."""
    branch = await one.begin(new_gid(), timeout_s=30)
    await at(branch).execute("select pg_advisory_lock(4711)")
    if how == "failed":
        with pytest.raises(Exception, match="zero"):
            await at(branch).execute("select 1/0")
    await ended(branch, how)
    # As somebody else would wait for it, while nobody uses this participant.
    await database.admin.execute("set lock_timeout = '20s'; select pg_advisory_lock(4711)")
    await database.admin.execute("select pg_advisory_unlock(4711)")


@pytest.mark.parametrize(
    "statement",
    [
        "prepare mine as select 1",
        "select 1; PREPARE mine as select 1",
        "/* a comment */ prepare mine as select 1",
        "-- a comment\n/* another */ prepare mine as select 1; select 1",
        "do $$ begin execute 'prepare mine as select 1'; end $$",
        "select preparing()",
        "load 'plpgsql'",
        "do $$ begin load 'plpgsql'; end $$",
    ],
)
@pytest.mark.parametrize("at_once", [False, True])
async def test_a_session_that_cannot_be_cleaned_is_closed(
    one: PostgresParticipant, database: Database, statement: str, at_once: bool
) -> None:
    """DEALLOCATE ALL would take the driver's own statements away, and nothing unloads a library. Broken if
    the next branch finds the name taken, or executes what another application has prepared."""
    await database.admin.execute(PREPARING)
    branch = await one.begin(new_gid(), timeout_s=30)
    pid = at(branch).get_server_pid()
    await at(branch).execute(statement)
    await ended(branch, "one phase")
    if not at_once:
        assert await left(one) is None
    after = await one.begin(new_gid(), timeout_s=30)
    assert at(after).get_server_pid() != pid
    await at(after).execute(statement)
    await ended(after, "rolled back")


async def test_statements_of_the_driver_stay(one: PostgresParticipant) -> None:
    """Broken if each branch had to prepare its own again, or each a session."""
    pids = set()
    for _ in range(8):
        branch = await one.begin(new_gid(), timeout_s=30)
        pids.add(at(branch).get_server_pid())
        await at(branch).execute(WRITE)
        await ended(branch, "one phase")
        assert await left(one) is not None
    assert len(pids) == 1


async def test_last_values_of_sequences_are_forgotten(one: PostgresParticipant, database: Database) -> None:
    """lastval() of one application's row would name another's."""
    await database.admin.execute("create sequence numbers")
    branch = await one.begin(new_gid(), timeout_s=30)
    await at(branch).execute("select nextval('numbers')")
    await ended(branch, "one phase")
    await left(one)
    after = await one.begin(new_gid(), timeout_s=30)
    with pytest.raises(Exception, match="lastval"):
        await at(after).execute("select lastval()")
    await ended(after, "rolled back")


async def test_a_session_that_fails_to_be_cleaned_is_closed(
    one: PostgresParticipant, database: Database
) -> None:
    """Nobody knows what is in it."""
    branch = await one.begin(new_gid(), timeout_s=30)
    pid = at(branch).get_server_pid()
    await at(branch).execute("select pg_advisory_lock(4711)")
    session = branch.session  # type: ignore[attr-defined]
    if session.pipelines:
        spoil(session)
        await ended(branch, "rolled back")
    else:
        await branch.rollback()
        await database.admin.execute("select pg_terminate_backend($1, 5000)", pid)
        await branch.release()
    assert await left(one) is None
    after = await one.begin(new_gid(), timeout_s=30)
    assert at(after).get_server_pid() != pid
    await ended(after, "rolled back")


async def test_a_branch_that_comes_at_once_takes_the_cleaning_along(
    one: PostgresParticipant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under load nothing is sent besides: a reset of its own would cost every branch a round trip."""
    branch = await one.begin(new_gid(), timeout_s=30)
    await at(branch).execute("select pg_advisory_lock(99)")
    await branch.rollback()
    session = branch.session  # type: ignore[attr-defined]
    sent: list[str] = []
    script, pipeline = session.script, session.pipeline

    async def counted(sql: str, *, timeout_s: float) -> Any:
        sent.append(sql)
        return await script(sql, timeout_s=timeout_s)

    def counted_pipeline(steps: Any, **options: Any) -> Any:
        sent.append(steps[-1].sql)
        return pipeline(steps, **options)

    monkeypatch.setattr(session, "script", counted)
    monkeypatch.setattr(session, "pipeline", counted_pipeline)
    await branch.release()
    after = await one.begin(new_gid(), timeout_s=30)
    assert len(sent) <= 1, "nothing but the begin, if that does not wait for the application's statement"
    assert await at(after).fetchval("select count(*) from pg_locks where locktype = 'advisory'") == 0
    await ended(after, "rolled back")


async def test_closing_waits_for_what_is_being_cleaned(database: Database) -> None:
    """And leaves no session behind."""
    participant = participant_at(database.dsn, connections_max=4)
    branches = [await participant.begin(new_gid(), timeout_s=30) for _ in range(4)]
    for branch in branches:
        await at(branch).execute("select 1")
        await ended(branch, "rolled back")
    while not participant.pool.cleaning:
        await asyncio.sleep(0)
    await participant.close()
    assert participant.pool.size == 0
    count = (
        "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    )
    while await database.admin.fetchval(count):
        await asyncio.sleep(0.01)
