"""The PostgreSQL ledger when its server is killed, is a standby, is copied, fails over or loses a standby."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
from collections.abc import AsyncIterator

import asyncpg
import pytest

from tests.coordinator.ledger.postgres_stage import BRANCHES, opened, settings_for
from tests.pgbouncer import PgBouncer, program_or_skip
from undoubt.coordinator.errors import LedgerUnavailable, LedgerUnusable, OutcomeUnknown, SessionLost
from undoubt.coordinator.ledger import maintenance, open_ledger
from undoubt.coordinator.ledger.contract import Verdict
from undoubt.coordinator.ledger.postgres.connections import SESSION_SKIP
from undoubt.coordinator.ledger.postgres.sql import QUERIES, query
from undoubt.embedded import EmbeddedServer
from undoubt.embedded.binaries import bin_folder
from undoubt.embedded.places import give, new_place, server_user
from undoubt.participants.contract import Decision

COMMIT, ABORT = Decision.COMMIT, Decision.ABORT


@pytest.fixture
async def server() -> AsyncIterator[EmbeddedServer]:
    async with EmbeddedServer() as found:
        yield found


async def execute(server: EmbeddedServer, statement: str, database: str = "postgres") -> None:
    connection = await asyncpg.connect(server.dsn(database))
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def test_a_killed_server_keeps_what_it_answered(server: EmbeddedServer) -> None:
    """Broken if a decision is answered before it is on the disk, or a restart is taken for a failover."""
    settings = settings_for(await server.create_database("ledger"))
    await maintenance.init(settings)
    async with opened(settings) as ledger:
        session = await ledger.open_session("test", 10)
        for seq in range(1, 30):
            assert await ledger.decide(session.txid(seq), COMMIT, BRANCHES) is COMMIT
        await server.kill()
        late = asyncio.create_task(ledger.decide(session.txid(30), COMMIT, BRANCHES))
        await server.start()
        assert await late is COMMIT, "a restart is waited for"
        assert len(await ledger.unfinished()) == 30
        await ledger.keep_alive(session, 31)
        assert (await ledger.info()).incarnation == 1


async def _standby(server: EmbeddedServer) -> None:
    """Start ``server``, which is stopped, as a standby of nobody."""
    assert server.folder is not None
    signal = server.folder / "data" / "standby.signal"
    signal.touch()
    give(signal.parent, server_user())
    await server.start()


async def test_a_standby_is_refused(server: EmbeddedServer) -> None:
    """Broken if an old state is read as the ledger's, or a standby's refusal ends a commit that can wait."""
    settings = settings_for(await server.create_database("ledger"), request_timeout_s=2.0)
    await maintenance.init(settings)
    async with opened(settings) as ledger:
        session = await ledger.open_session("test", 10)
        await server.stop()
        await _standby(server)
        with pytest.raises(LedgerUnusable, match="standby"):
            await maintenance.init(settings)
        with pytest.raises(LedgerUnavailable, match="standby"):
            await open_ledger(settings)
        with pytest.raises(LedgerUnavailable, match="standby"):
            await ledger.outcomes([session.txid(1)])
        with pytest.raises(LedgerUnavailable, match="standby"):
            await ledger.decide(session.txid(1), COMMIT, BRANCHES)


async def test_a_promoted_copy_begins_a_new_incarnation(server: EmbeddedServer) -> None:
    """Broken if a ledger that has lost decisions goes on as if it had not: what it had undecided may have
    been committed, or aborted, by the server that it was copied from."""
    settings = settings_for(await server.create_database("ledger"))
    await maintenance.init(settings)
    async with opened(settings) as ledger:
        session, closed = await ledger.open_session("test", 10), await ledger.open_session("test", 10)
        await ledger.close_session(closed)
        await ledger.decide(session.txid(1), COMMIT, BRANCHES)
        await ledger.keep_alive(session, 3)
    await server.stop()
    copy = EmbeddedServer()
    copy.folder = new_place("server")
    assert server.folder is not None
    shutil.copytree(server.folder, copy.folder, symlinks=True, dirs_exist_ok=True)
    give(copy.folder, server_user())
    await server.start()
    async with opened(settings) as ledger:
        await ledger.decide(session.txid(3), COMMIT, BRANCHES)
        later = await ledger.open_session("later", 10)
    await _standby(copy)
    try:
        await execute(copy, "select pg_promote(true, 60)")
        async with opened(settings_for(copy.dsn("ledger"))) as ledger:
            asked = [session.txid(seq) for seq in (1, 2, 3)] + [closed.txid(1)]
            told = await ledger.outcomes(asked)
            assert [told[txid] for txid in asked] == [
                Verdict.COMMITTED,
                Verdict.ABORTED,
                Verdict.FORGOTTEN,
                Verdict.ABORTED,
            ]
            for txid in (session.txid(3), later.txid(1)):
                with pytest.raises(OutcomeUnknown):
                    await ledger.decide(txid, COMMIT, BRANCHES)
            assert await ledger.decide(session.txid(1), COMMIT, BRANCHES) is COMMIT
            with pytest.raises(SessionLost):
                await ledger.keep_alive(session, 3)
            assert (await ledger.open_session("new", 10)).id > max(SESSION_SKIP, later.id)
            assert (await ledger.info()).incarnation == 2
        async with opened(settings_for(copy.dsn("ledger"))) as ledger:
            assert (await ledger.info()).incarnation == 2, "once only"
    finally:
        await copy.close()


async def test_a_failover_beneath_an_open_ledger(server: EmbeddedServer) -> None:
    """Broken if only those who connect anew notice it: behind a pooler nobody does. Here the sign of it is
    set beneath connections that stay."""
    settings = settings_for(await server.create_database("ledger"))
    await maintenance.init(settings)
    async with opened(settings) as ledger:
        session = await ledger.open_session("test", 10)
        await execute(server, "update undoubt_ledger.ledger set timeline = '0000000F'", "ledger")
        with pytest.raises(OutcomeUnknown):
            await ledger.decide(session.txid(1), COMMIT, BRANCHES)
        assert (await ledger.outcomes([session.txid(1)]))[session.txid(1)] is Verdict.FORGOTTEN
        assert (await ledger.info()).incarnation == 2


@pytest.mark.parametrize("how", ["template", "dump"])
async def test_a_copied_database_begins_a_new_incarnation(server: EmbeddedServer, how: str) -> None:
    """Broken if a database that is put back on the same server, on the same timeline, passes for the one that
    it was copied from."""
    settings = settings_for(await server.create_database("ledger"))
    await maintenance.init(settings)
    async with opened(settings) as ledger:
        session = await ledger.open_session("test", 10)
    if how == "template":
        await execute(server, "create database copy template ledger")
    else:
        await server.create_database("copy")
        await _dump_and_restore(server.dsn("ledger"), server.dsn("copy"))
    async with opened(settings_for(server.dsn("copy"))) as ledger:
        with pytest.raises(OutcomeUnknown):
            await ledger.decide(session.txid(1), COMMIT, BRANCHES)
        assert (await ledger.info()).incarnation == 2
    async with opened(settings) as ledger:
        assert await ledger.decide(session.txid(1), COMMIT, BRANCHES) is COMMIT, "the original goes on"


async def _dump_and_restore(source: str, target: str) -> None:
    programs = bin_folder()
    dump = await asyncio.create_subprocess_exec(
        programs / "pg_dump", "-d", source, "-n", "undoubt_ledger", stdout=asyncio.subprocess.PIPE
    )
    script, _ = await dump.communicate()
    restore = await asyncio.create_subprocess_exec(
        programs / "psql", "-q", "-v", "ON_ERROR_STOP=1", "-d", target,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    await restore.communicate(script)
    assert (dump.returncode, restore.returncode) == (0, 0)


@pytest.mark.parametrize("pooled", [False, True], ids=["direct", "pooled"])
async def test_what_no_standby_confirmed_is_not_told(server: EmbeddedServer, pooled: bool) -> None:
    """Broken if a decision that a failover would lose is answered: to its own caller, whose wait was broken
    off; to the one who asks again, and finds it recorded; or to recovery, which would act on it. The database
    hides the warning, and a pooler shares the session, so that it cannot be set there once for all."""
    settings = settings_for(await server.create_database("ledger"), request_timeout_s=3.0)
    await maintenance.init(settings)
    await execute(server, "alter database ledger set client_min_messages = error")
    async with contextlib.AsyncExitStack() as stack:
        if pooled:
            program_or_skip()
            pooler = await stack.enter_async_context(PgBouncer(server.socket_dsn()))
            settings = settings_for(pooler.dsn("ledger"), request_timeout_s=3.0)
        ledger = await stack.enter_async_context(opened(settings))
        session = await ledger.open_session("test", 10)
        txid = session.txid(1)
        await execute(server, "alter system set synchronous_standby_names = 'nobody'")
        await execute(server, "select pg_reload_conf()")
        await _commits_wait(server)
        deciding = asyncio.create_task(ledger.decide(txid, COMMIT, BRANCHES))
        await _cancel_waits(server, deciding)
        with pytest.raises(LedgerUnavailable, match="confirm"):
            await deciding
        connection = await asyncpg.connect(server.dsn("ledger"))
        assert await connection.fetchval("select count(*) from undoubt_ledger.decision") == 1
        await connection.close()
        for call in (
            ledger.decide(txid, COMMIT, BRANCHES),
            ledger.outcomes([txid]),
            ledger.records([txid]),
            ledger.unfinished(),
            ledger.transaction(txid),
        ):
            with pytest.raises(LedgerUnavailable, match="within"):
                await call
        await execute(server, "alter system reset synchronous_standby_names")
        await execute(server, "select pg_reload_conf()")
        assert await ledger.decide(txid, COMMIT, BRANCHES) is COMMIT
        assert (await ledger.outcomes([txid]))[txid] is Verdict.COMMITTED


@pytest.mark.parametrize(
    "name", [name for name in QUERIES if re.search(r"insert into|update |delete from", QUERIES[name])]
)
def test_every_statement_that_writes_is_durable_and_heard(name: str) -> None:
    """Broken if one that is new relies on what its session is set to, which behind a pooler is anybody's."""
    if name == "drop_sessions":
        name = "lock_droppable"  # before it, in its transaction
    assert query("durable") in query(name)


async def _commits_wait(server: EmbeddedServer) -> None:
    """Returns once a commit has been seen waiting for the standby: the checkpointer spreads a new
    ``synchronous_standby_names`` some time after the reload."""
    connection = await asyncpg.connect(server.dsn())
    watcher = await asyncpg.connect(server.dsn())
    seen = "select exists (select from pg_stat_activity where wait_event = 'SyncRep' and pid = $1)"
    try:
        while True:
            write = asyncio.create_task(connection.execute("select pg_logical_emit_message(true, '', '')"))
            while not write.done() and not await watcher.fetchval(seen, connection.get_server_pid()):
                await asyncio.sleep(0.005)
            if not write.done():
                await watcher.execute("select pg_cancel_backend($1)", connection.get_server_pid())
                await write
                return
            await write
    finally:
        await connection.close()
        await watcher.close()


async def _cancel_waits(server: EmbeddedServer, until: asyncio.Task[Decision]) -> None:
    """Those for the standby, whoever waits: the one who moves the ledger's time does so too."""
    connection = await asyncpg.connect(server.dsn())
    try:
        while not until.done():
            await connection.execute(
                "select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'"
            )
            await asyncio.sleep(0.01)
    finally:
        await connection.close()
