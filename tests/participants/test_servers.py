"""Servers that crash, fall behind, take over, or are set up for something else."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from tests.participants.hands import at
from tests.participants.support import new_gid, participant_at, run_on
from undoubt.embedded import EmbeddedServer
from undoubt.participants.contract import Decision, Evidence, Settled, Vote, XactStatus
from undoubt.participants.errors import BranchFailed, ParticipantRefused, ParticipantUnavailable
from undoubt.participants.ids import Gid
from undoubt.participants.postgres import PostgresParticipant

WAYS = ("",)

TABLE = "create table account (id int primary key, balance int); insert into account values (1, 100)"
WRITE = "update account set balance = 90 where id = 1"


@pytest.mark.parametrize(("slots", "sqlstate"), [(0, "55000"), (1, "53200")])
async def test_max_prepared_transactions(slots: int, sqlstate: str) -> None:
    """The most common reason why nothing works: the error names the setting and the line to put where."""
    async with EmbeddedServer({"max_prepared_transactions": str(slots)}, durable=False) as server:
        participant = participant_at(server.dsn())
        await run_on(server.dsn(), TABLE)
        for _ in range(slots):
            branch = await participant.begin(new_gid(), timeout_s=30)
            assert (await branch.prepare()).vote is Vote.PREPARED
            await branch.release()
        branch = await participant.begin(new_gid(), timeout_s=30)
        await at(branch).execute(WRITE)
        result = await branch.prepare()
        assert result.vote is Vote.ABORT
        assert isinstance(result.reason, BranchFailed)
        assert result.reason.sqlstate == sqlstate
        assert "max_prepared_transactions = " in str(result.reason)
        assert "postgresql.conf" in str(result.reason)
        assert await branch.rollback() is Settled.APPLIED
        await branch.release()
        await participant.close()


@pytest.mark.parametrize("order", list(Decision))
async def test_server_killed_between_the_phases(order: Decision) -> None:
    """A prepared branch survives kill -9, and is finished by its own coordinator or by a later one."""
    async with EmbeddedServer() as server:
        await run_on(server.dsn(), TABLE)
        participant = participant_at(server.dsn())
        mine, orphan = new_gid(), new_gid()
        other = await participant.begin(orphan, timeout_s=30)
        await at(other).execute("insert into account values (2, 2)")
        evidence = (await other.prepare()).evidence
        await other.release()
        branch = await participant.begin(mine, timeout_s=30)
        await at(branch).execute(WRITE)
        assert (await branch.prepare()).vote is Vote.PREPARED
        open_one = await participant.begin(new_gid(), timeout_s=30)
        await at(open_one).execute("insert into account values (3, 3)")
        await server.kill()
        for call in (branch.commit if order is Decision.COMMIT else branch.rollback, participant.in_doubt):
            with pytest.raises(ParticipantUnavailable):
                await call()
        assert await open_one.rollback() is Settled.APPLIED
        await open_one.release()
        await server.start()
        assert {row.gid for row in await participant.in_doubt()} == {mine, orphan}
        assert await (branch.commit() if order is Decision.COMMIT else branch.rollback()) is Settled.APPLIED
        await branch.release()
        assert await participant.settle(orphan, order, evidence) is Settled.APPLIED
        expected = [(1, 90), (2, 2)] if order is Decision.COMMIT else [(1, 100)]
        connection = await asyncpg.connect(server.dsn())
        assert [tuple(row) for row in await connection.fetch("select * from account order by id")] == expected
        await connection.close()
        assert list(await participant.in_doubt()) == []
        await participant.close()


async def test_xid_is_given_out_again_after_a_crash() -> None:
    """Why *committed* is not believed of an unprepared branch: its id may be another's after a crash."""
    async with EmbeddedServer({"wal_writer_delay": "10s"}) as server:
        await run_on(server.dsn(), TABLE + "; checkpoint")
        participant = participant_at(server.dsn())
        lost = await asyncpg.connect(server.dsn())
        await lost.execute("begin")
        ours = int(await lost.fetchval("select pg_current_xact_id()::text"))
        await server.kill()
        lost.terminate()
        await server.start()
        again = int(str(await run_on(server.dsn(), "select pg_current_xact_id()::text")))
        assert again == ours
        assert await run_on(server.dsn(), f"select pg_xact_status('{ours}')") == "committed"
        await participant.close()


