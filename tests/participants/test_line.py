"""An asyncpg connection that is lent between two calls of the application, on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
import uvloop

from tests.participants.hands import at, cleaned
from tests.participants.proxy import Proxy, tls_context
from tests.participants.support import WRITE, Database, new_gid, participant_at
from undoubt.embedded import EmbeddedServer
from undoubt.participants.contract import Branch, Settled, Vote
from undoubt.participants.errors import ParticipantError
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.postgres import participant as participant_module
from undoubt.participants.postgres.asyncpg.line import Line
from undoubt.participants.postgres.pipeline import BEGIN
from undoubt.participants.postgres.session import AnswerTimedOut, Step

KINDS = ("asyncpg",)
WAYS = ("",)
LIMIT_S = 10.0


@pytest_asyncio.fixture
async def one(database: Database) -> AsyncIterator[PostgresParticipant]:
    """A participant with one connection."""
    participant = participant_at(database.dsn, connections_max=1)
    yield participant
    await participant.close()


def session_of(branch: Branch) -> Any:
    return branch.session  # type: ignore[attr-defined]


async def gone(database: Database, pid: int) -> None:
    """Once that backend has ended: nothing of ours runs on."""
    async with asyncio.timeout(LIMIT_S):
        while await database.admin.fetchval("select true from pg_stat_activity where pid = $1", pid):
            await asyncio.sleep(0.005)


async def state(database: Database, pid: int) -> str:
    return str(await database.admin.fetchval("select state from pg_stat_activity where pid = $1", pid))


async def test_begin_travels_with_the_first_statement(one: PostgresParticipant, database: Database) -> None:
    """Else every branch costs a round trip that it need not; and asyncpg must know nothing of that."""
    for _ in range(2):
        branch = await one.begin(new_gid(), timeout_s=30)
        session = session_of(branch)
        assert await state(database, session.pid) == "idle"
        assert session.connection.is_in_transaction(), "as the application may ask before its first statement"
        await at(branch).execute(WRITE)
        assert await state(database, session.pid) == "idle in transaction"
        assert (await branch.prepare()).vote is Vote.PREPARED
        assert await branch.commit() is Settled.APPLIED
        await branch.release()
    assert await database.balance() == 80


@pytest.mark.parametrize("first", ["cursor", "isolation", "prepared", "copy", "nothing"])
async def test_every_first_statement(one: PostgresParticipant, first: str) -> None:
    """A prefix that some calls forget leaves these outside the branch; a snapshot would fix the isolation."""
    branch = await one.begin(new_gid(), timeout_s=30)
    connection = branch.connection
    if first == "cursor":
        cursor = await connection.cursor("select id from account order by id")
        assert [row["id"] for row in await cursor.fetch(5)] == [1, 2]
    elif first == "isolation":
        await connection.execute("set transaction isolation level serializable")
        assert await connection.fetchval("select current_setting('transaction_isolation')") == "serializable"
    elif first == "prepared":
        statement = await connection.prepare("select balance from account where id = $1")
        assert await statement.fetchval(1) == 100
    elif first == "copy":
        await connection.copy_records_to_table("account", records=[(7, 7)])
    if first != "nothing":
        assert await connection.fetchval("select current_setting('undoubt.tx')") == session_marker(branch)
        await connection.execute(WRITE)
    else:
        await branch.poll()
    assert (await branch.prepare()).vote is Vote.PREPARED
    assert await branch.rollback() is Settled.APPLIED
    await branch.release()


def session_marker(branch: Branch) -> str:
    return f"{branch.gid.txid}:{branch.gid.branch}"


@pytest.mark.parametrize("first", ["simple", "extended", "parameters", "script of ours", "pipeline of ours"])
async def test_prefix_that_fails(
    one: PostgresParticipant, database: Database, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """The server skips all up to a Sync then, a simple query too: broken if the call hangs, or if its
    statement runs outside the branch."""
    monkeypatch.setattr(
        participant_module, "begin_steps", lambda *_: [BEGIN, Step("select 1/0"), Step("select 2")]
    )
    branch = await one.begin(new_gid(), timeout_s=30)
    session = session_of(branch)
    async with asyncio.timeout(LIMIT_S):
        if first == "script of ours":
            with pytest.raises(ParticipantError, match="division by zero"):
                await branch.poll()
        elif first == "pipeline of ours":
            result = await branch.prepare()
            assert result.vote is Vote.ABORT
            assert "division by zero" in str(result.reason)
        else:
            args = (1,) if first == "parameters" else ()
            statement = "update account set balance = 0 where id = $1" if args else WRITE
            call = at(branch).fetch if first == "extended" else at(branch).execute
            with pytest.raises(ParticipantError, match="division by zero"):
                await call(statement, *args)
            assert session.broken
        await branch.rollback()
        await branch.release()
    assert await database.balance() == 100
    monkeypatch.undo()
    after = await one.begin(new_gid(), timeout_s=30)
    await at(after).execute(WRITE)
    assert (await after.prepare()).vote is Vote.PREPARED
    await after.rollback()
    await after.release()


async def test_prefix_that_fails_before_there_is_a_statement(
    one: PostgresParticipant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some calls of the application send nothing by themselves: asyncpg must not be told of an error then."""
    monkeypatch.setattr(participant_module, "begin_steps", lambda *_: [BEGIN, Step("select 1/0")])
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    branch = await one.begin(new_gid(), timeout_s=30)
    assert branch.connection.get_settings().client_encoding == "UTF8"
    async with asyncio.timeout(LIMIT_S):
        while not branch.connection.is_closed():
            await asyncio.sleep(0.005)
    with pytest.raises(ParticipantError, match="division by zero"):
        await at(branch).execute(WRITE)
    await branch.rollback()
    await branch.release()
    assert faults == []


