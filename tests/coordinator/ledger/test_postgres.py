"""The PostgreSQL ledger's own promises: row locks, leadership, lost connections, what is refused."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import psycopg
import pytest

from tests.coordinator.ledger.postgres_stage import BRANCHES, Clock, Held, opened, settings_for
from tests.coordinator.ledger.signing import Signing
from tests.pgbouncer import PgBouncer, program_or_skip
from undoubt.coordinator.errors import (
    LedgerMissing,
    LedgerUnavailable,
    LedgerUnusable,
    OutcomeUnknown,
    SessionLost,
)
from undoubt.coordinator.ledger import maintenance, open_ledger, schema
from undoubt.coordinator.ledger.contract import RecordedDecision, SessionState, Verdict
from undoubt.coordinator.ledger.locks import LockRequest
from undoubt.coordinator.ledger.postgres import maintenance as upkeep
from undoubt.coordinator.ledger.postgres import sql, tables
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.contract import Decision
from undoubt.participants.ids import Protocol, TxId

COMMIT, ABORT = Decision.COMMIT, Decision.ABORT


@pytest.fixture
def settings(database: str) -> LedgerSettings:
    return settings_for(database)


@pytest.fixture
async def ledger(settings: LedgerSettings) -> AsyncIterator[Signing]:
    await maintenance.init(settings)
    async with opened(settings) as found:
        yield found


async def verdict(ledger: Signing, txid: TxId) -> Verdict:
    return (await ledger.outcomes([txid]))[txid]


async def expire_all(ledger: Signing) -> list[int]:
    await ledger.upkeep.move(1_000_000)
    expired: list[int] = await ledger.upkeep.expire()
    return expired


async def test_an_advisory_lock_that_somebody_holds(
    database: str, settings: LedgerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if any role of the server can keep who makes a ledger waiting for ever, without a word."""
    monkeypatch.setattr(tables, "LOCK_TIMEOUT_S", 1)
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as somebody:
        await somebody.execute(f"select pg_advisory_lock({tables.LOCK})")
        with pytest.raises(LedgerUnavailable, match="lock timeout"):
            await maintenance.init(settings)
    assert (await maintenance.init(settings)).unfinished == 0


# A decision and an expiry of its session.


async def test_an_expiry_waits_for_a_decision(ledger: Signing, database: str) -> None:
    """Broken if recovery can be told ABORTED while a COMMIT of that session is on its way to the disk."""
    session = await ledger.open_session("test", 10)
    async with Held.connect(database) as held:
        ((_, _, _, _, _, decision),) = await held.decide(session.txid(1), "commit")
        assert decision == "commit"
        expiry = asyncio.create_task(expire_all(ledger))
        await held.somebody_waits()
        assert await verdict(ledger, session.txid(1)) is Verdict.ACTIVE
        await held.run("commit")
        assert await expiry == [session.id]
    assert await verdict(ledger, session.txid(1)) is Verdict.COMMITTED
    assert await verdict(ledger, session.txid(2)) is Verdict.ABORTED


@pytest.mark.parametrize(("end", "answer"), [("commit", ABORT), ("rollback", COMMIT)])
async def test_a_decision_waits_for_an_expiry(
    ledger: Signing, database: str, end: str, answer: Decision
) -> None:
    """Broken if a COMMIT is recorded beside an expiry that is already on its way, or refused because of one
    that never happened."""
    session = await ledger.open_session("test", 10)
    await ledger.upkeep.move(1_000_000)
    async with Held.connect(database) as held:
        await held.run("begin")
        await held.run(sql.query("expire"), me=ledger.upkeep.me)
        deciding = asyncio.create_task(ledger.decide(session.txid(1), COMMIT, BRANCHES))
        await held.somebody_waits()
        assert await verdict(ledger, session.txid(1)) is Verdict.ACTIVE
        await held.run(end)
        assert await deciding is answer
    assert await verdict(ledger, session.txid(1)) is (
        Verdict.ABORTED if answer is ABORT else Verdict.COMMITTED
    )


