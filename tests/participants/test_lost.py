"""Answers that are lost, late, or no longer wanted: nothing is guessed, and the participant stays usable."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.participants.hands import at, is_lost
from tests.participants.proxy import Proxy
from tests.participants.support import (
    WRITE,
    Database,
    new_gid,
    participant_at,
)
from undoubt.participants.contract import Decision, Evidence, PrepareUnanswered, Settled, Vote, Work
from undoubt.participants.errors import BranchFailed, ParticipantUnavailable
from undoubt.participants.ids import Gid
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.postgres.end_prepared import end_prepared

KINDS = ("asyncpg", "psycopg", "psycopg-sync")


@pytest_asyncio.fixture
async def proxy(database: Database) -> AsyncIterator[Proxy]:
    async with Proxy(database.dsn) as proxy:
        yield proxy


@pytest_asyncio.fixture
async def remote(proxy: Proxy) -> AsyncIterator[PostgresParticipant]:
    """The participant at the far end of the proxy."""
    participant = participant_at(proxy.dsn)
    yield participant
    await participant.close()


async def is_prepared(database: Database, gid: Gid) -> None:
    while str(gid) not in await database.prepared():
        await asyncio.sleep(0.005)


async def test_answer_to_prepare_lost(
    remote: PostgresParticipant, proxy: Proxy, database: Database, gid: Gid
) -> None:
    """It is prepared, and nobody was told: neither a vote nor an abort, and rollback finds it."""
    branch = await remote.begin(gid, timeout_s=30)
    await at(branch).execute(WRITE)
    proxy.freeze()
    prepare = asyncio.ensure_future(branch.prepare())
    await is_prepared(database, gid)
    proxy.cut()
    with pytest.raises(PrepareUnanswered) as unanswered:
        await prepare
    assert isinstance(unanswered.value.cause, ParticipantUnavailable)
    assert await branch.rollback() is Settled.APPLIED
    await branch.release()
    assert await database.prepared() == []
    assert await database.balance() == 100


async def test_answer_to_prepare_lost_while_its_session_is_closed(
    remote: PostgresParticipant, proxy: Proxy, database: Database, gid: Gid
) -> None:
    """Broken if a connection that ends in good order, when we wanted to close it, is taken for an answer."""
    branch = await remote.begin(gid, timeout_s=30)
    await at(branch).execute(WRITE)
    proxy.freeze()
    prepare = asyncio.ensure_future(branch.prepare())
    await is_prepared(database, gid)
    closing = asyncio.create_task(remote.close())
    while not branch.session.broken:  # type: ignore[attr-defined]
        await asyncio.sleep(0.005)
    proxy.end()
    with pytest.raises(PrepareUnanswered):
        await prepare
    await closing
    await branch.release()
    await database.admin.execute(f"rollback prepared '{gid}'")


async def test_prepare_that_never_happened(
    remote: PostgresParticipant, proxy: Proxy, database: Database, gid: Gid
) -> None:
    """The same for the client; here rollback finds nothing, which proves nothing: it looks again."""
    await database.admin.execute(
        "create function dawdle() returns trigger language plpgsql as"
        " $$ begin perform pg_advisory_xact_lock(4711); return null; end $$;"
        "create constraint trigger slow after update on account deferrable initially deferred"
        " for each row execute function dawdle()"
    )
    await database.admin.execute("select pg_advisory_lock(4711)")
    branch = await remote.begin(gid, timeout_s=30)
    await at(branch).execute(WRITE)
    prepare = asyncio.ensure_future(branch.prepare())
    while not await database.admin.fetchval("select exists (select from pg_locks where not granted)"):
        await asyncio.sleep(0.005)
    proxy.cut()
    with pytest.raises(PrepareUnanswered):
        await prepare
    assert await branch.rollback() is Settled.ABSENT
    await database.admin.execute("select pg_advisory_unlock(4711)")
    await is_prepared(database, gid)
    assert await branch.rollback() is Settled.APPLIED, "a late PREPARE must be found when asked again"
    await branch.release()
    assert await database.prepared() == []


async def test_connection_lost_before_prepare(
    remote: PostgresParticipant, proxy: Proxy, database: Database, gid: Gid
) -> None:
    """Nothing was sent, so the answer is a plain no, not a doubt that needs a record."""
    branch = await remote.begin(gid, timeout_s=30)
    await at(branch).execute(WRITE)
    proxy.cut()
    await is_lost(branch)
    result = await branch.prepare()
    assert result.vote is Vote.ABORT
    assert isinstance(result.reason, BranchFailed)
    assert await branch.rollback() is Settled.APPLIED
    await branch.release()


async def test_answer_to_commit_lost(
    remote: PostgresParticipant, proxy: Proxy, database: Database, gid: Gid
) -> None:
    """COMMIT PREPARED happened; the books say so, and the branch is not reported as a heuristic."""
    branch = await remote.begin(gid, timeout_s=30)
    await at(branch).execute(WRITE)
    assert (await branch.prepare()).vote is Vote.PREPARED
    proxy.freeze()
    commit = asyncio.ensure_future(branch.commit())
    while await database.prepared():
        await asyncio.sleep(0.005)
    proxy.cut()
    assert await commit is Settled.APPLIED
    await branch.release()
    assert await database.balance() == 90


async def test_no_answer_in_time(proxy: Proxy, database: Database, gid: Gid) -> None:
    """A database behind a dead network must not hold up a coordinator for ever."""
    participant = participant_at(proxy.dsn, statement_timeout_s=0.3, connect_timeout_s=0.3)
    branch = await participant.begin(gid, timeout_s=3)
    await at(branch).execute(WRITE)
    await participant.in_doubt()
    proxy.freeze()
    with pytest.raises(ParticipantUnavailable):
        await participant.in_doubt()
    assert not participant.admin_pool.pool.idle, "its late answer would pass for the next one's"
    with pytest.raises(PrepareUnanswered):
        await branch.prepare()
    with pytest.raises(ParticipantUnavailable):
        await branch.rollback()
    proxy.thaw()
    assert await branch.rollback() is Settled.APPLIED
    await branch.release()
    await participant.close()


async def test_late_statement_ends_on_the_server(database: Database, gid: Gid) -> None:
    """Nobody waits for its answer any more; left alone it would hold its locks for as long as it likes."""
    participant = participant_at(database.dsn, statement_timeout_s=0.3)
    await database.admin.execute(
        "create function dawdle() returns trigger language plpgsql as"
        " $$ begin perform pg_sleep(3600); return null; end $$;"
        "create constraint trigger slow after update on account deferrable initially deferred"
        " for each row execute function dawdle()"
    )
    branch = await participant.begin(gid, timeout_s=3)
    pid = at(branch).get_server_pid()
    await at(branch).execute(WRITE)
    with pytest.raises(PrepareUnanswered):
        await branch.prepare()
    while await database.admin.fetchval("select exists (select from pg_stat_activity where pid = $1)", pid):
        await asyncio.sleep(0.005)
    assert await branch.rollback() is Settled.ABSENT
    await branch.release()
    await participant.close()


CALLS = ["begin", "poll", "prepare", "one phase", "commit", "end reading", "rollback", "undo"]


@pytest.mark.parametrize("call", CALLS)
async def test_cancelled_branch_call(
    remote: PostgresParticipant, proxy: Proxy, database: Database, gid: Gid, call: str
) -> None:
    """A cancelled call's late answer must not pass for the next call's; what it left is settled by gid."""
    pid = None
    if call == "begin":
        proxy.freeze()
        task: asyncio.Task[object] = asyncio.create_task(remote.begin(gid, timeout_s=30))
    else:
        branch = await remote.begin(gid, timeout_s=30)
        pid = at(branch).get_server_pid()
        if call != "end reading":
            await at(branch).execute(WRITE)
        if call in {"commit", "rollback"}:
            assert (await branch.prepare()).vote is Vote.PREPARED
        if call == "end reading":
            assert await branch.poll() is Work.READ_ONLY
        work = {
            "poll": branch.poll,
            "prepare": branch.prepare,
            "one phase": branch.commit_one_phase,
            "commit": branch.commit,
            "end reading": branch.commit,
            "rollback": branch.rollback,
            "undo": branch.rollback,
        }[call]
        proxy.freeze()
        task = asyncio.ensure_future(work())
    await proxy.held.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    proxy.thaw()
    if call != "begin":
        await branch.release()
    if call == "prepare":
        await is_prepared(database, gid)
        assert await branch.rollback() is Settled.APPLIED
    again = await remote.begin(new_gid(), timeout_s=30)
    assert at(again).get_server_pid() != pid, "nobody knows what that session is doing"
    assert await at(again).fetchval("select 42") == 42
    await at(again).execute("update account set balance = balance - 1 where id = 2")
    assert (await again.prepare()).vote is Vote.PREPARED
    assert await again.commit() is Settled.APPLIED
    await again.release()
    assert await database.balance(2) == 99
    assert await database.balance() == (90 if call in {"one phase", "commit"} else 100)
    assert await database.prepared() == []


@pytest.mark.parametrize("call", ["in_doubt", "evidence", "settle", "rollback prepared", "waits"])
async def test_cancelled_management_call(
    remote: PostgresParticipant, proxy: Proxy, database: Database, gid: Gid, call: str
) -> None:
    """The next list must not be the answer to the one before. A superuser's ``settle`` looks at the owner
    first, and is cancelled while it does; nothing is sent after that."""

    async def rollback_prepared() -> Settled:
        async with remote.admin_pool.session() as session:
            return await end_prepared(session, gid, Decision.ABORT, remote.settings.statement_timeout_s)

    branch = await remote.begin(gid, timeout_s=30)
    await at(branch).execute(WRITE)
    evidence = (await branch.prepare()).evidence
    await branch.release()
    assert isinstance(evidence, Evidence)
    await remote.in_doubt()
    proxy.freeze()
    work = {
        "in_doubt": remote.in_doubt,
        "evidence": lambda: remote.evidence(evidence),
        "settle": lambda: remote.settle(gid, Decision.ABORT, evidence),
        "rollback prepared": rollback_prepared,
        "waits": remote.waits,
    }[call]
    task = asyncio.create_task(work())
    await proxy.held.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    proxy.thaw()
    ended = call == "rollback prepared"
    async with asyncio.timeout(20):
        while ended and await database.prepared():
            await asyncio.sleep(0.005)
    assert [row.gid for row in await remote.in_doubt()] == ([] if ended else [gid])
    assert await remote.settle(gid, Decision.ABORT, evidence) is Settled.APPLIED
