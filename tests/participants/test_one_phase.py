"""Plain COMMIT of a single branch, and what may be said when its answer is lost."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from participants.contract import Evidence, Fate, Settled, Work
from participants.errors import BranchFailed, ParticipantRefused
from participants.ids import Gid
from participants.postgres import PostgresParticipant
from participants.postgres.one_phase import OnePhase
from participants.postgres.schema import migrate, prune
from participants.postgres.session import Session
from participants.settings import ParticipantSettings
from tests.participants.proxy import Proxy
from tests.participants.support import (
    WRITE,
    Database,
    new_gid,
    participant_at,
    unreachable_standby,
    waits_for_standby,
)
from undoubt.embedded import EmbeddedServer

_SLOW_TRIGGER = (
    "create function dawdle() returns trigger language plpgsql as"
    " $$ begin perform pg_advisory_xact_lock(4711); return null; end $$;"
    "create constraint trigger slow after update on account deferrable initially deferred"
    " for each row execute function dawdle()"
)


async def test_commit(participant: PostgresParticipant, database: Database, gid: Gid) -> None:
    """Else nothing with one database works."""
    branch = await participant.begin(gid, timeout_s=30)
    await branch.connection.execute(WRITE)
    assert await branch.commit_one_phase() is Settled.APPLIED
    assert await database.balance() == 90


async def test_swallowed_error(participant: PostgresParticipant, database: Database, gid: Gid) -> None:
    """COMMIT of a failed transaction answers ROLLBACK and no error."""
    branch = await participant.begin(gid, timeout_s=30)
    await branch.connection.execute(WRITE)
    with pytest.raises(asyncpg.DivisionByZeroError):
        await branch.connection.execute("select 1/0")
    with pytest.raises(BranchFailed, match="swallowed"):
        await branch.commit_one_phase()
    await branch.release()
    assert await database.balance() == 100


async def test_tag_other_than_commit(participant: PostgresParticipant, database: Database, gid: Gid) -> None:
    """The tag is looked at too: here the guard is passed and the transaction fails after it."""
    branch = await participant.begin(gid, timeout_s=30)
    await branch.connection.execute(WRITE)
    session = branch._session  # type: ignore[attr-defined]
    plain = session.script

    async def failing_in_between(sql: str, *, timeout_s: float) -> object:
        with pytest.raises(asyncpg.DivisionByZeroError):
            await session.connection.execute("select 1/0")
        return await plain("commit", timeout_s=timeout_s)

    session.script = failing_in_between
    with pytest.raises(BranchFailed, match="ROLLBACK"):
        await branch.commit_one_phase()
    assert await database.balance() == 100


@pytest.mark.parametrize("typed", ["commit", "commit; begin", "rollback; begin"])
async def test_ended_by_the_application(
    participant: PostgresParticipant, database: Database, gid: Gid, typed: str
) -> None:
    """What stands in the branch's place is not committed under its name."""
    branch = await participant.begin(gid, timeout_s=30)
    await branch.connection.execute(typed)
    if "begin" in typed:
        await branch.connection.execute(WRITE)
    with pytest.raises(BranchFailed, match="ended by the application"):
        await branch.commit_one_phase()
    await branch.release()
    assert await database.balance() == 100


async def test_deferred_constraint(participant: PostgresParticipant, database: Database, gid: Gid) -> None:
    """An error of COMMIT itself is a rollback with a reason, not an unknown outcome."""
    await database.admin.execute(
        "create table entry (account int references account deferrable initially deferred)"
    )
    branch = await participant.begin(gid, timeout_s=30)
    await branch.connection.execute("insert into entry values (77)")
    with pytest.raises(BranchFailed) as failed:
        await branch.commit_one_phase()
    assert failed.value.sqlstate == "23503"


@pytest.fixture
async def noted(database: Database) -> Database:
    """The database with the table of commits."""
    settings = ParticipantSettings(dsn=database.dsn)
    await migrate("p", settings)
    await migrate("p", settings)  # does nothing
    return database


async def lose_answer(
    participant: PostgresParticipant, database: Database, gid: Gid, *, polled: bool
) -> Settled:
    """The connection is cut while COMMIT waits in a deferred trigger: it never happens."""
    await database.admin.execute(_SLOW_TRIGGER)
    await database.admin.execute("select pg_advisory_lock(4711)")
    branch = await participant.begin(gid, timeout_s=30)
    pid = await branch.connection.fetchval("select pg_backend_pid()")
    await branch.connection.execute(WRITE)
    if polled:
        assert await branch.poll() is Work.WRITES
    commit = asyncio.create_task(branch.commit_one_phase())
    while not await database.admin.fetchval(
        "select exists (select from pg_locks where pid = $1 and not granted)", pid
    ):
        await asyncio.sleep(0.005)
    await database.admin.execute("select pg_terminate_backend($1)", pid)
    settled = await commit
    await branch.release()
    await database.admin.execute("select pg_advisory_unlock(4711)")
    return settled