async def test_for_key_share_would_split_transactions(
    ledger: Signing, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if the weaker lock has become enough; the other tests of locks would then prove nothing."""
    monkeypatch.setitem(sql.QUERIES, "decide", sql.query("decide").replace("for share", "for key share"))
    session = await ledger.open_session("test", 10)
    async with Held.connect(database) as held:
        await held.decide(session.txid(1), "commit")
        assert await expire_all(ledger) == [session.id]
        assert await verdict(ledger, session.txid(1)) is Verdict.ABORTED
        await held.run("commit")
    assert await verdict(ledger, session.txid(1)) is Verdict.COMMITTED, "and it had been called aborted"


@pytest.mark.parametrize("change", ["expire", "floor"])
async def test_outcomes_read_one_moment(ledger: Signing, database: str, change: str) -> None:
    """Broken if the state of a session is read later than its decisions: with a lock on the session, say,
    which waits for the expiry and then sees it, beside a snapshot from before the decision."""
    session = await ledger.open_session("test", 10)
    async with Held.connect(database) as held, Held.connect(database) as writer:
        await held.run("begin isolation level read committed")
        await held.run("select 1 from undoubt_ledger.session where id = %(id)s for update", id=session.id)
        asking = asyncio.create_task(verdict(ledger, session.txid(1)))
        assert await asyncio.wait_for(asking, 20) is Verdict.ACTIVE, "it must not wait for the row either"
        await held.run("rollback")
        # A snapshot from before the decision, used after the session has ended.
        await writer.run("begin isolation level repeatable read")
        columns = {"session": [session.id], "nonce": [session.nonce], "seq": [1]}
        ((_, _, _, _, before, *_),) = await writer.run(sql.query("outcomes"), **columns)
        await ledger.decide(session.txid(1), COMMIT, BRANCHES)
        if change == "expire":
            await expire_all(ledger)
        else:
            await ledger.keep_alive(session, 2)
        ((_, _, _, _, state, floor, _, decision, _),) = await writer.run(sql.query("outcomes"), **columns)
        assert (before, state, floor, decision) == ("open", "open", 1, None)
        await writer.run("rollback")
    assert await verdict(ledger, session.txid(1)) is Verdict.COMMITTED


async def test_a_session_that_is_being_dropped_keeps_what_slips_in(ledger: Signing, database: str) -> None:
    """Broken if a decision recorded while its old session is dropped goes with it."""
    session = await ledger.open_session("test", 10)
    await ledger.close_session(session)
    await ledger.upkeep.move(10**12)
    async with Held.connect(database) as held:
        await held.decide(session.txid(1), "abort")
        dropping = asyncio.create_task(ledger.upkeep.retire())
        await held.somebody_waits()
        await held.run("commit")
        assert await dropping == []
    assert await verdict(ledger, session.txid(1)) is Verdict.ABORTED
    await ledger.finish([session.txid(1)])
    assert await ledger.upkeep.retire() == [session.id]


# Several processes.


async def test_processes_that_decide_at_once_agree(ledger: Signing, settings: LedgerSettings) -> None:
    """Broken if two processes can be told different things about one transaction."""
    async with opened(settings) as other:
        session = await ledger.open_session("test", 10)
        txids = [session.txid(seq) for seq in range(1, 101)]
        answers = await asyncio.gather(
            *(ledger.decide(txid, COMMIT, BRANCHES) for txid in txids),
            *(other.decide(txid, ABORT, BRANCHES[:1]) for txid in reversed(txids)),
        )
        assert answers[:100] == answers[100:][::-1]
        records = await other.records(txids)
        assert [records[txid] for txid in txids] == [
            RecordedDecision(str(answer)) for answer in answers[:100]
        ]


async def test_answers_in_one_statement_are_each_its_own(ledger: Signing) -> None:
    """Broken if one decision of a batch gets another's answer, or its failure."""
    session, closed = await ledger.open_session("test", 10), await ledger.open_session("test", 10)
    await ledger.close_session(closed)
    await ledger.keep_alive(session, 3)
    await ledger.decide(session.txid(50), COMMIT, BRANCHES)
    asked = [
        (session.txid(2), COMMIT, BRANCHES),
        (session.txid(3), COMMIT, BRANCHES),
        (TxId(session.id, "f" * 16, 4), COMMIT, BRANCHES),
        (session.txid(50), COMMIT, BRANCHES),
        (session.txid(50), COMMIT, BRANCHES[:1]),
        (closed.txid(1), COMMIT, BRANCHES),
        (session.txid(2**70), COMMIT, BRANCHES),
        *((session.txid(seq), COMMIT, BRANCHES) for seq in range(100, 300)),
    ]
    answers = await asyncio.gather(*(ledger.decide(*each) for each in asked), return_exceptions=True)
    names = [type(answer).__name__ if isinstance(answer, Exception) else str(answer) for answer in answers]
    assert names[:6] == ["abort", "commit", "OutcomeUnknown", "commit", "BranchListMismatch", "abort"]
    assert names[6] == "UsageError", "no ledger takes this number: it is refused before it is queued"
    assert set(names[7:]) == {"commit"}


async def test_two_processes_create_one_ledger(settings: LedgerSettings) -> None:
    """Broken if two that begin at once make two identities, or one of them fails."""
    program = (
        "import asyncio, sys; from undoubt.coordinator.ledger import maintenance;"
        "from coordinator.settings import LedgerSettings as S;"
        "print(asyncio.run(maintenance.init(S(url=sys.argv[1]))).ledger_id)"
    )
    running = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, settings.url, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(3)
    ]
    told = [await process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], told
    assert len({out for out, _ in told}) == 1


