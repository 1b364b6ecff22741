"""What a look at a database finds, each on a real server in that state."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.participants.hands import at
from tests.participants.support import WRITE, Database, new_gid, participant_at, run_on
from tests.participants.test_servers import standby_of
from undoubt.embedded import EmbeddedServer
from undoubt.participants.contract import Decision, Evidence, Settled, Vote, XactStatus
from undoubt.participants.findings import Finding, Severity
from undoubt.participants.ids import Protocol
from undoubt.participants.postgres.schema import migrate
from undoubt.participants.settings import ParticipantSettings

WAYS = ("",)


@asynccontextmanager
async def checked(dsn: str, **settings: Any) -> AsyncIterator[dict[str, Finding]]:
    """The findings by check."""
    participant = participant_at(dsn, **settings)
    try:
        found = await participant.check()
        assert {finding.participant for finding in found} == {"p"}
        yield {finding.check: finding for finding in found}
    finally:
        await participant.close()


async def look(dsn: str, **settings: object) -> dict[str, Finding]:
    async with checked(dsn, **settings) as found:
        return found


async def test_a_server_that_is_well_has_nothing_but_good_findings() -> None:
    """Broken if doctor cries wolf, or leaves out what it looked at."""
    async with EmbeddedServer() as server:
        await migrate("p", ParticipantSettings(dsn=server.dsn()))
        await run_on(
            server.dsn(), "create role app login; grant execute on function undoubt.history() to app"
        )
        found = await look(server.dsn(user="app"))
    assert set(found) == {
        "reach",
        "max_prepared_transactions",
        "fsync",
        "full_page_writes",
        "synchronous_commit",
        "evidence",
        "history",
        "vacuum",
        "owners",
        "roles",
        "cancelling",
        "connections",
        "pooler",
        "schema",
        "set_role",
        "last_agent",
    }
    assert {finding.severity for finding in found.values()} == {Severity.OK}
    assert "may not SELECT" in found["last_agent"].what


async def test_who_could_be_the_agent_of_last_agent_commit(database: Database) -> None:
    """Broken if an operator learns only from a transaction that its agent cannot be one, or that a database
    which cannot prepare can take part nevertheless."""

    async def look_at(dsn: str) -> dict[str, Finding]:
        participant = participant_at(dsn)
        try:
            return {one.check: one for one in await participant.check(protocol=Protocol.LAST)}
        finally:
            await participant.close()

    found = (await look_at(database.dsn))["last_agent"]
    assert (found.severity, found.fix) == (Severity.WARNING, "undoubt participants migrate p")
    await migrate("p", ParticipantSettings(dsn=database.dsn))
    assert (await look_at(database.dsn))["last_agent"].severity is Severity.OK
    async with EmbeddedServer({"max_prepared_transactions": "0"}, durable=False) as server:
        await migrate("p", ParticipantSettings(dsn=server.dsn()))
        last = await look_at(server.dsn())
        assert {last[name].severity for name in ("last_agent", "max_prepared_transactions")} == {Severity.OK}
        await run_on(server.dsn(), "create role app login")
        denied = (await look_at(server.dsn(user="app")))["last_agent"]
        assert denied.fix == 'GRANT SELECT, INSERT, DELETE ON undoubt.undoubt_agent TO "app";'


async def test_no_prepared_transactions() -> None:
    """PostgreSQL's default: nothing works until somebody sets it, and the line is there to be copied."""
    async with EmbeddedServer({"max_prepared_transactions": "0"}, durable=False) as server:
        found = (await look(server.dsn()))["max_prepared_transactions"]
        assert (found.severity, found.what) == (Severity.PROBLEM, "max_prepared_transactions is 0")
        assert found.fix is not None
        name, value = found.fix.split(" = ")
        server.settings[name] = value
        await server.stop()
        await server.start()
        assert (await look(server.dsn()))[name].severity is Severity.OK


async def test_prepared_transactions_that_are_nearly_used_up() -> None:
    """The next burst would abort; one that is only smaller than the pool of connections is a warning."""
    async with EmbeddedServer({"max_prepared_transactions": "5"}, durable=False) as server:
        participant = participant_at(server.dsn())
        gids = [new_gid() for _ in range(4)]
        small = (await look(server.dsn()))["max_prepared_transactions"]
        assert (small.severity, small.what) == (
            Severity.WARNING,
            "0 of max_prepared_transactions = 5 in use",
        )
        for gid in gids:
            branch = await participant.begin(gid, timeout_s=30)
            assert (await branch.prepare()).vote is Vote.PREPARED
            await branch.release()
        full = (await look(server.dsn()))["max_prepared_transactions"]
        assert (full.severity, full.what) == (Severity.PROBLEM, "4 of max_prepared_transactions = 5 in use")
        assert full.fix is not None
        assert int(full.fix.split(" = ")[1]) >= 8
        await participant.close()


