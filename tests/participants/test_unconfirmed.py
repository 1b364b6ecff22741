"""Synchronous replication that did not confirm, sessions that end at the wrong moment: not a plain yes."""

from __future__ import annotations

import asyncio

import pytest

from tests.participants.hands import at
from tests.participants.support import (
    KEY,
    WRITE,
    Database,
    new_gid,
    participant_at,
    unreachable_standby,
    waits_for_standby,
)
from tests.pgbouncer import PgBouncer
from undoubt.participants.contract import Decision, PrepareUnanswered, Settled, Vote, Work
from undoubt.participants.errors import BranchFailed, ParticipantUnavailable
from undoubt.participants.ids import Gid
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.postgres.session import NOTICES_KEPT_MAX, Notice, ServerError, keep
from undoubt.participants.tasks import Continued
from undoubt.participants.three_phase import Charter, Termination


async def test_unconfirmed_prepare_is_no_vote(
    participant: PostgresParticipant, database: Database, gid: Gid
) -> None:
    """Warning 01000: prepared here, perhaps not on the standby that takes over; counting it would lose it."""
    branch = await participant.begin(gid, timeout_s=30)
    pid = at(branch).get_server_pid()
    await at(branch).execute(WRITE)
    async with unreachable_standby(database):
        prepare = asyncio.ensure_future(branch.prepare())
        while not await waits_for_standby(database, pid):
            await asyncio.sleep(0.005)
        assert await database.prepared() == [str(gid)], "visible before it is acknowledged"
        await database.admin.execute("select pg_cancel_backend($1)", pid)
        with pytest.raises(PrepareUnanswered, match="standby"):
            await prepare
    assert await branch.rollback() is Settled.APPLIED
    await branch.release()
    assert await database.prepared() == []


DEFERRED = """
    create function deferred() returns trigger language plpgsql as $$ begin {body}; return null; end $$;
    create constraint trigger deferred after update on account deferrable initially deferred
        for each row when (new.id = 1) execute function deferred()
"""
NOISE = "for i in 1..150 loop raise notice 'row %', i; end loop"
HIDDEN = {
    "many-notices": (DEFERRED.format(body=NOISE), ""),
    "deferred-trigger": (DEFERRED.format(body="set local client_min_messages = error"), ""),
    "waits-for-nobody": (DEFERRED.format(body="set local synchronous_commit = off"), ""),
    "branch": ("", "set local client_min_messages = error"),
    "database": ("alter database {name} set client_min_messages = error", ""),
}
"""What would keep the warning from being seen, or the server from waiting: what is run in the database, and
in the branch; may be nothing."""


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("call", ["prepare", "one-phase"])
async def test_nothing_hides_that_no_standby_confirmed(
    participant: PostgresParticipant, database: Database, gid: Gid, call: str, hidden: str
) -> None:
    """Broken if settings, triggers or notices of an application make a vote, or a commit, of what a standby
    that takes over may not have."""
    made, run = HIDDEN[hidden]
    name = await database.admin.fetchval("select quote_ident(current_database())")
    for statement in filter(None, [made.replace("{name}", name)]):
        await database.admin.execute(statement)
    branch = await participant.begin(gid, timeout_s=30)
    pid = at(branch).get_server_pid()
    await at(branch).execute(WRITE)
    for statement in filter(None, [run]):
        await at(branch).execute(statement)
    assert await branch.poll() is Work.WRITES
    async with unreachable_standby(database):
        ending = asyncio.ensure_future(branch.prepare() if call == "prepare" else branch.commit_one_phase())
        while not ending.done() and not await waits_for_standby(database, pid):
            await asyncio.sleep(0.005)
        await database.admin.execute("select pg_cancel_backend($1)", pid)
        if call == "prepare":
            with pytest.raises(PrepareUnanswered, match="standby"):
                await ending
        else:
            assert await ending is Settled.HEURISTIC_HAZARD
    await branch.rollback()
    await branch.release()
    assert await database.prepared() == []


async def test_a_deferred_trigger_changes_no_report(
    participant: PostgresParticipant, database: Database, gid: Gid
) -> None:
    """Broken if what PREPARE reports of its transaction is what somebody else's trigger has written: with
    another id recovery takes the branch for an impostor."""
    await database.admin.execute(
        DEFERRED.format(
            body="perform set_config('application_name',"
            " overlay(current_setting('application_name') placing 'AAAAAAAA' from"
            " position('#' in current_setting('application_name')) + 1), false)"
        )
    )
    branch = await participant.begin(gid, timeout_s=30)
    await at(branch).execute(WRITE)
    own = await at(branch).fetchval("select pg_current_xact_id()::text::bigint")
    told = await branch.prepare()
    assert (told.vote, told.evidence and told.evidence.xid) == (Vote.PREPARED, own)
    assert await branch.commit() is Settled.APPLIED
    await branch.release()
    assert await database.balance() == 90


