"""The rights that ``participants grants`` prints: they are enough, and none can be left out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest
import pytest_asyncio

from tests.participants.hands import at
from tests.participants.support import KEY, WRITE, Database, new_gid, participant_at
from undoubt.embedded import EmbeddedServer
from undoubt.participants.contract import Decision, GuardingBranch, Settled, Vote
from undoubt.participants.errors import ParticipantError
from undoubt.participants.findings import Severity
from undoubt.participants.ids import Gid, Protocol
from undoubt.participants.last_agent import AgentEntry, AgentRow
from undoubt.participants.outbox import Publication, PublishingBranch
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.postgres.roles import grants
from undoubt.participants.settings import ParticipantSettings
from undoubt.participants.three_phase import BranchState, Charter, Event, Termination

WAYS = ("",)


@pytest_asyncio.fixture
async def hardened(noted: Database) -> AsyncIterator[Database]:
    """A database that PUBLIC may not connect to, and undoubt's tables in it. ``bookkeeper`` prepares branches
    as well. ``app`` has rights on the application's table alone."""
    await noted.admin.execute(
        "create role app login noinherit; create role bookkeeper;"
        "grant all on account to app, bookkeeper;"
        f"revoke all on database {noted.name} from public"
    )
    yield noted
    for gid in await noted.prepared():
        await noted.admin.execute(f"rollback prepared '{gid}'")
    await noted.admin.execute("drop owned by app, bookkeeper; drop role app, bookkeeper")


def printed(server: EmbeddedServer, database: Database, protocol: Protocol) -> list[str]:
    dsn = server.dsn(database.name, user="app")
    return grants("p", ParticipantSettings(dsn=dsn, owners=("bookkeeper",)), protocol=protocol)


async def give(database: Database, statements: Sequence[str]) -> None:
    for statement in statements:
        await database.admin.execute(statement)


async def works(participant: PostgresParticipant, protocol: Protocol) -> bool:
    """Everything that undoubt does there, or what it says of itself if it cannot."""
    await two_phase(participant)
    await recovery(participant)
    if protocol is Protocol.THREE_PHASE:
        await three_phase(participant)
    assert list(await participant.waits()) == []
    found = await participant.check(protocol=protocol)
    wrong = [one.what for one in found if one.severity is not Severity.OK and one.check != "fsync"]
    return not wrong  # the server of these tests need not survive them


async def two_phase(participant: PostgresParticipant) -> None:
    branch = await participant.begin(new_gid(), timeout_s=30, key=KEY)
    await at(branch).execute(WRITE)
    assert await branch.commit_one_phase() is Settled.APPLIED
    await branch.release()
    branch = await participant.begin(new_gid(), timeout_s=30, key=KEY)
    assert isinstance(branch, GuardingBranch)
    await branch.guard_lock("testledger", "a job", 1)
    assert isinstance(branch, PublishingBranch)
    published = await branch.publish(Publication("orders", "a key", b"x", {}))
    await at(branch).execute(WRITE)
    result = await branch.prepare()
    assert result.vote is Vote.PREPARED, result.reason
    assert result.evidence is not None
    assert result.evidence.history is not None
    assert await branch.commit() is Settled.APPLIED
    await branch.release()
    assert await participant.evidence(result.evidence) == "committed"
    await last_agent(participant)
    outbox = participant.outbox()
    [message] = await outbox.read(await outbox.claim(()), without=(), limit=9)
    assert message.dedupe_id == published
    await outbox.remove([published])
    await outbox.close()


async def last_agent(participant: PostgresParticipant) -> None:
    gid = new_gid()
    entry = AgentEntry("testledger", gid.txid, KEY.agent(gid.txid), await participant.agent.place())
    assert await participant.agent.conclude(entry) == AgentRow(Decision.ABORT, b"")
    await participant.agent.forget([row.key for row in await participant.agent.stored("x", limit=9)])
    await participant.agent.find([entry.key])
    await participant.agent.drop([entry.key])