async def test_one_leads_and_leaves_the_lead(ledger: Signing, settings: LedgerSettings) -> None:
    """Broken if nobody, or everybody, looks after the ledger."""
    async with opened(settings) as other:
        assert (ledger.leads, other.leads) == (True, False)
        await ledger.close()
        await other.upkeep.look()
        assert other.leads


async def test_a_leader_that_falls_silent_is_succeeded(ledger: Signing, settings: LedgerSettings) -> None:
    """Broken if a killed leader leaves the ledger without one; if its successor expires sessions that could
    not be renewed meanwhile; or if it moves time itself once it is back."""
    clock = Clock()
    session = await ledger.open_session("test", 10)
    await ledger.upkeep.move(9_000)
    async with opened(settings, clock) as other:
        clock.now_s += upkeep.LEADER_TIMEOUT_S - 0.1
        await other.upkeep.look()
        assert not other.leads
        await ledger.upkeep.move(0)
        clock.now_s += upkeep.LEADER_TIMEOUT_S - 0.1
        await other.upkeep.look()
        assert not other.leads, "its leader has moved"
        clock.now_s += 0.2
        await other.upkeep.look()
        assert not other.leads
        clock.now_s += upkeep.LEADER_TIMEOUT_S
        await other.upkeep.look()
        assert other.leads
        await other.upkeep.move(9_000)
        assert await other.upkeep.expire() == [], "a full lifetime from the takeover on"
        time_s = (await other.info()).ledger_time_s
        await ledger.upkeep.move(1_000_000)
        assert not ledger.leads
        assert await ledger.upkeep.expire() == []
        assert (await other.info()).ledger_time_s == time_s
        await other.upkeep.move(2_000)
        assert await other.upkeep.expire() == [session.id]


async def test_time_stands_still_while_the_leader_is_stopped(settings: LedgerSettings) -> None:
    """Broken if a leader that was stopped, or cut off from the ledger, expires everybody when it is back."""
    await maintenance.init(settings)
    clock = Clock()
    async with opened(settings, clock) as ledger:
        await ledger.open_session("test", 10)
        clock.now_s += 3_600
        await ledger.upkeep.beat()
        # Beats of the ledger's own may come between, each of as much at most.
        assert (await ledger.info()).ledger_time_s < 10
        assert [info.state for info in await ledger.sessions()] == [SessionState.OPEN]


async def test_upkeep_expires_in_the_background(settings: LedgerSettings) -> None:
    """Broken if a dead coordinator's transactions stay active for ever."""
    await maintenance.init(settings)
    ledger = Signing(await open_ledger(settings))
    session = await ledger.open_session("test", 1)
    while (await ledger.outcomes([session.txid(1)]))[session.txid(1)] is Verdict.ACTIVE:
        await asyncio.sleep(0.05)
    with pytest.raises(SessionLost):
        await ledger.keep_alive(session, 1)
    await ledger.close()


# Connections.


async def test_a_connection_that_is_lost_while_it_decides(ledger: Signing, database: str) -> None:
    """Broken if a decision whose answer was lost is not asked for again, or is recorded twice."""
    session = await ledger.open_session("test", 10)
    async with Held.connect(database) as held:
        await held.run("begin")
        await held.run("select 1 from undoubt_ledger.session for update")
        deciding = [
            asyncio.create_task(ledger.decide(session.txid(seq), COMMIT, BRANCHES)) for seq in (1, 2, 3)
        ]
        await held.somebody_waits()
        ended = await held.run(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid() and query like 'with here%%'"
        )
        assert ended
        await held.run("commit")
        assert [await answer for answer in deciding] == [COMMIT] * 3
    assert [left.txid for left in await ledger.unfinished()] == [session.txid(seq) for seq in (1, 2, 3)]