@pytest.mark.parametrize("name", ["fsync", "full_page_writes"])
async def test_a_server_that_may_lose_what_it_promised(name: str) -> None:
    async with EmbeddedServer({"fsync": "on"}) as server:
        await run_on(server.dsn(), f"alter system set {name} = off")
        # The command line of the embedded server does not name full_page_writes; fsync it does.
        server.settings.pop(name, None)
        await server.stop()
        await server.start()
        allowed = (await look(server.dsn(), temporary=True))[name]
        assert (allowed.severity, allowed.fix) == (Severity.OK, None)
        assert allowed.what.startswith(f"{name} is off: temporary = true allows")
        found = (await look(server.dsn()))[name]
        assert found.severity is Severity.PROBLEM
        assert found.fix is not None
        for statement in found.fix.split(";"):
            if statement.strip():
                await run_on(server.dsn(), statement.strip())
        await server.stop()
        await server.start()
        assert (await look(server.dsn()))[name].severity is Severity.OK


@pytest.mark.parametrize(
    "where",
    [
        "alter role app set synchronous_commit = {level}",
        "alter database {database} set synchronous_commit = {level}",
        "alter role app in database {database} set synchronous_commit = {level}",
    ],
)
async def test_low_synchronous_commit(database: Database, server: EmbeddedServer, where: str) -> None:
    """The way back depends on where it was set; the line given has to be the right one."""
    await database.admin.execute("create role app login")
    await database.admin.execute(where.format(database=database.name, level="remote_write"))
    dsn = server.dsn(database.name, user="app")
    try:
        found = (await look(dsn))["synchronous_commit"]
        assert (found.severity, found.what) == (Severity.WARNING, "synchronous_commit is remote_write")
        assert found.fix is not None
        await database.admin.execute(found.fix)
        assert (await look(dsn))["synchronous_commit"].severity is Severity.OK
    finally:
        await database.admin.execute("drop role app")


async def test_low_synchronous_commit_of_the_server() -> None:
    async with EmbeddedServer(durable=False) as server:
        await run_on(server.dsn(), "alter system set synchronous_commit = off")
        await run_on(server.dsn(), "select pg_reload_conf()")
        await server.stop()
        await server.start()
        found = (await look(server.dsn()))["synchronous_commit"]
        assert found.severity is Severity.WARNING
        assert found.fix == "ALTER SYSTEM SET synchronous_commit = on; SELECT pg_catalog.pg_reload_conf();"


@pytest.mark.parametrize(
    "function",
    [
        "pg_catalog.pg_control_system()",
        "pg_catalog.pg_current_wal_lsn()",
        "pg_catalog.pg_walfile_name(pg_catalog.pg_lsn)",
    ],
)
async def test_no_right_to_evidence(database: Database, server: EmbeddedServer, function: str) -> None:
    """PUBLIC may execute them by default; where a cloud has taken that away, branches still prepare and are
    finished, and what is lost is the proof of what became of one that vanished."""
    await database.admin.execute(
        "create role app login; grant all on account to app;"
        f"revoke execute on function {function} from public"
    )
    dsn = server.dsn(database.name, user="app")
    try:
        found = (await look(dsn))["evidence"]
        assert (found.severity, found.fix) == (
            Severity.WARNING,
            f'GRANT EXECUTE ON FUNCTION {function} TO "app";',
        )
        participant = participant_at(dsn)
        gid = new_gid()
        branch = await participant.begin(gid, timeout_s=30)
        await at(branch).execute(WRITE)
        result = await branch.prepare()
        assert result.vote is Vote.PREPARED
        assert result.evidence is not None
        assert result.evidence == Evidence(result.evidence.xid)
        assert await participant.evidence(result.evidence) is XactStatus.UNKNOWN
        await branch.release()
        assert await participant.settle(gid, Decision.COMMIT, None) is Settled.APPLIED
        assert await participant.settle(gid, Decision.COMMIT, None) is Settled.HEURISTIC_HAZARD
        await participant.close()
        assert found.fix is not None
        await database.admin.execute(found.fix)
        assert (await look(dsn))["evidence"].severity is Severity.OK
    finally:
        await database.admin.execute(
            f"revoke execute on function {function} from app; grant execute on function {function} to public;"
            "drop owned by app; drop role app"
        )


