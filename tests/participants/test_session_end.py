"""Errors name the timeout by which the server has ended a session, or cancelled a statement."""

from __future__ import annotations

import asyncio
import select
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest

from tests.participants.hands import at, is_lost, sql_error
from tests.participants.support import WRITE, Database, new_gid, participant_at
from undoubt.participants.contract import Branch, PrepareUnanswered, Settled, Vote, Work
from undoubt.participants.errors import BranchFailed, ParticipantError
from undoubt.participants.ids import Gid
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.postgres.asyncpg.connection import BranchConnection
from undoubt.participants.postgres.asyncpg.line import Line
from undoubt.participants.postgres.asyncpg.wire import read_session_end
from undoubt.participants.postgres.psycopg.session import PsycopgSession
from undoubt.participants.postgres.session import ServerError
from undoubt.participants.postgres.sqlstate import with_setting

KINDS = ("asyncpg", "psycopg", "psycopg-sync")
SHORT = "'150ms'"
LONG_LOCK = 4711


@dataclass(frozen=True)
class End:
    """``ends``: the session, and not only a statement. ``said``: what has to be in every error."""

    sqlstate: str
    said: str
    ends: bool
    setting: str = ""


IDLE = End("25P03", "(idle_in_transaction_session_timeout)", True, "idle_in_transaction_session_timeout")
TRANSACTION = End("25P04", "(transaction_timeout)", True, "transaction_timeout")
STATEMENT = End("57014", "(statement_timeout)", False, "statement_timeout")
LOCK = End("55P03", "(lock_timeout)", False, "lock_timeout")
ADMINISTRATOR = End("57P01", "terminating connection due to administrator command", True)


def named(*ends: End) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("end", ends, ids=[end.setting or "administrator" for end in ends])


BETWEEN = named(IDLE, TRANSACTION, ADMINISTRATOR)
WITHIN = named(STATEMENT, LOCK, TRANSACTION, ADMINISTRATOR)
AT_THE_END = named(LOCK, TRANSACTION, ADMINISTRATOR)
"""statement_timeout is off while PREPARE and COMMIT run deferred triggers (``finish_xact_command`` in
src/backend/tcop/postgres.c)."""


async def known(database: Database, end: End) -> bool:
    """Servers before version 17 have no transaction_timeout: there is nothing that could be told wrong."""
    sql = "select $1 = '' or exists (select from pg_settings where name = $1)"
    return bool(await database.admin.fetchval(sql, end.setting))


async def begun(participant: PostgresParticipant, end: End, gid: Gid) -> Branch:
    """A branch that has written something, and whose server will end it."""
    branch = await participant.begin(gid, timeout_s=30)
    await at(branch).execute(WRITE)
    if end.setting:
        await at(branch).execute(f"set local {end.setting} = {SHORT}")
    return branch


async def makes_commit_wait(database: Database) -> None:
    """Whatever commits or prepares a change of ``account`` waits for a lock."""
    await database.admin.execute(
        "create function dawdle() returns trigger language plpgsql as"
        f" $$ begin perform pg_advisory_xact_lock({LONG_LOCK}); return null; end $$;"
        "create constraint trigger slow after update on account deferrable initially deferred"
        " for each row execute function dawdle()"
    )
    await database.admin.execute(f"select pg_advisory_lock({LONG_LOCK})")


async def terminated(database: Database, pid: int, *, waiting: bool) -> None:
    while waiting and not await database.admin.fetchval(
        "select exists (select from pg_locks where pid = $1 and not granted)", pid
    ):
        await asyncio.sleep(0.005)
    await database.admin.execute("select pg_terminate_backend($1)", pid)


def interrupted(database: Database, branch: Branch, end: End) -> asyncio.Task[None]:
    """Ends its session, once it waits, unless a timeout will."""
    pid = at(branch).get_server_pid()

    async def interrupt() -> None:
        if not end.setting:
            await terminated(database, pid, waiting=True)

    return asyncio.create_task(interrupt())


