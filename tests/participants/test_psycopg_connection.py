"""What the application holds over psycopg: a connection of either kind, with the branch's exits locked."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from tests.participants.hands import at, sql_error
from tests.participants.support import WRITE, Database, new_gid, participant_at
from undoubt.participants.contract import Branch, Settled, Vote, Work
from undoubt.participants.errors import BranchFailed, UsageError
from undoubt.participants.ids import Gid
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.postgres.psycopg.gate import AsyncGate, SyncGate

KINDS = ("psycopg", "psycopg-sync")


async def run(use: Callable[[Any], Any], connection: Any) -> Any:
    """What an application does with it: awaited, or in a thread."""
    if isinstance(connection, psycopg.AsyncConnection):
        result = use(connection)
        return await result if inspect.isawaitable(result) else result
    return await asyncio.to_thread(use, connection)


USES: dict[str, Callable[[Any], Any]] = {
    "execute": lambda c: c.execute(WRITE),
    "cursor": lambda c: c.cursor(),
    "named cursor": lambda c: c.cursor("named"),
    "transaction": lambda c: (
        c.transaction().__enter__() if isinstance(c, psycopg.Connection) else c.transaction().__aenter__()
    ),
    "pipeline": lambda c: (
        c.pipeline().__enter__() if isinstance(c, psycopg.Connection) else c.pipeline().__aenter__()
    ),
}


async def end_by(how: str, branch: Branch) -> None:
    match how:
        case "poll":
            await branch.poll()
        case "prepare":
            await branch.prepare()
        case "one phase":
            await branch.commit_one_phase()
        case "rollback":
            await branch.rollback()
        case _:
            await branch.release()


@pytest.mark.parametrize("how", ["poll", "prepare", "one phase", "rollback", "release"])
async def test_use_after_the_end(participant: PostgresParticipant, gid: Gid, how: str) -> None:
    """Else a statement would run outside any transaction, or inside somebody else's."""
    branch = await participant.begin(gid, timeout_s=30)
    connection = branch.connection
    kept = await run(lambda c: c.execute(WRITE), connection)
    assert not connection.closed
    await end_by(how, branch)
    for use in USES.values():
        with pytest.raises(UsageError, match="after the end of its branch"):
            await run(use, connection)
    with pytest.raises(UsageError, match="after the end of its branch"):
        await run(lambda _: kept.execute(WRITE), connection)
    assert connection.closed
    await run(lambda c: c.cancel(), connection)
    await branch.rollback()
    await branch.release()


async def test_kept_cursors_are_cut_off(database: Database) -> None:
    """A cursor that the application kept must not write into the connection's next branch."""
    participant = participant_at(database.dsn, connections_max=1)
    first = await participant.begin(new_gid(), timeout_s=30)
    cursor = await run(lambda c: c.execute(WRITE), first.connection)
    assert (await first.prepare()).vote is Vote.PREPARED
    assert await first.commit() is Settled.APPLIED
    await first.release()
    second = await participant.begin(new_gid(), timeout_s=30)
    with pytest.raises(UsageError):
        await run(lambda _: cursor.execute(WRITE), first.connection)
    assert await at(second).fetchval("select balance from account where id = 1") == 90
    assert await second.commit_one_phase() is Settled.APPLIED
    await second.release()
    assert await database.balance() == 90
    await participant.close()


REFUSED: dict[str, Callable[[Any], Any]] = {
    "commit": lambda c: c.commit(),
    "rollback": lambda c: c.rollback(),
    "close": lambda c: c.close(),
    "tpc_begin": lambda c: c.tpc_begin("x"),
    "tpc_prepare": lambda c: c.tpc_prepare(),
    "tpc_commit": lambda c: c.tpc_commit(),
    "tpc_rollback": lambda c: c.tpc_rollback(),
    "tpc_recover": lambda c: c.tpc_recover(),
    "set_autocommit": lambda c: c.set_autocommit(True),
    "set_isolation_level": lambda c: c.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE),
    "set_read_only": lambda c: c.set_read_only(True),
    "set_deferrable": lambda c: c.set_deferrable(True),
    "notifies": lambda c: c.notifies(),
    "add_notify_handler": lambda c: c.add_notify_handler(print),
    "__enter__": lambda c: c.__enter__(),
    "__aenter__": lambda c: c.__aenter__(),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_refused_methods(participant: PostgresParticipant, gid: Gid, name: str) -> None:
    """Each would end or outlive the branch behind its transaction's back."""
    branch = await participant.begin(gid, timeout_s=30)
    with pytest.raises(UsageError, match=rf"{name}\(\) cannot be used inside a branch"):
        await run(REFUSED[name], branch.connection)
    assert await at(branch).fetchval("select 1") == 1
    await branch.rollback()
    await branch.release()