async def test_old_transaction_ids_held_back_by_a_prepared_one() -> None:
    """Wraparound: the server refuses writes in the end, and only finishing the prepared one helps."""
    async with EmbeddedServer({"autovacuum_freeze_max_age": "100000"}, durable=False) as server:
        await run_on(server.dsn(), "begin; create table x (); prepare transaction 'forgotten'")
        before = (await look(server.dsn()))["vacuum"]
        assert before.severity is Severity.OK
        burn = "do $$ begin for i in 1..100100 loop perform pg_current_xact_id(); commit; end loop; end $$"
        await run_on(server.dsn(), burn)
        found = (await look(server.dsn()))["vacuum"]
        assert found.severity is Severity.PROBLEM
        assert "autovacuum_freeze_max_age = 100,000" in found.why
        await run_on(server.dsn(), "rollback prepared 'forgotten'")


async def test_more_connections_than_the_server_has() -> None:
    async with EmbeddedServer({"max_connections": "20"}, durable=False) as server:
        found = (await look(server.dsn(), connections_max=30))["connections"]
        assert found.severity is Severity.WARNING
        assert found.fix == "connections_max = 9"


async def test_a_server_that_was_started_again_is_not_called_unreachable() -> None:
    """A process that looks twice has connections of the first time; that they are lost is no finding."""
    async with EmbeddedServer(durable=False) as server:
        participant = participant_at(server.dsn())
        await participant.check()
        await server.stop()
        assert [one.severity for one in await participant.check()] == [Severity.UNREACHABLE]
        await server.start()
        assert Severity.UNREACHABLE not in {one.severity for one in await participant.check()}
        await participant.check()
        await server.kill()
        await server.start()
        assert Severity.UNREACHABLE not in {one.severity for one in await participant.check()}
        await participant.close()


async def test_three_phase_commit_needs_tables(database: Database, server: EmbeddedServer) -> None:
    """Broken if a protocol that is configured fails at its first transaction, or its recovery in a crash."""
    await database.admin.execute("create role app login; grant all on account to app")
    participant = participant_at(server.dsn(database.name, user="app"))

    async def tables() -> Finding:
        [found] = [
            one for one in await participant.check(protocol=Protocol.THREE_PHASE) if one.check == "tables"
        ]
        return found

    try:
        assert "tables" not in {one.check for one in await participant.check()}, "2pc needs none"
        assert (await tables()).fix == "undoubt participants migrate p"
        await migrate("p", ParticipantSettings(dsn=database.dsn))
        denied = await tables()
        assert (denied.severity, denied.fix) == (
            Severity.PROBLEM,
            'GRANT SELECT, INSERT, UPDATE, DELETE ON undoubt.undoubt_branch TO "app";'
            ' GRANT SELECT ON undoubt.undoubt_note TO "app";'
            ' GRANT SELECT ON undoubt.undoubt_commit TO "app";',
        )
        await database.admin.execute(denied.fix or "")
        assert (await tables()).severity is Severity.OK
    finally:
        await participant.close()
        await database.admin.execute("drop owned by app; drop role app")


async def test_unreachable_and_refused(server: EmbeddedServer) -> None:
    """What gives no answer and what answers no are two things, and each has its own name."""
    found = await look("postgresql://postgres@127.0.0.1:1/x")
    assert [finding.severity for finding in found.values()] == [Severity.UNREACHABLE]
    assert "onnect" in found["reach"].what
    found = await look(server.dsn("nowhere"))
    assert [finding.severity for finding in found.values()] == [Severity.PROBLEM]
    assert "no such database" in found["database"].what


async def test_wrong_password_and_no_access() -> None:
    hba = ["host all banned 127.0.0.1/32 reject"]
    async with EmbeddedServer(durable=False, hba=hba) as server:
        await run_on(server.dsn(), "create role locked login password 'right'; create role banned login")
        wrong = await look(f"postgresql://locked:wr0ng@127.0.0.1:{server.port}/postgres")
        assert [(name, finding.severity) for name, finding in wrong.items()] == [
            ("password", Severity.PROBLEM)
        ]
        assert "wr0ng" not in str(wrong)
        banned = await look(server.dsn(user="banned"))
        assert [(name, finding.severity) for name, finding in banned.items()] == [
            ("access", Severity.PROBLEM)
        ]


async def test_a_standby() -> None:
    """It would look as if nothing were ever prepared."""
    async with EmbeddedServer(durable=False) as primary:
        await primary.stop()
        async with standby_of(primary) as standby:
            found = await look(standby.dsn())
            assert [(name, finding.severity) for name, finding in found.items()] == [
                ("standby", Severity.PROBLEM)
            ]


async def test_a_server_that_is_too_old(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none of version 12 to be had here: the limit is raised instead."""
    monkeypatch.setattr("undoubt.participants.postgres.connecting.VERSION_MIN", 990000)
    found = await look(server.dsn())
    assert [(name, finding.severity) for name, finding in found.items()] == [("version", Severity.PROBLEM)]
