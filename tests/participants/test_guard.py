"""The guard of a lock: a database refuses the branch of a former holder. On every kind of connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg
import pytest

from tests.participants.hands import at
from tests.participants.scene import Scene
from tests.participants.support import KEY, LEDGER, WRITE, Database, new_gid, participant_at
from undoubt.embedded import EmbeddedServer
from undoubt.participants.contract import Branch, GuardingBranch, Settled, Vote, Work
from undoubt.participants.errors import ParticipantRefused, StaleLock, UsageError
from undoubt.participants.last_agent import AgentEntry, LastAgentBranch
from undoubt.participants.postgres import PostgresParticipant, schema
from undoubt.participants.settings import ParticipantSettings

KINDS = ("asyncpg", "psycopg", "psycopg-sync")


async def begun(participant: PostgresParticipant) -> Branch:
    return await participant.begin(new_gid(), timeout_s=30.0)


async def guard(branch: Branch, token: int, name: str = "it's a {token} job", ledger: str = LEDGER) -> None:
    assert isinstance(branch, GuardingBranch)
    await branch.guard_lock(ledger, name, token)


async def shown(database: Database) -> list[tuple[str, str, int]]:
    rows = await database.admin.fetch("select ledger, name, token from undoubt.undoubt_lock order by 1, 2")
    return [tuple(row) for row in rows]


async def committed(branch: Branch) -> None:
    assert (await branch.prepare()).vote is Vote.PREPARED
    assert await branch.commit() is Settled.APPLIED
    await branch.release()


async def test_a_lower_token_is_refused_with_its_branch(
    participant: PostgresParticipant, noted: Database
) -> None:
    """A process that was stopped would overwrite what the next holder has written."""
    for token in (7, 7, 9):
        branch = await begun(participant)
        await guard(branch, token)
        await committed(branch)
    assert await shown(noted) == [(LEDGER, "it's a {token} job", 9)]
    stale = await begun(participant)
    with pytest.raises(StaleLock, match="token 7 is stale, another holder has shown 9") as caught:
        await guard(stale, 7)
    assert caught.value.sqlstate == "UL001"
    assert (await stale.prepare()).vote is Vote.ABORT
    await stale.rollback()
    await stale.release()
    other = await begun(participant)
    await guard(other, 1, "another job")
    await guard(other, 1, ledger="anotherone")
    await committed(other)


async def test_the_next_holder_waits_until_the_branch_ends(
    participant: PostgresParticipant, noted: Database
) -> None:
    """A prepared branch of a former holder would commit after the next holder has begun."""
    first = await begun(participant)
    await guard(first, 1)
    assert (await first.prepare()).vote is Vote.PREPARED
    second = await begun(participant)
    task = asyncio.create_task(guard(second, 2))
    while not await noted.admin.fetchval("select exists (select from pg_locks where not granted)"):
        assert not task.done()
        await asyncio.sleep(0.01)
    await first.commit()
    await task
    await committed(second)
    assert await shown(noted) == [(LEDGER, "it's a {token} job", 2)]


async def test_a_token_of_a_branch_that_aborts_was_not_shown(
    participant: PostgresParticipant, noted: Database
) -> None:
    branch = await begun(participant)
    await guard(branch, 5)
    await branch.rollback()
    await branch.release()
    assert await shown(noted) == []


async def test_a_guarded_branch_commits_in_one_phase(
    participant: PostgresParticipant, noted: Database
) -> None:
    branch = await begun(participant)
    await guard(branch, 5)
    await branch.poll()
    assert await branch.commit_one_phase() is Settled.APPLIED
    await branch.release()
    assert await shown(noted) == [(LEDGER, "it's a {token} job", 5)]


async def test_a_database_without_the_table_says_what_to_do(database: Database) -> None:
    for migrated in (False, True):
        if migrated:
            await schema.migrate("p", ParticipantSettings(dsn=database.dsn))
            await database.admin.execute("drop function undoubt.guard_lock(text, text, bigint)")
        participant = participant_at(database.dsn)
        branch = await begun(participant)
        with pytest.raises(ParticipantRefused, match="undoubt participants migrate p"):
            await guard(branch, 1)
        await branch.rollback()
        await branch.release()
        await participant.close()


async def test_nothing_is_guarded_after_the_branch(participant: PostgresParticipant, noted: Database) -> None:
    """The guard would be sent on a connection that another branch uses."""
    branch = await begun(participant)
    await guard(branch, 1)
    assert (await branch.prepare()).vote is Vote.PREPARED
    with pytest.raises(UsageError, match="after the end of its branch"):
        await guard(branch, 2)
    await branch.commit()
    await branch.release()
    with pytest.raises(UsageError):
        await guard(branch, 2)


async def test_only_roles_of_undoubt_show_tokens(noted: Database, server: EmbeddedServer) -> None:
    """Any role could show a token above all that will ever be issued, and lock out every holder."""
    await noted.admin.execute("create role stranger login")
    connection = await asyncpg.connect(server.dsn(noted.name, user="stranger"))
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("select undoubt.guard_lock('a', 'b', 9223372036854775807)")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("insert into undoubt.undoubt_lock values ('a', 'b', 1, now())")
    finally:
        await connection.close()
        await noted.admin.execute("drop role stranger")


async def test_rows_that_nobody_has_guarded_for_long_are_pruned(
    participant: PostgresParticipant, noted: Database
) -> None:
    for name in ("old", "new"):
        branch = await begun(participant)
        await guard(branch, 1, name)
        await committed(branch)
    await noted.admin.execute(
        "update undoubt.undoubt_lock set guarded_at = now() - interval '8 days' where name = 'old'"
    )
    await schema.prune("p", ParticipantSettings(dsn=noted.dsn), older_than_s=0)
    assert [name for _, name, _ in await shown(noted)] == ["new"]


async def test_the_application_writes_beside_the_guard(
    participant: PostgresParticipant, noted: Database, kind: str
) -> None:
    branch = await begun(participant)
    await guard(branch, 1)
    if kind == "psycopg-sync":
        await asyncio.to_thread(branch.connection.execute, WRITE)
    else:
        await branch.connection.execute(WRITE)
    await guard(branch, 1)
    await committed(branch)
    assert await noted.balance() == 90


async def prepared(branch: Branch, participant: PostgresParticipant) -> None:
    result = await branch.prepare()
    if result.vote is Vote.ABORT:
        assert result.reason is not None
        raise result.reason


async def in_one_phase(branch: Branch, participant: PostgresParticipant) -> None:
    await branch.poll()
    await branch.commit_one_phase()


async def as_agent(branch: Branch, participant: PostgresParticipant) -> None:
    assert isinstance(branch, LastAgentBranch)
    txid = branch.gid.txid
    entry = AgentEntry(LEDGER, txid, KEY.agent(txid), await participant.agent.place())
    await branch.check_as_agent(entry)
    await branch.commit_as_agent(entry, b"")


End = Callable[[Branch, PostgresParticipant], Awaitable[None]]
each_end = pytest.mark.parametrize("end", [prepared, in_one_phase, as_agent])
SHOW = "select undoubt.guard_lock($1, 'job', $2)"


async def guarded_in_a_savepoint(participant: PostgresParticipant) -> Branch:
    """A branch that has guarded inside a savepoint, and has rolled it back."""
    branch = await participant.begin(new_gid(), timeout_s=30.0, key=KEY)
    await at(branch).execute("savepoint s")
    await guard(branch, 1, "job")
    await at(branch).execute("rollback to savepoint s")
    return branch


@each_end
async def test_a_guard_that_a_savepoint_has_undone_is_shown_again(
    participant: PostgresParticipant, noted: Database, end: End
) -> None:
    """A former holder would write beside the next one."""
    branch = await guarded_in_a_savepoint(participant)
    await noted.admin.execute(SHOW, LEDGER, 2)
    await at(branch).execute(WRITE)
    with pytest.raises(StaleLock, match="token 1 is stale, another holder has shown 2"):
        await end(branch, participant)
    await branch.rollback()
    await branch.release()
    assert await noted.balance() == 100


@each_end
async def test_a_refused_guard_is_not_undone_by_a_savepoint(
    participant: PostgresParticipant, noted: Database, end: End
) -> None:
    """The program would go on after ``StaleLock``, and commit."""
    await noted.admin.execute(SHOW, LEDGER, 2)
    branch = await participant.begin(new_gid(), timeout_s=30.0, key=KEY)
    await at(branch).execute("savepoint s")
    with pytest.raises(StaleLock):
        await guard(branch, 1, "job")
    await at(branch).execute("rollback to savepoint s")
    await at(branch).execute(WRITE)
    with pytest.raises(StaleLock):
        await end(branch, participant)
    await branch.rollback()
    await branch.release()
    assert await noted.balance() == 100


async def test_a_guard_in_a_savepoint_holds_at_the_end(
    participant: PostgresParticipant, noted: Database
) -> None:
    """The next holder would begin before the branch has ended."""
    branch = await guarded_in_a_savepoint(participant)
    await guard(branch, 1, "another job")
    await committed(branch)
    assert await shown(noted) == [(LEDGER, "another job", 1), (LEDGER, "job", 1)]


async def test_a_branch_that_only_reads_is_shown_again(
    participant: PostgresParticipant, noted: Database
) -> None:
    """A guard that has failed before it wrote would let its branch count as one that has only read."""
    await noted.admin.execute("alter function undoubt.guard_lock(text, text, bigint) rename to away")
    branch = await participant.begin(new_gid(), timeout_s=30.0, key=KEY)
    await at(branch).execute("savepoint s")
    with pytest.raises(ParticipantRefused):
        await guard(branch, 1, "job")
    await at(branch).execute("rollback to savepoint s")
    assert await branch.poll() is Work.WRITES
    assert (await branch.prepare()).vote is Vote.ABORT
    await branch.rollback()
    await branch.release()


@each_end
async def test_a_branch_may_end_in_another_role(noted: Database, scene: Scene, end: End) -> None:
    """A branch that writes in a role of the application could not commit once it is guarded."""
    await noted.admin.execute("grant clerk to app")
    for right in ("function undoubt.guard_lock(text, text, bigint)", "function undoubt.history()"):
        await noted.admin.execute(f"grant execute on {right} to app")
    await noted.admin.execute("grant select, insert, delete on undoubt.undoubt_agent to app")
    participant = scene.at("app")
    branch = await participant.begin(new_gid(), timeout_s=30.0, key=KEY)
    await guard(branch, 1, "job")
    await at(branch).execute("set local role clerk")
    await at(branch).execute(WRITE)
    await end(branch, participant)
    owners = await noted.admin.fetch(
        "select owner from pg_prepared_xacts where database = current_database()"
    )
    assert [row["owner"] for row in owners] == (["clerk"] if end is prepared else [])
    await branch.commit()
    await branch.release()
    await participant.close()
    assert await noted.balance() == 90