async def is_over(branch: Branch) -> None:
    """Once the client's side of its session, which the application has no more, could know that it ended."""
    session: Any = branch.session  # type: ignore[attr-defined]
    if isinstance(session, PsycopgSession):
        while not select.select([session.pgconn.socket], [], [], 0)[0]:
            await asyncio.sleep(0.005)
    else:
        while not session.broken:
            await asyncio.sleep(0.005)


def tells(error: BaseException, end: End) -> None:
    assert end.said in str(error)
    if isinstance(error, ParticipantError) and end.ends:
        assert error.sqlstate == end.sqlstate


@BETWEEN
async def test_between_statements_and_then_commit(database: Database, gid: Gid, end: End) -> None:
    """asyncpg forgets what the server said while nobody asked it anything."""
    if not await known(database, end):
        return
    participant = participant_at(database.dsn)
    for ask in ("poll", "prepare", "commit"):
        branch = await begun(participant, end, new_gid())
        if not end.setting:
            await terminated(database, at(branch).get_server_pid(), waiting=False)
        await is_lost(branch)
        if ask == "prepare":
            result = await branch.prepare()
            assert result.vote is Vote.ABORT
            assert isinstance(result.reason, BranchFailed)
            tells(result.reason, end)
        else:
            with pytest.raises(BranchFailed) as failed:
                await (branch.poll() if ask == "poll" else branch.commit_one_phase())
            tells(failed.value, end)
        await branch.release()
    await participant.close()


@BETWEEN
async def test_between_statements_and_then_another(database: Database, end: End) -> None:
    """The application's next statement is told, and so is a commit after that."""
    if not await known(database, end):
        return
    participant = participant_at(database.dsn)
    branch = await begun(participant, end, new_gid())
    if not end.setting:
        await terminated(database, at(branch).get_server_pid(), waiting=False)
    await is_lost(branch)
    with sql_error(end.sqlstate):
        await at(branch).fetch("select 1")
    result = await branch.prepare()
    assert result.vote is Vote.ABORT
    assert result.reason is not None
    tells(result.reason, end)
    await branch.release()
    await participant.close()


@WITHIN
async def test_in_a_statement_whose_error_is_swallowed(database: Database, end: End) -> None:
    if not await known(database, end):
        return
    await database.admin.execute(f"select pg_advisory_lock({LONG_LOCK})")
    participant = participant_at(database.dsn)
    branch = await begun(participant, end, new_gid())
    interruption = interrupted(database, branch, end)
    with sql_error(end.sqlstate):
        await at(branch).execute(f"select pg_advisory_xact_lock({LONG_LOCK})")
    await interruption
    result = await branch.prepare()
    assert result.vote is Vote.ABORT
    assert result.reason is not None
    tells(result.reason, end)
    await branch.release()
    await participant.close()


@AT_THE_END
async def test_at_prepare(database: Database, end: End) -> None:
    """A session that ends in PREPARE is no answer; the reason is told with that."""
    if not await known(database, end):
        return
    await makes_commit_wait(database)
    participant = participant_at(database.dsn)
    branch = await begun(participant, end, new_gid())
    interruption = interrupted(database, branch, end)
    if end.ends:
        with pytest.raises(PrepareUnanswered) as unanswered:
            await branch.prepare()
        tells(unanswered.value.cause, end)
    else:
        result = await branch.prepare()
        assert result.vote is Vote.ABORT
        assert result.reason is not None
        tells(result.reason, end)
    await interruption
    assert await branch.rollback() in {Settled.ABSENT, Settled.APPLIED}
    await branch.release()
    await participant.close()


@AT_THE_END
async def test_at_commit(noted: Database, end: End) -> None:
    """What became of it is looked up; the reason is told with what is found."""
    if not await known(noted, end):
        return
    await makes_commit_wait(noted)
    participant = participant_at(noted.dsn)
    branch = await begun(participant, end, new_gid())
    interruption = interrupted(noted, branch, end)
    assert await branch.poll() is Work.WRITES
    with pytest.raises(BranchFailed) as failed:
        await branch.commit_one_phase()
    tells(failed.value, end)
    await interruption
    await branch.release()
    await participant.close()