async def test_lost_answer_without_table(
    participant: PostgresParticipant, database: Database, gid: Gid
) -> None:
    """Nothing is known of the branch but that it had no answer: to say "aborted" would be a guess."""
    assert await lose_answer(participant, database, gid, polled=False) is Settled.HEURISTIC_HAZARD
    assert await database.balance() == 100


async def test_lost_answer_with_known_xid(
    participant: PostgresParticipant, database: Database, gid: Gid
) -> None:
    """An id that the server calls aborted did not commit, whoever had it."""
    assert await lose_answer(participant, database, gid, polled=True) is Settled.ABSENT
    assert await database.balance() == 100


@pytest.mark.parametrize("polled", [False, True])
async def test_lost_answer_with_table(
    participant: PostgresParticipant, noted: Database, gid: Gid, polled: bool
) -> None:
    """The session is over and its row is not there: it never committed."""
    assert await lose_answer(participant, noted, gid, polled=polled) is Settled.ABSENT
    assert await noted.balance() == 100


async def test_lost_answer_of_a_commit_that_still_runs(noted: Database, gid: Gid) -> None:
    """The client has lost its connection, the server does not know yet: a missing row is no proof."""
    await noted.admin.execute(_SLOW_TRIGGER)
    await noted.admin.execute("select pg_advisory_lock(4711)")
    async with Proxy(noted.dsn) as proxy:
        participant = participant_at(proxy.dsn)
        one_phase = participant._around.one_phase
        look_for_row = one_phase._look_for_row
        looks = []

        async def then_let_it_commit(session: Session, gid: Gid, wrote: bool) -> Settled:
            looks.append(await look_for_row(session, gid, wrote))
            if len(looks) == 1:
                await noted.admin.execute("select pg_advisory_unlock(4711)")
            return looks[-1]

        one_phase._look_for_row = then_let_it_commit  # type: ignore[method-assign]
        branch = await participant.begin(gid, timeout_s=30)
        await branch.connection.execute(WRITE)
        commit = asyncio.create_task(branch.commit_one_phase())
        while not await noted.admin.fetchval("select exists (select from pg_locks where not granted)"):
            await asyncio.sleep(0.005)
        proxy.cut()
        assert await commit is Settled.APPLIED
        assert looks[0] is Settled.BUSY
        await branch.release()
        await participant.close()
    assert await noted.balance() == 90


async def lose_answer_after_commit(participant: PostgresParticipant, database: Database, gid: Gid) -> Settled:
    """COMMIT is in the log and waits for a standby when its session is terminated: it did happen."""
    async with unreachable_standby(database):
        branch = await participant.begin(gid, timeout_s=30)
        pid = await branch.connection.fetchval("select pg_backend_pid()")
        await branch.connection.execute(WRITE)
        assert await branch.poll() is Work.WRITES
        commit = asyncio.create_task(branch.commit_one_phase())
        while not await waits_for_standby(database, pid):
            await asyncio.sleep(0.005)
        await database.admin.execute("select pg_terminate_backend($1)", pid)
        settled = await commit
        await branch.release()
        return settled


async def test_lost_answer_of_a_done_commit_with_table(
    participant: PostgresParticipant, noted: Database, gid: Gid
) -> None:
    """The row is there: it committed. To answer "unknown" or "aborted" would make the caller do it twice."""
    assert await lose_answer_after_commit(participant, noted, gid) is Settled.APPLIED
    assert await noted.balance() == 90


async def test_lost_answer_of_a_done_commit_without_table(
    participant: PostgresParticipant, database: Database, gid: Gid
) -> None:
    """Without a row, "committed" may be said of another transaction, given the same id after a crash."""
    assert await lose_answer_after_commit(participant, database, gid) is Settled.HEURISTIC_HAZARD


