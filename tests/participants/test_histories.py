"""Evidence names a history: transaction ids of another one, however alike, say nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from tests.participants.hands import at
from tests.participants.support import (
    KEY,
    WRITE,
    Database,
    new_gid,
    participant_at,
    run_on,
    unreachable_standby,
    waits_for_standby,
)
from tests.participants.test_servers import standby_of
from tests.pgbouncer import PgBouncer
from undoubt.embedded import EmbeddedServer
from undoubt.participants.contract import Decision, Evidence, Settled, Vote, XactStatus
from undoubt.participants.findings import Finding, Severity
from undoubt.participants.ids import NO_KEY, TxId
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.postgres.guard import REPORT_BYTES_MAX, read_report, report_head
from undoubt.participants.postgres.history import draw, place_of
from undoubt.participants.postgres.schema import migrate, restored
from undoubt.participants.postgres.session import ServerParameters
from undoubt.participants.postgres.session_setup import APPLICATION_NAME_BYTES_MAX, branch_name
from undoubt.participants.settings import ParticipantSettings

TABLE = "create table account (id int primary key, balance int); insert into account values (1, 100)"


async def prepare(participant: PostgresParticipant) -> Evidence:
    """Of a branch that is prepared, and then committed."""
    gid = new_gid()
    branch = await participant.begin(gid, timeout_s=30)
    await at(branch).execute(WRITE)
    result = await branch.prepare()
    await branch.release()
    assert result.vote is Vote.PREPARED
    assert result.evidence is not None
    assert await participant.settle(gid, Decision.COMMIT, result.evidence) is Settled.APPLIED
    return result.evidence


async def id_of(database: Database) -> str:
    return str(await database.admin.fetchval("select undoubt.current_history()"))


async def from_another_timeline(database: Database) -> None:
    """As a server finds its row that was promoted, or restored."""
    await database.admin.execute("update undoubt.undoubt_history set timeline = '0000000A'")


# What PREPARE reports.


@pytest.fixture(params=["direct", "pooled", "pgbouncer"])
def through(request: pytest.FixtureRequest) -> str | PgBouncer:
    """How the database is reached."""
    if request.param == "pgbouncer":
        pooler: PgBouncer = request.getfixturevalue("pooler")
        return pooler
    return str(request.param)


async def test_evidence_has_everything(noted: Database, through: str | PgBouncer) -> None:
    """Broken if what is recorded with a decision cannot tell two histories of one server apart."""
    dsn = through.dsn(noted.name) if isinstance(through, PgBouncer) else noted.dsn
    participant = participant_at(dsn, pooler=through == "pooled")
    system = await noted.admin.fetchval("select system_identifier from pg_control_system()")
    before = await noted.admin.fetchval("select pg_current_wal_insert_lsn() - '0/0'")
    evidence = await prepare(participant)
    after = await noted.admin.fetchval("select pg_current_wal_insert_lsn() - '0/0'")
    assert (evidence.system, evidence.timeline, evidence.history) == (system, "00000001", await id_of(noted))
    assert evidence.position is not None
    assert before - 256 < evidence.position < after
    assert await participant.evidence(evidence) is XactStatus.COMMITTED
    branch = await participant.begin(new_gid(), timeout_s=30)
    await branch.prepare()
    [listed] = [one.evidence for one in await participant.in_doubt()]
    assert listed is not None
    assert (listed.history, listed.position) == (evidence.history, None)
    await branch.rollback()
    await branch.release()
    await participant.close()


@pytest.mark.parametrize("pooler", [False, True])
async def test_without_tables_evidence_is_as_before(database: Database, pooler: bool) -> None:
    """Broken if undoubt needs tables in every database."""
    participant = participant_at(database.dsn, pooler=pooler)
    evidence = await prepare(participant)
    assert (evidence.timeline, evidence.history) == ("00000001", None)
    assert await participant.evidence(evidence) is XactStatus.COMMITTED
    other = replace(evidence, history="AAAAAAAAAAAA")
    assert await participant.evidence(other) is XactStatus.UNKNOWN
    await participant.close()


INTRO = ServerParameters(180000, "on", 0, 0, False, 77, "0000000A", "0")
TELLING = replace(INTRO, reports_history=True, history="AbCdEfGhIjKl")
_31 = "AAAAAAAfAAAAAAEA"  # transaction 31, position 1 << 16


@pytest.mark.parametrize(
    ("intro", "report", "evidence"),
    [
        (INTRO, f"xid#{_31}.", Evidence(31, 77, "0000000A", None, 1 << 16)),
        (TELLING, f"xid#{_31}.", Evidence(31, 77, "0000000A", "AbCdEfGhIjKl", 1 << 16)),
        (replace(TELLING, history=None), f"xid#{_31}.", Evidence(31)),
        (replace(INTRO, system=None), f"xid#{_31}.", Evidence(31)),
        (
            replace(INTRO, pooled=True),
            f"xid#{_31}.AAAAAAAAAHsAAAAL.",
            Evidence(31, 123, "0000000B", None, 1 << 16),
        ),
        (
            replace(TELLING, pooled=True),
            f"xid#{_31}.AbCdEfGhIjKl.",
            Evidence(31, 77, "0000000A", "AbCdEfGhIjKl", 1 << 16),
        ),
        (
            replace(TELLING, pooled=True),
            f"xid#{_31}.0123456789AB.",
            Evidence(31, None, None, "0123456789AB", 1 << 16),
        ),
        (replace(TELLING, pooled=True), f"xid#{_31}..", Evidence(31)),
        (replace(INTRO, pooled=True), f"xid#{_31}.AAAA.", Evidence(31)),
        (INTRO, f"xid#{_31}", None),
        (INTRO, f"xid#{_31[:-1]}.", None),
        (replace(TELLING, pooled=True), f"xid#{_31}.AbCdEfGhIjKl", None),
        (INTRO, "undoubt:testledger", None),
        (INTRO, f"other#{_31}.", None),
        (INTRO, "", None),
    ],
)
def test_what_counts_as_a_report(intro: ServerParameters, report: str, evidence: Evidence | None) -> None:
    """A transaction id that lost its last digit in a name that was cut is another transaction's; and one that
    is of nobody knows which history is evidence of nothing."""
    own = None if intro.pooled else place_of(intro)
    assert read_report(report, "xid#", intro, own) == evidence


def test_a_report_has_room() -> None:
    """Cut by the server, a report would be no evidence at all."""
    gid = new_gid()
    longest_place = 16 + 1
    for session in (1, 10**6, 10**9, 10**18):
        for pooler, bytes_max in ((False, REPORT_BYTES_MAX), (True, REPORT_BYTES_MAX + longest_place)):
            long = replace(gid, txid=TxId(session, gid.txid.nonce, gid.txid.seq))
            for key in (NO_KEY, KEY):
                head = report_head(branch_name(long, key, 0 if pooler else 4711), pooler=pooler)
                assert len(head) - 1 + bytes_max <= APPLICATION_NAME_BYTES_MAX


@pytest.mark.parametrize("pooler", [False, True])
async def test_the_owner_of_the_tables_may_ask_for_others(
    noted: Database, server: EmbeddedServer, pooler: bool
) -> None:
    """Broken if a role that may not ask for the server's identity has no evidence though its tables tell."""
    await noted.admin.execute(
        "create role app login; grant all on account to app;"
        "revoke execute on function pg_control_system() from public"
    )
    participant = participant_at(server.dsn(noted.name, user="app"), pooler=pooler)
    try:
        evidence = await prepare(participant)
        assert (evidence.system, evidence.history) == (None, await id_of(noted))
        assert await participant.evidence(evidence) is XactStatus.COMMITTED
        found = {one.check: one for one in await participant.check()}
        assert found["evidence"].severity is Severity.OK
    finally:
        await participant.close()
        await noted.admin.execute(
            "grant execute on function pg_control_system() to public; drop owned by app; drop role app"
        )


