"""Edges of the wait graph, as the detector of deadlocks across databases needs them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import asyncpg
import pytest
import pytest_asyncio

from tests.participants.hands import at, sql_error
from tests.participants.support import LEDGER, WRITE, Database, new_gid
from undoubt.participants.contract import Branch, Decision, Settled, Vote, Waiting
from undoubt.participants.ids import Gid
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.postgres.waits import _CONFLICTS


async def edges(participant: PostgresParticipant, count: int = 1) -> Sequence[Waiting]:
    """Once that many are seen."""
    async with asyncio.timeout(20):
        while len(found := await participant.waits()) < count:
            await asyncio.sleep(0.005)
    return found


@pytest_asyncio.fixture
async def waiter(participant: PostgresParticipant) -> AsyncIterator[Branch]:
    """A branch that is going to wait."""
    branch = await participant.begin(new_gid(), timeout_s=30)
    yield branch
    await branch.rollback()
    await branch.release()


async def test_nobody_waits(participant: PostgresParticipant, gid: Gid) -> None:
    """A held lock that nobody wants is no edge."""
    branch = await participant.begin(gid, timeout_s=30)
    await at(branch).execute(WRITE)
    assert list(await participant.waits()) == []
    await branch.rollback()
    await branch.release()


async def test_live_holder(participant: PostgresParticipant, waiter: Branch, gid: Gid) -> None:
    """Branches are known by their transaction, and the token stays the same while one wait lasts."""
    holder = await participant.begin(gid, timeout_s=30)
    await at(holder).execute(WRITE)
    await at(waiter).execute("insert into account values (7, 7)")
    xid = int(await at(waiter).fetchval("select pg_current_xact_id()::text"))
    blocked = asyncio.create_task(at(waiter).execute(WRITE))
    [edge] = await edges(participant)
    assert (edge.waiter, edge.holder) == (waiter.gid, gid)
    assert edge.pid == at(waiter).get_server_pid()
    assert edge.xid == xid
    assert edge.holder_pid == at(holder).get_server_pid()
    assert list(await participant.waits()) == [edge]
    await holder.rollback()
    await blocked
    assert list(await participant.waits()) == []
    second = await participant.begin(new_gid(), timeout_s=30)
    await at(second).execute("update account set balance = 1 where id = 2")
    blocked = asyncio.create_task(at(waiter).execute("update account set balance = 2 where id = 2"))
    [later] = await edges(participant)
    assert later.since != edge.since, "another wait is another token"
    await second.rollback()
    await blocked
    for branch in (holder, second):
        await branch.release()


@pytest.mark.parametrize(
    ("held", "wanted"),
    [
        (WRITE, WRITE),
        ("lock table account in share mode", WRITE),
        ("select pg_advisory_xact_lock(5)", "select pg_advisory_xact_lock(5)"),
    ],
)
async def test_prepared_holder(
    participant: PostgresParticipant, waiter: Branch, gid: Gid, held: str, wanted: str
) -> None:
    """The server reports a prepared blocker as 0, and a deadlock through it is seen by nobody else."""
    holder = await participant.begin(gid, timeout_s=30)
    await at(holder).execute(held)
    assert (await holder.prepare()).vote is Vote.PREPARED
    await holder.release()
    blocked = asyncio.create_task(at(waiter).execute(wanted))
    [edge] = await edges(participant)
    assert (edge.waiter, edge.holder, edge.holder_pid) == (waiter.gid, gid, 0)
    assert await participant.settle(gid, Decision.ABORT, None) is Settled.APPLIED
    await blocked


async def test_compatible_prepared_holder_is_no_edge(
    participant: PostgresParticipant, database: Database, waiter: Branch, gid: Gid
) -> None:
    """Two hold the table, one of them in a mode that does not conflict: an edge to it could make a false
    deadlock, and cost an innocent transaction its life."""
    innocent, guilty = new_gid(), gid
    for each, mode in ((innocent, "access share"), (guilty, "row exclusive")):
        branch = await participant.begin(each, timeout_s=30)
        await at(branch).execute(f"lock table account in {mode} mode")
        assert (await branch.prepare()).vote is Vote.PREPARED
        await branch.release()
    blocked = asyncio.create_task(at(waiter).execute("lock table account in share mode"))
    [edge] = await edges(participant)
    assert edge.holder == guilty
    for each in (innocent, guilty):
        await participant.settle(each, Decision.ABORT, None)
    await blocked


async def test_strangers(participant: PostgresParticipant, database: Database, waiter: Branch) -> None:
    """Other sessions and foreign prepared transactions are nodes too: a cycle may lead through them. A branch
    of another ledger is not one of our transactions."""
    await database.admin.execute("begin; " + WRITE)
    blocked = asyncio.create_task(at(waiter).execute(WRITE))
    [edge] = await edges(participant)
    assert edge.holder == f"p/{database.admin.get_server_pid()}"
    await database.admin.execute("prepare transaction 'pips'")
    while (edge := (await edges(participant))[0]).holder != "p/pips":
        await asyncio.sleep(0.005)
    await database.admin.execute("rollback prepared 'pips'")
    await blocked
    other = await asyncpg.connect(
        database.dsn,
        server_settings={"application_name": f"undoubt:otherledge:{new_gid().txid}"},
    )
    queued = asyncio.create_task(other.execute(WRITE))
    [edge] = await edges(participant)
    assert (edge.waiter, edge.holder) == (f"p/{other.get_server_pid()}", waiter.gid)
    while not await participant.cancel_waiter(edge):  # what it waited for first was something shorter
        [edge] = await edges(participant)
    with sql_error("57014"):
        await queued
    await other.close()
    assert LEDGER != "otherledge"


async def test_cancel_waiter(participant: PostgresParticipant, waiter: Branch, gid: Gid) -> None:
    """Only that very wait is cancelled: by now the backend may be doing something else for somebody else."""
    holder = await participant.begin(gid, timeout_s=30)
    await at(holder).execute(WRITE)
    blocked = asyncio.create_task(at(waiter).execute(WRITE))
    [edge] = await edges(participant)
    for wrong in (
        replace(edge, since="1.5"),
        replace(edge, xid=12345),
        replace(edge, waiter=gid),
        replace(edge, pid=at(holder).get_server_pid()),
    ):
        assert not await participant.cancel_waiter(wrong)
    assert not blocked.done()
    assert await participant.cancel_waiter(edge)
    with sql_error("57014"):
        await blocked
    assert not await participant.cancel_waiter(edge)
    assert (await waiter.prepare()).vote is Vote.ABORT
    await holder.rollback()
    await holder.release()


async def test_a_prepare_that_waits(
    participant: PostgresParticipant, database: Database, waiter: Branch
) -> None:
    """A deferred trigger takes its locks in PREPARE, whose report must not hide whose transaction it is."""
    await database.admin.execute(
        "create function lock_two() returns trigger language plpgsql as"
        " $$ begin perform from account where id = 2 for update; return null; end $$;"
        "create constraint trigger two after update on account deferrable initially deferred"
        " for each row when (new.id = 1) execute function lock_two()"
    )
    await database.admin.execute("begin; update account set balance = 0 where id = 2")
    await at(waiter).execute(WRITE)
    prepare = asyncio.ensure_future(waiter.prepare())
    [edge] = await edges(participant)
    assert (edge.waiter, edge.holder) == (waiter.gid, f"p/{database.admin.get_server_pid()}")
    assert await participant.cancel_waiter(edge)
    assert (await prepare).vote is Vote.ABORT
    await database.admin.execute("rollback")


async def test_waits_of_this_database_only(
    participant: PostgresParticipant, database: Database, waiter: Branch
) -> None:
    """A waiter in a neighbour database belongs to another participant, or to nobody."""
    dsn = database.dsn.rpartition("/")[0] + "/postgres"
    one, two = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    await one.execute("select pg_advisory_lock(5)")
    blocked = asyncio.create_task(two.execute("select pg_advisory_lock(5)"))
    while not await database.admin.fetchval("select exists (select from pg_locks where not granted)"):
        await asyncio.sleep(0.005)
    assert list(await participant.waits()) == []
    await one.close()
    await blocked
    await two.close()


def test_conflict_table_is_symmetric() -> None:
    """As the manual's is: a slip of a slice would make or hide edges."""
    for mode, conflicting in _CONFLICTS.items():
        for other in conflicting:
            assert mode in _CONFLICTS[other], (mode, other)
    assert sum(len(conflicting) for conflicting in _CONFLICTS.values()) == 38
