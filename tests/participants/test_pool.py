"""Connections between branches: clean when lent again, closed when in doubt, never more than allowed."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.participants.hands import at, cleaned, sql_error
from tests.participants.support import KEY, LEDGER, WRITE, Database, new_gid, participant_at
from undoubt.participants.contract import Settled, Vote
from undoubt.participants.errors import ParticipantUnavailable
from undoubt.participants.ids import NO_KEY, TxId
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.postgres.session import ServerParameters
from undoubt.participants.postgres.session_setup import APPLICATION_NAME_BYTES_MAX, branch_name, timeouts_ms


async def pid_of(participant: PostgresParticipant, *, timeout_s: float = 30) -> int:
    branch = await participant.begin(new_gid(), timeout_s=timeout_s)
    pid = int(await at(branch).fetchval("select pg_backend_pid()"))
    await branch.rollback()
    await branch.release()
    return pid


LEFT_BEHIND = {
    "set search_path = pg_catalog": "show search_path",
    "set statement_timeout = '17s'": "show statement_timeout",
    "set lock_timeout = '17s'": "show lock_timeout",
    "set role pg_monitor": "select current_user",
    "select set_config('app.tenant', 'x', false)": "select coalesce(current_setting('app.tenant', true), '')",
    "select pg_advisory_lock(99)": "select count(*) from pg_locks where locktype = 'advisory'",
    "listen something": "select count(*) from pg_listening_channels()",
    "create temp table account (x int)": "select count(*) from account",
    "declare c cursor with hold for select 1": "select count(*) from pg_cursors where is_holdable",
}


@pytest.mark.parametrize("statement", LEFT_BEHIND)
@pytest.mark.parametrize("ending", ["commit", "rollback next"])
async def test_nothing_is_left_for_the_next_branch(database: Database, statement: str, ending: str) -> None:
    """A tenant's setting, a role or a lock of one transaction must not reach the next, or the one after it
    when the next is rolled back."""
    participant = participant_at(database.dsn, connections_max=1)
    probe = LEFT_BEHIND[statement]
    clean = await participant.begin(new_gid(), timeout_s=30)
    expected = await at(clean).fetchval(probe)
    await clean.rollback()
    await clean.release()
    branch = await participant.begin(new_gid(), timeout_s=30)
    await at(branch).execute(statement)
    pid = at(branch).get_server_pid()
    assert await branch.commit_one_phase() is Settled.APPLIED
    await branch.release()
    for _ in range(2 if ending == "rollback next" else 1):
        after = await participant.begin(new_gid(), timeout_s=30)
        assert at(after).get_server_pid() == pid
        assert await at(after).fetchval(probe) == expected
        await at(after).execute(WRITE)
        if ending == "commit":
            assert (await after.prepare()).vote is Vote.PREPARED, "the reset itself must not forbid PREPARE"
        await after.rollback()
        await after.release()
    await participant.close()


async def test_last_used_is_lent_first(database: Database) -> None:
    """Else every connection would be kept warm by turns, and none of the surplus would age."""
    participant = participant_at(database.dsn)
    first = await participant.begin(new_gid(), timeout_s=30)
    second = await participant.begin(new_gid(), timeout_s=30)
    pids = [at(first).get_server_pid(), at(second).get_server_pid()]
    assert pids[0] != pids[1]
    for branch in (first, second):
        await branch.rollback()
        await branch.release()
        await branch.release()
        await cleaned(participant)  # resets that run side by side end in any order
    for _ in range(3):
        await cleaned(participant)
        assert await pid_of(participant) == pids[1]
    await participant.close()


async def test_no_more_than_allowed(database: Database) -> None:
    """Beyond connections_max a branch waits, and is told why if that takes too long."""
    participant = participant_at(database.dsn, connections_max=1)
    held = await participant.begin(new_gid(), timeout_s=30)
    with pytest.raises(ParticipantUnavailable, match="connections_max"):
        await participant.begin(new_gid(), timeout_s=0.05)
    waiting = asyncio.create_task(participant.begin(new_gid(), timeout_s=30))
    await asyncio.sleep(0)
    await held.rollback()
    await held.release()
    branch = await waiting
    await branch.rollback()
    await branch.release()
    await participant.close()


async def test_a_second_release_takes_nothing_from_the_next_branch(database: Database) -> None:
    """Broken if a connection is lent twice at once because a branch was released again."""
    participant = participant_at(database.dsn, connections_max=1)
    before = await participant.begin(new_gid(), timeout_s=30)
    await before.rollback()
    await before.release()
    branch = await participant.begin(new_gid(), timeout_s=30)
    await before.release()
    with pytest.raises(ParticipantUnavailable, match="connections_max"):
        await participant.begin(new_gid(), timeout_s=0.05)
    await branch.rollback()
    await branch.release()
    await participant.close()


@pytest.mark.parametrize("state", ["open", "failed", "lost", "another transaction"])
async def test_a_connection_in_any_other_state_is_not_lent_again(database: Database, state: str) -> None:
    """A branch released in the middle of something must not hand its middle to the next."""
    participant = participant_at(database.dsn, connections_max=1)
    branch = await participant.begin(new_gid(), timeout_s=30)
    pid = at(branch).get_server_pid()
    await at(branch).execute(WRITE)
    if state == "failed":
        with sql_error("22012"):
            await at(branch).execute("select 1/0")
    elif state == "lost":
        await database.admin.execute("select pg_terminate_backend($1, 5000)", pid)
    elif state == "another transaction":
        await at(branch).execute("rollback; begin")
    await branch.release()
    assert await pid_of(participant) != pid
    assert await database.balance() == 100
    await participant.close()


async def test_begin_survives_lost_idle_connections(database: Database) -> None:
    """After a server's restart the pool is full of dead connections: no transaction should pay for that."""
    participant = participant_at(database.dsn)
    branches = [await participant.begin(new_gid(), timeout_s=30) for _ in range(3)]
    pids = [at(branch).get_server_pid() for branch in branches]
    for branch in branches:
        await branch.rollback()
        await branch.release()
    for pid in pids:
        await database.admin.execute("select pg_terminate_backend($1, 5000)", pid)
    assert await pid_of(participant) not in pids
    await participant.close()