async def test_an_owner_that_may_not_ask(noted: Database, server: EmbeddedServer) -> None:
    """Broken if branches cannot be prepared, or doctor is mute, where nobody is told the server's
    identity."""
    await noted.admin.execute(
        "create role app login; create role keeper; grant all on account to app;"
        "alter function undoubt.current_history() owner to keeper;"
        "revoke execute on function pg_control_system() from public"
    )
    participant = participant_at(server.dsn(noted.name, user="app"), schema_owners=("keeper",))
    try:
        evidence = await prepare(participant)
        assert evidence == Evidence(evidence.xid)
        [found] = [one for one in await participant.check() if one.check == "history"]
        assert (found.severity, found.fix) == (Severity.WARNING, None)
    finally:
        await participant.close()
        await noted.admin.execute(
            "grant execute on function pg_control_system() to public;"
            "drop owned by app, keeper cascade; drop role app, keeper"
        )


# Which history counts.


async def test_standbys_that_were_promoted_apart() -> None:
    """Broken if the books of one are believed of the other: both are timeline 2 of one system, and an
    unrelated transaction was once called committed, and a lost row done."""
    async with EmbeddedServer() as primary:
        await run_on(primary.dsn(), TABLE)
        await migrate("p", ParticipantSettings(dsn=primary.dsn()))
        await primary.stop()
        async with standby_of(primary) as left, standby_of(primary) as right:
            for server in (left, right):
                await run_on(server.dsn(), "select pg_promote()")
            first, second = participant_at(left.dsn()), participant_at(right.dsn())
            evidence = await prepare(first)
            while (other := await prepare(second)).xid < evidence.xid:
                pass  # the number is given out there too
            await prepare(second)
            assert (evidence.system, evidence.timeline) == (other.system, other.timeline)
            assert evidence.history != other.history
            assert await second.evidence(evidence) is XactStatus.UNKNOWN
            assert await second.settle(new_gid(), Decision.COMMIT, evidence) is Settled.HEURISTIC_HAZARD
            assert await first.evidence(evidence) is XactStatus.COMMITTED
            await first.close()
            await second.close()


