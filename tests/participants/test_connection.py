"""What the application holds: everything of asyncpg, with the branch's exits locked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from tests.participants.support import WRITE, Database, new_gid, participant_at
from undoubt.participants.contract import Branch, Settled, Vote
from undoubt.participants.errors import BranchFailed, UsageError
from undoubt.participants.ids import Gid
from undoubt.participants.postgres import PostgresParticipant

KINDS = ("asyncpg",)

USES: dict[str, Callable[[Any], Any]] = {
    "execute": lambda c: c.execute(WRITE),
    "fetch": lambda c: c.fetch("select 1"),
    "fetchrow": lambda c: c.fetchrow("select 1"),
    "fetchval": lambda c: c.fetchval("select 1"),
    "executemany": lambda c: c.executemany("select $1::int", [(1,)]),
    "prepare": lambda c: c.prepare("select 1"),
    "copy_records_to_table": lambda c: c.copy_records_to_table("account", records=[(5, 5)]),
    "transaction": lambda c: c.transaction().start(),
    "cursor": lambda c: c.cursor("select 1"),
    "is_in_transaction": lambda c: c.is_in_transaction(),
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
async def test_use_after_the_end(
    participant: PostgresParticipant, database: Database, gid: Gid, how: str
) -> None:
    """Else a statement would run outside any transaction, or inside somebody else's."""
    branch = await participant.begin(gid, timeout_s=30)
    connection = branch.connection
    methods = {name: getattr(connection, name) for name in USES}
    await connection.execute(WRITE)
    await end_by(how, branch)
    for name, use in USES.items():
        with pytest.raises(UsageError, match=f"{name}.*after the end"):
            await use(connection)
    with pytest.raises(UsageError, match="after the end"):
        await methods["fetchval"]("select 1")
    await branch.rollback()
    await branch.release()


async def test_kept_statements_and_cursors_are_cut_off(database: Database) -> None:
    """A prepared statement that the application kept must not write into the connection's next branch."""
    participant = participant_at(database.dsn, connections_max=1)
    first = await participant.begin(new_gid(), timeout_s=30)
    statement = await first.connection.prepare(WRITE + " returning balance")
    cursor = await first.connection.cursor("select * from account")
    assert await statement.fetchval() == 90
    assert (await cursor.fetchrow())["id"] in {1, 2}
    assert (await first.prepare()).vote is Vote.PREPARED
    assert await first.commit() is Settled.APPLIED
    await first.release()
    second = await participant.begin(new_gid(), timeout_s=30)
    for use in (statement.fetchval, cursor.fetchrow):
        with pytest.raises(asyncpg.InterfaceError):
            await use()
    assert await second.commit_one_phase() is Settled.APPLIED
    await second.release()
    assert await database.balance() == 90
    await participant.close()


@pytest.mark.parametrize("state", ["codec", "deallocate all"])
async def test_changed_connections_are_not_lent_again(database: Database, state: str) -> None:
    """A codec would decode the next branch's rows; statements that the server forgot would fail there."""
    participant = participant_at(database.dsn, connections_max=1)
    branch = await participant.begin(new_gid(), timeout_s=30)
    pid = branch.connection.get_server_pid()
    if state == "codec":
        await branch.connection.set_type_codec("json", schema="pg_catalog", encoder=str, decoder=str)
    else:
        await branch.connection.fetch("select 1")
        await branch.connection.execute(state)
    await branch.rollback()
    await branch.release()
    after = await participant.begin(new_gid(), timeout_s=30)
    assert after.connection.get_server_pid() != pid
    await after.rollback()
    await after.release()
    await participant.close()


@pytest.mark.parametrize("name", ["close", "terminate", "reset", "add_listener", "remove_listener"])
async def test_refused_methods(participant: PostgresParticipant, gid: Gid, name: str) -> None:
    """Each would end or outlive the branch behind its transaction's back."""
    branch = await participant.begin(gid, timeout_s=30)
    with pytest.raises(UsageError, match=rf"{name}\(\) cannot be used inside a branch"):
        getattr(branch.connection, name)()
    assert await branch.connection.fetchval("select 1") == 1
    await branch.rollback()
    await branch.release()


