"""The outbox: a message is there exactly if its branch has committed. On every kind of connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest
import pytest_asyncio

from tests.participants.support import WRITE, Database, new_gid, participant_at
from tests.pgbouncer import PgBouncer
from undoubt.embedded import EmbeddedServer
from undoubt.participants.contract import Branch, Settled, Vote
from undoubt.participants.errors import (
    ParticipantError,
    ParticipantRefused,
    ParticipantUnavailable,
    UsageError,
)
from undoubt.participants.outbox import Lane, Message, OutboxReader, Publication, PublishingBranch
from undoubt.participants.postgres import PostgresParticipant, schema
from undoubt.participants.settings import ParticipantSettings

KINDS = ("asyncpg", "psycopg", "psycopg-sync")
ANYTHING = 'it\'s a \\ "lamp" \u2603 {topic} {key} {payload} {headers}'
"""Also with the names of the places of the statement: a value in one of them would become SQL."""


async def begun(participant: PostgresParticipant) -> Branch:
    return await participant.begin(new_gid(), timeout_s=30.0)


async def publish(
    branch: Branch, payload: bytes = b"x", *, topic: str = "orders", key: str | None = None
) -> str:
    assert isinstance(branch, PublishingBranch)
    return await branch.publish(Publication(topic, key, payload, {"content-type": ANYTHING}))


async def prepared(branch: Branch) -> None:
    result = await branch.prepare()
    assert result.vote is Vote.PREPARED, result.reason


async def committed(branch: Branch) -> None:
    await prepared(branch)
    assert await branch.commit() is Settled.APPLIED
    await branch.release()


async def undone(branch: Branch) -> None:
    await branch.rollback()
    await branch.release()


async def published(participant: PostgresParticipant, *payloads: bytes, key: str | None = None) -> list[str]:
    branch = await begun(participant)
    ids = [await publish(branch, payload, key=key) for payload in payloads]
    await committed(branch)
    return ids


async def read(outbox: OutboxReader, *, without: tuple[Lane, ...] = (), limit: int = 100) -> list[Message]:
    return await outbox.read(await outbox.claim(()), without=without, limit=limit)


async def waits(database: Database, task: asyncio.Task[str]) -> None:
    """Return once a session waits for a lock."""
    while not await database.admin.fetchval("select exists (select from pg_locks where not granted)"):
        assert not task.done()
        await asyncio.sleep(0.01)


@pytest_asyncio.fixture
async def outbox(participant: PostgresParticipant, noted: Database) -> AsyncIterator[OutboxReader]:
    outbox = participant.outbox()
    yield outbox
    await outbox.close()


async def test_a_message_is_there_once_its_branch_has_committed(
    participant: PostgresParticipant, outbox: OutboxReader
) -> None:
    """A message of a branch in doubt may be one of a transaction that aborts."""
    branch = await begun(participant)
    first = await publish(branch, bytes(range(256)), topic=ANYTHING, key=ANYTHING)
    second = await publish(branch, b"")
    assert await read(outbox) == []
    await prepared(branch)
    assert await read(outbox) == []
    assert await branch.commit() is Settled.APPLIED
    await branch.release()
    one, other = await read(outbox)
    assert (one.topic, one.key, one.payload) == (ANYTHING, ANYTHING, bytes(range(256)))
    assert one.headers == {"content-type": ANYTHING}
    assert (other.topic, other.key, other.payload) == ("orders", None, b"")
    assert [one.dedupe_id, other.dedupe_id] == [first, second]
    assert first == f"{branch.gid.ledger}:{branch.gid.txid}:1:1"


async def test_a_message_of_a_branch_that_aborts_is_never_there(
    participant: PostgresParticipant, outbox: OutboxReader
) -> None:
    for prepare in (False, True):
        branch = await begun(participant)
        await publish(branch)
        if prepare:
            await prepared(branch)
        await undone(branch)
    assert await read(outbox) == []


async def test_a_branch_that_only_publishes_commits_in_one_phase(
    participant: PostgresParticipant, outbox: OutboxReader
) -> None:
    branch = await begun(participant)
    await publish(branch)
    await branch.poll()
    assert await branch.commit_one_phase() is Settled.APPLIED
    await branch.release()
    assert len(await read(outbox)) == 1


async def test_the_application_writes_beside_it(
    participant: PostgresParticipant, outbox: OutboxReader, noted: Database, kind: str
) -> None:
    branch = await begun(participant)
    await publish(branch)
    if kind == "psycopg-sync":
        await asyncio.to_thread(branch.connection.execute, WRITE)
    else:
        await branch.connection.execute(WRITE)
    await publish(branch)
    await committed(branch)
    assert await noted.balance() == 90
    assert len(await read(outbox)) == 2


async def test_nothing_is_published_outside_the_branch(
    participant: PostgresParticipant, outbox: OutboxReader, kind: str
) -> None:
    """After the application has ended the transaction itself, the message would be there although the branch
    cannot commit."""
    branch = await begun(participant)
    if kind == "psycopg-sync":
        await asyncio.to_thread(branch.connection.execute, "do $$ begin null; end $$; commit")
    else:
        await branch.connection.execute("do $$ begin null; end $$; commit")
    with pytest.raises(ParticipantError, match="ended by the application"):
        await publish(branch)
    await undone(branch)
    assert await read(outbox) == []


async def test_nothing_is_published_after_the_branch(
    participant: PostgresParticipant, outbox: OutboxReader
) -> None:
    """The message would be sent on a connection that another branch uses."""
    branch = await begun(participant)
    await publish(branch)
    await prepared(branch)
    with pytest.raises(UsageError, match="after the end of its branch"):
        await publish(branch)
    await branch.commit()
    await branch.release()
    with pytest.raises(UsageError):
        await publish(branch)
    assert len(await read(outbox)) == 1


async def test_messages_of_one_key_have_the_order_of_the_commits(
    participant: PostgresParticipant, outbox: OutboxReader, noted: Database
) -> None:
    """The second one would be delivered before the first one is there."""
    first = await begun(participant)
    await publish(first, b"1", key="k")
    await prepared(first)
    second = await begun(participant)
    waiting = asyncio.create_task(publish(second, b"2", key="k"))
    await waits(noted, waiting)
    other = await begun(participant)
    await publish(other, b"other", key="another")
    await publish(other, b"none")
    await publish(other, b"elsewhere", topic="payments", key="k")
    await committed(other)
    assert {message.payload for message in await read(outbox)} == {b"other", b"none", b"elsewhere"}
    await first.commit()
    await first.release()
    await waiting
    await committed(second)
    assert [message.payload for message in await read(outbox) if message.lane == Lane("orders", "k")] == [
        b"1",
        b"2",
    ]


async def test_a_lower_id_that_commits_later_is_not_skipped(
    participant: PostgresParticipant, outbox: OutboxReader
) -> None:
    """A relay that remembers how far it has come loses the message of a slow transaction."""
    slow = await begun(participant)
    await publish(slow, b"slow")
    [fast] = await published(participant, b"fast")
    [seen] = await read(outbox)
    await outbox.remove([fast])
    await committed(slow)
    [late] = await read(outbox)
    assert late.payload == b"slow"
    assert late.id < seen.id


async def test_lanes_are_left_out(participant: PostgresParticipant, outbox: OutboxReader) -> None:
    """A key that cannot be delivered would be all that is read."""
    await published(participant, b"1", b"2", key="k")
    await published(participant, b"3", key="l")
    await published(participant, b"4", b"5")
    every = await read(outbox)
    assert [message.payload for message in every] == [b"1", b"2", b"3", b"4", b"5"]
    left = await read(outbox, without=(every[0].lane, every[3].lane))
    assert [message.payload for message in left] == [b"3", b"5"]
    assert [message.payload for message in await read(outbox, limit=2)] == [b"1", b"2"]
    assert await outbox.read(["payments"], without=(), limit=9) == []


async def test_whoever_has_a_topic_is_named(
    outbox: OutboxReader, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Any role that may connect can take the lock: a relay that says nothing looks as if there was no
    message."""
    topics = [f"topic {number}" for number in range(8)]  # keys of both signs
    for topic in topics:
        claim = "select pg_advisory_lock(hashtextextended('undoubt relay ' || $1, 0))"
        await database.admin.execute(claim, topic)
    for _ in range(2):
        assert await outbox.claim(topics) == set()
    pid = database.admin.get_server_pid()
    for topic in topics:
        named = [line for line in caplog.messages if f"{topic!r} of" in line]
        assert named == [
            f"topic {topic!r} of 'p' is not delivered here: process {pid} of role 'postgres' has claimed it"
        ]
    await database.admin.execute("select pg_advisory_unlock_all()")
    assert await outbox.claim(topics) == set(topics)