@asynccontextmanager
async def copy_of(server: EmbeddedServer) -> AsyncIterator[EmbeddedServer]:
    """A clone of ``server``, which has to be stopped: nothing shows that it is one."""
    clone = EmbeddedServer()
    assert server.folder is not None
    folder = Path(f"{server.folder}-clone")
    await asyncio.to_thread(_copy, server.folder, folder)
    clone.folder = folder
    async with clone:
        yield clone


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, symlinks=True)
    owner = source.stat()
    for place in (target, *target.rglob("*")):
        os.chown(place, owner.st_uid, owner.st_gid, follow_symlinks=False)
    target.chmod(0o700)


async def test_a_clone_that_was_told_so() -> None:
    """Broken if `participants restored` does not begin another history."""
    async with EmbeddedServer() as server:
        await run_on(server.dsn(), TABLE)
        await migrate("p", ParticipantSettings(dsn=server.dsn()))
        await server.stop()
        async with copy_of(server) as clone:
            drawn = await restored("p", ParticipantSettings(dsn=clone.dsn()))
            await server.start()
            original, copied = participant_at(server.dsn()), participant_at(clone.dsn())
            evidence, other = await prepare(original), await prepare(copied)
            assert other.history == drawn
            assert evidence.system == other.system
            assert await copied.evidence(evidence) is XactStatus.UNKNOWN
            assert await original.evidence(other) is XactStatus.UNKNOWN
            assert await original.evidence(evidence) is XactStatus.COMMITTED
            await original.close()
            await copied.close()