async def test_no_answer_in_time_is_no_answer(settings: LedgerSettings, database: str) -> None:
    """Broken if a ledger that hangs holds its callers for ever, or what it did late is lost."""
    await maintenance.init(settings)
    async with opened(msgspec.structs.replace(settings, request_timeout_s=1.0)) as ledger:
        session = await ledger.open_session("test", 10)
        async with Held.connect(database) as held:
            await held.run("begin")
            await held.run("select 1 from undoubt_ledger.session for update")
            with pytest.raises(LedgerUnavailable, match=r"within 1\.0 s"):
                await ledger.decide(session.txid(1), COMMIT, BRANCHES)
            await held.run("commit")
        assert await ledger.decide(session.txid(1), COMMIT, BRANCHES) is COMMIT
        assert len(await ledger.unfinished()) == 1


async def test_a_caller_that_is_cancelled_stops_nothing(ledger: Signing, database: str) -> None:
    """Broken if an impatient caller leaves a connection in the middle of a statement."""
    session = await ledger.open_session("test", 10)
    async with Held.connect(database) as held:
        await held.run("begin")
        await held.run("select 1 from undoubt_ledger.session for update")
        deciding = asyncio.create_task(ledger.decide(session.txid(1), COMMIT, BRANCHES))
        renewing = asyncio.create_task(ledger.keep_alive(session, 1))
        await held.somebody_waits()
        for task in (deciding, renewing):
            task.cancel()
        assert await asyncio.gather(deciding, renewing, return_exceptions=True)
        await held.run("commit")
    while not await ledger.unfinished():
        await asyncio.sleep(0.01)
    assert await ledger.decide(session.txid(1), ABORT, BRANCHES[:1]) is COMMIT


async def test_behind_a_transaction_pooler(settings: LedgerSettings, database: str) -> None:
    """Broken if anything relies on a session of the server: prepared statements, locks, settings."""
    program_or_skip()
    info = psycopg.conninfo.conninfo_to_dict(database)
    await maintenance.init(settings)
    async with (
        PgBouncer(database, {"default_pool_size": "3"}) as pooler,
        opened(settings_for(pooler.dsn(str(info["dbname"])))) as ledger,
    ):
        session = await ledger.open_session("test", 10)
        for round_ in range(20):
            txids = [session.txid(round_ * 10 + seq) for seq in range(1, 11)]
            answers = await asyncio.gather(*(ledger.decide(txid, COMMIT, BRANCHES) for txid in txids))
            assert set(answers) == {COMMIT}
            assert set((await ledger.outcomes(txids)).values()) == {Verdict.COMMITTED}
        await expire_all(ledger)
        assert await ledger.decide(session.txid(1000), COMMIT, BRANCHES) is ABORT


async def test_stronger_isolation_by_default_only_costs(settings: LedgerSettings, database: str) -> None:
    """Broken if a database whose default is not READ COMMITTED gets other answers, or errors."""
    await maintenance.init(settings)
    async with Held.connect(database) as held:
        name = psycopg.conninfo.conninfo_to_dict(database)["dbname"]
        await held.run(f"alter database \"{name}\" set default_transaction_isolation = 'repeatable read'")
    async with opened(settings) as ledger, opened(settings) as other:
        session = await ledger.open_session("test", 10)
        txids = [session.txid(seq) for seq in range(1, 31)]
        answers = await asyncio.gather(
            *(one.decide(txid, COMMIT, BRANCHES) for txid in txids for one in (ledger, other)),
            *(ledger.keep_alive(session, 1) for _ in range(10)),
        )
        assert set(answers[:60]) == {COMMIT}


# What is refused.


async def test_where_there_is_no_ledger_none_is_made(settings: LedgerSettings, database: str) -> None:
    """Broken if a wrong URL makes an empty ledger, which calls every branch in doubt a stranger's."""
    for work in (open_ledger, maintenance.check, maintenance.migrate):
        with pytest.raises(LedgerMissing, match="undoubt ledger init"):
            await work(settings)
    async with Held.connect(database) as held:
        assert await held.run("select to_regnamespace('undoubt_ledger')") == [(None,)]