async def recovery(participant: PostgresParticipant) -> None:
    gid = new_gid()
    branch = await participant.begin(gid, timeout_s=30, key=KEY)
    await at(branch).execute(WRITE)
    evidence = (await branch.prepare()).evidence
    await branch.release()
    listed = await participant.in_doubt()
    assert {(one.gid, one.owner, one.owned) for one in listed} >= {(gid, "app", True)}
    assert await participant.settle(gid, Decision.ABORT, evidence) is Settled.APPLIED
    for other in listed:
        if other.owner == "bookkeeper":
            assert other.owned
            assert isinstance(other.gid, Gid)
            assert await participant.settle(other.gid, Decision.ABORT, other.evidence) is Settled.APPLIED


async def three_phase(participant: PostgresParticipant) -> None:
    gid = replace(new_gid(), protocol=Protocol.THREE_PHASE).tagged(KEY)
    other = replace(new_gid(), protocol=Protocol.THREE_PHASE).tagged(KEY)
    charter = Charter((gid, replace(gid, branch=2).tagged(KEY)), Termination.QUORUM)
    states = participant.states
    assert await states.enlist(gid, charter, KEY.note(gid))
    branch = await participant.begin(gid, timeout_s=30, key=KEY)
    await at(branch).execute(WRITE)
    assert (await branch.prepare()).vote is Vote.PREPARED
    assert await states.attempt(gid, 1, Event.TRY_COMMIT)
    assert await branch.commit() is Settled.APPLIED
    await branch.release()
    row = await states.read(gid)
    assert row is not None
    assert row.state is BranchState.COMMIT
    its = Charter((other,), Termination.QUORUM)
    assert await states.elect(other, 2, its) is not None
    assert await states.bury(other, its)
    assert await states.unfinished() == []
    assert len(await states.stale(0.0, 0.0)) == 2
    await states.forget([gid, other])


async def of_the_bookkeeper(database: Database) -> None:
    """A branch that another role has left."""
    await database.admin.execute(
        f"begin; set local role bookkeeper; {WRITE.replace('= 1', '= 2')}; prepare transaction '{new_gid()}'"
    )


@pytest.mark.parametrize("protocol", [Protocol.TWO_PHASE, Protocol.THREE_PHASE])
async def test_they_are_enough(hardened: Database, server: EmbeddedServer, protocol: Protocol) -> None:
    """Broken if somebody who follows the advice is refused something later, in the middle of a night."""
    statements = printed(server, hardened, protocol)
    await give(hardened, statements)
    await give(hardened, statements)  # repeated
    await of_the_bookkeeper(hardened)
    participant = participant_at(server.dsn(hardened.name, user="app"), owners=("bookkeeper",))
    assert await works(participant, protocol)
    assert await hardened.prepared() == []
    await participant.close()


@pytest.mark.parametrize("left_out", range(9))
async def test_none_can_be_left_out(hardened: Database, server: EmbeddedServer, left_out: int) -> None:
    """Broken if more is asked for than is needed."""
    statements = printed(server, hardened, Protocol.THREE_PHASE)
    assert len(statements) == 9
    del statements[left_out]
    await give(hardened, statements)
    await of_the_bookkeeper(hardened)
    # The first failover is behind it.
    await hardened.admin.execute("update undoubt.undoubt_history set timeline = '0000000A'")
    participant = participant_at(server.dsn(hardened.name, user="app"), owners=("bookkeeper",))
    try:
        async with asyncio.timeout(60):
            enough = await works(participant, Protocol.THREE_PHASE)
    except (ParticipantError, AssertionError):
        enough = False
    finally:
        await participant.close()
    assert not enough


def test_names_are_quoted() -> None:
    """The lines are meant to be piped into psql."""
    settings = ParticipantSettings(dsn="""host=h user='a"b' dbname=Shop""", owners=("c d", 'a"b'))
    assert grants("p", settings, protocol=Protocol.TWO_PHASE) == [
        'GRANT CONNECT ON DATABASE "Shop" TO "a""b";',
        'GRANT EXECUTE ON FUNCTION undoubt.history() TO "a""b";',
        'GRANT EXECUTE ON FUNCTION undoubt.guard_lock(text, text, bigint) TO "a""b";',
        'GRANT EXECUTE ON FUNCTION undoubt.publish(text, text, text, bytea, text) TO "a""b";',
        'GRANT SELECT, DELETE ON undoubt.undoubt_outbox TO "a""b";',
        'GRANT SELECT, INSERT, DELETE ON undoubt.undoubt_agent TO "a""b";',
        'GRANT "c d" TO "a""b";',
    ]
