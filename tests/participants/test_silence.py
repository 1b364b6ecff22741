"""Connections that are gone without a word, and statements from before a migration: one retry, no more."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.participants import support
from tests.participants.hands import at, spoil, sql_error
from tests.participants.proxy import Proxy
from tests.participants.support import WRITE, Database, new_gid, participant_at
from undoubt.participants.contract import Branch, Decision, Settled, Vote
from undoubt.participants.errors import ParticipantUnavailable
from undoubt.participants.postgres import PostgresParticipant

COUNT = 3


async def begun(participant: PostgresParticipant, count: int = COUNT) -> list[Branch]:
    return [await participant.begin(new_gid(), timeout_s=30) for _ in range(count)]


async def ended(branches: list[Branch]) -> None:
    for branch in branches:
        await branch.rollback()
        await branch.release()


async def pids(participant: PostgresParticipant, count: int = COUNT) -> set[int]:
    """Of so many connections, which are back in the pool then."""
    branches = await begun(participant, count)
    seen = {at(branch).get_server_pid() for branch in branches}
    await ended(branches)
    return seen


async def test_idle_connections_that_a_firewall_has_forgotten(database: Database) -> None:
    """Broken if a transaction fails for them, or one for each of them."""
    async with Proxy(database.dsn) as proxy:
        participant = participant_at(proxy.dsn)
        before = await pids(participant)
        old = [slot.session for slot in participant.pool.idle]
        proxy.forget()
        branch = await participant.begin(new_gid(), timeout_s=3)
        assert at(branch).get_server_pid() not in before
        await at(branch).execute(WRITE)
        assert (await branch.prepare()).vote is Vote.PREPARED
        await ended([branch])
        async with asyncio.timeout(20):
            while not all(session.broken for session in old):  # or each would cost the next one its time
                await asyncio.sleep(0.001)
        assert not await pids(participant) & before
        await participant.close()


async def test_a_connection_that_was_forgotten_a_moment_ago(database: Database) -> None:
    """Its branch begins together with the application's first statement, which is not repeated. Broken if its
    rollback waits for as long as a statement may take, after the transaction's timeout."""
    async with Proxy(database.dsn) as proxy:
        # Without a pipeline the branch has begun before the statement, in a round trip of its own.
        statement_s = 1.0 if support.kind.endswith(support.SCRIPTS) else 600.0
        participant = participant_at(proxy.dsn, statement_timeout_s=statement_s)
        await pids(participant, 1)
        [branch] = await begun(participant, 1)
        proxy.forget()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await at(branch).execute(WRITE)
        async with asyncio.timeout(100):
            assert await branch.rollback() is Settled.APPLIED
        await branch.release()
        await ended(await begun(participant, 1))
        await participant.close()


async def test_a_new_connection_that_is_silent_is_told(database: Database) -> None:
    """One retry, not one after another: a server that hangs is unavailable."""
    async with Proxy(database.dsn) as proxy:
        participant = participant_at(proxy.dsn, connect_timeout_s=0.5, statement_timeout_s=0.5)
        await pids(participant, 1)
        proxy.freeze()
        with pytest.raises(ParticipantUnavailable):
            await participant.begin(new_gid(), timeout_s=20)
        proxy.thaw()
        await ended(await begun(participant, 1))
        await participant.close()


async def test_sessions_of_recovery_that_a_firewall_has_forgotten(database: Database) -> None:
    """Broken if every pass over the database fails until each of them has been tried."""
    async with Proxy(database.dsn) as proxy:
        participant = participant_at(proxy.dsn, statement_timeout_s=1.0)
        branch = await participant.begin(new_gid(), timeout_s=30)
        await at(branch).execute(WRITE)
        assert (await branch.prepare()).vote is Vote.PREPARED
        await asyncio.gather(*(participant.in_doubt() for _ in range(4)))
        proxy.forget()
        assert [row.gid for row in await participant.in_doubt()] == [branch.gid]
        assert len(participant.admin_pool.pool.idle) == 1
        assert await participant.settle(branch.gid, Decision.COMMIT, None) is Settled.APPLIED
        await branch.release()
        await participant.close()


async def test_a_second_phase_over_forgotten_connections(database: Database) -> None:
    """COMMIT PREPARED may have arrived, so it is not repeated blindly; whoever asks again gets a new
    connection."""
    async with Proxy(database.dsn) as proxy:
        participant = participant_at(proxy.dsn, statement_timeout_s=0.5)
        branch = await participant.begin(new_gid(), timeout_s=30)
        await at(branch).execute(WRITE)
        evidence = (await branch.prepare()).evidence
        await asyncio.gather(*(participant.in_doubt() for _ in range(3)))
        proxy.forget()
        with pytest.raises(ParticipantUnavailable):
            await branch.commit()
        await branch.release()
        assert await participant.settle(branch.gid, Decision.COMMIT, evidence) is Settled.APPLIED
        assert await database.balance() == 90
        await participant.close()


async def test_a_migration_under_the_pool_fails_one_transaction(database: Database) -> None:
    """Not one for each connection in which the statement was prepared: "cached plan must not change result
    type"."""
    participant = participant_at(database.dsn)
    branches = await begun(participant)
    for branch in branches:
        for _ in range(8):
            await at(branch).fetch("select * from account")
        # psycopg forgets what it has prepared where something was rolled back.
        assert await branch.commit_one_phase() is Settled.APPLIED
    for branch in branches:
        await branch.release()
    await database.admin.execute("alter table account add column note text")
    [branch] = await begun(participant, 1)
    with sql_error("0A000"):
        await at(branch).fetch("select * from account")
    await ended([branch])
    for branch in await begun(participant):
        assert len(await at(branch).fetch("select * from account")) == 2
        await ended([branch])
    await participant.close()


async def test_statements_of_ours_that_the_server_has_forgotten(database: Database) -> None:
    """Of DISCARD ALL by a pooler that nobody noticed, for example."""
    participant = participant_at(database.dsn)
    await asyncio.gather(*(participant.in_doubt() for _ in range(3)))
    for slot in participant.admin_pool.pool.idle:
        await slot.session.script("deallocate all", timeout_s=10)
    assert list(await participant.in_doubt()) == []
    await participant.close()


async def test_a_branch_that_deallocates_statements_can_be_asked(database: Database) -> None:
    """undoubt's own question of what it has done is a statement like the others."""
    participant = participant_at(database.dsn)
    branch = await participant.begin(new_gid(), timeout_s=30)
    await branch.poll()
    await ended([branch])
    branch = await participant.begin(new_gid(), timeout_s=30)
    await at(branch).fetch("select 1")
    await at(branch).execute("deallocate all")
    await branch.poll()
    await ended([branch])
    await participant.close()


async def test_what_the_last_application_left_cannot_fail_the_next_branch(
    database: Database,
) -> None:
    """A session that cannot be cleaned is closed, and nothing was begun: another one serves."""
    participant = participant_at(database.dsn, connections_max=1)
    branch = await participant.begin(new_gid(), timeout_s=30)
    pid = at(branch).get_server_pid()
    await at(branch).execute("select 1")
    session: Any = branch.session  # type: ignore[attr-defined]
    if session.pipelines:
        spoil(session)
        await ended([branch])
    else:
        await ended([branch])
        spoil(session)
    after = await participant.begin(new_gid(), timeout_s=30)
    assert at(after).get_server_pid() != pid
    await ended([after])
    await participant.close()
