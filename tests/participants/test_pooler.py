"""Branches through a real PgBouncer, in whatever mode it pools.

Statements of one client land on several servers here (``server_round_robin``), and other clients use the same
ones in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import asyncpg
import pytest
import pytest_asyncio

from tests.participants.hands import at, sql_error
from tests.participants.support import KEY, WRITE, Database, claim, new_gid, participant_at
from tests.participants.test_servers import standby_of
from tests.pgbouncer import PgBouncer, program_or_skip
from undoubt.embedded import EmbeddedServer
from undoubt.participants.contract import (
    Decision,
    Evidence,
    PrepareUnanswered,
    Settled,
    Vote,
    Work,
    XactStatus,
)
from undoubt.participants.errors import ParticipantRefused, ParticipantUnavailable
from undoubt.participants.findings import Severity
from undoubt.participants.ids import Gid
from undoubt.participants.postgres import PostgresParticipant

WAYS = ("",)


@pytest_asyncio.fixture(params=[True, False], ids=["declared", "undeclared"])
async def participant(
    pooler: PgBouncer, database: Database, request: pytest.FixtureRequest
) -> AsyncIterator[PostgresParticipant]:
    """Participant ``p`` behind the pooler, of which it was told or not: it has to be the same."""
    participant = participant_at(pooler.dsn(database.name), pooler=request.param)
    yield participant
    await participant.close()


@pytest_asyncio.fixture
async def crowd(pooler: PgBouncer, database: Database) -> AsyncIterator[None]:
    """Other clients of the same pool, so that no server is the same for two statements in a row."""
    stop = asyncio.Event()

    async def busy(number: int) -> None:
        connection = await asyncpg.connect(pooler.dsn(database.name), statement_cache_size=0)
        await connection.execute(f"set application_name = 'crowd {number}'")
        while not stop.is_set():
            assert await connection.fetchval("select $1::int", number) == number
            await asyncio.sleep(0.001)
        await connection.close()

    tasks = [asyncio.create_task(busy(number)) for number in range(4)]
    yield
    stop.set()
    await asyncio.gather(*tasks)


async def prepared(participant: PostgresParticipant, statement: str = WRITE) -> tuple[Gid, Evidence]:
    gid = new_gid()
    branch = await participant.begin(gid, timeout_s=30)
    await at(branch).execute(statement)
    result = await branch.prepare()
    assert result.vote is Vote.PREPARED, result.reason
    await branch.release()
    assert result.evidence is not None
    return gid, result.evidence


@pytest.mark.usefixtures("crowd")
async def test_branches_beside_one_another(participant: PostgresParticipant, database: Database) -> None:
    """Broken if a statement, a marker, a report or a second phase meets another client's in its server."""
    await database.admin.execute("insert into account select n, 0 from generate_series(10, 17) as n")

    async def one(account: int) -> None:
        for _ in range(20):
            branch = await participant.begin(new_gid(), timeout_s=30)
            statement = "update account set balance = balance + 1 where id = $1"
            assert await at(branch).execute(statement, account) == "UPDATE 1"
            result = await branch.prepare()
            assert result.vote is Vote.PREPARED, result.reason
            [listed] = [row for row in await participant.in_doubt() if row.gid == branch.gid]
            assert result.evidence is not None
            assert result.evidence.xid == listed.xid, "the report was another branch's"
            assert await branch.commit() is Settled.APPLIED
            await branch.release()

    await asyncio.gather(*(one(account) for account in range(10, 18)))
    assert await database.admin.fetchval("select sum(balance) from account where id >= 10") == 160
    assert await database.prepared() == []


@pytest.mark.usefixtures("crowd")
@pytest.mark.parametrize("order", list(Decision))
async def test_what_recovery_does(
    participant: PostgresParticipant, database: Database, order: Decision
) -> None:
    """List, evidence, second phase and what "does not exist" means, statement by statement on any server."""
    gid, evidence = await prepared(participant)
    [listed] = await participant.in_doubt()
    assert (listed.gid, listed.owner, listed.evidence) == (gid, "postgres", replace(evidence, position=None))
    assert await participant.evidence(evidence) is XactStatus.IN_PROGRESS
    assert await participant.settle(gid, order, evidence) is Settled.APPLIED
    committed = order is Decision.COMMIT
    assert await participant.evidence(evidence) is (XactStatus.COMMITTED if committed else XactStatus.ABORTED)
    assert await participant.settle(gid, order, evidence) is Settled.APPLIED
    other = Decision.ABORT if committed else Decision.COMMIT
    contradicted = Settled.HEURISTIC_COMMIT if committed else Settled.HEURISTIC_ROLLBACK
    assert await participant.settle(gid, other, evidence) is contradicted
    assert await database.balance() == (90 if committed else 100)


