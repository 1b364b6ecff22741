"""``reset = "tags"``: a session in which an application has left nothing is not reset."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.participants.hands import at
from tests.participants.support import WRITE, Database, new_gid, participant_at
from undoubt.participants.bounds import OutOfBounds
from undoubt.participants.contract import Branch, Settled, Vote
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.postgres.tags import leaves_nothing
from undoubt.participants.settings import ParticipantSettings

WAYS = ("",)

PLAIN = [
    (WRITE,),
    ("select balance from account",),
    ("/* and */ insert into account values (3, 3);",),
    ("savepoint a", WRITE, "rollback to savepoint a", "release savepoint a"),
    ("with a as (select 1) select * from a", "lock table account in share mode"),
]
LEAVING = [
    "set lock_timeout = '7s'",
    "select 1; set lock_timeout = '7s'",
    "select set_config('a.b', 'c', false)",
    "select PG_Advisory_Lock(1)",
    "create temp table left_behind ()",
    "select 1 as a into temporary left_behind",
    "declare left_behind cursor with hold for select 1",
    "do $$ begin perform set_config('a.b', 'c', false); end $$",
    "listen left_behind",
]


@pytest_asyncio.fixture
async def one(database: Database) -> AsyncIterator[PostgresParticipant]:
    """A participant with one connection, which is reset by tags."""
    participant = participant_at(database.dsn, connections_max=1, reset="tags")
    yield participant
    await participant.close()


def sent_by(branch: Branch) -> list[str]:
    """What undoubt sends in the session of ``branch`` from now on."""
    session: Any = branch.session  # type: ignore[attr-defined]
    script, pipeline = session.script, session.pipeline
    sent: list[str] = []

    async def noted_script(sql: str, **options: Any) -> Any:
        sent.append(sql)
        return await script(sql, **options)

    def noted_pipeline(steps: Any, *, behind: Any = (), **options: Any) -> Any:
        sent.extend(step.sql for step in (*steps, *behind))
        return pipeline(steps, behind=behind, **options)

    session.script, session.pipeline = noted_script, noted_pipeline
    return sent


async def commit(branch: Branch) -> bool:
    """Commit in one phase; whether a reset was sent behind."""
    session: Any = branch.session  # type: ignore[attr-defined]
    assert await branch.commit_one_phase() is Settled.APPLIED
    is_reset = session.behind is not None
    await branch.release()
    return is_reset


@pytest.mark.parametrize("statements", PLAIN)
@pytest.mark.parametrize("how", ["execute", "fetch"])
async def test_no_reset_where_nothing_was_left(
    one: PostgresParticipant, statements: tuple[str, ...], how: str
) -> None:
    """It is work for the server, and a session is not lent before its answer."""
    branch = await one.begin(new_gid(), timeout_s=30)
    for statement in statements:
        rows = how == "fetch" and statement.startswith(("select", "with"))
        await (at(branch).fetch if rows else at(branch).execute)(statement)
    sent = sent_by(branch)
    assert not await commit(branch)
    after = await one.begin(new_gid(), timeout_s=30)
    assert after.session is branch.session  # type: ignore[attr-defined]
    await after.rollback()
    await after.release()
    assert not any("reset all" in each for each in sent), "the next branch resets it"


@pytest.mark.parametrize("statement", LEAVING)
async def test_reset_where_something_may_be_left(one: PostgresParticipant, statement: str) -> None:
    """Otherwise the next branch inherits it."""
    branch = await one.begin(new_gid(), timeout_s=30)
    await at(branch).execute(WRITE)
    await at(branch).execute(statement)
    assert await commit(branch)


async def test_reset_after_calls_that_are_no_statements(one: PostgresParticipant, kind: str) -> None:
    """What they send is not judged: COPY, codecs, savepoints of the driver."""
    branch = await one.begin(new_gid(), timeout_s=30)
    connection = branch.connection
    if kind == "asyncpg":
        await connection.execute(WRITE)
        await connection.copy_records_to_table("account", records=[(7, 7)])
    else:
        await connection.execute(WRITE)
        async with connection.cursor().copy("copy account to stdout") as copy:
            async for _ in copy:
                pass
    assert await commit(branch)


async def test_prepared_branches_are_judged_too(one: PostgresParticipant, database: Database) -> None:
    for statement, is_reset in ((WRITE, False), ("select 1; reset a.b", True)):
        branch = await one.begin(new_gid(), timeout_s=30)
        await at(branch).execute(WRITE)
        await at(branch).execute(statement)
        assert (await branch.prepare()).vote is Vote.PREPARED
        assert await branch.commit() is Settled.APPLIED
        assert (branch.session.behind is not None) is is_reset  # type: ignore[attr-defined]
        await branch.release()
    assert await database.balance() == 70


@pytest.mark.parametrize("reset", ["tags", "always"])
async def test_what_tags_do_not_show(database: Database, reset: str) -> None:
    """The page on performance says so: what a function sets is the next branch's."""
    await database.admin.execute(
        "create function hidden() returns void language sql as $$ select set_config('a.b', 'c', false) $$"
    )
    participant = participant_at(database.dsn, connections_max=1, reset=reset)
    branch = await participant.begin(new_gid(), timeout_s=30)
    await at(branch).execute(WRITE)
    await at(branch).execute("select hidden()")
    assert await commit(branch) is (reset == "always")
    after = await participant.begin(new_gid(), timeout_s=30)
    left = await at(after).fetchval("select current_setting('a.b', true)")
    assert left == ("c" if reset == "tags" else "") or (reset == "always" and left is None)
    await after.rollback()
    await after.release()
    await participant.close()


def test_the_tag_is_judged_as_well_as_the_text() -> None:
    assert leaves_nothing("select 1", None)
    assert leaves_nothing(b"update a set b = 1", "UPDATE 1")
    assert not leaves_nothing("select 1", "SET")
    assert not leaves_nothing("selected", None)
    assert not leaves_nothing(object(), "SELECT 1"), "a composed statement is not read"


def test_the_setting_is_checked() -> None:
    with pytest.raises(OutOfBounds, match="reset"):
        ParticipantSettings(dsn="postgresql://a@b/c", reset="never")