async def test_what_is_removed_is_gone(participant: PostgresParticipant, outbox: OutboxReader) -> None:
    ids = await published(participant, b"1", b"2", b"3")
    await outbox.remove(ids[:2])
    await outbox.remove(ids[:2])
    assert [message.payload for message in await read(outbox)] == [b"3"]


async def test_a_topic_is_claimed_by_one_session(
    participant: PostgresParticipant, outbox: OutboxReader
) -> None:
    """Two relays would deliver everything twice."""
    await published(participant, b"1")
    assert await outbox.claim(()) == {"orders"}
    second = participant.outbox()
    assert await second.claim(()) == set()
    assert await second.claim(["orders", "payments"]) == {"payments"}
    assert await outbox.claim(["payments"]) == {"orders"}
    await outbox.close()
    async with asyncio.timeout(30):
        while "orders" not in await second.claim(["orders"]):
            await asyncio.sleep(0.01)  # until the server has seen that the session has ended
    await second.close()


async def test_a_lost_session_loses_its_claims(
    participant: PostgresParticipant, outbox: OutboxReader, noted: Database
) -> None:
    """A relay that believes in its claims would deliver beside another one."""
    [kept] = await published(participant, b"1")
    assert len(await read(outbox)) == 1
    await noted.admin.execute(
        "select pg_terminate_backend(a.pid) from pg_stat_activity as a join pg_locks as l using (pid)"
        " where l.locktype = 'advisory' and a.datname = current_database()"
    )
    with pytest.raises(ParticipantUnavailable):
        async with asyncio.timeout(30):
            while True:
                await outbox.claim(["payments"])
    assert await outbox.claim(["payments"]) == {"payments"}
    await outbox.remove([kept])
    assert await read(outbox) == []


