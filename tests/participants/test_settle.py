"""The second phase and its evidence, by somebody who was not there: what a "no such branch" means."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import asyncpg
import pytest

from tests.participants.hands import at
from tests.participants.support import (
    WRITE,
    Database,
    new_gid,
    participant_at,
    unreachable_standby,
    waits_for_standby,
)
from undoubt.embedded import EmbeddedServer
from undoubt.participants.contract import Decision, Evidence, Settled, Vote, XactStatus
from undoubt.participants.errors import ParticipantRefused
from undoubt.participants.ids import Foreign, Gid
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.postgres.in_doubt import widen
from undoubt.participants.sql import identifier, literal


async def prepared(participant: PostgresParticipant, gid: Gid, statement: str = WRITE) -> Evidence:
    """A branch that is prepared, and whose coordinator is gone."""
    branch = await participant.begin(gid, timeout_s=30)
    await at(branch).execute(statement)
    result = await branch.prepare()
    assert result.vote is Vote.PREPARED
    await branch.release()
    assert result.evidence is not None
    return result.evidence


@pytest.mark.parametrize(("order", "balance"), [(Decision.COMMIT, 90), (Decision.ABORT, 100)])
async def test_settle(database: Database, gid: Gid, order: Decision, balance: int) -> None:
    """Another process, that has the gid and nothing else, finishes the branch; told twice, it stays so."""
    one, other = participant_at(database.dsn), participant_at(database.dsn)
    evidence = await prepared(one, gid)
    await one.close()
    assert await other.evidence(evidence) is XactStatus.IN_PROGRESS
    assert await other.settle(gid, order, evidence) is Settled.APPLIED
    assert await database.balance() == balance
    assert await other.settle(gid, order, evidence) is Settled.APPLIED
    await other.close()


async def test_committed_by_hand(participant: PostgresParticipant, database: Database, gid: Gid) -> None:
    """COMMIT finds it done; ROLLBACK finds that somebody decided otherwise."""
    evidence = await prepared(participant, gid)
    await database.admin.execute(f"commit prepared '{gid}'")
    assert await participant.evidence(evidence) is XactStatus.COMMITTED
    assert await participant.settle(gid, Decision.COMMIT, evidence) is Settled.APPLIED
    assert await participant.settle(gid, Decision.ABORT, evidence) is Settled.HEURISTIC_COMMIT


async def test_rolled_back_by_hand(participant: PostgresParticipant, database: Database, gid: Gid) -> None:
    """42704 at COMMIT must not pass for "done" when the DBA rolled it back."""
    branch = await participant.begin(gid, timeout_s=30)
    await at(branch).execute(WRITE)
    evidence = (await branch.prepare()).evidence
    await database.admin.execute(f"rollback prepared '{gid}'")
    assert await branch.commit() is Settled.HEURISTIC_ROLLBACK
    await branch.release()
    assert evidence is not None
    assert await participant.evidence(evidence) is XactStatus.ABORTED
    assert await participant.settle(gid, Decision.COMMIT, evidence) is Settled.HEURISTIC_ROLLBACK
    assert await participant.settle(gid, Decision.ABORT, evidence) is Settled.APPLIED


async def test_no_evidence(participant: PostgresParticipant, gid: Gid) -> None:
    """Without proof COMMIT is a hazard, and ROLLBACK is only absent: the branch may yet appear."""
    assert await participant.settle(gid, Decision.COMMIT, None) is Settled.HEURISTIC_HAZARD
    assert await participant.settle(gid, Decision.ABORT, None) is Settled.ABSENT


async def test_evidence_of_elsewhere(participant: PostgresParticipant, database: Database, gid: Gid) -> None:
    """The same number on another system or timeline is another transaction."""
    evidence = await prepared(participant, gid)
    assert evidence.system is not None
    await database.admin.execute(f"commit prepared '{gid}'")
    for other in (replace(evidence, timeline="00000002"), replace(evidence, system=evidence.system + 1)):
        assert await participant.evidence(other) is XactStatus.UNKNOWN
        assert await participant.settle(gid, Decision.COMMIT, other) is Settled.HEURISTIC_HAZARD
    future = replace(evidence, xid=evidence.xid + 1_000_000)
    assert await participant.evidence(replace(future, timeline="00000002")) is XactStatus.UNKNOWN


async def test_xid_of_the_future(participant: PostgresParticipant, gid: Gid) -> None:
    """22023: the server never gave out that id, so it lost the branch and its prepare."""
    evidence = await prepared(participant, gid)
    future = replace(evidence, xid=evidence.xid + 1_000_000)
    assert await participant.evidence(future) is XactStatus.NEVER_ASSIGNED
    assert await participant.settle(new_gid(), Decision.COMMIT, future) is Settled.HEURISTIC_ROLLBACK
    assert await participant.settle(new_gid(), Decision.ABORT, future) is Settled.ABSENT


async def test_in_progress_is_not_final(participant: PostgresParticipant, database: Database) -> None:
    """An id that still runs proves nothing yet."""
    evidence = await prepared(participant, new_gid())
    assert await participant.settle(new_gid(), Decision.COMMIT, evidence) is Settled.BUSY


async def test_busy(participant: PostgresParticipant, database: Database, gid: Gid) -> None:
    """While another session is preparing or finishing it, 55000: look again, it is not lost."""
    evidence = await prepared(participant, gid)
    other = await asyncpg.connect(database.dsn)
    async with unreachable_standby(database):
        waiting = asyncio.create_task(other.execute(f"commit prepared '{gid}'"))
        while not await waits_for_standby(database, other.get_server_pid()):
            await asyncio.sleep(0.005)
        assert await participant.settle(gid, Decision.COMMIT, evidence) is Settled.BUSY
        assert await participant.settle(gid, Decision.ABORT, evidence) is Settled.BUSY
    await waiting
    assert await participant.settle(gid, Decision.COMMIT, evidence) is Settled.APPLIED
    await other.close()


async def test_list_is_of_this_database_only(
    participant: PostgresParticipant, database: Database, server: EmbeddedServer, gid: Gid
) -> None:
    """pg_prepared_xacts shows the whole cluster; a branch elsewhere is not this participant's to finish."""
    other_dsn = await server.create_database("elsewhere")
    other = participant_at(other_dsn)
    theirs = new_gid()
    await prepared(other, theirs, "create table x (a int)")
    evidence = await prepared(participant, gid)
    await database.admin.execute(
        "begin; update account set balance = 0 where id = 2; prepare transaction 'pip''s'"
    )
    listed = {str(row.gid): row for row in await participant.in_doubt()}
    assert set(listed) == {str(gid), "pip's"}
    assert listed["pip's"].gid == Foreign("pip's")
    ours = listed[str(gid)]
    assert (ours.gid, ours.owner, ours.database, ours.xid) == (gid, "postgres", database.name, evidence.xid)
    assert 0 <= ours.age_s < 600
    with pytest.raises(ParticipantRefused, match="elsewhere"):
        await participant.settle(theirs, Decision.COMMIT, None)
    assert await other.settle(theirs, Decision.ABORT, None) is Settled.APPLIED
    await other.close()
    await database.admin.execute("rollback prepared 'pip''s'")
    await database.admin.execute("drop database elsewhere with (force)")