async def test_busy_driver_is_not_lent(one: PostgresParticipant, database: Database) -> None:
    """A statement that the application has prepared runs past the branch's connection: two answers would be
    mixed up."""
    branch = await one.begin(new_gid(), timeout_s=30)
    await at(branch).execute(WRITE)
    statement = await branch.connection.prepare("select pg_advisory_xact_lock($1)")
    await statement.fetch(78)
    assert session_of(branch).pipelines
    await database.admin.execute("select pg_advisory_lock(77)")
    running = asyncio.create_task(statement.fetch(77))
    while not await database.admin.fetchval("select exists (select from pg_locks where not granted)"):
        await asyncio.sleep(0.005)
    async with asyncio.timeout(LIMIT_S):
        assert (await branch.prepare()).vote is Vote.ABORT
    await database.admin.execute("select pg_advisory_unlock(77)")
    await branch.rollback()
    await branch.release()
    await asyncio.wait([running])
    assert await database.prepared() == []


async def test_part_of_a_message_in_the_drivers_buffer(one: PostgresParticipant) -> None:
    """Taken for the head of an answer, it would be read as nonsense: a script of asyncpg's goes instead."""
    branch = await one.begin(new_gid(), timeout_s=30)
    await at(branch).execute(WRITE)
    session = session_of(branch)
    notification = b"A" + (4 + 4 + 2 + 2).to_bytes(4) + (9).to_bytes(4) + b"c\0" + b"p\0"
    assert session.pipelines
    session.line.data_received(notification[:7])
    assert not session.pipelines
    session.line.data_received(notification[7:])
    assert (await branch.prepare()).vote is Vote.PREPARED
    assert session.pipelines, "an answer has ended with ReadyForQuery"
    await branch.rollback()
    await branch.release()