async def test_a_newer_version_is_refused_and_an_older_one_migrated(
    settings: LedgerSettings, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if a program reads tables that it does not know."""
    await maintenance.init(settings)
    assert await maintenance.migrate(settings) == []
    async with Held.connect(database) as held:
        await held.run("update undoubt_ledger.migration set version_num = 'g999'")
        for work in (open_ledger, maintenance.migrate, maintenance.init):
            with pytest.raises(LedgerUnusable, match="newer version"):
                await work(settings)
        assert "newer version" in (await maintenance.check(settings))[0]
        await held.run("update undoubt_ledger.migration set version_num = 'g001'")
    newer = schema.Tree("ledger_postgres", ("g001", "g002"))
    monkeypatch.setattr(schema, "POSTGRES", newer)
    with pytest.raises(LedgerUnusable, match="undoubt ledger migrate"):
        await open_ledger(settings)


async def test_missing_rights_are_named(settings: LedgerSettings, database: str) -> None:
    """Broken if an operator is not told what to grant."""
    await maintenance.init(settings)
    async with Held.connect(database) as held:
        await held.run("drop role if exists ledger_guest")
        await held.run("create role ledger_guest login password 'guest'")
        guest = settings_for(re.sub(r"//[^@]*@", "//ledger_guest:guest@", database))
        with pytest.raises(LedgerUnusable, match="grant"):
            await open_ledger(guest)
        await held.run("drop schema undoubt_ledger cascade")
        with pytest.raises(LedgerUnusable, match="grant create on database"):
            await maintenance.init(guest)
        await held.run("drop role ledger_guest")


async def test_synchronous_commit_below_on_is_refused(settings: LedgerSettings, database: str) -> None:
    """Broken if a decision may be answered that is not on a disk."""
    await maintenance.init(settings)
    async with Held.connect(database) as held:
        name = psycopg.conninfo.conninfo_to_dict(database)["dbname"]
        await held.run(f"alter database \"{name}\" set synchronous_commit = 'local'")
    with pytest.raises(LedgerUnusable, match="synchronous_commit"):
        await open_ledger(settings)


async def test_a_setting_that_leaks_through_a_pooler_is_overruled(ledger: Signing, database: str) -> None:
    """Broken if somebody else's SET in a shared server session makes a decision less durable."""
    session = await ledger.open_session("test", 10)
    async with Held.connect(database) as held:
        await held.run("set synchronous_commit = off")
        await held.decide(session.txid(1), "commit")
        assert await held.run("show synchronous_commit") == [("on",)]
        await held.run("commit")
        assert await held.run("show synchronous_commit") == [("off",)]


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql://a@h/d", "must begin with postgresql\\+psycopg://"),
        ("postgresql+psycopg://a:se/cret@h", "names no database|cannot be read"),
        ("mysql://a@h/d", "not supported"),
        ("postgresql+psycopg://a:secret@h:99999/d", "h:99999/d' has a port that is not between 1 and 65535"),
        ("postgresql+psycopg://a@/d?host=h:1&host=i:70000", "a port that is not between"),
        ("postgresql+psycopg://a@h/d?dbname=host%3Dh%20password%3Dcret", "is a connection string itself"),
        (
            "postgresql+psycopg://a@h/postgresql://b:secret@c/d",
            "is a connection string itself|cannot be read",
        ),
        ("postgresql+psycopg://nobody@127.0.0.1:1/nothing", "no answer"),
    ],
)
async def test_urls_that_lead_nowhere_say_so(url: str, told: str) -> None:
    """Broken if the message does not name the way out, or shows a password."""
    with pytest.raises((LedgerUnusable, LedgerUnavailable), match=told) as error:
        await open_ledger(LedgerSettings(url=url, request_timeout_s=1.0))
    assert "cret" not in str(error.value)


async def test_statements_that_the_server_has_forgotten_are_prepared_again(
    ledger: Any,
) -> None:
    """Broken if a migration, or DISCARD ALL of a pooler, makes every idle connection fail for good."""
    for _ in range(4):
        await ledger.unfinished()
    lines = ledger._connections._idle
    assert lines
    for line in lines:
        # Psycopg would notice a plain one.
        await line.run("do $$ begin execute 'deallocate all'; end $$", {})
    assert await ledger.unfinished() == []
    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(ledger.unfinished())


