"""Three-phase commit's rows: what every participant that keeps them must do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import asyncpg
import pytest

from tests.participants.support import KEY, Database, new_gid
from tests.pgbouncer import PgBouncer
from undoubt.embedded import EmbeddedServer
from undoubt.participants.errors import ParticipantRefused
from undoubt.participants.ids import Gid, Protocol, TxId
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.postgres.schema import migrate
from undoubt.participants.scripted_three_phase import MemoryStates
from undoubt.participants.settings import ParticipantSettings
from undoubt.participants.three_phase import (
    TRANSITIONS,
    BranchState,
    Charter,
    Event,
    StateRow,
    States,
    Termination,
)

LEDGER = "abcdefghij"
NONCE = "0123456789abcdef"
GID = Gid(LEDGER, Protocol.THREE_PHASE, TxId(1, NONCE, 7), 1, "orders")
CHARTER = Charter((GID, replace(GID, branch=2, participant="pay-ments")), Termination.QUORUM)
OTHER = replace(GID, txid=TxId(1, NONCE, 8))
NOTE = KEY.note(GID)


class Rows:
    """States under test, and a way to commit a branch."""

    def __init__(self, states: States) -> None:
        self.states = states
        self.committed: set[Gid] = set()

    async def commit(self, gid: Gid) -> None:
        self.committed.add(gid)


class DatabaseRows(Rows):
    def __init__(self, participant: PostgresParticipant, dsn: str) -> None:
        super().__init__(participant.states)
        self.dsn = dsn

    async def commit(self, gid: Gid) -> None:
        connection = await asyncpg.connect(self.dsn)
        await connection.execute("select undoubt.note_commit($1)", KEY.proof(gid))
        await connection.close()


async def _nothing(_call: str, _gid: Gid) -> None:
    """Memory answers at once."""


@pytest.fixture(params=["memory", "postgresql", "pgbouncer"])
def behind(request: pytest.FixtureRequest) -> str | PgBouncer:
    """What the rows are in, or the pooler before it."""
    if request.param == "pgbouncer":
        pooler: PgBouncer = request.getfixturevalue("pooler")
        return pooler
    return str(request.param)


@pytest.fixture
async def rows(behind: str | PgBouncer, database: Database) -> AsyncIterator[Rows]:
    if behind == "memory":
        memory = Rows(MemoryStates(lambda gid: gid in memory.committed, _nothing))
        yield memory
        return
    settings = ParticipantSettings(dsn=database.dsn)
    await migrate("orders", settings)
    if isinstance(behind, PgBouncer):
        settings = ParticipantSettings(dsn=behind.dsn(database.name))
    participant = PostgresParticipant("orders", settings, ledger_id=LEDGER)
    yield DatabaseRows(participant, database.dsn)
    await participant.close()


async def bring(rows: Rows, state: BranchState, gid: Gid = GID) -> None:
    """A row in that state, in election 2."""
    states = rows.states
    if state is not BranchState.INITIAL:
        assert await states.enlist(gid, CHARTER, KEY.note(gid))
    assert await states.elect(gid, 2, CHARTER) is not None
    if state is BranchState.PRECOMMIT:
        assert await states.attempt(gid, 2, Event.TRY_COMMIT)
    if state is BranchState.ABORT:
        assert await states.bury(gid, CHARTER)
    if state is BranchState.COMMIT:
        await rows.commit(gid)


async def test_a_row_is_enlisted_once(rows: Rows) -> None:
    """Broken if a coordinator prepares under a row that a termination has seen already."""
    states = rows.states
    assert await states.read(GID) is None
    assert await states.enlist(GID, CHARTER, NOTE)
    assert await states.read(GID) == StateRow(BranchState.WAIT, 1, 0, CHARTER)
    assert not await states.enlist(GID, CHARTER, NOTE)
    assert await states.read(OTHER) is None


async def test_a_termination_that_comes_first_keeps_the_branch_out(rows: Rows) -> None:
    """Broken if a branch can be prepared after a termination has counted it as never enlisted."""
    states = rows.states
    assert await states.elect(GID, 2, CHARTER) == StateRow(BranchState.INITIAL, 2, 0, CHARTER)
    assert not await states.enlist(GID, CHARTER, NOTE)
    assert not await states.attempt(GID, 2, Event.TRY_COMMIT)


async def test_elections_only_rise(rows: Rows) -> None:
    """Broken if two terminations can both believe that a row is theirs."""
    states = rows.states
    assert await states.enlist(GID, CHARTER, NOTE)
    assert await states.elect(GID, 3, CHARTER) == StateRow(BranchState.WAIT, 3, 0, CHARTER)
    for late in (1, 2, 3):
        assert await states.elect(GID, late, CHARTER) is None
    elected = await asyncio.gather(*(states.elect(GID, 4, CHARTER) for _ in range(4)))
    assert sum(row is not None for row in elected) == 1


async def test_only_the_elected_may_attempt(rows: Rows) -> None:
    """Broken if a slow coordinator moves a row that a termination has read."""
    states = rows.states
    assert await states.enlist(GID, CHARTER, NOTE)
    assert await states.elect(GID, 2, CHARTER) is not None
    assert not await states.attempt(GID, 1, Event.TRY_COMMIT)
    assert not await states.attempt(GID, 3, Event.TRY_COMMIT)
    assert await states.attempt(GID, 2, Event.TRY_COMMIT)
    assert await states.read(GID) == StateRow(BranchState.PRECOMMIT, 2, 2, CHARTER)
    assert await states.attempt(GID, 2, Event.TRY_COMMIT)  # repeated
    assert await states.elect(GID, 5, CHARTER) == StateRow(BranchState.PRECOMMIT, 5, 2, CHARTER)
    assert await states.attempt(GID, 5, Event.TRY_ABORT)
    assert await states.read(GID) == StateRow(BranchState.WAIT, 5, 5, CHARTER)


@pytest.mark.parametrize("state", list(BranchState))
@pytest.mark.parametrize("event", [Event.TRY_COMMIT, Event.TRY_ABORT])
async def test_attempts_follow_the_table(rows: Rows, state: BranchState, event: Event) -> None:
    """Broken if a row moves in a way that the table does not have."""
    await bring(rows, state)
    before = await rows.states.read(GID)
    changed = await rows.states.attempt(GID, 2, event)
    allowed = {t.after for t in TRANSITIONS if t.before is state and t.event is event}
    after = await rows.states.read(GID)
    assert after is not None
    if state is BranchState.COMMIT:
        assert after.state is BranchState.COMMIT
    elif allowed:
        assert (changed, {after.state}) == (True, allowed)
    else:
        assert (changed, after) == (False, before)


@pytest.mark.parametrize("state", list(BranchState))
async def test_burying_follows_the_table(rows: Rows, state: BranchState) -> None:
    """Broken if a tombstone is set on what has committed, or cannot be set on what has not."""
    await bring(rows, state)
    buried = await rows.states.bury(GID, CHARTER)
    after = await rows.states.read(GID)
    assert after is not None
    if state is BranchState.COMMIT:
        assert (buried, after.state) == (False, BranchState.COMMIT)
    else:
        assert (buried, after.state) == (True, BranchState.ABORT)
        assert any(t.before is state and t.event is Event.ABORT for t in TRANSITIONS)
        assert await rows.states.bury(GID, CHARTER)  # repeated


async def test_a_row_that_is_missing_can_be_buried(rows: Rows) -> None:
    """Broken if a branch whose PREPARE is still on its way finds no tombstone."""
    assert await rows.states.bury(GID, CHARTER)
    assert not await rows.states.enlist(GID, CHARTER, NOTE)
    row = await rows.states.read(GID)
    assert row is not None
    assert row.state is BranchState.ABORT


async def test_what_is_unfinished_and_what_is_forgotten(rows: Rows) -> None:
    """Broken if a recovery without a ledger overlooks a transaction, or a finished one stays for ever."""
    states = rows.states
    gids = {state: replace(GID, branch=10 + at) for at, state in enumerate(BranchState)}
    for state, gid in gids.items():
        await bring(rows, state, gid)
    unfinished = dict(await states.unfinished())
    assert set(unfinished) == {gids[BranchState(state)] for state in "qwp"}
    assert unfinished[gids[BranchState.PRECOMMIT]] == StateRow(BranchState.PRECOMMIT, 2, 2, CHARTER)
    assert set(await states.stale(0.0, 0.0)) == set(gids.values())
    assert set(await states.stale(0.0, 3600.0)) == set(gids.values()) - {gids[BranchState.ABORT]}
    assert await states.stale(3600.0, 3600.0) == []
    await states.forget([gids[BranchState.ABORT], gids[BranchState.COMMIT]])
    assert await states.read(gids[BranchState.ABORT]) is None
    assert await states.read(gids[BranchState.WAIT]) is not None


async def test_several_databases_can_be_migrated_at_once(server: EmbeddedServer, kind: str) -> None:
    """Broken if two threads of one process destroy each other's migration."""
    once = new_gid().txid.seq
    dsns = [await server.create_database(f"at_once_{once}_{number}") for number in range(4)]
    await asyncio.gather(*(migrate("orders", ParticipantSettings(dsn=dsn)) for dsn in dsns))
    for dsn in dsns:
        participant = PostgresParticipant(
            "orders", ParticipantSettings(dsn=dsn, driver=kind), ledger_id=LEDGER
        )
        assert await participant.states.unfinished() == []
        await participant.close()


async def test_without_tables_the_way_out_is_named(database: Database) -> None:
    """Broken if a user of three-phase commit is not told what is missing."""
    participant = PostgresParticipant("orders", ParticipantSettings(dsn=database.dsn), ledger_id=LEDGER)
    for call in (participant.states.enlist(GID, CHARTER, NOTE), participant.states.unfinished()):
        with pytest.raises(ParticipantRefused, match="undoubt participants migrate orders"):
            await call
    await participant.close()
