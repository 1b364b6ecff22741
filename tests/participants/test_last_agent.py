"""Last-agent commit at its agent: the row, or the tombstone, and never a guess. On every kind of
connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import replace

import asyncpg
import pytest

from tests.participants.hands import at, only_the_last, sql_error
from tests.participants.proxy import Proxy
from tests.participants.support import (
    KEY,
    LEDGER,
    WRITE,
    Database,
    new_gid,
    participant_at,
    unreachable_standby,
    waits_for_standby,
)
from tests.pgbouncer import PgBouncer
from undoubt.participants.contract import Branch, Decision
from undoubt.participants.errors import BranchFailed, ParticipantUnavailable
from undoubt.participants.ids import Gid, SessionKey
from undoubt.participants.last_agent import (
    AgentBusy,
    AgentEntry,
    AgentRow,
    AgentUnanswered,
    Holder,
    LastAgent,
    LastAgentBranch,
)
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.postgres.last_agent import unanswered_commit
from undoubt.participants.postgres.schema import restored
from undoubt.participants.postgres.session import ServerError, ServerSession
from undoubt.participants.settings import ParticipantSettings

KINDS = ("asyncpg", "psycopg", "psycopg-sync")
BRANCHES = b"\x00the other branches\xff"
COMMITTED = AgentRow(Decision.COMMIT, BRANCHES)
BURIED = AgentRow(Decision.ABORT, b"")


async def entry_of(gid: Gid, agent: LastAgent) -> AgentEntry:
    return AgentEntry(LEDGER, gid.txid, KEY.agent(gid.txid), await agent.place())


async def begun(participant: PostgresParticipant, gid: Gid, *statements: str) -> Branch:
    branch = await participant.begin(gid, timeout_s=30.0, key=KEY)
    for statement in statements:
        await at(branch).execute(statement)
    return branch


async def commit(branch: Branch, entry: AgentEntry) -> None:
    assert isinstance(branch, LastAgentBranch)
    await branch.check_as_agent(entry)
    await branch.commit_as_agent(entry, BRANCHES)


async def undone(branch: Branch) -> None:
    await branch.rollback()
    await branch.release()


async def rows_in(database: Database) -> list[str]:
    rows = await database.admin.fetch("select decision from undoubt.undoubt_agent order by written_at")
    return [row["decision"] for row in rows]


async def waiting_pid(database: Database) -> int:
    """The session that waits for a standby in its commit of a row."""
    while True:
        found = await database.admin.fetchval(
            "select pid from pg_stat_activity where wait_event = 'SyncRep' and datname = current_database()"
        )
        if found is not None:
            return int(found)
        await asyncio.sleep(0.005)


@asynccontextmanager
async def held(database: Database, entry: AgentEntry) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A session that has inserted the row of ``entry``, and has not ended."""
    connection = await asyncpg.connect(database.dsn, server_settings={"application_name": "the holder"})
    try:
        await connection.execute("begin")
        await connection.execute(
            "select undoubt.note_agent($1, $2, $3, $4)", entry.proof, LEDGER, str(entry.txid), BRANCHES
        )
        yield connection
    finally:
        connection.terminate()


async def busy(agent: LastAgent, entry: AgentEntry) -> Holder:
    """The session that holds the key; a slow server may end the wait before it can be asked for that."""
    while True:
        with pytest.raises(AgentBusy, match="is writing the row") as refused:
            await agent.conclude(entry)
        if refused.value.holder is not None:
            return refused.value.holder


# The COMMIT.


async def test_the_row_is_there_exactly_if_the_branch_has_committed(
    participant: PostgresParticipant, noted: Database
) -> None:
    """A row without its branch, or the contrary, splits the transaction."""
    gid = new_gid()
    entry = await entry_of(gid, participant.agent)
    branch = await begun(participant, gid, WRITE)
    await commit(branch, entry)
    await branch.release()
    assert await noted.balance() == 90
    assert await rows_in(noted) == ["commit"]
    assert await participant.agent.conclude(entry) == COMMITTED
    other = await begun(participant, new_gid(), WRITE)
    await undone(other)
    assert await rows_in(noted) == ["commit"]


async def test_a_branch_that_only_read_writes_the_row(
    participant: PostgresParticipant, noted: Database
) -> None:
    """The other branches wait for the row, whatever the agent has done."""
    gid = new_gid()
    entry = await entry_of(gid, participant.agent)
    branch = await begun(participant, gid, "select from account")
    await commit(branch, entry)
    await branch.release()
    assert await participant.agent.conclude(entry) == COMMITTED