async def test_a_database_without_an_outbox_says_what_to_do(database: Database) -> None:
    for migrated in (False, True):
        if migrated:
            await schema.migrate("p", ParticipantSettings(dsn=database.dsn))
            await database.admin.execute(
                "drop function undoubt.publish(text, text, text, bytea, text);"
                "drop table undoubt.undoubt_outbox"
            )
        participant = participant_at(database.dsn)
        branch = await begun(participant)
        with pytest.raises(ParticipantRefused, match="undoubt participants migrate p"):
            await publish(branch)
        await undone(branch)
        with pytest.raises(ParticipantRefused, match="undoubt participants migrate p"):
            await participant.outbox().claim(())
        await participant.close()


async def test_a_foreign_table_in_its_place_is_not_read(
    participant: PostgresParticipant, outbox: OutboxReader, noted: Database
) -> None:
    """The owner of the database could have any function run with the rights of the relay."""
    await published(participant, b"1")
    await read(outbox)
    await noted.admin.execute("create role thief")
    await noted.admin.execute(
        "drop schema undoubt cascade; create schema undoubt authorization thief;"
        "create table undoubt.undoubt_outbox (dedupe_id text);"
        "alter table undoubt.undoubt_outbox owner to thief"
    )
    try:
        for call in (read(outbox), outbox.remove(["x"]), read(outbox)):
            with pytest.raises(ParticipantRefused, match="belongs to role thief"):
                await call
    finally:
        await noted.admin.execute("drop owned by thief cascade; drop role thief")


async def test_only_roles_of_undoubt_publish_and_read(noted: Database, server: EmbeddedServer) -> None:
    """Any role could send messages in the application's name, read them, or remove them."""
    await noted.admin.execute("create role stranger login")
    connection = await asyncpg.connect(server.dsn(noted.name, user="stranger"))
    try:
        for statement in (
            "select undoubt.publish('a', 'b', null, '', '{}')",
            "insert into undoubt.undoubt_outbox (topic) values ('a')",
            "select from undoubt.undoubt_outbox",
            "delete from undoubt.undoubt_outbox",
            "select setval('undoubt.undoubt_outbox_id_seq', 1)",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
    finally:
        await connection.close()
        await noted.admin.execute("drop role stranger")


async def test_a_pooler_is_refused(noted: Database, pooler: PgBouncer) -> None:
    """Its server sessions, and the claims in them, are those of other clients."""
    participant = participant_at(pooler.dsn(noted.name))
    with pytest.raises(ParticipantRefused, match="leads to the server itself"):
        await participant.outbox().claim(())
    branch = await begun(participant)
    await publish(branch)
    await committed(branch)
    await participant.close()
    assert await noted.admin.fetchval("select count(*) from undoubt.undoubt_outbox") == 1