async def test_autocommit_property(participant: PostgresParticipant, gid: Gid) -> None:
    """psycopg's shorter way to the same."""
    branch = await participant.begin(gid, timeout_s=30)
    assert branch.connection.autocommit is False
    with pytest.raises((UsageError, AttributeError)):
        branch.connection.autocommit = True
    assert branch.connection.autocommit is False
    await branch.rollback()
    await branch.release()


def nested(connection: Any) -> None:
    with connection.transaction():
        connection.execute(WRITE)
        with pytest.raises(psycopg.errors.UniqueViolation), connection.transaction():
            connection.execute("update account set balance = 0 where id = 2")
            connection.execute("insert into account values (1, 1)")
    with connection.transaction(force_rollback=True):
        connection.execute("update account set balance = 1 where id = 2")
    with connection.transaction("named"):
        connection.execute("insert into account values (3, 3)")
        raise psycopg.Rollback


async def anested(connection: Any) -> None:
    async with connection.transaction():
        await connection.execute(WRITE)
        with pytest.raises(psycopg.errors.UniqueViolation):
            async with connection.transaction():
                await connection.execute("update account set balance = 0 where id = 2")
                await connection.execute("insert into account values (1, 1)")
    async with connection.transaction(force_rollback=True):
        await connection.execute("update account set balance = 1 where id = 2")
    async with connection.transaction("named"):
        await connection.execute("insert into account values (3, 3)")
        raise psycopg.Rollback


async def test_savepoint_undoes_its_block_alone(
    participant: PostgresParticipant, database: Database, gid: Gid, kind: str
) -> None:
    """A caught error must not cost the branch, nor end it."""
    branch = await participant.begin(gid, timeout_s=30)
    await run(nested if kind == "psycopg-sync" else anested, branch.connection)
    assert await at(branch).fetchval("select count(*) from account") == 2
    assert (await branch.prepare()).vote is Vote.PREPARED
    assert await branch.commit() is Settled.APPLIED
    await branch.release()
    assert [await database.balance(number) for number in (1, 2)] == [90, 100]


async def test_savepoint_after_the_branch_was_ended(participant: PostgresParticipant, gid: Gid) -> None:
    """psycopg's transaction() would begin, and commit, one of its own."""
    branch = await participant.begin(gid, timeout_s=30)
    await at(branch).execute("commit")
    with pytest.raises(UsageError, match="has ended the branch by COMMIT"):
        await run(USES["transaction"], branch.connection)
    await branch.rollback()
    await branch.release()


async def test_error_in_a_block_whose_branch_has_ended(
    participant: PostgresParticipant, gid: Gid, kind: str
) -> None:
    """The application's own error is what it has to see, not one about the savepoint."""
    branch = await participant.begin(gid, timeout_s=30)
    if kind == "psycopg":
        with pytest.raises(KeyError):
            async with branch.connection.transaction():
                await branch.rollback()
                raise KeyError("mine")
        await branch.release()
        return
    inside, ended = threading.Event(), threading.Event()

    def block(connection: Any) -> None:
        with connection.transaction():
            inside.set()
            ended.wait(60)
            raise KeyError("mine")

    task = asyncio.create_task(run(block, branch.connection))
    await asyncio.to_thread(inside.wait, 60)
    await branch.rollback()
    ended.set()
    with pytest.raises(KeyError):
        await task
    await branch.release()


