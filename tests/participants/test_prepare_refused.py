"""What PREPARE TRANSACTION refuses: each is a vote with its reason, and leaves nothing behind."""

from __future__ import annotations

import pytest

from tests.participants.hands import at
from tests.participants.support import WRITE, Database
from undoubt.participants.contract import Settled, Vote
from undoubt.participants.errors import BranchFailed
from undoubt.participants.ids import BRANCH_NUMBER_MAX, GID_BYTES_MAX, NUMBER_MAX, Gid, Protocol, TxId
from undoubt.participants.postgres import PostgresParticipant


@pytest.mark.parametrize(
    ("statement", "sqlstate"),
    [
        ("create temp table scratch (a int)", "0A000"),
        ("listen something", "0A000"),
        ("notify something", "0A000"),
        ("declare c cursor with hold for select * from account", "0A000"),
        ("select pg_export_snapshot()", "0A000"),
        ("select pg_advisory_lock(7), pg_advisory_xact_lock(7)", "0A000"),
    ],
)
async def test_what_postgresql_cannot_prepare(
    participant: PostgresParticipant, database: Database, gid: Gid, statement: str, sqlstate: str
) -> None:
    """Each is an ABORT vote that tells why, and leaves nothing behind."""
    branch = await participant.begin(gid, timeout_s=30)
    await at(branch).execute(WRITE)
    await at(branch).execute(statement)
    result = await branch.prepare()
    assert result.vote is Vote.ABORT
    assert isinstance(result.reason, BranchFailed)
    assert result.reason.sqlstate == sqlstate
    assert await branch.rollback() is Settled.APPLIED
    await branch.release()
    assert await database.prepared() == []
    assert await database.balance() == 100


async def test_deferred_constraint_fails_at_prepare(
    participant: PostgresParticipant, database: Database, gid: Gid
) -> None:
    """A deferred foreign key is checked by PREPARE: its error is the vote and the cause."""
    await database.admin.execute(
        "create table entry (account int references account deferrable initially deferred)"
    )
    branch = await participant.begin(gid, timeout_s=30)
    await at(branch).execute("insert into entry values (77)")
    result = await branch.prepare()
    assert result.vote is Vote.ABORT
    assert isinstance(result.reason, BranchFailed)
    assert result.reason.sqlstate == "23503"
    assert await branch.rollback() is Settled.APPLIED


async def test_warning_of_a_trigger_does_not_make_the_vote_unknown(
    participant: PostgresParticipant, database: Database, gid: Gid
) -> None:
    """A deferred trigger's RAISE WARNING has the same SQLSTATE as a cancelled wait for a standby."""
    await database.admin.execute(
        "create function warn() returns trigger language plpgsql as"
        " $$ begin raise warning 'low balance'; return null; end $$;"
        "create constraint trigger w after update on account deferrable initially deferred"
        " for each row execute function warn()"
    )
    branch = await participant.begin(gid, timeout_s=30)
    await at(branch).execute(WRITE)
    assert (await branch.prepare()).vote is Vote.PREPARED
    assert await branch.rollback() is Settled.APPLIED


async def test_duplicate_gid(participant: PostgresParticipant, database: Database, gid: Gid) -> None:
    """42710 is a no, and must not end in rolling back the branch that has the gid."""
    first = await participant.begin(gid, timeout_s=30)
    await at(first).execute(WRITE)
    assert (await first.prepare()).vote is Vote.PREPARED
    second = await participant.begin(gid, timeout_s=30)
    await at(second).execute("update account set balance = 0 where id = 2")
    result = await second.prepare()
    assert result.vote is Vote.ABORT
    assert isinstance(result.reason, BranchFailed)
    assert result.reason.sqlstate == "42710"
    assert await second.rollback() is Settled.APPLIED
    await second.release()
    assert await database.prepared() == [str(gid)]
    assert await first.commit() is Settled.APPLIED
    assert (await database.balance(), await database.balance(2)) == (90, 100)


async def test_the_longest_gid_fits(participant: PostgresParticipant, database: Database) -> None:
    """Else a participant with a long name could never commit once numbers have grown."""
    longest = Gid(
        "z" * 10, Protocol.TWO_PHASE, TxId(NUMBER_MAX, "f" * 16, NUMBER_MAX), BRANCH_NUMBER_MAX, "x" * 63
    )
    assert len(str(longest)) <= GID_BYTES_MAX
    branch = await participant.begin(longest, timeout_s=30)
    await at(branch).execute(WRITE)
    result = await branch.prepare()
    assert result.vote is Vote.PREPARED
    assert result.evidence is not None, "a report without room for the transaction's name"
    assert [row.gid for row in await participant.in_doubt()] == [longest]
    assert await branch.rollback() is Settled.APPLIED


async def test_too_long_a_gid_is_a_no(participant: PostgresParticipant, gid: Gid) -> None:
    """22023 at PREPARE is a vote (at pg_xact_status the same code means something else)."""
    too_long = Gid(gid.ledger, gid.protocol, gid.txid, gid.branch, "x" * 200)
    branch = await participant.begin(too_long, timeout_s=30)
    await at(branch).execute(WRITE)
    result = await branch.prepare()
    assert result.vote is Vote.ABORT
    assert isinstance(result.reason, BranchFailed)
    assert result.reason.sqlstate == "22023"
    assert await branch.rollback() is Settled.APPLIED