@asynccontextmanager
async def standby_of(server: EmbeddedServer) -> AsyncIterator[EmbeddedServer]:
    """A copy of ``server``, which has to be stopped, in recovery and open for reading."""
    standby = EmbeddedServer(durable=False)
    folder = Path(tempfile.mkdtemp(prefix="undoubt-standby-"))
    assert server.folder is not None
    await asyncio.to_thread(shutil.copytree, server.folder / "data", folder / "data", symlinks=True)
    (folder / "data" / "standby.signal").touch()
    owner = server.folder.stat()
    for place in (folder, *folder.rglob("*")):
        os.chown(place, owner.st_uid, owner.st_gid)
    folder.chmod(0o700)
    standby.folder = folder
    async with standby:
        yield standby


async def test_standby() -> None:
    """Its list is empty whatever is prepared; believing it would forget branches. After its promotion the
    timeline is another at once, and evidence of the old one is no evidence."""
    async with EmbeddedServer() as primary:
        await run_on(primary.dsn(), TABLE)
        participant = participant_at(primary.dsn())
        done, open_one = new_gid(), new_gid()
        evidence = await prepared(participant, done, WRITE)
        assert await participant.settle(done, Decision.COMMIT, evidence) is Settled.APPLIED
        still = await prepared(participant, open_one, "insert into account values (2, 2)")
        await participant.close()
        await primary.stop()
        async with standby_of(primary) as standby:
            assert await run_on(standby.dsn(), "select count(*) from pg_prepared_xacts") == 0
            there = participant_at(standby.dsn())
            for call in (
                there.in_doubt(),
                there.begin(new_gid(), timeout_s=30),
                there.settle(open_one, Decision.COMMIT, still),
                there.evidence(evidence),
                there.waits(),
            ):
                with pytest.raises(ParticipantRefused, match="standby"):
                    await call
            await primary.start()
            both = primary.dsn().replace("@", f"@127.0.0.1:{standby.port},")
            either = participant_at(both)
            assert [row.gid for row in await either.in_doubt()] == [open_one]
            await either.close()
            await primary.stop()
            nobody = participant_at(both)
            with pytest.raises(ParticipantUnavailable):
                await nobody.in_doubt()
            await nobody.close()
            await run_on(standby.dsn(), "select pg_promote()")
            assert await there.evidence(evidence) is XactStatus.UNKNOWN
            assert await there.settle(done, Decision.COMMIT, evidence) is Settled.HEURISTIC_HAZARD
            assert [row.gid for row in await there.in_doubt()] == [open_one]
            fresh = await prepared(there, new_gid(), "insert into account values (5, 5)")
            assert (fresh.system, fresh.timeline) == (evidence.system, "00000002")
            assert await there.settle(open_one, Decision.COMMIT, still) is Settled.APPLIED
            await there.close()


async def test_connection_to_a_standby_that_was_a_primary_is_not_believed() -> None:
    """Each answer carries its own proof of not being a standby's: a pooler cannot mix them up."""
    async with EmbeddedServer(durable=False) as server:
        participant = participant_at(server.dsn())
        session = await participant.admin_pool.pool.acquire(1)
        rows = session.session.rows

        async def of_a_standby(sql: str, *args: object, timeout_s: float) -> object:
            told = sql.replace("pg_catalog.pg_is_in_recovery()", "true")
            return await rows(told, *args, timeout_s=timeout_s)

        session.session.rows = of_a_standby  # type: ignore[method-assign, assignment]
        participant.admin_pool.pool.release(session)
        with pytest.raises(ParticipantRefused, match="standby"):
            await participant.in_doubt()
        await participant.close()


async def prepared(participant: PostgresParticipant, gid: Gid, statement: str) -> Evidence:
    branch = await participant.begin(gid, timeout_s=30)
    await at(branch).execute(statement)
    result = await branch.prepare()
    assert result.vote is Vote.PREPARED
    await branch.release()
    assert result.evidence is not None
    return result.evidence