async def test_savepoint_undoes_its_block_alone(
    participant: PostgresParticipant, database: Database, gid: Gid
) -> None:
    """asyncpg's own transaction() fails after a plain BEGIN; a caught error must not cost the branch."""
    branch = await participant.begin(gid, timeout_s=30)
    connection = branch.connection
    with pytest.raises(asyncpg.InterfaceError, match="manually started"):
        await connection._undoubt_connection.transaction().start()
    async with connection.transaction():
        await connection.execute(WRITE)
        with pytest.raises(asyncpg.UniqueViolationError):
            async with connection.transaction():
                await connection.execute("update account set balance = 0 where id = 2")
                await connection.execute("insert into account values (1, 1)")
    undone = connection.transaction()
    await undone.start()
    await connection.execute("update account set balance = 1 where id = 2")
    await undone.rollback()
    kept = connection.transaction()
    await kept.start()
    await connection.execute("insert into account values (3, 3)")
    await kept.commit()
    assert (await branch.prepare()).vote is Vote.PREPARED
    assert await branch.commit() is Settled.APPLIED
    await branch.release()
    assert [await database.balance(number) for number in (1, 2, 3)] == [90, 100, 3]


async def test_misused_savepoints(participant: PostgresParticipant, gid: Gid) -> None:
    """Misuse is told as such, and has no effect on the branch."""
    branch = await participant.begin(gid, timeout_s=30)
    connection = branch.connection
    with pytest.raises(UsageError, match="isolation"):
        connection.transaction(isolation="serializable")
    savepoint = connection.transaction()
    with pytest.raises(UsageError, match="not open"):
        await savepoint.commit()
    await savepoint.start()
    with pytest.raises(UsageError, match="used already"):
        await savepoint.start()
    await savepoint.commit()
    with pytest.raises(UsageError, match="not open"):
        await savepoint.rollback()
    assert await branch.rollback() is Settled.APPLIED
    await branch.release()


async def test_error_in_a_block_whose_branch_has_ended(participant: PostgresParticipant, gid: Gid) -> None:
    """The application's own error is what it has to see, not one about the savepoint."""
    branch = await participant.begin(gid, timeout_s=30)
    with pytest.raises(KeyError):
        async with branch.connection.transaction():
            await branch.rollback()
            raise KeyError("mine")
    await branch.release()


async def test_everything_else_works(participant: PostgresParticipant, gid: Gid) -> None:
    """An application should not notice the wrapper."""
    branch = await participant.begin(gid, timeout_s=30)
    connection = branch.connection
    await connection.executemany("insert into account values ($1, $2)", [(10, 1), (11, 2)])
    await connection.copy_records_to_table("account", records=[(12, 3)])
    assert await connection.fetchval("select sum(balance) from account where id >= 10") == 6
    statement = await connection.prepare("select balance from account where id = $1")
    assert await statement.fetchval(12) == 3
    seen = [row["id"] async for row in connection.cursor("select id from account order by id")]
    assert seen == [1, 2, 10, 11, 12]
    assert connection.is_in_transaction()
    assert connection.get_server_pid() > 0
    assert not connection.is_closed()
    assert str(gid) in repr(connection)
    assert await branch.rollback() is Settled.APPLIED
    await branch.release()


async def test_isolation_level_can_be_chosen_first(participant: PostgresParticipant, gid: Gid) -> None:
    """PostgreSQL allows it before the first query only: begin must not have taken a snapshot."""
    branch = await participant.begin(gid, timeout_s=30)
    await branch.connection.execute("set transaction isolation level repeatable read")
    assert await branch.connection.fetchval("show transaction_isolation") == "repeatable read"
    await branch.rollback()
    await branch.release()


@pytest.mark.parametrize("step", ["poll", "prepare", "one phase"])
async def test_commit_while_a_statement_runs(
    participant: PostgresParticipant, database: Database, gid: Gid, step: str
) -> None:
    """Whether it belongs to the transaction could not be said: the branch aborts."""
    branch = await participant.begin(gid, timeout_s=30)
    await branch.connection.execute(WRITE)
    running = asyncio.create_task(branch.connection.execute("select pg_sleep(30)"))
    await asyncio.sleep(0)
    if step == "prepare":
        result = await branch.prepare()
        assert result.vote is Vote.ABORT
        assert "still running" in str(result.reason)
    else:
        with pytest.raises(BranchFailed, match="still running"):
            await (branch.poll() if step == "poll" else branch.commit_one_phase())
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
        await running
    assert await branch.rollback() is Settled.APPLIED
    await branch.release()
    assert await database.prepared() == []
    assert await database.balance() == 100