async def test_a_server_without_the_tls_that_was_asked_for_is_no_ledger(settings: LedgerSettings) -> None:
    """Broken if that counts as a server that may be there soon, and is waited for."""
    more = LedgerSettings(url=f"{settings.url}?sslmode=require", request_timeout_s=600.0)
    with pytest.raises(LedgerUnusable, match="SSL"):
        await open_ledger(more)


async def test_check_finds_what_is_wrong(settings: LedgerSettings, database: str) -> None:
    """Broken if a damaged ledger is called healthy."""
    await maintenance.init(settings)
    sound = await maintenance.check(settings)
    assert [problem for problem in sound if "fsync" not in problem] == []
    async with opened(settings) as ledger, Held.connect(database) as held:
        session = await ledger.open_session("test", 10)
        for seq in (1, 2):
            await ledger.decide(session.txid(seq), COMMIT, BRANCHES)
        await held.run("delete from undoubt_ledger.decision where seq = 1")
        await held.run("update undoubt_ledger.decision set branches = '[' where seq = 2")
        found = json.dumps(await maintenance.check(settings))
    assert "1.1 is unfinished, and its decision is missing" in found
    assert "1.2 cannot be read" in found


async def test_history_goes_with_dropped_sessions(settings: LedgerSettings) -> None:
    """Broken if the ledger grows for ever, or forgets details while history is to keep them."""
    settings = msgspec.structs.replace(settings, retention_s=10.0, history_s=100.0)
    await maintenance.init(settings)
    async with opened(settings) as ledger:
        session = await ledger.open_session("test", 10)
        await ledger.decide(session.txid(1), COMMIT, BRANCHES)
        await ledger.finish([session.txid(1)])
        await ledger.close_session(session)
        await ledger.upkeep.move(50_000)
        assert await ledger.upkeep.retire() == [session.id]
        told = await ledger.transaction(session.txid(1))
        assert told is not None
        branches = tuple(ledger.tagged(session.txid(1), BRANCHES, Protocol.TWO_PHASE))
        assert (told.record, told.branches, told.verdict) == (
            RecordedDecision.COMMIT,
            branches,
            Verdict.FORGOTTEN,
        )
        assert (await ledger.records([session.txid(1)]))[session.txid(1)] is RecordedDecision.NOT_RECORDED
        with pytest.raises(OutcomeUnknown):
            await ledger.decide(session.txid(1), COMMIT, BRANCHES)
        await ledger.upkeep.move(51_000)
        await ledger.upkeep.retire()
        assert await ledger.transaction(session.txid(1)) is None
        assert (await ledger.open_session("test", 10)).id > session.id


# Locks.


async def test_the_queue_of_a_lock_is_not_written_over_a_change_that_was_not_seen(
    ledger: Signing, database: str
) -> None:
    """Broken if a request that another process has just put into the queue is lost, and with it the place of
    whoever waits, or of the holder."""
    session = await ledger.open_session("test", 600)
    numbers = (1, 2, 3)
    asked = [LockRequest("job", session.id, session.nonce, number, False, None) for number in numbers]
    await ledger.lock(asked[0], wait=True)
    row = "select version, sessions, entries from undoubt_ledger.lock where name = 'job'"
    change = "update undoubt_ledger.lock set version = %s, sessions = %s, entries = %s where name = 'job'"
    async with (
        await psycopg.AsyncConnection.connect(database) as other,
        await psycopg.AsyncConnection.connect(database, autocommit=True) as watching,
    ):
        before = await (await other.execute(row)).fetchone()
        await ledger.lock(asked[1], wait=True)
        await other.rollback()
        after = await (await other.execute(row)).fetchone()
        assert before is not None
        assert after is not None
        await watching.execute(change, before)
        await other.execute(change, after)  # the other process's request, not committed yet
        late = asyncio.create_task(ledger.lock(asked[2], wait=True))
        waits = "select exists (select from pg_stat_activity where wait_event_type = 'Lock')"
        while await (await watching.execute(waits)).fetchone() != (True,):
            await asyncio.sleep(0.005)
        await other.commit()
    await late
    [info] = await ledger.locks()
    assert [entry.request.number for entry in info.entries] == list(numbers)
