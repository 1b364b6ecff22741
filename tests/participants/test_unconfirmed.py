"""Synchronous replication that did not confirm, sessions that end at the wrong moment: not a plain yes."""

from __future__ import annotations

import asyncio

import pytest

from participants.contract import PrepareUnanswered, Settled, Vote, Work
from participants.errors import BranchFailed
from participants.ids import Gid
from participants.postgres import PostgresParticipant
from participants.postgres.session import ServerError
from tests.participants.hands import at
from tests.participants.support import WRITE, Database, unreachable_standby, waits_for_standby


async def test_unconfirmed_prepare_is_no_vote(
    participant: PostgresParticipant, database: Database, gid: Gid
) -> None:
    """Warning 01000: prepared here, perhaps not on the standby that takes over; counting it would lose it."""
    branch = await participant.begin(gid, timeout_s=30)
    pid = at(branch).get_server_pid()
    await at(branch).execute(WRITE)
    async with unreachable_standby(database):
        prepare = asyncio.create_task(branch.prepare())
        while not await waits_for_standby(database, pid):
            await asyncio.sleep(0.005)
        assert await database.prepared() == [str(gid)], "visible before it is acknowledged"
        await database.admin.execute("select pg_cancel_backend($1)", pid)
        with pytest.raises(PrepareUnanswered, match="standby"):
            await prepare
    assert await branch.rollback() is Settled.APPLIED
    await branch.release()
    assert await database.prepared() == []


async def test_unconfirmed_commit_is_not_final(
    participant: PostgresParticipant, database: Database, gid: Gid
) -> None:
    """The same warning at COMMIT PREPARED: asked again, the books answer."""
    branch = await participant.begin(gid, timeout_s=30)
    pid = at(branch).get_server_pid()
    await at(branch).execute(WRITE)
    assert (await branch.prepare()).vote is Vote.PREPARED
    async with unreachable_standby(database):
        commit = asyncio.create_task(branch.commit())
        while not await waits_for_standby(database, pid):
            await asyncio.sleep(0.005)
        await database.admin.execute("select pg_cancel_backend($1)", pid)
        assert await commit is Settled.BUSY
    assert await branch.commit() is Settled.APPLIED
    await branch.release()
    assert await database.balance() == 90


@pytest.mark.parametrize("call", ["prepare", "one phase"])
async def test_fatal_error_says_nothing(
    participant: PostgresParticipant, database: Database, gid: Gid, call: str
) -> None:
    """An error that ended the session may come from after the point of no return, unlike every other."""
    branch = await participant.begin(gid, timeout_s=30)
    await at(branch).execute(WRITE)
    assert await branch.poll() is Work.WRITES
    session = branch._session  # type: ignore[attr-defined]

    async def fatal(sql: str, *, timeout_s: float) -> object:
        session.discard()
        raise ServerError("57P01", "terminating connection due to administrator command", fatal=True)

    session.script = fatal
    if call == "prepare":
        with pytest.raises(PrepareUnanswered):
            await branch.prepare()
    else:
        with pytest.raises(BranchFailed, match="lost during COMMIT: terminating") as failed:
            await branch.commit_one_phase()  # the books were asked
        assert failed.value.sqlstate == "57P01"
    assert await branch.rollback() is Settled.ABSENT
    await branch.release()


async def test_backend_terminated_in_prepare_is_no_answer(
    participant: PostgresParticipant, database: Database, gid: Gid
) -> None:
    """A FATAL may come from after the point of no return: here the branch is prepared all the same."""
    branch = await participant.begin(gid, timeout_s=30)
    pid = at(branch).get_server_pid()
    await at(branch).execute(WRITE)
    async with unreachable_standby(database):
        prepare = asyncio.create_task(branch.prepare())
        while not await waits_for_standby(database, pid):
            await asyncio.sleep(0.005)
        await database.admin.execute("select pg_terminate_backend($1)", pid)
        with pytest.raises(PrepareUnanswered):
            await prepare
    assert await database.prepared() == [str(gid)]
    assert await branch.rollback() is Settled.APPLIED
    await branch.release()