def everything(c: Any) -> None:
    with c.cursor() as cursor:
        cursor.executemany("insert into account values (%s, %s)", [(10, 1), (11, 2)])
        assert cursor.rowcount == 2
        with cursor.copy("copy account from stdin") as copy:
            copy.write_row((12, 3))
    with c.pipeline():
        one = c.execute("select 1")
        two = c.execute("update account set balance = 4 where id = 12")
        assert one.fetchone() == (1,)
    assert two.rowcount == 1
    with c.cursor("named", row_factory=dict_row) as named:
        named.execute("select balance from account where id >= 10 order by id")
        assert named.fetchall() == [{"balance": 1}, {"balance": 2}, {"balance": 4}]
    for _ in range(8):
        assert c.execute("select %s::int", (5,)).fetchone() == (5,)
    with c.cursor() as cursor:  # last, since psycopg cannot pipeline after it
        assert [row[0] for row in cursor.stream("select id from account order by id")] == [1, 2, 10, 11, 12]


async def aeverything(c: Any) -> None:
    async with c.cursor() as cursor:
        await cursor.executemany("insert into account values (%s, %s)", [(10, 1), (11, 2)])
        assert cursor.rowcount == 2
        async with cursor.copy("copy account from stdin") as copy:
            await copy.write_row((12, 3))
    async with c.pipeline():
        one = await c.execute("select 1")
        two = await c.execute("update account set balance = 4 where id = 12")
        assert await one.fetchone() == (1,)
    assert two.rowcount == 1
    async with c.cursor("named", row_factory=dict_row) as named:
        await named.execute("select balance from account where id >= 10 order by id")
        assert await named.fetchall() == [{"balance": 1}, {"balance": 2}, {"balance": 4}]
    for _ in range(8):
        assert await (await c.execute("select %s::int", (5,))).fetchone() == (5,)
    async with c.cursor() as cursor:
        seen = [row[0] async for row in cursor.stream("select id from account order by id")]
        assert seen == [1, 2, 10, 11, 12]


async def test_everything_else_works(database: Database, kind: str) -> None:
    """An application should not notice. Twice in the same session: names of prepared statements must not
    meet, whether the first branch was committed or rolled back."""
    participant = participant_at(database.dsn, connections_max=1)
    for number in range(4):
        branch = await participant.begin(new_gid(), timeout_s=30)
        connection = branch.connection
        assert isinstance(
            connection, psycopg.Connection if kind == "psycopg-sync" else psycopg.AsyncConnection
        )
        await run(everything if kind == "psycopg-sync" else aeverything, connection)
        assert branch.surely_writes
        assert str(branch.gid) in repr(connection)
        assert await branch.poll() is Work.WRITES
        if number == 1:
            await branch.rollback()
        else:
            assert (await branch.prepare()).vote is Vote.PREPARED
            assert await branch.rollback() is Settled.APPLIED
        await branch.release()
    await participant.close()


async def test_isolation_level_can_be_chosen_first(participant: PostgresParticipant, gid: Gid) -> None:
    """PostgreSQL allows it before the first query only: begin must not have taken a snapshot."""
    branch = await participant.begin(gid, timeout_s=30)
    await at(branch).execute("set transaction isolation level repeatable read")
    assert await at(branch).fetchval("show transaction_isolation") == "repeatable read"
    await branch.rollback()
    await branch.release()


async def is_refused(step: str, branch: Branch) -> None:
    if step == "prepare":
        result = await branch.prepare()
        assert result.vote is Vote.ABORT
        assert "still running" in str(result.reason)
    else:
        with pytest.raises(BranchFailed, match="still running"):
            await (branch.poll() if step == "poll" else branch.commit_one_phase())


@pytest.mark.parametrize("step", ["poll", "prepare", "one phase"])
async def test_commit_while_a_statement_runs(
    participant: PostgresParticipant, database: Database, gid: Gid, step: str
) -> None:
    """Whether it belongs to the transaction could not be said: the branch aborts, whatever thread it runs in,
    and that thread gets an error instead of a connection that was freed beneath it."""
    branch = await participant.begin(gid, timeout_s=30)
    await at(branch).execute(WRITE)
    pid = at(branch).get_server_pid()
    running = asyncio.create_task(run(lambda c: c.execute("select pg_sleep(60)"), branch.connection))
    while not await database.admin.fetchval(
        "select exists (select from pg_stat_activity where pid = $1 and wait_event = 'PgSleep')", pid
    ):
        await asyncio.sleep(0.005)
    await is_refused(step, branch)
    with pytest.raises(psycopg.Error):
        await running
    assert await branch.rollback() is Settled.APPLIED
    await branch.release()
    gone = "select not exists (select from pg_stat_activity where pid = $1)"
    while not await database.admin.fetchval(gone, pid):
        await asyncio.sleep(0.005)
    assert await database.prepared() == []
    assert await database.balance() == 100