def test_the_last_notice_of_a_standby_is_kept() -> None:
    notices: list[Notice] = []
    for number in range(NOTICES_KEPT_MAX + 5):
        keep(notices, Notice("NOTICE", "00000", f"row {number}", "pl_exec.c"))
    assert len(notices) == NOTICES_KEPT_MAX
    keep(notices, Notice("WARNING", "01000", "canceling wait", "syncrep.c"))
    keep(notices, Notice("NOTICE", "00000", "late", "pl_exec.c"))
    assert len(notices) == NOTICES_KEPT_MAX
    assert notices[-1].of_standby


@pytest.mark.parametrize("hidden", ["", "database", "application"])
async def test_unconfirmed_commit_is_not_final(
    participant: PostgresParticipant, database: Database, gid: Gid, hidden: str
) -> None:
    """The same warning at COMMIT PREPARED, whoever hides it: asked again, the books answer."""
    if hidden == "database":
        name = await database.admin.fetchval("select quote_ident(current_database())")
        await database.admin.execute(f"alter database {name} set client_min_messages = error")
    branch = await participant.begin(gid, timeout_s=30)
    pid = at(branch).get_server_pid()
    await at(branch).execute(WRITE)
    if hidden == "application":
        await at(branch).execute("set client_min_messages = error")
    assert (await branch.prepare()).vote is Vote.PREPARED
    async with unreachable_standby(database):
        commit = asyncio.ensure_future(branch.commit())
        while not await waits_for_standby(database, pid):
            await asyncio.sleep(0.005)
        await database.admin.execute("select pg_cancel_backend($1)", pid)
        assert await commit is Settled.BUSY
    assert await branch.commit() is Settled.APPLIED
    await branch.release()
    assert await database.balance() == 90


@pytest.mark.parametrize("setting", ["client_min_messages = error", "synchronous_commit = off"])
@pytest.mark.parametrize("who", ["branch", "recovery"])
async def test_no_pooler_hides_that_a_commit_is_not_confirmed(
    pooler: PgBouncer, database: Database, gid: Gid, who: str, setting: str
) -> None:
    """Broken if COMMIT PREPARED, which shares no script with a setting, is called final because the database
    sets what hides the warning, or what waits for nobody."""
    await database.admin.execute(f"alter database {database.name} set {setting}")
    participant = participant_at(pooler.dsn(database.name))
    branch = await participant.begin(gid, timeout_s=30)
    await at(branch).execute(WRITE)
    told = await branch.prepare()
    assert told.vote is Vote.PREPARED
    async with unreachable_standby(database):
        committing = branch.commit() if who == "branch" else participant.settle(gid, Decision.COMMIT, None)
        commit = asyncio.ensure_future(committing)
        while not commit.done():
            await database.admin.execute(
                "select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'"
            )
            await asyncio.sleep(0.005)
        assert await commit is Settled.BUSY
    assert await participant.settle(gid, Decision.COMMIT, told.evidence) is Settled.APPLIED
    await branch.release()
    await participant.close()
    assert await database.balance() == 90


async def test_no_state_of_three_phase_commit_is_written_unheard(
    noted: Database, way: PgBouncer | None
) -> None:
    """Broken if a state that a failover would lose counts as written because the warning is hidden."""
    await noted.admin.execute(f"alter database {noted.name} set client_min_messages = error")
    participant = participant_at(noted.dsn if way is None else way.dsn(noted.name))
    gid = new_gid()
    charter = Charter((gid,), Termination.QUORUM)
    assert await participant.states.read(gid) is None
    async with unreachable_standby(noted):
        writing = asyncio.create_task(participant.states.enlist(gid, charter, KEY.note(gid)))
        while not writing.done():
            await noted.admin.execute(
                "select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'"
            )
            await asyncio.sleep(0.005)
        with pytest.raises(ParticipantUnavailable, match="no synchronous standby"):
            await writing
    await participant.close()


@pytest.mark.parametrize("call", ["prepare", "one phase"])
async def test_fatal_error_says_nothing(
    participant: PostgresParticipant, database: Database, gid: Gid, call: str
) -> None:
    """An error that ended the session may come from after the point of no return, unlike every other."""
    branch = await participant.begin(gid, timeout_s=30)
    await at(branch).execute(WRITE)
    assert await branch.poll() is Work.WRITES
    session = branch.session  # type: ignore[attr-defined]

    def fatal(*_: object, **__: object) -> Continued[object]:
        session.discard()
        reason = "terminating connection due to administrator command"
        return Continued.failed(ServerError("57P01", reason, fatal=True))

    session.script = session.pipeline = fatal
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
        prepare = asyncio.ensure_future(branch.prepare())
        while not await waits_for_standby(database, pid):
            await asyncio.sleep(0.005)
        await database.admin.execute("select pg_terminate_backend($1)", pid)
        with pytest.raises(PrepareUnanswered):
            await prepare
    assert await database.prepared() == [str(gid)]
    assert await branch.rollback() is Settled.APPLIED
    await branch.release()
