"""Notes of commits: whoever may connect can write them, and only those made of a proof are believed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING

import asyncpg
import psycopg
import pytest
import pytest_asyncio
from alembic import command
from psycopg import sql

from tests.participants.hands import at
from tests.participants.support import KEY, WRITE, Database, new_gid, participant_at
from undoubt.embedded import EmbeddedServer
from undoubt.participants.alembic_lock import ALONE
from undoubt.participants.contract import Decision, Settled, Vote
from undoubt.participants.errors import ParticipantRefused
from undoubt.participants.ids import NO_KEY, Gid, Protocol, SessionKey
from undoubt.participants.postgres import PostgresParticipant, schema
from undoubt.participants.settings import ParticipantSettings
from undoubt.participants.three_phase import BranchState, Charter, Termination

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]


@pytest_asyncio.fixture
async def stranger(noted: Database, server: EmbeddedServer) -> AsyncIterator[Connection]:
    """A role that may connect, and nothing else."""
    await noted.admin.execute("create role stranger login")
    connection = await asyncpg.connect(server.dsn(noted.name, user="stranger"))
    yield connection
    await connection.close()
    await noted.admin.execute("drop role stranger")


@pytest.fixture
def three() -> Gid:
    """A branch of three-phase commit."""
    gid = replace(new_gid(), protocol=Protocol.THREE_PHASE)
    return gid.tagged(KEY)


def charter(gid: Gid) -> Charter:
    return Charter((gid, replace(gid, branch=2, participant="q").tagged(KEY)), Termination.QUORUM)


async def state(participant: PostgresParticipant, gid: Gid) -> BranchState | None:
    row = await participant.states.read(gid)
    return None if row is None else row.state


async def test_a_branch_is_committed_once_its_own_note_is_seen(
    participant: PostgresParticipant, noted: Database, three: Gid
) -> None:
    """Broken if a termination cannot see that a branch has committed, or believes it before it has."""
    assert await participant.states.enlist(three, charter(three), KEY.note(three))
    branch = await participant.begin(three, timeout_s=30, key=KEY)
    await at(branch).execute(WRITE)
    assert (await branch.prepare()).vote is Vote.PREPARED
    assert await state(participant, three) is BranchState.WAIT
    assert await branch.commit() is Settled.APPLIED
    await branch.release()
    assert await state(participant, three) is BranchState.COMMIT
    assert await participant.states.unfinished() == []
    assert not await participant.states.bury(three, charter(three))


@pytest.mark.parametrize("then", ["set transaction read only", "set local transaction_read_only = on"])
async def test_changes_of_three_phase_commit_are_noted_or_not_prepared(
    participant: PostgresParticipant, noted: Database, three: Gid, then: str
) -> None:
    """Broken if a branch commits whose row then says that it was rolled back."""
    branch = await participant.begin(three, timeout_s=30, key=KEY)
    await at(branch).execute(WRITE)
    await at(branch).execute(then)
    result = await branch.prepare()
    assert result.vote is Vote.ABORT
    assert "made read only after it had changed something" in str(result.reason)
    assert await branch.rollback() is Settled.APPLIED
    await branch.release()
    assert (await noted.prepared(), await noted.balance()) == ([], 100)


async def test_a_reader_of_three_phase_commit_is_prepared_without_a_note(
    participant: PostgresParticipant, noted: Database, three: Gid
) -> None:
    """Broken if a serializable reader, which has no changes to lose, makes its transaction abort."""
    branch = await participant.begin(three, timeout_s=30, key=KEY)
    await at(branch).execute("set transaction isolation level serializable, read only")
    await at(branch).fetch("select * from account")
    assert (await branch.prepare()).vote is Vote.PREPARED
    assert await branch.commit() is Settled.APPLIED
    await branch.release()


async def test_a_stranger_can_neither_make_nor_read_a_note(
    participant: PostgresParticipant, noted: Database, stranger: Connection, three: Gid
) -> None:
    """Broken if a role that may only connect can have a branch taken for committed: payments and orders
    would be split."""
    assert await participant.states.enlist(three, charter(three), KEY.note(three))
    for guess in (str(three).encode(), KEY.note(three), b"", SessionKey(b"another").proof(three)):
        await stranger.execute("select undoubt.note_commit($1)", guess)
    with pytest.raises(asyncpg.UndefinedFunctionError):
        await stranger.execute("select undoubt.note_commit($1, $2)", str(three.txid), three.participant)
    for table in ("undoubt_note", "undoubt_commit", "undoubt_branch"):
        for statement in (f"select * from undoubt.{table}", f"delete from undoubt.{table}"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await stranger.execute(statement)
    assert await state(participant, three) is BranchState.WAIT
    assert await participant.states.bury(three, charter(three))


async def test_what_a_stranger_holds_open_delays_nobody(
    participant: PostgresParticipant, noted: Database, stranger: Connection, three: Gid
) -> None:
    """Broken if an insert that is never committed makes honest commits wait, or fail."""
    one = new_gid()
    await stranger.execute("begin")
    for guess in (str(three.txid).encode(), str(one.txid).encode(), KEY.note(three), KEY.note(one)):
        await stranger.execute("select undoubt.note_commit($1)", guess)
    assert await participant.states.enlist(three, charter(three), KEY.note(three))
    async with asyncio.timeout(10):
        branch = await participant.begin(three, timeout_s=30, key=KEY)
        await at(branch).execute(WRITE)
        assert (await branch.prepare()).vote is Vote.PREPARED
        assert await branch.commit() is Settled.APPLIED
        await branch.release()
        branch = await participant.begin(one, timeout_s=30, key=KEY)
        await at(branch).execute(WRITE)
        assert await branch.commit_one_phase() is Settled.APPLIED
        await branch.release()
    await stranger.execute("rollback")
    assert await noted.balance() == 80
    assert await state(participant, three) is BranchState.COMMIT


async def test_a_commit_without_a_proof_is_not_noted(
    participant: PostgresParticipant, noted: Database, three: Gid
) -> None:
    """Broken if anything but a proof leaves a note, or a branch gets a row under which no commit is seen."""
    branch = await participant.begin(new_gid(), timeout_s=30, key=NO_KEY)
    await at(branch).execute(WRITE)
    assert await branch.commit_one_phase() is Settled.APPLIED
    await branch.release()
    assert await noted.admin.fetchval("select count(*) from undoubt.undoubt_note") == 0
    with pytest.raises(AssertionError, match="hash of its proof"):
        await participant.states.enlist(three, charter(three), NO_KEY.note(three))


def test_a_key_that_was_drawn_proves_commits_and_makes_no_tags() -> None:
    """Broken if sessions of a ledger without keys prove nothing, or make tags that no ledger can verify."""
    gid = new_gid()
    drawn, another = SessionKey.drawn(), SessionKey.drawn()
    assert len(drawn.proof(gid)) == len(drawn.note(gid)) == 32
    assert drawn.proof(gid) != another.proof(gid)
    assert not drawn
    assert gid.tagged(drawn) == gid
    assert drawn.backend(gid.txid, 1) == ""


async def test_the_proof_is_in_no_log_and_no_error(
    noted: Database, three: Gid, caplog: pytest.LogCaptureFixture
) -> None:
    """Broken if a log file tells how to make a commit believed that has not happened."""
    caplog.set_level(logging.DEBUG)
    asyncio.get_running_loop().set_debug(True)
    await noted.admin.execute(
        "create table entry (account int references account deferrable initially deferred)"
    )
    participant = participant_at(noted.dsn)
    secret = KEY.proof(three).hex()
    said = []
    for breaking in ("insert into entry values (77)", "drop function undoubt.note_commit(bytea)"):
        branch = await participant.begin(three, timeout_s=30, key=KEY)
        said.append(repr(branch))
        await at(branch).execute(breaking)
        result = await branch.prepare()
        assert result.vote is Vote.ABORT
        error: BaseException | None = result.reason
        while error is not None:
            said += [str(error), repr(error), *(str(value) for value in vars(error).values())]
            error = error.__cause__ or error.__context__
        await branch.release()
    await participant.close()
    assert not [text for text in [*said, caplog.text] if secret[:8] in text]


# What version 0.1.0 has left.


async def tables_of_0_1_0(database: Database) -> None:
    settings = ParticipantSettings(dsn=database.dsn)
    await asyncio.to_thread(_upgrade, settings, "p002")


def _upgrade(settings: ParticipantSettings, revision: str) -> None:
    config = schema._config()
    engine = schema._engine("p", settings)
    with ALONE, engine.connect() as connection:
        connection.exec_driver_sql("create schema if not exists undoubt")
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        connection.commit()
    engine.dispose()


OLD_ROW = (
    "insert into undoubt.undoubt_branch"
    " (gid, txid, participant, members, rule, state, last_elected, last_attempt)"
    " values ($1, $2, 'p', $3, 'quorum', 'p', 1, 1)"
)


def old_gid() -> Gid:
    return replace(new_gid(), protocol=Protocol.THREE_PHASE)


async def old_row(database: Database, gid: Gid) -> None:
    await database.admin.execute(OLD_ROW, str(gid), str(gid.txid), f"{gid.branch}:{gid.participant} 2:q")


async def test_branches_of_0_1_0_are_still_seen_to_commit(
    participant: PostgresParticipant, database: Database
) -> None:
    """Broken if an upgrade loses what was prepared, or what has committed, before it."""
    await tables_of_0_1_0(database)
    before, meanwhile, never = old_gid(), old_gid(), old_gid()
    for gid in (before, meanwhile, never):
        await old_row(database, gid)
    await database.admin.execute("select undoubt.note_commit($1, $2)", str(before.txid), "p")
    await database.admin.execute(
        f"begin; select undoubt.note_commit('{meanwhile.txid}', 'p'); prepare transaction '{meanwhile}'"
    )
    await schema.migrate("p", ParticipantSettings(dsn=database.dsn))
    assert await state(participant, before) is BranchState.COMMIT
    assert await state(participant, meanwhile) is BranchState.PRECOMMIT
    assert await participant.settle(meanwhile, Decision.COMMIT, None) is Settled.APPLIED
    assert await state(participant, meanwhile) is BranchState.COMMIT
    assert await state(participant, never) is BranchState.PRECOMMIT
    row = await participant.states.read(never)
    assert row is not None
    assert [member.participant for member in row.charter.members] == ["p", "q"]


@pytest.mark.parametrize("first", ["enlist", "elect", "bury"])
async def test_old_notes_prove_nothing_of_new_branches(
    participant: PostgresParticipant, database: Database, first: str, three: Gid
) -> None:
    """Broken if a note that anybody could leave before the upgrade is believed after it."""
    await tables_of_0_1_0(database)
    await database.admin.execute("select undoubt.note_commit($1, $2)", str(three.txid), three.participant)
    await schema.migrate("p", ParticipantSettings(dsn=database.dsn))
    states = participant.states
    if first == "enlist":
        assert await states.enlist(three, charter(three), KEY.note(three))
    elif first == "elect":
        assert await states.elect(three, 2, charter(three)) is not None
    assert await states.bury(three, charter(three))
    assert await state(participant, three) is BranchState.ABORT


async def test_roles_that_had_the_rows_keep_them(database: Database, server: EmbeddedServer) -> None:
    """Broken if an upgrade takes three-phase commit from a role that was granted its table."""
    await tables_of_0_1_0(database)
    await database.admin.execute(
        "create role keeper login; grant select, insert, update, delete on undoubt.undoubt_branch to keeper"
    )
    gid = old_gid()
    await old_row(database, gid)
    await database.admin.execute("select undoubt.note_commit($1, $2)", str(gid.txid), "p")
    await schema.migrate("p", ParticipantSettings(dsn=database.dsn))
    participant = participant_at(server.dsn(database.name, user="keeper"))
    assert await state(participant, gid) is BranchState.COMMIT
    await participant.close()
    await database.admin.execute("drop owned by keeper; drop role keeper")


async def test_tables_that_are_too_old_are_named(
    participant: PostgresParticipant, database: Database, three: Gid
) -> None:
    """Broken if a coordinator works without proofs because nobody has migrated the database."""
    await tables_of_0_1_0(database)
    with pytest.raises(ParticipantRefused, match="undoubt participants migrate p"):
        await participant.states.enlist(three, charter(three), KEY.note(three))
    branch = await participant.begin(new_gid(), timeout_s=30, key=KEY)
    await at(branch).execute(WRITE)
    assert await branch.commit_one_phase() is Settled.APPLIED  # not noted
    await branch.release()


@pytest.mark.parametrize("conforming", ["on", "off"])
async def test_a_proof_reaches_the_server_whatever_libpq_has_escaped_before(
    noted: Database, conforming: str
) -> None:
    """Broken if a note that is there is not found, and a commit is told as a rollback: without a connection
    libpq escapes bytes as the connection that it escaped for last would take them."""
    async with await psycopg.AsyncConnection.connect(noted.dsn, autocommit=True) as other:
        await other.execute(f"set standard_conforming_strings = {conforming}")
        await other.execute(sql.SQL("select {}").format(sql.Literal(b"\x00\xff\\")))
    participant = participant_at(noted.dsn)
    proof = bytes(range(256))
    [row] = await participant.admin_pool.read("select $1::pg_catalog.bytea as told", proof)
    assert bytes(row["told"]) == proof
    await participant.close()