async def test_nothing_is_left_in_the_servers(
    participant: PostgresParticipant, pooler: PgBouncer, database: Database
) -> None:
    """Broken if a timeout, a statement or a lock of a branch outlives it in a server that others use next."""
    for _ in range(5):
        branch = await participant.begin(new_gid(), timeout_s=3)
        await at(branch).execute(WRITE)
        assert (await branch.prepare()).vote is Vote.PREPARED
        assert await branch.commit() is Settled.APPLIED
        await branch.release()
    other = await asyncpg.connect(pooler.dsn(database.name), statement_cache_size=0)
    seen = set()
    for _ in range(10):
        [row] = await other.fetch(
            "select pg_backend_pid() as pid, current_setting('lock_timeout') as lock,"
            " current_setting('idle_in_transaction_session_timeout') as idle,"
            " coalesce(current_setting('undoubt.tx', true), '') as marker,"
            " (select count(*) from pg_prepared_statements) as statements"
        )
        seen.add(row["pid"])
        assert tuple(row)[1:] == ("20s", "0", "", 0)
    await other.close()
    assert seen


async def test_the_application_may_have_ended_the_branch(participant: PostgresParticipant) -> None:
    """After a COMMIT of its own the server is another client's: nothing there may be prepared."""
    branch = await participant.begin(new_gid(), timeout_s=30)
    await at(branch).execute(WRITE)
    await at(branch).execute("commit")
    result = await branch.prepare()
    assert result.vote is Vote.ABORT
    assert "ended by the application" in str(result.reason)
    await branch.rollback()
    await branch.release()
    assert list(await participant.in_doubt()) == []


async def test_waits_and_cancelling(participant: PostgresParticipant) -> None:
    """The detector of deadlocks sees branches by the name that they carry in whichever server they run."""
    holder = await participant.begin(new_gid(), timeout_s=30, key=KEY)
    await at(holder).execute(WRITE)
    waiter = await participant.begin(new_gid(), timeout_s=30, key=KEY)
    task = asyncio.create_task(at(waiter).execute(WRITE))
    async with asyncio.timeout(20):
        while not (edges := await participant.waits()):
            await asyncio.sleep(0.01)
    [edge] = edges
    assert (edge.waiter, edge.holder) == (claim(waiter), claim(holder))
    assert await participant.cancel_waiter(edge)
    with sql_error("57014"):
        await task
    for branch in (holder, waiter):
        await branch.rollback()
        await branch.release()


async def test_the_pooler_dies_while_prepare_runs(server: EmbeddedServer, database: Database) -> None:
    """The worst moment: nobody hears the answer, nothing is prepared when one looks, and then it is."""
    program_or_skip()
    await database.admin.execute(
        "create function slow() returns trigger language plpgsql as"
        " $$ begin perform pg_advisory_xact_lock(7); return null; end $$;"
        "create constraint trigger slow after update on account deferrable initially deferred"
        " for each row execute function slow()"
    )
    await database.admin.execute("select pg_advisory_lock(7)")
    async with PgBouncer(server.socket_dsn()) as pooler:
        participant = participant_at(pooler.dsn(database.name))
        gid = new_gid()
        branch = await participant.begin(gid, timeout_s=30)
        await at(branch).execute(WRITE)
        preparing = asyncio.ensure_future(branch.prepare())
        while not await database.admin.fetchval("select exists (select from pg_locks where not granted)"):
            await asyncio.sleep(0.01)
        await pooler.kill()
        await pooler.start()
        with pytest.raises(PrepareUnanswered):
            await preparing
        assert await branch.rollback() is Settled.ABSENT
        assert await participant.settle(gid, Decision.ABORT, None) is Settled.ABSENT
        await database.admin.execute("select pg_advisory_unlock(7)")
        async with asyncio.timeout(20):
            while not await database.prepared():
                await asyncio.sleep(0.01)
        assert await branch.rollback() is Settled.APPLIED, "absent was not final"
        await branch.release()
        assert await database.balance() == 100
        await participant.close()