@pytest.mark.parametrize("wrote", [False, True])
async def test_a_read_only_transaction_is_refused(
    participant: PostgresParticipant, noted: Database, wrote: bool
) -> None:
    """It cannot write the row: before the first PREPARE if that can be seen, else it aborts."""
    gid = new_gid()
    entry = await entry_of(gid, participant.agent)
    branch = await begun(participant, gid, *([WRITE] if wrote else []), "set transaction read only")
    assert isinstance(branch, LastAgentBranch)
    with pytest.raises(BranchFailed, match=r"read[ -]only"):
        await branch.check_as_agent(entry)
        assert wrote, "it has to be refused before the others are prepared"
        await branch.commit_as_agent(entry, BRANCHES)
    await undone(branch)
    assert await noted.balance() == 100
    assert await rows_in(noted) == []


async def test_a_branch_in_another_history_is_refused(
    participant: PostgresParticipant, noted: Database
) -> None:
    """Recovery would look for the row in a history that has never seen it."""
    gid = new_gid()
    entry = await entry_of(gid, participant.agent)
    elsewhere = replace(entry, place=entry.place._replace(history="another"))
    branch = await begun(participant, gid, WRITE)
    assert isinstance(branch, LastAgentBranch)
    with pytest.raises(BranchFailed, match="another history"):
        await branch.check_as_agent(elsewhere)
    await undone(branch)


async def test_a_tombstone_refuses_the_commit(participant: PostgresParticipant, noted: Database) -> None:
    """An expired coordinator that lives would commit what recovery has aborted."""
    gid = new_gid()
    entry = await entry_of(gid, participant.agent)
    branch = await begun(participant, gid, WRITE)
    assert isinstance(branch, LastAgentBranch)
    await branch.check_as_agent(entry)
    assert await participant.agent.conclude(entry) == BURIED
    with pytest.raises(BranchFailed, match="recovery or an operator"):
        await branch.commit_as_agent(entry, BRANCHES)
    await undone(branch)
    assert await noted.balance() == 100
    assert await participant.agent.conclude(entry) == BURIED
    assert await rows_in(noted) == ["abort"]


SPOILT = {
    "swallowed": "savepoint s; select 1/0",
    "ended": "commit",
    "ended-and-begun": "commit; begin",
}


@pytest.mark.parametrize("how", SPOILT)
async def test_a_branch_that_is_over_writes_no_row(
    participant: PostgresParticipant, noted: Database, how: str
) -> None:
    """COMMIT would answer, and the row would be of another transaction."""
    gid = new_gid()
    entry = await entry_of(gid, participant.agent)
    branch = await begun(participant, gid, WRITE)
    for statement in SPOILT[how].split("; "):
        with sql_error("22012") if "1/0" in statement else nullcontext():
            await at(branch).execute(statement)
    assert isinstance(branch, LastAgentBranch)
    with pytest.raises(BranchFailed):
        await branch.commit_as_agent(entry, BRANCHES)
    await undone(branch)
    assert await rows_in(noted) == []


async def test_the_tag_is_looked_at(participant: PostgresParticipant, noted: Database) -> None:
    """A failed transaction answers COMMIT with ROLLBACK, and no error."""
    gid = new_gid()
    entry = await entry_of(gid, participant.agent)
    branch = await begun(participant, gid, WRITE)
    assert isinstance(branch, LastAgentBranch)
    await branch.check_as_agent(entry)
    session: ServerSession = branch.session  # type: ignore[attr-defined]
    with pytest.raises(ServerError):
        await session.script("select 1/0", timeout_s=10.0)
    only_the_last(session)
    with pytest.raises(BranchFailed, match="COMMIT answered ROLLBACK"):
        await branch.commit_as_agent(entry, BRANCHES)
    await undone(branch)
    assert await noted.balance() == 100
    assert await rows_in(noted) == []


async def test_a_deferred_constraint_rolls_both_back(
    participant: PostgresParticipant, noted: Database
) -> None:
    """An error that leaves the session alive is a certain no."""
    await noted.admin.execute("update account set balance = 90 where id = 2")
    await noted.admin.execute("alter table account add unique (balance) deferrable initially deferred")
    gid = new_gid()
    entry = await entry_of(gid, participant.agent)
    branch = await begun(participant, gid, WRITE)
    with pytest.raises(BranchFailed) as failed:
        await commit(branch, entry)
    assert failed.value.sqlstate == "23505"
    assert "recovery" not in str(failed.value)
    await undone(branch)
    assert await participant.agent.conclude(entry) == BURIED


