"""Branches that somebody else runs and prepares are believed on proof: PostgreSQL manual, PREPARE
TRANSACTION, and pg_prepared_xacts."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest
import pytest_asyncio

from tests.participants.scene import Scene
from tests.participants.support import KEY, WRITE, Database, participant_at, unreachable_standby
from undoubt.embedded import EmbeddedServer
from undoubt.participants.contract import Evidence, PrepareUnanswered, Settled, Vote, Work, XactStatus
from undoubt.participants.errors import BranchFailed, ParticipantUnavailable, UsageError
from undoubt.participants.ids import Gid
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.postgres.announced import AnnouncedBranch

WAYS = ("",)


class Caller:
    """A service with a driver of its own."""

    def __init__(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self.connection = connection

    async def run(self, branch: AnnouncedBranch, *statements: str) -> None:
        await self.connection.execute("; ".join(branch.scripts.begin))
        for statement in statements or (WRITE,):
            await self.connection.execute(statement)
        await self.connection.execute("; ".join(branch.scripts.prepare))

    async def one_by_one(self, branch: AnnouncedBranch, statement: str) -> None:
        for each in (*branch.scripts.begin, statement, *branch.scripts.prepare):
            await self.connection.execute(each)


@pytest_asyncio.fixture
async def caller(database: Database) -> AsyncIterator[Caller]:
    connection = await asyncpg.connect(database.dsn)
    yield Caller(connection)
    await connection.close()


async def announced(participant: PostgresParticipant, gid: Gid) -> AnnouncedBranch:
    return await participant.announce(gid, timeout_s=30, key=KEY)


async def vote(branch: AnnouncedBranch) -> Evidence:
    result = await branch.prepare()
    assert result.vote is Vote.PREPARED
    assert result.evidence is not None
    return result.evidence


async def why_not(branch: AnnouncedBranch) -> BaseException:
    with pytest.raises(PrepareUnanswered) as refused:
        await branch.prepare()
    return refused.value.cause


async def test_it_commits(
    participant: PostgresParticipant, database: Database, caller: Caller, gid: Gid
) -> None:
    """Otherwise nobody but Python could take part."""
    branch = await announced(participant, gid)
    assert (await branch.poll(), branch.surely_writes) == (Work.WRITES, True)
    await caller.run(branch)
    evidence = await vote(branch)
    assert await participant.evidence(evidence) is XactStatus.IN_PROGRESS
    assert await branch.commit() is Settled.APPLIED
    assert await database.balance() == 90
    assert await participant.evidence(evidence) is XactStatus.COMMITTED
    assert (await branch.commit(), await database.prepared()) == (Settled.APPLIED, [])


async def test_statements_may_go_one_by_one(
    participant: PostgresParticipant, database: Database, caller: Caller, gid: Gid
) -> None:
    """Many drivers send one statement at a time."""
    branch = await announced(participant, gid)
    await caller.one_by_one(branch, WRITE)
    await vote(branch)
    assert await branch.rollback() is Settled.APPLIED
    assert await database.balance() == 100


async def test_a_reader_is_prepared_too(participant: PostgresParticipant, caller: Caller, gid: Gid) -> None:
    """A branch that would not be looked at could have written."""
    branch = await announced(participant, gid)
    await caller.run(branch, "select balance from account")
    assert (await vote(branch)).xid > 0
    assert await branch.commit() is Settled.APPLIED


async def test_what_was_announced_and_is_not_prepared_is_named(
    participant: PostgresParticipant, gid: Gid
) -> None:
    branch = await announced(participant, gid)
    failure = await why_not(branch)
    assert isinstance(failure, BranchFailed)
    assert "branch 1:p was announced, but is not prepared" in str(failure)
    assert await branch.rollback() is Settled.ABSENT


async def test_it_may_appear_after_the_look(
    participant: PostgresParticipant, database: Database, caller: Caller, gid: Gid
) -> None:
    """Absent is not final: whoever says so first must be able to look again."""
    branch = await announced(participant, gid)
    await why_not(branch)
    assert await branch.rollback() is Settled.ABSENT
    await caller.run(branch)
    assert await branch.rollback() is Settled.APPLIED
    assert (await database.balance(), await database.prepared()) == (100, [])


async def test_a_transaction_that_was_ended_and_begun_anew_is_not_prepared(
    participant: PostgresParticipant, caller: Caller, gid: Gid
) -> None:
    """The guard goes with PREPARE: half of the work would else be prepared."""
    branch = await announced(participant, gid)
    with pytest.raises(asyncpg.PostgresError, match="undoubt marker"):
        await caller.run(branch, WRITE, "commit", "begin", WRITE)
    await caller.connection.execute("rollback")
    assert isinstance(await why_not(branch), BranchFailed)


async def test_a_failed_transaction_is_not_prepared(
    participant: PostgresParticipant, caller: Caller, gid: Gid
) -> None:
    """PREPARE answers it with ROLLBACK, and no error."""
    branch = await announced(participant, gid)
    await caller.connection.execute("; ".join(branch.scripts.begin))
    with pytest.raises(asyncpg.PostgresError):
        await caller.connection.execute("select 1/0")
    await caller.connection.execute(branch.scripts.prepare[-1])
    assert isinstance(await why_not(branch), BranchFailed)


async def test_another_database_of_the_server_is_not_believed(
    participant: PostgresParticipant, server: EmbeddedServer, gid: Gid
) -> None:
    """Names of prepared transactions are the whole server's."""
    branch = await announced(participant, gid)
    elsewhere = await asyncpg.connect(server.dsn())
    try:
        await elsewhere.execute(f"begin; select pg_current_xact_id(); prepare transaction '{gid}'")
        failure = await why_not(branch)
        assert "is in database 'postgres'" in str(failure)
        assert await branch.rollback() is Settled.ABSENT
        assert (
            await elsewhere.fetchval("select count(*) from pg_prepared_xacts where gid = $1", str(gid)) == 1
        )
    finally:
        await elsewhere.execute(f"rollback prepared '{gid}'")
        await elsewhere.close()