async def test_names_and_timeouts_of_a_branch(database: Database) -> None:
    """An operator finds the transaction by its name; a lost coordinator's locks end by the timeouts."""
    participant = participant_at(database.dsn, connections_max=1)
    seen = {}
    for timeout_s in (30, 29.5, 7, 0.2):
        gid = new_gid()
        branch = await participant.begin(gid, timeout_s=timeout_s)
        row = await at(branch).fetchrow(
            "select current_setting('application_name') as name, current_setting('lock_timeout') as lock,"
            " current_setting('idle_in_transaction_session_timeout') as idle"
        )
        assert row["name"] == f"undoubt:{LEDGER}:{gid.txid}"
        seen[timeout_s] = (row["lock"], row["idle"])
        await branch.rollback()
        await branch.release()
    assert seen == {30: ("20s", "30s"), 29.5: ("20s", "30s"), 7: ("10s", "10s"), 0.2: ("1s", "1s")}
    await participant.close()


@pytest.mark.parametrize(
    ("timeout_s", "own_s", "expected_ms"),
    [(30, 0, 30_000), (31, 0, 45_000), (30, 5, 5_000), (30, 0.5, 500), (1e9, 0, 86_400_000)],
)
def test_timeouts(timeout_s: float, own_s: float, expected_ms: int) -> None:
    """A shorter timeout that the database's owner has set is never made longer."""
    intro = ServerParameters(180000, "on", own_s, own_s, False, 1, "00000001", "0")
    assert timeouts_ms(timeout_s, intro) == (expected_ms, expected_ms)


def test_a_name_that_would_be_cut_has_no_transaction_in_it() -> None:
    """The head of a transaction id is another's id, and that one would be cancelled in a deadlock."""
    gid = new_gid()
    long = replace(gid, txid=TxId(10**18, gid.txid.nonce, 10**18))
    ledgers = f"undoubt:{LEDGER}"
    assert branch_name(long, NO_KEY, 1) == ledgers
    assert branch_name(long, KEY, 1) == ledgers
    for txid in (TxId(gid.txid.session, gid.txid.nonce, 10**9), TxId(10**15, gid.txid.nonce, 10**15)):
        for key in (KEY, *([NO_KEY] if txid.seq == 10**9 else [])):
            for pid in (0, 2**31 - 1):
                name = branch_name(replace(gid, txid=txid), key, pid)
                assert len(ledgers) < len(name) <= APPLICATION_NAME_BYTES_MAX


async def test_behind_a_pooler_nothing_outlives_the_transaction(database: Database) -> None:
    """The next statement may run on another server connection: settings are local, evidence comes along."""
    participant = participant_at(database.dsn, pooler=True, connections_max=1)
    gid = new_gid()
    branch = await participant.begin(gid, timeout_s=7)
    session = branch.session  # type: ignore[attr-defined]
    assert await at(branch).fetchval("show lock_timeout") == "10s"
    await at(branch).execute(WRITE)
    result = await branch.prepare()
    assert result.vote is Vote.PREPARED
    assert result.evidence is not None
    system = await database.admin.fetchval("select system_identifier from pg_control_system()")
    assert (result.evidence.system, result.evidence.timeline) == (system, "00000001")
    assert [row["lock_timeout"] for row in await session.rows("show lock_timeout", timeout_s=10)] == ["20s"]
    assert await branch.commit() is Settled.APPLIED
    await branch.release()
    assert await participant.evidence(result.evidence) == "committed"
    await participant.close()


async def test_close_ends_everything(database: Database) -> None:
    """Open branches roll back with their connections, and the server is left without sessions of ours."""
    participant = participant_at(database.dsn)
    branch = await participant.begin(new_gid(), timeout_s=30)
    await at(branch).execute(WRITE)
    await participant.in_doubt()
    await participant.close()
    count = (
        "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    )
    while await database.admin.fetchval(count):
        await asyncio.sleep(0.01)
    assert await database.balance() == 100
    with pytest.raises(ParticipantUnavailable, match="closed"):
        await participant.begin(new_gid(), timeout_s=30)
    await branch.release()
