"""Last-agent commit at its agent: which roles may write and delete rows, and what other roles can do to them.
Each test's docstring says what is broken if it fails."""

from __future__ import annotations

from contextlib import suppress

import asyncpg
import pytest

from tests.participants.support import LEDGER, WRITE, Database, new_gid, participant_at
from tests.participants.test_last_agent import (
    BURIED,
    COMMITTED,
    begun,
    commit,
    entry_of,
    rows_in,
    undone,
)
from undoubt.embedded import EmbeddedServer
from undoubt.participants.errors import BranchFailed, ParticipantRefused
from undoubt.participants.last_agent import AgentBusy
from undoubt.participants.postgres import PostgresParticipant

KINDS = ("asyncpg", "psycopg", "psycopg-sync")


async def test_a_database_without_the_table_says_what_to_do(
    participant: PostgresParticipant, noted: Database
) -> None:
    gid = new_gid()
    entry = await entry_of(gid, participant.agent)
    await noted.admin.execute(
        "drop function undoubt.note_agent(bytea, text, text, bytea); drop table undoubt.undoubt_agent"
    )
    for call in (
        participant.agent.place(),
        participant.agent.conclude(entry),
        participant.agent.find([entry.key]),
        participant.agent.stored(LEDGER, limit=9),
        participant.agent.drop([entry.key]),
        participant.agent.forget([entry.key]),
    ):
        with pytest.raises(ParticipantRefused, match="undoubt participants migrate p"):
            await call
    branch = await begun(participant, gid, WRITE)
    with pytest.raises(BranchFailed):
        await commit(branch, entry)
    await undone(branch)
    assert await noted.balance() == 100


async def test_a_database_without_undoubts_tables_cannot_be_an_agent(
    participant: PostgresParticipant, database: Database
) -> None:
    with pytest.raises(ParticipantRefused, match="undoubt participants migrate p"):
        await participant.agent.place()


async def test_a_role_without_the_rights_cannot_be_an_agent(noted: Database, server: EmbeddedServer) -> None:
    """Recovery would not be able to write the tombstone: in doubt for ever."""
    await noted.admin.execute("create role app login; grant execute on function undoubt.history() to app")
    participant = participant_at(server.dsn(noted.name, user="app"))
    try:
        with pytest.raises(ParticipantRefused, match="run GRANT SELECT, INSERT, DELETE"):
            await participant.agent.place()
        await noted.admin.execute("grant select, insert, delete on undoubt.undoubt_agent to app")
        assert (await participant.agent.place()).history
        await noted.admin.execute("revoke execute on function undoubt.history() from app")
        await noted.admin.execute("update undoubt.undoubt_history set timeline = '0000000A'")
        with pytest.raises(ParticipantRefused, match="no history id"):
            await participant.agent.place()
    finally:
        await participant.close()
        await noted.admin.execute("drop owned by app; drop role app")


async def test_only_roles_of_undoubt_write_tombstones(noted: Database, server: EmbeddedServer) -> None:
    """Any role could abort transactions of others, or delete the row that says that one has committed."""
    await noted.admin.execute("create role stranger login")
    connection = await asyncpg.connect(server.dsn(noted.name, user="stranger"))
    try:
        for statement in (
            "insert into undoubt.undoubt_agent values ('', 'abort', '', '', '')",
            "select from undoubt.undoubt_agent",
            "delete from undoubt.undoubt_agent",
            "update undoubt.undoubt_agent set decision = 'abort'",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
        await connection.execute("select undoubt.note_agent('any', 'a', 'b', '')")
    finally:
        await connection.close()
        await noted.admin.execute("drop role stranger")


async def test_what_a_stranger_writes_takes_no_row_and_holds_none_back(
    participant: PostgresParticipant, noted: Database, server: EmbeddedServer
) -> None:
    """Broken if a role without rights can forge the row of a transaction, take its key, or keep its tombstone
    or its COMMIT waiting: the key is the hash of what only the coordinator and the ledger know."""
    gid, buried = new_gid(), new_gid()
    entry, grave = await entry_of(gid, participant.agent), await entry_of(buried, participant.agent)
    await noted.admin.execute("create role stranger login")
    connection = await asyncpg.connect(server.dsn(noted.name, user="stranger"))
    try:
        outer = connection.transaction()  # it holds what it has written, and all its locks
        await outer.start()
        for name in (entry, grave):
            for proof in (name.key, b"", str(name.txid).encode(), b"guess"):
                with suppress(asyncpg.UniqueViolationError):
                    async with connection.transaction():
                        await connection.execute(
                            "select undoubt.note_agent($1, $2, $3, $4)",
                            proof,
                            LEDGER,
                            str(name.txid),
                            b"x" * 99,
                        )
        branch = await begun(participant, gid, WRITE)
        await commit(branch, entry)
        await branch.release()
        assert await participant.agent.conclude(grave) == BURIED
        await outer.commit()
        listed = await participant.agent.stored(LEDGER, limit=99)
        assert {row.key for row in listed} > {entry.key, grave.key}
        assert await participant.agent.find([entry.key, grave.key]) == {
            entry.key: COMMITTED,
            grave.key: BURIED,
        }
        await participant.agent.forget([row.key for row in listed if row.key not in {entry.key, grave.key}])
        assert await rows_in(noted) == ["commit", "abort"]
    finally:
        await connection.close()
        await noted.admin.execute("drop role stranger")


async def test_a_list_reads_nothing_large(
    participant: PostgresParticipant, noted: Database, server: EmbeddedServer
) -> None:
    """Broken if a role without rights can fill the memory of every recovery with one row."""
    await noted.admin.execute("create role stranger login")
    connection = await asyncpg.connect(server.dsn(noted.name, user="stranger"))
    try:
        await connection.execute(
            "select undoubt.note_agent('any', $1, repeat('x', 999999), decode(repeat('00', 999999), 'hex'))",
            LEDGER,
        )
    finally:
        await connection.close()
        await noted.admin.execute("drop role stranger")
    [row] = await participant.agent.stored(LEDGER, limit=9)
    assert len(row.txid) == 100


async def test_a_lock_of_the_table_is_no_commit(participant: PostgresParticipant, noted: Database) -> None:
    """Broken if a session that changes the table is taken for one that executes a COMMIT, and is
    terminated."""
    entry = await entry_of(new_gid(), participant.agent)
    other = await asyncpg.connect(noted.dsn)
    try:
        await other.execute("begin; lock table undoubt.undoubt_agent in share mode")
        with pytest.raises(AgentBusy) as refused:
            await participant.agent.conclude(entry)
        assert refused.value.holder is None
    finally:
        await other.close()
    assert await participant.agent.conclude(entry) == BURIED


async def test_a_branch_that_has_changed_its_role_commits(
    participant: PostgresParticipant, noted: Database
) -> None:
    """A branch may end in any role."""
    await noted.admin.execute("create role clerk; grant all on account to clerk")
    gid = new_gid()
    entry = await entry_of(gid, participant.agent)
    branch = await begun(participant, gid, "set role clerk", WRITE)
    await commit(branch, entry)
    await branch.release()
    assert await participant.agent.conclude(entry) == COMMITTED
    await noted.admin.execute("drop owned by clerk; drop role clerk")