@pytest.mark.parametrize("how", ["cancelled", "late"])
async def test_given_up_while_lent(one: PostgresParticipant, database: Database, how: str) -> None:
    """The session's state is not known then: it is closed, and its statement does not run on."""
    branch = await one.begin(new_gid(), timeout_s=30)
    await at(branch).execute(WRITE)
    session = session_of(branch)
    slept = session.pipeline([Step("select pg_sleep(600)")], timeout_s=0.2 if how == "late" else 600)
    task = asyncio.ensure_future(slept)
    if how == "late":
        with pytest.raises(AnswerTimedOut):
            await task
    else:
        while await state(database, session.pid) != "active":
            await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.wait([task])
    assert session.broken
    await gone(database, session.pid)
    await branch.rollback()
    await branch.release()


async def test_session_that_was_idle_begins_in_a_round_trip(
    one: PostgresParticipant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only then can another session be tried, if a firewall has forgotten this one."""
    first = await one.begin(new_gid(), timeout_s=30)
    await at(first).execute(WRITE)
    await first.rollback()
    await first.release()
    await cleaned(one)
    [slot] = one.pool.idle
    slot.idle_since -= 1.0
    branch = await one.begin(new_gid(), timeout_s=30)
    assert session_of(branch).in_transaction
    assert not session_of(branch).begins_ahead or session_of(branch).line.held is None
    await branch.rollback()
    await branch.release()


async def test_branch_without_a_statement_sends_nothing(one: PostgresParticipant, database: Database) -> None:
    """And leaves no prefix for the next."""
    branch = await one.begin(new_gid(), timeout_s=30)
    await branch.rollback()
    await branch.release()
    after = await one.begin(new_gid(), timeout_s=30)
    marker = await at(after).fetchval("select current_setting('undoubt.tx')")
    assert marker == session_marker(after)
    await after.rollback()
    await after.release()


@pytest.mark.parametrize("lacking", ["own check", "answer"])
async def test_driver_that_cannot_be_lent(
    one: PostgresParticipant, database: Database, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    """Found when it is connected; the scripts work on. Not every session waits for an answer in vain."""
    if lacking == "own check":
        monkeypatch.delattr(asyncpg.protocol.protocol, "PreparedStatementState")
    else:
        monkeypatch.setattr(Line, "_driver_is_idle", lambda _: False)
    branch = await one.begin(new_gid(), timeout_s=30)
    await at(branch).execute(WRITE)
    assert not session_of(branch).pipelines
    assert (await branch.prepare()).vote is Vote.PREPARED
    assert await branch.commit() is Settled.APPLIED
    await branch.release()
    if lacking == "own check":
        return
    monkeypatch.undo()
    one.pool.drop_idle()
    after = await one.begin(new_gid(), timeout_s=30)
    assert session_of(after) is not session_of(branch)
    assert not session_of(after).pipelines
    await after.rollback()
    await after.release()


HIDDEN = """create function hidden(again text) returns void language plpgsql as $$ declare n text; begin
  for n in select name from pg_prepared_statements where statement like '%undoubt.tx%' loop
    execute format('deallocate %I', n);
    if again <> '' then execute format('prepare %I (text) as %s', n, again); end if;
  end loop;
end $$"""


@pytest.mark.parametrize("again", ["", "select 1"])
async def test_kept_guard_that_a_function_removes(
    one: PostgresParticipant, database: Database, again: str
) -> None:
    """No text that undoubt sees shows it: without its guard, or without its row, the branch is no branch."""
    await database.admin.execute(HIDDEN)
    for _ in range(2):
        branch = await one.begin(new_gid(), timeout_s=30)
        await at(branch).execute(WRITE)
        assert (await branch.prepare()).vote is Vote.PREPARED
        await branch.rollback()
        await branch.release()
    branch = await one.begin(new_gid(), timeout_s=30)
    await at(branch).execute(WRITE)
    await at(branch).fetchval("select hidden($1)", again)
    assert (await branch.prepare()).vote is Vote.ABORT
    await branch.rollback()
    await branch.release()
    assert await database.prepared() == []


ALL_HIDDEN = """create function all_hidden() returns void language plpgsql as $$ declare n text; p text; begin
  for n, p in select name, case when statement like '%$1%' then '(text)' else '' end
              from pg_prepared_statements where name like 'undoubt%' loop
    execute format('deallocate %I', n);
    execute format('prepare %I %s as select 1', n, p);
  end loop;
end $$"""


async def test_begin_that_a_function_replaces(one: PostgresParticipant, database: Database) -> None:
    """Also if all that a session keeps is replaced, the check for that included: the next branch begins."""
    await database.admin.execute(ALL_HIDDEN)
    branch = await one.begin(new_gid(), timeout_s=30)
    await at(branch).execute(WRITE)
    assert (await branch.prepare()).vote is Vote.PREPARED
    await branch.rollback()
    await branch.release()
    branch = await one.begin(new_gid(), timeout_s=30)
    await at(branch).fetchval("select all_hidden()")
    assert (await branch.prepare()).vote is Vote.ABORT
    await branch.rollback()
    await branch.release()
    after = await one.begin(new_gid(), timeout_s=30)
    await at(after).execute(WRITE)
    assert await database.balance() == 100, "as everybody else sees it"
    await after.rollback()
    await after.release()
    assert await database.balance() == 100


def test_under_uvloop(server: EmbeddedServer) -> None:
    """Its transports are others than asyncio's; with TLS, and given up while lent."""

    async def run() -> None:
        dsn = await server.create_database("under_uvloop")
        admin = await asyncpg.connect(dsn)
        await admin.execute("create table account (id int, balance int); insert into account values (1, 100)")
        async with Proxy(dsn, tls=tls_context()) as proxy:
            for reached in (dsn, proxy.dsn + "?sslmode=require"):
                participant = participant_at(reached, connections_max=1)
                for _ in range(3):
                    branch = await participant.begin(new_gid(), timeout_s=30)
                    await at(branch).execute(WRITE)
                    assert session_of(branch).pipelines
                    assert (await branch.prepare()).vote is Vote.PREPARED
                    assert await branch.commit() is Settled.APPLIED
                    await branch.release()
                branch = await participant.begin(new_gid(), timeout_s=30)
                await at(branch).execute(WRITE)
                session = session_of(branch)
                with pytest.raises(AnswerTimedOut):
                    await session.pipeline([Step("select pg_sleep(600)")], timeout_s=0.05)
                await branch.rollback()
                await branch.release()
                await gone(Database("under_uvloop", dsn, admin), session.pid)
                await participant.close()
        assert await admin.fetchval("select balance from account") == 40
        await admin.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


async def test_over_tls(database: Database) -> None:
    """The transport is another one then."""
    async with Proxy(database.dsn, tls=tls_context()) as proxy:
        participant = participant_at(proxy.dsn + "?sslmode=require", connections_max=1)
        for _ in range(3):
            branch = await participant.begin(new_gid(), timeout_s=30)
            await at(branch).execute(WRITE)
            assert session_of(branch).pipelines
            assert (await branch.prepare()).vote is Vote.PREPARED
            assert await branch.commit() is Settled.APPLIED
            await branch.release()
        await participant.close()
    assert await database.balance() == 70


async def test_begins_ahead_only_where_the_driver_knows_of_a_transaction(
    one: PostgresParticipant, database: Database
) -> None:
    """asyncpg refuses a cursor as the first statement otherwise, and tells the application wrongly."""
    branch = await one.begin(new_gid(), timeout_s=30)
    await at(branch).execute("commit")
    assert (await branch.prepare()).vote is Vote.ABORT
    await branch.rollback()
    await branch.release()
    after = await one.begin(new_gid(), timeout_s=30)
    assert after.connection.is_in_transaction()
    cursor = await after.connection.cursor("select id from account order by id")
    assert [row["id"] for row in await cursor.fetch(5)] == [1, 2]
    await after.rollback()
    await after.release()