async def test_an_unconfirmed_commit_is_no_answer(participant: PostgresParticipant, noted: Database) -> None:
    """A failover would take the agent's part back, after the others have committed."""
    gid = new_gid()
    entry = await entry_of(gid, participant.agent)
    branch = await begun(participant, gid, WRITE)
    async with unreachable_standby(noted):
        committing = asyncio.create_task(commit(branch, entry))
        await noted.admin.execute("select pg_cancel_backend($1)", await waiting_pid(noted))
        with pytest.raises(AgentUnanswered, match="no synchronous standby"):
            await committing
        await undone(branch)
        concluding = asyncio.create_task(participant.agent.conclude(entry))
        pid = await waiting_pid(noted)
        await noted.admin.execute("select pg_cancel_backend($1)", pid)
        with pytest.raises(ParticipantUnavailable, match="a failover could take back"):
            await concluding
        listing = asyncio.create_task(participant.agent.find([entry.key]))
        await noted.admin.execute("select pg_cancel_backend($1)", await waiting_pid(noted))
        with pytest.raises(ParticipantUnavailable, match="a failover could take back"):
            await listing
    assert await participant.agent.conclude(entry) == COMMITTED


async def test_a_lost_answer_is_no_answer(noted: Database) -> None:
    """The COMMIT has happened, and its answer has not arrived."""
    async with Proxy(noted.dsn) as proxy:
        participant = participant_at(proxy.dsn)
        gid = new_gid()
        entry = await entry_of(gid, participant.agent)
        branch = await begun(participant, gid, WRITE)
        assert isinstance(branch, LastAgentBranch)
        await branch.check_as_agent(entry)
        proxy.freeze()
        committing = asyncio.create_task(branch.commit_as_agent(entry, BRANCHES))
        await proxy.held.wait()
        while await rows_in(noted) == []:
            await asyncio.sleep(0.005)
        proxy.cut()
        with pytest.raises(AgentUnanswered):
            await committing
        await undone(branch)
        with suppress(ParticipantUnavailable):  # the cut has ended that session too
            await participant.agent.conclude(entry)
        assert await participant.agent.conclude(entry) == COMMITTED
        await participant.close()
    assert await noted.balance() == 90


async def test_a_session_that_was_ended_in_its_commit_is_no_answer(
    participant: PostgresParticipant, noted: Database
) -> None:
    """FATAL comes after the point of no return as well as before it."""
    gid = new_gid()
    entry = await entry_of(gid, participant.agent)
    branch = await begun(participant, gid, WRITE)
    async with unreachable_standby(noted):
        committing = asyncio.create_task(commit(branch, entry))
        await noted.admin.execute("select pg_terminate_backend($1)", await waiting_pid(noted))
        with pytest.raises(AgentUnanswered):
            await committing
        await undone(branch)
    assert await participant.agent.conclude(entry) == COMMITTED
    assert await noted.balance() == 90


@pytest.mark.parametrize(
    ("sqlstate", "fatal", "unanswered"),
    [("57P01", True, True), ("08006", False, True), ("40001", False, False), ("57014", False, False)],
)
def test_errors_that_are_no_answer(sqlstate: str, fatal: bool, unanswered: bool) -> None:
    """A server that ends the session behind its COMMIT sends its reason in place of the answer."""
    assert unanswered_commit(ServerError(sqlstate, "of a test", fatal=fatal)) is unanswered


# The tombstone.


async def test_a_tombstone_waits_for_a_commit_in_flight(
    participant: PostgresParticipant, noted: Database
) -> None:
    """The row is not visible yet: a look would find nothing, and abort what is committing."""
    gid = new_gid()
    entry = await entry_of(gid, participant.agent)
    branch = await begun(participant, gid, WRITE)
    async with unreachable_standby(noted):
        committing = asyncio.create_task(commit(branch, entry))
        pid = await waiting_pid(noted)
        holder = await busy(participant.agent, entry)
        assert holder.pid == pid
        assert holder.application.startswith(f"undoubt:{LEDGER}:{gid.txid.session}.{gid.txid.seq}")
        assert "SyncRep" in holder.state
        assert await waits_for_standby(noted, pid)
        await noted.admin.execute("select pg_cancel_backend($1)", pid)
        with pytest.raises(AgentUnanswered):
            await committing
        await undone(branch)
    assert await participant.agent.conclude(entry) == COMMITTED


async def test_a_session_that_holds_the_key_can_be_ended(
    participant: PostgresParticipant, noted: Database
) -> None:
    """The COMMIT of a dead coordinator never comes, and its session stays: in doubt for ever."""
    entry = await entry_of(new_gid(), participant.agent)
    async with held(noted, entry) as connection:
        holder = await busy(participant.agent, entry)
        assert holder.application == "the holder"
        assert holder.pid == connection.get_server_pid()
        assert not await participant.agent.terminate(holder._replace(started="1.5"))
        assert await participant.agent.terminate(holder)
        async with asyncio.timeout(30):
            while True:
                try:
                    found = await participant.agent.conclude(entry)
                except AgentBusy:
                    continue
                break
    assert found == BURIED
    assert not await participant.agent.terminate(holder)