async def test_one_phase_and_reading(participant: PostgresParticipant, database: Database) -> None:
    branch = await participant.begin(new_gid(), timeout_s=30)
    await at(branch).fetch("select 1")
    assert await branch.poll() is Work.READ_ONLY
    assert await branch.commit() is Settled.APPLIED
    await branch.release()
    branch = await participant.begin(new_gid(), timeout_s=30)
    await at(branch).execute(WRITE)
    assert await branch.poll() is Work.WRITES
    assert await branch.commit_one_phase() is Settled.APPLIED
    await branch.release()
    assert await database.balance() == 90


async def test_statements_and_cursors_of_the_application(
    participant: PostgresParticipant,
    pooler: PgBouncer,
    database: Database,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Named statements live in a server that another process has next, and that counts from one as well."""
    others = await asyncpg.connect(pooler.dsn(database.name), statement_cache_size=0)
    for _ in range(20):  # in every server that there is
        async with others.transaction():
            for number in range(1, 40):
                name = f"__asyncpg_stmt_{number:x}__"
                if not await others.fetchval(
                    "select count(*) from pg_prepared_statements where name = $1", name
                ):
                    await others.execute(f"prepare {name} as select 'of another process'")
    await others.close()
    monkeypatch.setattr("asyncpg.connection._uid", 0)
    for _ in range(5):
        branch = await participant.begin(new_gid(), timeout_s=30)
        connection = branch.connection
        if kind == "asyncpg":
            statement = await connection.prepare("select $1::int + 1")
            assert await statement.fetchval(1) == 2
            assert [row[0] async for row in connection.cursor("select generate_series(1, 3)")] == [1, 2, 3]
        else:
            [sum_] = await (await connection.execute("select %s + 1", (1,), prepare=True)).fetchone()
            assert sum_ == 2
        for account in (1, 2):
            await at(branch).execute("update account set balance = 1 where id = $1", account)
        assert (await branch.prepare()).vote is Vote.PREPARED
        assert await branch.rollback() is Settled.APPLIED
        await branch.release()


@pytest.mark.usefixtures("crowd")
async def test_rights(pooler: PgBouncer, database: Database, server: EmbeddedServer) -> None:
    """Where the role may not ask for the system identifier, branches are prepared without evidence."""
    await database.admin.execute(
        "create role app login; grant all on account to app;"
        "revoke execute on function pg_control_system() from public"
    )
    behind = participant_at(pooler.dsn(database.name, user="app"), pooler=True)
    try:
        branch = await behind.begin(new_gid(), timeout_s=30)
        await at(branch).execute(WRITE)
        result = await branch.prepare()
        assert result.vote is Vote.PREPARED, result.reason
        assert result.evidence is not None
        assert result.evidence == Evidence(result.evidence.xid), "the id alone"
        [listed] = await behind.in_doubt()
        assert listed.evidence is None
        assert await branch.commit() is Settled.APPLIED
        await branch.release()
        assert await database.balance() == 90
    finally:
        await behind.close()
        await database.admin.execute("grant execute on function pg_control_system() to public")
        await drop_roles(database, "app")


async def test_another_role_at_the_end_is_refused_before_the_vote(
    pooler: PgBouncer, database: Database
) -> None:
    """Broken if a branch is prepared that nobody behind the pooler can finish: SET ROLE and COMMIT PREPARED
    would be sent to two servers."""
    await database.admin.execute(
        "create role bookkeeper; create role app login; grant bookkeeper to app;"
        "grant all on account to bookkeeper, app"
    )
    behind = participant_at(pooler.dsn(database.name, user="app"), pooler=True)
    try:
        branch = await behind.begin(new_gid(), timeout_s=30)
        await at(branch).execute("set local role bookkeeper")
        await at(branch).execute(WRITE)
        result = await branch.prepare()
        assert result.vote is Vote.ABORT
        assert "'bookkeeper'" in str(result.reason)
        assert "reset role" in str(result.reason)
        await branch.rollback()
        await branch.release()
        branch = await behind.begin(new_gid(), timeout_s=30)
        await at(branch).execute("set local role bookkeeper")
        await at(branch).execute(WRITE)
        await at(branch).execute("reset role")
        assert (await branch.prepare()).vote is Vote.PREPARED
        assert await branch.commit() is Settled.APPLIED
        await branch.release()
    finally:
        await behind.close()
        await drop_roles(database, "app", "bookkeeper")


async def test_recovery_as_another_role_says_what_to_do(
    pooler: PgBouncer, database: Database, server: EmbeddedServer
) -> None:
    """Through the pooler it cannot be done; with a dsn that leads to the server it can."""
    await database.admin.execute(
        "create role app login; create role rescue login; grant app to rescue; grant all on account to app"
    )
    behind = participant_at(pooler.dsn(database.name, user="app"), pooler=True)
    rescue = participant_at(pooler.dsn(database.name, user="rescue"), pooler=True)
    direct = participant_at(server.dsn(database.name, user="rescue"))
    try:
        gid, evidence = await prepared(behind)
        with pytest.raises(ParticipantRefused, match="connect recovery to the server itself"):
            await rescue.settle(gid, Decision.COMMIT, evidence)
        assert await direct.settle(gid, Decision.COMMIT, evidence) is Settled.APPLIED
    finally:
        for one in (behind, rescue, direct):
            await one.close()
        await drop_roles(database, "app", "rescue")


async def test_a_pool_that_is_too_small(
    server: EmbeddedServer, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Every server of the pool is taken by a branch that waits for a row of one that is prepared, and its
    COMMIT PREPARED waits for a server: only the timeouts end it. Nothing may be lost over it."""
    program_or_skip()
    async with PgBouncer(server.socket_dsn(), {"default_pool_size": "2"}) as small:
        participant = participant_at(small.dsn(database.name), statement_timeout_s=1.0, connections_max=8)
        first = await participant.begin(new_gid(), timeout_s=30)
        await at(first).execute(WRITE)
        assert (await first.prepare()).vote is Vote.PREPARED
        waiting = [await participant.begin(new_gid(), timeout_s=1) for _ in range(2)]
        tasks = [asyncio.create_task(at(branch).execute(WRITE)) for branch in waiting]
        while await database.admin.fetchval("select count(*) from pg_locks where not granted") < 2:
            await asyncio.sleep(0.01)
        with pytest.raises(ParticipantUnavailable):
            await first.commit()
        assert "give the pool more servers than connections_max" in caplog.text
        for task in tasks:
            with sql_error("55P03"):
                await task
        for branch in waiting:
            assert await branch.rollback() is Settled.APPLIED
            await branch.release()
        async with asyncio.timeout(20):
            while True:
                try:
                    assert await first.commit() is Settled.APPLIED
                except ParticipantUnavailable:
                    continue
                break
        await first.release()
        await participant.close()
        assert await database.balance() == 90


async def test_servers_that_are_reset_after_every_transaction(
    server: EmbeddedServer, database: Database
) -> None:
    """``server_reset_query_always``: nothing of ours may depend on what DISCARD ALL throws away."""
    program_or_skip()
    always = {"server_reset_query": "DISCARD ALL", "server_reset_query_always": "1"}
    async with PgBouncer(server.socket_dsn(), always) as pooler:
        participant = participant_at(pooler.dsn(database.name))
        for number in range(1, 4):
            gid, evidence = await prepared(participant)
            assert await participant.settle(gid, Decision.COMMIT, evidence) is Settled.APPLIED
            assert await participant.evidence(evidence) is XactStatus.COMMITTED
            assert await database.balance() == 100 - 10 * number
        await participant.close()


async def test_a_pooler_before_a_standby() -> None:
    """It may be turned to another server at any time; each answer has to say for itself where it is from."""
    program_or_skip()
    async with EmbeddedServer(durable=False) as primary:
        await primary.stop()
        async with standby_of(primary) as standby, PgBouncer(standby.socket_dsn()) as pooler:
            participant = participant_at(pooler.dsn("postgres"))
            for call in (participant.in_doubt(), participant.begin(new_gid(), timeout_s=30)):
                with pytest.raises(ParticipantRefused, match="standby"):
                    await call
            await participant.close()


async def test_session_pooling(server: EmbeddedServer, database: Database) -> None:
    """A pooler like any other: what works where every transaction may be elsewhere works here."""
    program_or_skip()
    async with PgBouncer(server.socket_dsn(), {"pool_mode": "session"}) as pooler:
        participant = participant_at(pooler.dsn(database.name))
        gid, evidence = await prepared(participant)
        assert await participant.settle(gid, Decision.COMMIT, evidence) is Settled.APPLIED
        await participant.close()
        assert await database.balance() == 90


@pytest.mark.parametrize("declared", [True, False])
async def test_statement_pooling_is_refused(
    server: EmbeddedServer, database: Database, declared: bool
) -> None:
    """Nothing can be a transaction there; whoever set it up has to be told what to set instead."""
    program_or_skip()
    async with PgBouncer(server.socket_dsn(), {"pool_mode": "statement"}) as pooler:
        participant = participant_at(pooler.dsn(database.name), pooler=declared)
        with pytest.raises(ParticipantRefused, match="pool_mode = transaction"):
            await participant.begin(new_gid(), timeout_s=30)
        [found] = await participant.check()
        assert (found.check, found.severity) == ("pooler", Severity.PROBLEM)
        assert "pool_mode = transaction" in found.what
        await participant.close()


async def test_what_the_pooler_refuses_is_not_called_unavailable(
    server: EmbeddedServer, database: Database
) -> None:
    """It has one code for everything; recovery would else try a wrong password for ever, and call it down."""
    program_or_skip()
    async with PgBouncer(server.socket_dsn(), {"auth_type": "md5"}, users={"postgres": "right"}) as pooler:
        head, tail = "postgresql://postgres:", f"@127.0.0.1:{pooler.port}/"
        for dsn, sqlstate, check in (
            (f"{head}wr0ng{tail}{database.name}", "28P01", "password"),
            (f"{head}right{tail}nowhere", "3D000", "database"),
            (f"{head}right{tail}{database.name}?options=-c%20lock_timeout%3D5s", "08P01", "pooler"),
        ):
            participant = participant_at(dsn)
            with pytest.raises(ParticipantRefused) as refused:
                await participant.in_doubt()
            assert refused.value.sqlstate == sqlstate
            assert "wr0ng" not in str(refused.value)
            [found] = await participant.check()
            assert (found.check, found.severity) == (check, Severity.PROBLEM)
            await participant.close()
    participant = participant_at(pooler.dsn(database.name))
    [found] = await participant.check()
    assert (found.check, found.severity) == ("reach", Severity.UNREACHABLE)
    await participant.close()


async def test_doctor_sees_it(pooler: PgBouncer, server: EmbeddedServer, database: Database) -> None:
    """Declared, undeclared, declared and not there."""
    seen = {}
    for dsn, declared in (
        (pooler.dsn(database.name), True),
        (pooler.dsn(database.name), False),
        (server.dsn(database.name), True),
        (server.dsn(database.name), False),
    ):
        participant = participant_at(dsn, pooler=declared)
        [found] = [one for one in await participant.check() if one.check == "pooler"]
        seen[dsn == pooler.dsn(database.name), declared] = (found.severity, found.fix)
        await participant.close()
    assert seen == {
        (True, True): (Severity.OK, None),
        (True, False): (Severity.WARNING, "pooler = true"),
        (False, True): (Severity.OK, None),
        (False, False): (Severity.OK, None),
    }


async def test_doctor_knows_that_no_grant_helps_behind_it(pooler: PgBouncer, database: Database) -> None:
    await database.admin.execute(
        "create role app login; grant all on account to app; create role rescue login"
    )
    behind = participant_at(pooler.dsn(database.name, user="app"))
    rescue = participant_at(pooler.dsn(database.name, user="rescue"))
    try:
        gid, _ = await prepared(behind)
        [found] = [one for one in await rescue.check() if one.check == "roles"]
        assert (found.severity, found.fix) == (Severity.PROBLEM, None)
        assert "leads to the server itself" in found.why
        await database.admin.execute(f"rollback prepared '{gid}'")
    finally:
        await behind.close()
        await rescue.close()
        await drop_roles(database, "app", "rescue")


async def drop_roles(database: Database, *roles: str) -> None:
    """The pooler keeps their sessions open."""
    await database.admin.execute(
        "select pg_terminate_backend(pid, 10000) from pg_stat_activity"
        f" where usename in ({', '.join(map(repr, roles))})"
    )
    await database.admin.execute(f"drop owned by {', '.join(roles)}; drop role {', '.join(roles)}")
