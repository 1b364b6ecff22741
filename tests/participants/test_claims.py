"""What a database session says of the transaction that it works in, and of whom it is handed on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import asyncpg
import pytest
import pytest_asyncio

from tests.participants.hands import at, sql_error
from tests.participants.support import KEY, LEDGER, WRITE, Database, claim, new_gid, participant_at
from tests.participants.test_waits import edges
from undoubt.coordinator.ledger.rules import Names
from undoubt.embedded import EmbeddedServer
from undoubt.participants.contract import Branch, Claim, Decision, Settled, Vote, WaitNode
from undoubt.participants.ids import NUMBER_MAX, SessionKey
from undoubt.participants.postgres import PostgresParticipant

KINDS = ("asyncpg", "psycopg", "psycopg-sync")


@pytest_asyncio.fixture
async def mallory(database: Database, server: EmbeddedServer) -> AsyncIterator[str]:
    """The DSN of a role that may connect, and no more."""
    await database.admin.execute("create role mallory login")
    yield server.dsn(database.name, user="mallory")
    await database.admin.execute(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = 'mallory'"
    )
    await database.admin.execute("drop role mallory")


@asynccontextmanager
async def working(participant: PostgresParticipant, key: SessionKey = KEY) -> AsyncIterator[Branch]:
    branch = await participant.begin(new_gid(), timeout_s=30, key=key)
    try:
        yield branch
    finally:
        await branch.rollback()
        await branch.release()


async def name_of(database: Database, branch: Branch) -> str:
    await at(branch).execute("select 1")  # what begins the branch may be sent with its first statement
    return str(
        await database.admin.fetchval(
            "select application_name from pg_stat_activity where pid = $1", at(branch).get_server_pid()
        )
    )


async def seen_as(participant: PostgresParticipant, dsn: str, name: str) -> tuple[WaitNode, int]:
    """How a session of ``dsn`` that calls itself ``name`` and waits is handed on, and its process id."""
    holder = await asyncpg.connect(dsn)
    await holder.execute("select pg_advisory_lock(77)")
    waiter = await asyncpg.connect(dsn, server_settings={"application_name": name})
    blocked = asyncio.create_task(waiter.execute("select pg_advisory_lock(77)"))
    try:
        [edge] = await edges(participant)
        return edge.waiter, waiter.get_server_pid()
    finally:
        await holder.close()
        await blocked
        await waiter.close()


async def test_a_branch_says_what_it_can_prove(participant: PostgresParticipant, database: Database) -> None:
    """Broken if the ledger cannot verify what an honest session says, whichever driver it has."""
    async with working(participant) as holder, working(participant) as waiter:
        txid, pid = waiter.gid.txid, at(waiter).get_server_pid()
        assert (
            await name_of(database, waiter)
            == f"undoubt:{LEDGER}:{txid.session}.{txid.seq}~{KEY.backend(txid, pid)}"
        )
        await at(holder).execute(WRITE)
        blocked = asyncio.create_task(at(waiter).execute(WRITE))
        [edge] = await edges(participant)
        assert edge.waiter == claim(waiter, pid)
        assert edge.holder == claim(holder, at(holder).get_server_pid())
        assert await participant.cancel_waiter(edge)
        with sql_error("57014"):
            await blocked


async def test_a_prepare_that_waits(participant: PostgresParticipant, database: Database) -> None:
    """Broken if a branch says nothing, or what it cannot prove, while a deferred trigger waits for a lock."""
    await database.admin.execute(
        "create function lock_two() returns trigger language plpgsql as"
        " $$ begin perform from account where id = 2 for update; return null; end $$;"
        "create constraint trigger two after update on account deferrable initially deferred"
        " for each row when (new.id = 1) execute function lock_two()"
    )
    await database.admin.execute("begin; update account set balance = 0 where id = 2")
    async with working(participant) as waiter:
        await at(waiter).execute(WRITE)
        pid = at(waiter).get_server_pid()
        prepare = asyncio.ensure_future(waiter.prepare())
        [edge] = await edges(participant)
        assert edge.waiter == claim(waiter, pid)
        assert await participant.cancel_waiter(edge)
        assert (await prepare).vote is Vote.ABORT
    await database.admin.execute("rollback")


async def test_a_copied_name_is_claimed_for_its_own_process(
    participant: PostgresParticipant, database: Database, mallory: str
) -> None:
    """Broken if whoever may connect can speak for a transaction, by a name that everybody can read."""
    names = Names(LEDGER, b"\1" * 32)
    gid = new_gid()
    key = names.key(gid.txid.session, gid.txid.nonce)
    async with working(participant, key) as branch:
        txid, pid = branch.gid.txid, at(branch).get_server_pid()
        seen, other = await seen_as(participant, mallory, await name_of(database, branch))
    assert seen == Claim(txid.session, txid.seq, other, key.backend(txid, pid))
    assert names.proved(seen, txid.nonce) is None
    assert names.proved(seen._replace(pid=pid), txid.nonce) == txid


async def test_behind_a_pooler_the_role_counts(
    participant: PostgresParticipant, database: Database, mallory: str
) -> None:
    """Broken if a name that is bound to no process is believed of any role, or of none."""
    pooled = participant_at(database.dsn, pooler=True)
    async with working(pooled) as branch:
        name = await name_of(database, branch)
        expected = claim(branch)
    await pooled.close()
    seen, pid = await seen_as(participant, mallory, name)
    assert seen == f"p/{pid}"
    assert (await seen_as(participant, database.dsn, name))[0] == expected
    other = participant_at(database.dsn, owners=("mallory",))
    assert (await seen_as(other, mallory, name))[0] == expected
    await other.close()
    await database.admin.execute("grant mallory to postgres")
    assert (await seen_as(participant, mallory, name))[0] == expected


@pytest.mark.parametrize(
    "told",
    [
        f"{NUMBER_MAX + 1}.1~AAAAAAAA",
        f"1.{NUMBER_MAX + 1}~AAAAAAAA",
        "0.1~AAAAAAAA",
        "1.1~AAAAAAA",
        "1.1~AAAAAAAA ",
        "1.1!AAAAAAAA",
        "1.1",
    ],
)
async def test_what_is_no_claim(
    participant: PostgresParticipant, database: Database, mallory: str, told: str
) -> None:
    """Broken if a number that the ledger cannot hold makes every look for deadlocks fail."""
    seen, pid = await seen_as(participant, mallory, f"undoubt:{LEDGER}:{told}")
    assert seen == f"p/{pid}"


@pytest.mark.parametrize("who", ["ours", "another role", "of another participant", "of another ledger"])
async def test_prepared_holders(
    participant: PostgresParticipant, database: Database, mallory: str, who: str
) -> None:
    """Broken if a prepared transaction is taken for a branch of ours by its name alone."""
    gid = new_gid()
    if who == "of another participant":
        gid = replace(gid, participant="q")
    if who == "of another ledger":
        gid = replace(gid, ledger="otherledge")
    dsn = mallory if who == "another role" else database.dsn
    maker = await asyncpg.connect(dsn)
    await maker.execute(f"begin; select pg_advisory_xact_lock(5); prepare transaction '{gid}'")
    await maker.close()
    async with working(participant) as waiter:
        blocked = asyncio.create_task(at(waiter).execute("select pg_advisory_xact_lock(5)"))
        [edge] = await edges(participant)
        assert edge.holder == (gid if who == "ours" else f"p/{gid}")
        await database.admin.execute(f"rollback prepared '{gid}'")
        await blocked


async def test_only_the_same_claim_is_cancelled(participant: PostgresParticipant) -> None:
    """Broken if a process id that another session has by now is enough to cancel its statement."""
    async with working(participant) as holder, working(participant) as waiter:
        await at(holder).execute(WRITE)
        blocked = asyncio.create_task(at(waiter).execute(WRITE))
        [edge] = await edges(participant)
        assert isinstance(edge.waiter, Claim)
        for wrong in (
            claim(holder, edge.pid),
            edge.waiter._replace(seq=edge.waiter.seq + 1),
            edge.waiter._replace(proof="AAAAAAAA"),
            edge.waiter._replace(pid=0),
            waiter.gid,
        ):
            assert not await participant.cancel_waiter(replace(edge, waiter=wrong))
        assert not blocked.done()
        assert await participant.cancel_waiter(edge)
        with sql_error("57014"):
            await blocked
    assert await participant.settle(waiter.gid, Decision.ABORT, None) is Settled.ABSENT