@pytest.mark.parametrize("tables", [True, False])
async def test_a_server_that_was_set_back(tables: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Broken if a snapshot that was put back answers for what it has lost: its WAL ends before the
    PREPARE."""
    async with EmbeddedServer() as server:
        await run_on(server.dsn(), TABLE)
        if tables:
            await migrate("p", ParticipantSettings(dsn=server.dsn()))
        await server.stop()
        async with copy_of(server) as snapshot:
            await snapshot.stop()
            await server.start()
            participant = participant_at(server.dsn())
            await run_on(server.dsn(), "create table filler as select generate_series(1, 200000)")
            evidence = await prepare(participant)
            await participant.close()
            await snapshot.start()
            later = participant_at(snapshot.dsn())
            expected = XactStatus.NEVER_ASSIGNED if tables else XactStatus.UNKNOWN
            for _ in range(20):
                await prepare(later)  # the number is given out again
            assert await later.evidence(evidence) is expected
            assert ("participants restored p" in caplog.text) is tables
            assert await later.evidence(replace(evidence, position=None)) is XactStatus.COMMITTED, (
                "the hole without"
            )
            await later.close()


# Drawing.


async def test_everybody_draws_the_same(noted: Database) -> None:
    """Broken if processes that connect at one moment after a failover are in different histories."""
    before = await id_of(noted)
    await from_another_timeline(noted)
    assert await noted.admin.fetchval("select undoubt.current_history()") is None
    participants = [participant_at(noted.dsn) for _ in range(8)]
    seen = {one.history for one in await asyncio.gather(*(prepare_alone(each) for each in participants))}
    assert seen == {await id_of(noted)}
    assert before not in seen
    for each in participants:
        await each.close()


async def prepare_alone(participant: PostgresParticipant) -> Evidence:
    """Of an empty branch, which waits for nobody."""
    gid = new_gid()
    branch = await participant.begin(gid, timeout_s=30)
    evidence = (await branch.prepare()).evidence
    assert evidence is not None
    assert await branch.rollback() is Settled.APPLIED
    await branch.release()
    return evidence


async def test_a_new_history_is_confirmed_by_the_standby(noted: Database) -> None:
    """Broken if an id is used that a failover at the next moment would not know."""
    participant = participant_at(noted.dsn)
    session = await participant.admin_pool.pool._connect()
    await from_another_timeline(noted)
    async with unreachable_standby(noted):
        drawing = asyncio.create_task(draw(session, session.intro, 30))
        while not await waits_for_standby(noted, session.pid):
            await asyncio.sleep(0.005)
        assert await noted.admin.fetchval("select undoubt.current_history()") is None
        await noted.admin.execute("select pg_cancel_backend($1)", session.pid)
        assert await drawing is False
    session.discard()
    await participant.close()


async def test_strangers_cannot_draw(noted: Database, server: EmbeddedServer) -> None:
    """Broken if a role that may only connect changes the history, or keeps others from drawing theirs."""
    await noted.admin.execute("create role stranger login")
    stranger = await asyncpg.connect(server.dsn(noted.name, user="stranger"))
    try:
        before = await id_of(noted)
        for statement in (
            "select undoubt.history()",
            "select * from undoubt.undoubt_history",
            "update undoubt.undoubt_history set id = 'mine'",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await stranger.execute(statement)
        assert await stranger.fetchval("select undoubt.current_history()") == before
    finally:
        await stranger.close()
        await noted.admin.execute("drop role stranger")


@pytest.mark.parametrize("pooler", [False, True])
async def test_an_id_that_may_not_be_drawn(noted: Database, server: EmbeddedServer, pooler: bool) -> None:
    """Broken if a transaction id of an unknown history counts as one of a known; or if nobody says what to
    do."""
    await noted.admin.execute("create role app login; grant all on account to app")
    dsn = server.dsn(noted.name, user="app")

    async def look() -> Finding:
        participant = participant_at(dsn, pooler=pooler)
        [found] = [one for one in await participant.check() if one.check == "history"]
        await participant.close()
        return found

    try:
        assert (await look()).severity is Severity.WARNING, "nothing is lost before the next failover"
        await from_another_timeline(noted)
        participant = participant_at(dsn, pooler=pooler)
        evidence = await prepare(participant)
        assert evidence == Evidence(evidence.xid)
        assert await participant.evidence(evidence) is XactStatus.UNKNOWN
        await participant.close()
        found = await look()
        assert (found.severity, found.fix) == (
            Severity.PROBLEM,
            'GRANT EXECUTE ON FUNCTION undoubt.history() TO "app";',
        )
        await noted.admin.execute(found.fix or "")
        assert (await look()).severity is Severity.OK
        participant = participant_at(dsn, pooler=pooler)
        assert (await prepare(participant)).history == await id_of(noted)
        await participant.close()
    finally:
        await noted.admin.execute("drop owned by app; drop role app")


async def test_another_server_behind_the_pooler(noted: Database) -> None:
    """Broken if a failover behind a pooler goes unnoticed: the session stays, and its server is another."""
    participant = participant_at(noted.dsn, pooler=True)
    before = await prepare(participant)
    await from_another_timeline(noted)
    meanwhile = await prepare(participant)
    assert meanwhile == Evidence(meanwhile.xid)
    after = await prepare(participant)
    assert after.history == await id_of(noted)
    assert after.history != before.history
    assert await participant.evidence(before) is XactStatus.UNKNOWN
    assert await participant.evidence(after) is XactStatus.COMMITTED
    await participant.close()


async def test_a_database_without_ids_is_told_of(database: Database) -> None:
    """Broken if nobody learns that evidence could be better."""
    participant = participant_at(database.dsn)
    [found] = [one for one in await participant.check() if one.check == "history"]
    assert (found.severity, found.fix) == (Severity.WARNING, "undoubt participants migrate p")
    await participant.close()


async def test_no_default_of_the_database_keeps_a_new_session_waiting(noted: Database) -> None:
    """Broken if the look for the history of a new session waits for a safe snapshot, behind the very branch
    that recovery is to end: then no session is ever opened there again."""
    serializable = participant_at(noted.dsn)
    branch = await serializable.begin(new_gid(), timeout_s=30)
    await at(branch).execute("set transaction isolation level serializable")
    await at(branch).execute(WRITE)
    assert (await branch.prepare()).vote is Vote.PREPARED
    for name, value in (("isolation", "serializable"), ("read_only", "on"), ("deferrable", "on")):
        await noted.admin.execute(f'alter database "{noted.name}" set default_transaction_{name} = {value}')
    later = participant_at(noted.dsn, statement_timeout_s=3.0)
    [listed] = await later.in_doubt()
    assert listed.evidence is not None
    assert listed.evidence.history == await id_of(noted)
    assert await later.settle(branch.gid, Decision.ABORT, None) is Settled.APPLIED