async def test_owner(database: Database, server: EmbeddedServer) -> None:
    """After SET LOCAL ROLE the other role owns the branch: finishing means becoming it, and where that is
    not allowed, saying which GRANT is missing."""
    await database.admin.execute(
        "create role app login; create role bookkeeper; grant bookkeeper to app; create role stranger login;"
        "grant all on account to bookkeeper"
    )
    gid, kept = new_gid(), new_gid()
    app = participant_at(server.dsn(database.name, user="app"))
    stranger = participant_at(server.dsn(database.name, user="stranger"))
    try:
        branch = await app.begin(gid, timeout_s=30)
        await at(branch).execute("set local role bookkeeper")
        await at(branch).execute(WRITE)
        assert (await branch.prepare()).vote is Vote.PREPARED
        [listed] = await app.in_doubt()
        assert listed.owner == "bookkeeper"
        assert await branch.commit() is Settled.APPLIED, "the branch's own session is not the owner any more"
        await branch.release()
        evidence = await prepared(app, kept, "set local role bookkeeper; " + WRITE)
        with pytest.raises(ParticipantRefused, match='GRANT "bookkeeper" TO "stranger"') as refused:
            await stranger.settle(kept, Decision.COMMIT, evidence)
        assert refused.value.sqlstate == "42501"
        assert await database.prepared() == [str(kept)]
        assert await app.settle(kept, Decision.ABORT, None) is Settled.APPLIED
        session = await app.admin_pool.pool.acquire(1)
        assert (await session.session.rows("select current_user as me", timeout_s=5))[0]["me"] == "app"
        app.admin_pool.pool.release(session)
        assert await database.balance() == 90
    finally:
        await app.close()
        await stranger.close()
        await database.admin.execute(
            "drop owned by bookkeeper; drop role bookkeeper; drop role app, stranger"
        )


async def test_gid_with_a_quote_is_quoted(participant: PostgresParticipant, database: Database) -> None:
    """Foreign names cannot break out of the statement (they are never settled, but owners' names are)."""
    for text in ("it's", 'a"b', "back\\slash", "';drop table account;--", "ü\n"):
        assert await database.admin.fetchval(f"select {literal(text)}") == text
        assert await database.admin.fetchval(f"select 1 as {identifier(text)}") == 1


@pytest.mark.parametrize(
    ("low", "near", "wide"),
    [
        (7, 9, 7),
        (9, 7, 9),
        (5, 2**32 + 9, 2**32 + 5),
        (2**32 - 1, 2**32 + 3, 2**32 - 1),
        (1, 2**33 - 1, 2**33 + 1),
    ],
)
def test_widen(low: int, near: int, wide: int) -> None:
    """After 2**32 transactions the list's 32-bit ids must still match the evidence."""
    assert widen(low, near) == wide


async def test_the_list_is_evidence(participant: PostgresParticipant, database: Database, gid: Gid) -> None:
    """Of a presumed abort nothing is recorded: the list must be enough to know a commit by hand."""
    await prepared(participant, gid)
    [listed] = [branch for branch in await participant.in_doubt() if branch.gid == gid]
    await database.admin.execute(f"commit prepared '{gid}'")
    assert await participant.settle(gid, Decision.ABORT, listed.evidence) is Settled.HEURISTIC_COMMIT
    assert await participant.settle(gid, Decision.COMMIT, listed.evidence) is Settled.APPLIED