async def test_a_tombstone_that_waited_sees_the_row(
    participant: PostgresParticipant, noted: Database
) -> None:
    """The statement that waited for the key does not see the row: only another one does."""
    entry = await entry_of(new_gid(), participant.agent)
    async with held(noted, entry) as connection:
        concluding = asyncio.create_task(participant.agent.conclude(entry))
        while not await noted.admin.fetchval("select exists (select from pg_locks where not granted)"):
            await asyncio.sleep(0.005)
        await connection.execute("commit")
        assert await concluding == COMMITTED
    assert await rows_in(noted) == ["commit"]


async def test_in_another_history_absence_proves_nothing(
    participant: PostgresParticipant, noted: Database
) -> None:
    """The failover may have lost the row, and the others have committed."""
    gid, lost = new_gid(), new_gid()
    entry, missing = await entry_of(gid, participant.agent), await entry_of(lost, participant.agent)
    branch = await begun(participant, gid, WRITE)
    await commit(branch, entry)
    await branch.release()
    await restored("p", ParticipantSettings(dsn=noted.dsn))
    assert await participant.agent.place() != entry.place
    assert await participant.agent.conclude(missing) is None
    assert await rows_in(noted) == ["commit"]
    assert await participant.agent.conclude(entry) == COMMITTED


async def test_rows_are_listed_and_forgotten(participant: PostgresParticipant, noted: Database) -> None:
    """A row that is deleted too early, or a tombstone that is deleted, lets the other be written."""
    entries = []
    for _ in range(3):
        gid = new_gid()
        entries.append(await entry_of(gid, participant.agent))
        branch = await begun(participant, gid, WRITE)
        await commit(branch, entries[-1])
        await branch.release()
    grave = await entry_of(new_gid(), participant.agent)
    assert await participant.agent.conclude(grave) == BURIED
    first = await participant.agent.stored(LEDGER, limit=2)
    rest = await participant.agent.stored(LEDGER, after=first[-1].key, limit=9)
    assert all(0 <= row.age_s < 300 for row in first)
    listed = {row.key: (row.txid, row.decision) for row in [*first, *rest]}
    assert listed == {one.key: (str(one.txid), Decision.COMMIT) for one in entries} | {
        grave.key: (str(grave.txid), Decision.ABORT)
    }
    assert await participant.agent.stored("otherledge", limit=9) == []
    found = await participant.agent.find([grave.key, entries[1].key, b"none"])
    assert found == {grave.key: BURIED, entries[1].key: COMMITTED}
    await participant.agent.drop([one.key for one in entries])
    await participant.agent.forget([entries[0].key, grave.key])
    await participant.agent.forget([entries[0].key, grave.key])
    assert await rows_in(noted) == ["commit", "commit", "abort"]
    assert await participant.agent.conclude(grave) == BURIED
    assert await participant.agent.conclude(entries[0]) == BURIED, "the ledger is asked, and has COMMIT"
    await participant.agent.drop([grave.key])
    assert await participant.agent.find([grave.key]) == {}


async def test_through_a_pooler(noted: Database, pooler: PgBouncer) -> None:
    """The next server may be in another history, so the branch itself is asked."""
    participant = participant_at(pooler.dsn(noted.name))
    gid = new_gid()
    entry = await entry_of(gid, participant.agent)
    branch = await begun(participant, gid, WRITE)
    await commit(branch, entry)
    await branch.release()
    assert await participant.agent.conclude(entry) == COMMITTED
    later = await begun(participant, new_gid(), WRITE)
    assert isinstance(later, LastAgentBranch)
    with pytest.raises(BranchFailed, match="another history"):
        await later.check_as_agent(replace(entry, place=entry.place._replace(history="another")))
    await undone(later)
    await participant.close()


def test_a_holder_is_told() -> None:
    assert str(Holder(0)) == "a prepared transaction"
    assert str(Holder(7)) == "the session with pid 7"
    assert str(Holder(7, "1", "app", "psql", "idle")) == "the session with pid 7 (role app, psql, idle)"
    assert "a session is writing" in str(AgentBusy("p", None))


def test_a_session_whose_ledger_gave_no_key_has_no_rows(gid: Gid) -> None:
    """Recovery could not make the key of its rows."""
    assert KEY.agent(gid.txid) != KEY.agent(new_gid().txid)
    assert SessionKey.drawn().agent(gid.txid) == b""