def held(how: str, c: Any, inside: Callable[[], object], wait: Callable[[], object]) -> None:
    with c.cursor() as cursor:
        match how:
            case "copy":
                with cursor.copy("copy account from stdin") as copy:
                    copy.write_row((20, 1))
                    inside()
                    wait()
            case "stream":
                rows = cursor.stream("select generate_series(1, 100000)")
                next(rows)
                inside()
                wait()
                list(rows)
            case _:
                with c.pipeline() as pipeline:
                    c.execute("select 1")
                    pipeline.sync()  # nothing is on its way
                    inside()
                    wait()
                    c.execute("select 2")


@pytest.mark.parametrize("how", ["copy", "stream", "pipeline"])
async def test_commit_in_the_middle_of_something(database: Database, gid: Gid, kind: str, how: str) -> None:
    """No statement is on its way just then, and yet the connection is not the engine's."""
    if kind == "psycopg":
        pytest.skip("the same gate, and no thread to be in")
    participant = participant_at(database.dsn)
    branch = await participant.begin(gid, timeout_s=30)
    await at(branch).execute(WRITE)
    inside, ended = threading.Event(), threading.Event()
    task = asyncio.create_task(
        run(lambda c: held(how, c, inside.set, lambda: ended.wait(60)), branch.connection)
    )
    await asyncio.to_thread(inside.wait, 60)
    await is_refused("prepare", branch)
    assert await branch.rollback() is Settled.APPLIED
    await branch.release()
    await participant.close()
    ended.set()
    with pytest.raises((psycopg.Error, UsageError)):
        await task
    assert await database.balance() == 100


async def test_who_is_inside_leaves_last(gid: Gid) -> None:
    """The gate of a thread: shut, it lets nobody in, and whoever is inside closes behind himself. Otherwise
    the connection would be freed beneath a thread that is in libpq."""
    gate, closed = SyncGate(gid), list[str]()
    gate.acquire()
    assert gate.shut()
    gate.when_free(lambda: closed.append("closed"))
    with pytest.raises(UsageError):
        await asyncio.to_thread(gate.acquire)
    assert closed == []
    gate.release()
    assert closed == ["closed"]
    assert not gate.shut()
    gate.when_free(lambda: closed.append("again"))
    assert closed == ["closed", "again"]


async def test_who_waits_at_the_gate_is_sent_away(gid: Gid) -> None:
    """A statement that was queued behind another must not run once the branch has ended."""
    gate = AsyncGate(gid)
    await gate.acquire()
    waiting = asyncio.create_task(gate.acquire())
    await asyncio.sleep(0)
    assert gate.shut()
    gate.release()
    with pytest.raises(UsageError):
        await waiting
    assert not gate.shut()


async def test_a_cancelled_statement_leaves_the_connection_usable(
    participant: PostgresParticipant, gid: Gid, kind: str
) -> None:
    """psycopg cancels it on the server as well; in the savepoint around it nothing else is lost."""
    if kind == "psycopg-sync":
        pytest.skip("threads are not cancelled")
    branch = await participant.begin(gid, timeout_s=30)
    await at(branch).execute(WRITE)
    with pytest.raises(TimeoutError):
        async with branch.connection.transaction():
            await asyncio.wait_for(branch.connection.execute("select pg_sleep(60)"), 0.1)
    assert (await branch.prepare()).vote is Vote.PREPARED
    assert await branch.rollback() is Settled.APPLIED
    await branch.release()


async def test_deallocated_statements(database: Database) -> None:
    """The cache of prepared statements is the session's: what the server forgot, the next branch must too."""
    participant = participant_at(database.dsn, connections_max=1)
    pids = set()
    for _ in range(3):
        branch = await participant.begin(new_gid(), timeout_s=30)
        pids.add(at(branch).get_server_pid())
        for _ in range(8):
            await at(branch).fetchval("select $1::int", 1)
        await at(branch).execute("deallocate all")
        await at(branch).fetchval("select $1::int", 1)
        with sql_error("22012"):
            await at(branch).execute("select 1/0")
        await branch.rollback()
        await branch.release()
    assert len(pids) == 1
    await participant.close()