async def test_another_role_is_not_believed(scene: Scene, gid: Gid) -> None:
    """Whoever learns the name could put a transaction of theirs into somebody's commit."""
    participant = scene.at("app")
    branch = await announced(participant, gid)
    await scene.forge(gid)
    assert "was prepared by role 'thief'" in str(await why_not(branch))
    assert await branch.rollback() is Settled.ABSENT
    assert await scene.forged() == [str(gid)]
    await participant.close()


async def test_the_same_name_on_another_transaction_is_not_committed(
    participant: PostgresParticipant, database: Database, caller: Caller, gid: Gid
) -> None:
    """A name may be prepared again after its end: the decision was made about the first."""
    branch = await announced(participant, gid)
    await caller.run(branch)
    await vote(branch)
    await caller.connection.execute(f"rollback prepared '{gid}'")
    await caller.run(branch, "update account set balance = 0")
    assert await branch.commit() is Settled.HEURISTIC_ROLLBACK
    assert (await database.balance(), await database.prepared()) == (100, [str(gid)])


async def test_the_same_name_on_another_transaction_is_not_rolled_back(
    participant: PostgresParticipant, database: Database, caller: Caller, gid: Gid
) -> None:
    branch = await announced(participant, gid)
    await caller.run(branch)
    await vote(branch)
    await caller.connection.execute(f"commit prepared '{gid}'")
    await caller.run(branch)
    assert await branch.rollback() is Settled.HEURISTIC_COMMIT
    assert await database.prepared() == [str(gid)]


async def test_a_branch_that_no_standby_has_confirmed_is_no_vote(
    participant: PostgresParticipant, database: Database, caller: Caller, gid: Gid
) -> None:
    """A server lists what is prepared before its synchronous standbys have it."""
    branch = await announced(participant, gid)
    await caller.run(branch)
    async with unreachable_standby(database):
        short = participant_at(database.dsn, statement_timeout_s=1.0)
        impatient = await announced(short, gid)
        assert isinstance(await why_not(impatient), ParticipantUnavailable)
        await short.close()
    assert (await vote(branch)).xid > 0
    assert await branch.rollback() is Settled.APPLIED


async def test_whether_somebody_is_in_it(participant: PostgresParticipant, caller: Caller, gid: Gid) -> None:
    """What somebody still works in cannot be withdrawn: it would be prepared afterwards."""
    branch = await announced(participant, gid)
    assert not await branch.has_session()
    await caller.connection.execute("; ".join(branch.scripts.begin))
    assert await branch.has_session()
    await caller.connection.execute("rollback")
    assert not await branch.has_session()


async def test_it_lends_no_connection(participant: PostgresParticipant, gid: Gid) -> None:
    branch = await announced(participant, gid)
    with pytest.raises(UsageError, match="it, and has no connection"):
        _ = branch.connection
    await branch.forget()
    await branch.release()
    branch.break_off(lambda: RuntimeError("nobody is told"))