async def test_idle_sessions_that_the_server_ends_cost_nothing(database: Database) -> None:
    """``idle_session_timeout``: neither in the pool, nor between PREPARE and COMMIT PREPARED."""
    name = await database.admin.fetchval("select current_database()")
    await database.admin.execute(f"alter database {name} set idle_session_timeout = {SHORT}")
    participant = participant_at(database.dsn)
    for _ in range(2):
        branch = await participant.begin(new_gid(), timeout_s=30)
        await at(branch).execute(WRITE)
        assert (await branch.prepare()).vote is Vote.PREPARED
        await is_over(branch)
        assert await branch.commit() is Settled.APPLIED
        await branch.release()
        branch = await participant.begin(new_gid(), timeout_s=30)
        await branch.rollback()
        await branch.release()
        await is_over(branch)
    await participant.close()


def test_the_end_of_a_session_is_read_from_its_bytes() -> None:
    """Broken if an error that leaves the session alive is taken for its end, or the reverse."""

    def message(severity: str, code: str) -> bytes:
        fields = b"".join(
            kind + text.encode() + b"\0" for kind, text in ((b"S", "FATAL X"), (b"V", severity), (b"C", code))
        )
        fields += b"Mbecause of \xff\0\0"
        return b"E" + (len(fields) + 4).to_bytes(4) + fields

    end = read_session_end(message("FATAL", "25P03") + b"Z\0\0\0\5I")
    assert end is not None
    assert (end.sqlstate, end.message, end.fatal) == ("25P03", "because of �", True)
    assert read_session_end(message("ERROR", "25P03")) is None
    for data in (b"", b"E", b"E\0\0\0\4", b"E\xff\xff\xff\xffSFATAL", b"T\0\0\0\4"):
        assert read_session_end(data) is None


def fatal(severity: str = "FATAL") -> bytes:
    fields = f"S{severity}\0V{severity}\0C25P03\0Mtoo long\0\0".encode()
    return b"E" + (len(fields) + 4).to_bytes(4) + fields


@pytest.mark.parametrize(
    ("data", "ends"),
    [
        (fatal(), True),
        (b"C\0\0\0\x0aBEGIN\0Z\0\0\0\5T" + fatal(), True),
        (fatal("ERROR") + b"Z\0\0\0\5E" + fatal(), True),
        (fatal("ERROR") + b"Z\0\0\0\5E", False),
        (b"D\0\0\0\x0cFATAL\0\0\0" + b"Z\0\0\0\5T", False),
        (b"D\0\0\0\0FATAL\0" + fatal()[:9], False),
    ],
)
def test_the_end_of_a_session_behind_an_answer_is_read(data: bytes, ends: bool) -> None:
    """Broken if the reason is lost because it arrived in one piece with the answer before it."""
    passed: list[bytes] = []
    protocol = SimpleNamespace(data_received=passed.append)
    transport = SimpleNamespace(get_protocol=lambda: protocol, set_protocol=lambda _: None)
    listening = Line(SimpleNamespace(_transport=transport))
    listening.data_received(data)
    assert passed == [data]
    assert (listening.end is not None and listening.end.sqlstate == "25P03") is ends


async def test_a_statement_between_the_servers_last_word_and_the_end(gid: Gid) -> None:
    """Broken if an application reads of asyncpg's states instead of the reason why its session ended."""

    class Ending:
        _loop = asyncio.get_running_loop()

        async def execute(self, *args: object, **options: object) -> str:
            raise asyncpg.InternalClientError(
                "cannot switch to state 15; another operation (2) is in progress"
            )

    connection: Any = BranchConnection(
        Ending(),  # type: ignore[arg-type]
        gid,
        lambda: ServerError("25P03", "too long", fatal=True),
    )
    with pytest.raises(asyncpg.PostgresError, match="too long") as raised:
        await connection.execute("select 1")
    assert raised.value.sqlstate == "25P03"


def test_a_setting_is_named_only_where_it_is_sure() -> None:
    assert with_setting("57014", "canceling statement due to user request").endswith("request")
    assert with_setting("57014", "canceling statement due to statement timeout").endswith(
        "(statement_timeout)"
    )
    assert with_setting("55P03", "could not obtain lock on row in relation").endswith("relation")
    assert with_setting("25P04", "Transaktion").endswith("(transaction_timeout)")