async def test_unconfirmed_by_the_standby(
    participant: PostgresParticipant, database: Database, gid: Gid
) -> None:
    """Warning 01000 at COMMIT: on this server and perhaps on no other, so not a plain yes."""
    async with unreachable_standby(database):
        branch = await participant.begin(gid, timeout_s=30)
        pid = await branch.connection.fetchval("select pg_backend_pid()")
        await branch.connection.execute(WRITE)
        commit = asyncio.create_task(branch.commit_one_phase())
        while not await waits_for_standby(database, pid):
            await asyncio.sleep(0.005)
        await database.admin.execute("select pg_cancel_backend($1)", pid)
        assert await commit is Settled.HEURISTIC_HAZARD
        await branch.release()


async def test_row_needs_no_right_of_the_applications_role(
    participant: PostgresParticipant, noted: Database, gid: Gid
) -> None:
    """The role that the application took on may have no right to the table; its COMMIT must not fail."""
    await noted.admin.execute("create role humble; grant all on account to humble")
    branch = await participant.begin(gid, timeout_s=30)
    await branch.connection.execute(
        "set local role humble; set local search_path = ''; " + "update public." + WRITE[7:]
    )
    assert await branch.commit_one_phase() is Settled.APPLIED
    await branch.release()
    assert await noted.admin.fetchval("select txid from undoubt.undoubt_commit") == str(gid.txid)
    await noted.admin.execute("drop owned by humble; drop role humble")


async def test_readers_leave_no_row(participant: PostgresParticipant, noted: Database) -> None:
    """Else every read-only transaction would become a write, and fail where it is set to read only."""
    for setting in ("select 1", "set transaction read only", WRITE + "; set transaction read only"):
        branch = await participant.begin(new_gid(), timeout_s=30)
        await branch.connection.execute(setting)
        await branch.connection.fetch("select * from account")
        assert await branch.commit_one_phase() is Settled.APPLIED
        await branch.release()
    assert await noted.admin.fetchval("select count(*) from undoubt.undoubt_commit") == 0


async def test_prune(participant: PostgresParticipant, noted: Database) -> None:
    """The table must not grow for ever, nor lose rows that may still be asked for."""
    for _ in range(3):
        branch = await participant.begin(new_gid(), timeout_s=30)
        await branch.connection.execute(WRITE)
        await branch.commit_one_phase()
        await branch.release()
    await noted.admin.execute(
        "update undoubt.undoubt_commit set noted_at = noted_at - interval '2 days'"
        " where ctid in (select ctid from undoubt.undoubt_commit limit 2)"
    )
    settings = ParticipantSettings(dsn=noted.dsn)
    assert await prune("p", settings, older_than_s=86_400) == 2
    assert await prune("p", settings, older_than_s=86_400) == 0
    assert await noted.admin.fetchval("select count(*) from undoubt.undoubt_commit") == 1


async def test_migrate_without_the_right(database: Database, server: EmbeddedServer) -> None:
    """A refusal names the participant and what was missing."""
    await database.admin.execute("create role nobody_much login")
    settings = ParticipantSettings(dsn=server.dsn(database.name, user="nobody_much"))
    with pytest.raises(ParticipantRefused, match=r"'p'.*permission denied"):
        await migrate("p", settings)
    await database.admin.execute("drop role nobody_much")


async def test_synchronous_commit_is_on(database: Database, gid: Gid) -> None:
    """A COMMIT that the server may forget in a crash is none; a role's own setting does not change that."""
    await database.admin.execute(f"alter database {database.name} set synchronous_commit = off")
    participant = participant_at(database.dsn)
    for number in range(2):
        branch = await participant.begin(new_gid(), timeout_s=30)
        assert await branch.connection.fetchval("show synchronous_commit") == "on", number
        await branch.rollback()
        await branch.release()
    await participant.close()


async def test_evidence_of_one_phase_is_not_evidence_of_commit() -> None:
    """The rule in one line: only *aborted* and *never assigned* are believed of an unprepared id."""

    class Books:
        def __init__(self, fate: Fate) -> None:
            self.fate = fate

        async def evidence(self, evidence: Evidence) -> Fate:
            return self.fate

    class Lost:
        class intro:  # noqa: N801
            system, timeline = 1, "00000001"

    expected = {
        Fate.COMMITTED: Settled.HEURISTIC_HAZARD,
        Fate.ABORTED: Settled.ABSENT,
        Fate.NEVER_ASSIGNED: Settled.ABSENT,
        Fate.UNKNOWN: Settled.HEURISTIC_HAZARD,
        Fate.IN_PROGRESS: Settled.BUSY,
    }
    for fate in Fate:
        phase = OnePhase(None, Books(fate), pooler=False)  # type: ignore[arg-type]
        assert await phase._look_for_xid(Lost(), 7) is expected[fate]  # type: ignore[arg-type]
