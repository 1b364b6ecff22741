"""What recovery and operators do about an undecided last-agent commit: databases in memory, and the ledger's
real state machine. Each test's docstring says what is broken if it fails.

With real databases: ``tests/undoubt/test_last_agent_operators.py``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from tests.recovery.world import World, told
from undoubt.coordinator.ledger.agents import AgentBinding
from undoubt.coordinator.ledger.commands import Restore
from undoubt.coordinator.ledger.contract import BranchRecord, RecordedDecision, record_of
from undoubt.participants.contract import Decision, Settled, XactStatus
from undoubt.participants.errors import ParticipantRefused, ParticipantUnavailable
from undoubt.participants.ids import Gid, Protocol, SessionKey, TxId
from undoubt.participants.last_agent import AgentEntry, AgentPlace, AgentRow, Holder
from undoubt.participants.scripted_agent import MemoryAgent
from undoubt.recovery import last_agent
from undoubt.recovery.errors import Conflict, NotAllSeen
from undoubt.recovery.operator.adopt import Adoption
from undoubt.recovery.operator.explain import explain
from undoubt.recovery.operator.resolve import ROLLED_BACK_BY_HAND, Operator
from undoubt.recovery.operator.survey import survey
from undoubt.recovery.operator.transaction import Resolver
from undoubt.recovery.terminate import Terminator

AGENT = "agent"
COMMIT, ABORT = Decision.COMMIT, Decision.ABORT
BURIED = AgentRow(ABORT, b"")
DOWN = ParticipantUnavailable(AGENT, "the server is down")
OTHERS = ("orders", "payments")


@dataclass
class Left:
    """A transaction whose coordinator has sent, or not sent, COMMIT to the agent."""

    gids: list[Gid]
    entry: AgentEntry
    row: AgentRow

    @property
    def txid(self) -> TxId:
        return self.entry.txid


class Stage(World):
    """``orders`` and ``payments`` are prepared; ``agent`` is the agent of the session."""

    def __init__(self) -> None:
        super().__init__(*OTHERS, AGENT)

    @property
    def agent(self) -> MemoryAgent:
        return self.databases[AGENT].agent

    async def open(self) -> Stage:
        place = await self.agent.place()
        binding = AgentBinding(AGENT, place.system, place.history)
        self.session = await self.ledger.open_session("shop", 10.0, agent=binding)
        return self

    async def undecided(self) -> Left:
        gids = [gid for gid in self.gids(Protocol.LAST) if gid.participant != AGENT]
        evidence = {gid: await self.prepare(gid) for gid in gids}
        records = [
            BranchRecord(gid.branch, gid.participant, seen.xid, seen.system, seen.timeline, tag=gid.tag)
            for gid, seen in evidence.items()
        ]
        txid = gids[0].txid
        place = AgentPlace(7_000_000_000_000_000_001, "the first history")
        entry = AgentEntry(self.ledger.ledger_id, txid, SessionKey(self.session.key).agent(txid), place)
        return Left(gids, entry, AgentRow(COMMIT, msgspec.msgpack.encode(records)))

    async def committed(self) -> Left:
        left = await self.undecided()
        assert self.agent.commit(left.entry, left.row.branches)
        return left

    def rows(self) -> list[AgentRow]:
        return list(self.agent.rows.values())

    def xact_statuses(self, left: Left) -> set[XactStatus]:
        return {self.databases[gid.participant].xact_status(gid) for gid in left.gids}

    async def record(self, left: Left) -> RecordedDecision:
        return (await self.ledger.records([left.txid]))[left.txid]

    def operator(self) -> Operator:
        return Operator(self.ledger, self.registry)

    def resolver(self) -> Resolver:
        return Resolver(self.ledger, self.registry)

    async def tidy(self, after: bytes = b"") -> bytes:
        terminator = Terminator(self.ledger, self.registry, None)
        return await terminator.agents.tidy(self.databases[AGENT], terminator.alive, after)


@pytest.fixture
async def stage() -> Stage:
    return await Stage().open()


# Recovery.


@pytest.mark.parametrize("done", [False, True])
async def test_recovery_leaves_a_live_coordinator_alone(stage: Stage, done: bool) -> None:
    """Broken if a tombstone aborts a transaction whose coordinator is about to commit it."""
    left = await (stage.committed() if done else stage.undecided())
    await stage.recover()
    assert stage.xact_statuses(left) == {XactStatus.IN_PROGRESS}
    assert stage.rows() == ([left.row] if done else [])


@pytest.mark.parametrize("passed", [False, True])
async def test_recovery_writes_the_tombstone_once_the_coordinator_is_gone(stage: Stage, passed: bool) -> None:
    """Broken if a COMMIT that arrives after the rollback of the others still commits, or a transaction below
    the floor of its session stays in doubt."""
    left = await stage.undecided()
    if passed:
        await stage.ledger.keep_alive(stage.session, left.txid.seq + 1)
    else:
        await stage.end_session()
    await stage.recover()
    assert stage.xact_statuses(left) == {XactStatus.ABORTED}
    assert stage.rows() == [BURIED]
    assert not stage.agent.commit(left.entry, b"")
    await stage.recover()
    assert await stage.unfinished() == set()


async def test_recovery_terminates_the_session_that_holds_the_row(stage: Stage) -> None:
    """Broken if a session whose coordinator has died in its COMMIT keeps the others in doubt."""
    left = await stage.undecided()
    stage.agent.holder = Holder(4711, "1.5")
    await stage.end_session()
    await stage.recover()
    assert "terminate" in stage.databases[AGENT].agent_calls
    assert stage.xact_statuses(left) == {XactStatus.ABORTED}


async def test_a_session_that_is_terminated_may_have_committed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if the end of the session is taken for a rollback: its COMMIT had happened, and waited for a
    standby."""
    left = await stage.undecided()
    stage.agent.holder = Holder(4711, "1.5")
    terminate = stage.agent.terminate

    async def terminated(holder: Holder) -> bool:
        assert stage.agent.commit(left.entry, left.row.branches)
        return await terminate(holder)

    monkeypatch.setattr(stage.agent, "terminate", terminated)
    await stage.end_session()
    await stage.recover()
    assert stage.xact_statuses(left) == {XactStatus.COMMITTED}


async def test_a_session_that_cannot_be_terminated_is_named(stage: Stage) -> None:
    """Broken if an operator does not learn which session the transaction waits for, or it is decided before
    that session has ended."""
    left = await stage.undecided()
    stage.agent.holder = Holder(4711, "1.5", "app", "shop")

    async def refuse(holder: Holder) -> bool:
        raise ParticipantRefused(AGENT, "role undoubt may not end the session of role app")

    stage.agent.terminate = refuse  # type: ignore[method-assign]
    await stage.end_session()
    report = await stage.recover()
    assert "may not end the session" in str(report.of(left.gids[0]))

    async def ended(holder: Holder) -> bool:
        return False

    stage.agent.terminate = ended  # type: ignore[method-assign]
    assert "pid 4711 (role app, shop)" in str((await stage.recover()).of(left.gids[0]))
    assert stage.xact_statuses(left) == {XactStatus.IN_PROGRESS}
    assert await stage.record(left) is RecordedDecision.NOT_RECORDED


async def test_an_agent_that_is_down_leaves_all_in_doubt(stage: Stage) -> None:
    """Broken if the others are ended although only the agent knows the outcome."""
    left = await stage.committed()
    await stage.end_session()
    stage.agent.down = DOWN
    assert told(await stage.recover(), left.gids[0]) == ("terminate", "look_again")
    assert stage.xact_statuses(left) == {XactStatus.IN_PROGRESS}
    stage.agent.down = None
    await stage.recover()
    assert stage.xact_statuses(left) == {XactStatus.COMMITTED}


@pytest.mark.parametrize("done", [False, True])
async def test_in_another_history_only_a_row_counts(stage: Stage, done: bool) -> None:
    """Broken if a failover that has lost the row makes recovery abort what has committed."""
    left = await (stage.committed() if done else stage.undecided())
    await stage.end_session()
    stage.agent.history = "the second history"
    report = await stage.recover()
    if done:
        assert stage.xact_statuses(left) == {XactStatus.COMMITTED}
        return
    assert "another history" in str(report.of(left.gids[0]))
    assert stage.xact_statuses(left) == {XactStatus.IN_PROGRESS}
    assert stage.rows() == []


async def test_after_a_restore_of_the_ledger_a_missing_row_proves_nothing(stage: Stage) -> None:
    """Broken if a branch is rolled back whose transaction has committed: the ledger had the COMMIT, its row
    was deleted, and the backup is older than both."""
    left = await stage.undecided()
    await stage.ledger.propose(Restore(1_000))
    report = await stage.recover()
    assert "before the ledger was restored" in str(report.of(left.gids[0]))
    assert stage.xact_statuses(left) == {XactStatus.IN_PROGRESS}
    assert await stage.record(left) is RecordedDecision.NOT_RECORDED


async def test_after_a_restore_of_the_ledger_a_row_proves_the_commit(stage: Stage) -> None:
    left = await stage.committed()
    await stage.ledger.propose(Restore(1_000))
    await stage.recover()
    assert stage.xact_statuses(left) == {XactStatus.COMMITTED}


# Rows that were left.


async def test_a_row_that_was_left_is_copied_and_deleted(stage: Stage) -> None:
    """Broken if rows of dead coordinators stay for ever, or one is deleted that the ledger does not have."""
    left = await stage.committed()
    await stage.tidy()
    assert stage.rows() == [left.row], "its coordinator deletes it"
    await stage.end_session()
    await stage.tidy()
    assert stage.rows() == []
    assert await stage.record(left) is RecordedDecision.COMMIT
    await stage.recover()
    assert stage.xact_statuses(left) == {XactStatus.COMMITTED}


async def test_a_tombstone_after_the_row_was_deleted_aborts_nothing(stage: Stage) -> None:
    """The race of copying, deleting and burying: broken if a recovery that was about to write the tombstone
    concludes from it, although another one has copied and deleted the row."""
    left = await stage.committed()
    await stage.end_session()
    await stage.tidy()
    agents = Terminator(stage.ledger, stage.registry, None).agents
    assert (await agents.conclude(left.gids[0], gone=True)).decision is COMMIT
    assert stage.rows() == [BURIED]
    await stage.recover()
    assert stage.xact_statuses(left) == {XactStatus.COMMITTED}


async def test_a_row_stays_that_the_ledger_does_not_take(stage: Stage) -> None:
    """Broken if the only proof of a COMMIT is deleted because the ledger has refused it."""
    left = await stage.committed()
    await stage.end_session()
    records = [record_of(gid) for gid in left.gids]
    assert await stage.ledger.decide(left.txid, ABORT, records, protocol=Protocol.LAST) is ABORT
    await stage.tidy()
    assert stage.rows() == [left.row]


def forged(stage: Stage, key: bytes, txid: object) -> AgentRow:
    """What ``undoubt.note_agent`` lets any role write."""
    row = AgentRow(COMMIT, b"forged")
    stage.agent.rows[key], stage.agent.txids[key] = row, str(txid)
    return row


async def test_forged_rows_are_deleted_and_decide_nothing(stage: Stage) -> None:
    """Broken if a role without rights can commit a transaction, or keep the row of a real one from being
    found."""
    left, real = await stage.undecided(), await stage.committed()
    for number in range(3):
        forged(stage, bytes([number]) * 32, left.txid)
    forged(stage, b"\x07" * 32, "no transaction")
    await stage.end_session()
    await stage.tidy()
    assert stage.rows() == []
    assert await stage.record(left) is RecordedDecision.NOT_RECORDED
    assert await stage.record(real) is RecordedDecision.COMMIT
    await stage.recover()
    assert stage.xact_statuses(left) == {XactStatus.ABORTED}


async def test_forged_rows_keep_no_other_from_being_read(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if a table full of rows that every role can write hides the real ones: each sweep goes on where
    the one before has ended."""
    monkeypatch.setattr(last_agent, "ROWS_MAX", 2)
    monkeypatch.setattr(last_agent, "PAGES_MAX", 1)
    unknown = msgspec.structs.replace(stage.session.txid(1), session=99)
    for number in range(6):
        forged(stage, bytes(31) + bytes([number]), unknown)
    real = await stage.committed()
    await stage.end_session()
    after, sweeps = b"", 0
    while await stage.record(real) is RecordedDecision.NOT_RECORDED:
        after = await stage.tidy(after)
        sweeps += 1
        assert sweeps < 9
    assert len(stage.rows()) == 6, "they may be of a ledger that was set back, and are kept for days"
    stage.agent.age_s = last_agent.KEPT_S
    while after := await stage.tidy(after):
        pass
    while after := await stage.tidy(after):
        pass
    assert stage.rows() == []


async def test_a_tombstone_stays_as_long_as_its_session_is_known(stage: Stage) -> None:
    """Broken if a COMMIT arrives after its tombstone was deleted, or tombstones stay for ever."""
    left = await stage.undecided()
    await stage.end_session()
    await stage.recover()
    await stage.recover()  # finishes it in the ledger
    stage.agent.age_s = 2 * last_agent.KEPT_S
    await stage.tidy()
    assert stage.rows() == [BURIED]
    await stage.ledger.elapse(8 * 86_400.0)
    assert await stage.ledger.sessions() == []
    stage.agent.age_s = 1.0
    await stage.tidy()
    assert stage.rows() == [BURIED]
    stage.agent.age_s = last_agent.KEPT_S
    await stage.tidy()
    assert stage.rows() == []
    assert stage.xact_statuses(left) == {XactStatus.ABORTED}


async def test_rows_of_an_unknown_table_are_no_error(stage: Stage) -> None:
    """Broken if a participant that is never an agent stops the sweep of the rest."""
    stage.agent.down = ParticipantRefused(AGENT, "no such table")
    assert await stage.tidy(b"x") == b""
    terminator, bare = Terminator(stage.ledger, stage.registry, None), Bare()
    assert await terminator.agents.tidy(bare, terminator.alive, b"x") == b""  # type: ignore[arg-type]


class Bare:
    """A participant of a kind that has no rows."""

    name = "bare"


# Operators: the tombstone first, and ABORT only after it.


async def by_branch(stage: Stage, left: Left, **flags: Any) -> None:
    await stage.operator().roll_back(left.gids[0], **flags)


async def whole(stage: Stage, left: Left, **flags: Any) -> None:
    assert {said for _, said in await stage.resolver().end(left.txid, ABORT, **flags)} <= {"done"}


Order = Callable[..., Any]
both_orders = pytest.mark.parametrize("order", [by_branch, whole])


@both_orders
@pytest.mark.parametrize("gone", [False, True])
async def test_an_order_to_roll_back_writes_the_tombstone_first(
    stage: Stage, order: Order, gone: bool
) -> None:
    """Broken if the COMMIT of a coordinator that lives, or that is on its way, commits the agent alone."""
    left = await stage.undecided()
    if gone:
        await stage.end_session()
    calls: list[str] = []
    conclude, decide = stage.agent.conclude, stage.ledger.decide

    async def concluding(entry: AgentEntry) -> AgentRow | None:
        calls.append("tombstone")
        return await conclude(entry)

    async def deciding(*args: Any, **more: Any) -> Decision:
        calls.append("decide")
        return await decide(*args, **more)

    stage.agent.conclude = concluding  # type: ignore[method-assign]
    stage.ledger.decide = deciding  # type: ignore[method-assign]
    await order(stage, left)
    assert calls[:2] == ["tombstone", "decide"]
    assert stage.databases["orders"].xact_status(left.gids[0]) is XactStatus.ABORTED
    assert not stage.agent.commit(left.entry, left.row.branches)
    info = await stage.ledger.transaction(left.txid)
    assert info is not None and info.record is RecordedDecision.ABORT
    assert info.cause == ("" if gone else ROLLED_BACK_BY_HAND)
    await stage.recover()
    assert stage.xact_statuses(left) == {XactStatus.ABORTED}
    assert await stage.heuristics() == {}


@both_orders
async def test_an_order_to_roll_back_finds_the_commit(stage: Stage, order: Order) -> None:
    """Broken if an operator rolls back what has committed at its agent, and the ledger does not know yet."""
    left = await stage.committed()
    with pytest.raises(Conflict, match="COMMIT is recorded"):
        await order(stage, left)
    assert await stage.record(left) is RecordedDecision.COMMIT
    assert stage.xact_statuses(left) == {XactStatus.IN_PROGRESS}
    await stage.recover()
    assert stage.xact_statuses(left) == {XactStatus.COMMITTED}


@both_orders
async def test_a_commit_that_is_being_executed_holds_the_order_back(stage: Stage, order: Order) -> None:
    """Broken if ABORT is recorded while the COMMIT of the agent is on its way, or if the session of a
    coordinator that lives is terminated."""
    left = await stage.undecided()
    stage.agent.holder = holder = Holder(4711, "1.5")
    with pytest.raises(Conflict, match="pid 4711"):
        await order(stage, left)
    assert stage.agent.holder == holder
    assert await stage.record(left) is RecordedDecision.NOT_RECORDED
    assert stage.xact_statuses(left) == {XactStatus.IN_PROGRESS}
    assert await stage.heuristics() == {}
    stage.agent.holder = None
    assert stage.agent.commit(left.entry, left.row.branches)
    with pytest.raises(Conflict, match="COMMIT is recorded"):
        await order(stage, left)


@both_orders
async def test_without_an_answer_of_the_agent_it_is_heuristic(stage: Stage, order: Order) -> None:
    """Broken if ABORT is recorded although nothing keeps the agent from committing."""
    left = await stage.undecided()
    stage.agent.down = DOWN
    with pytest.raises(Conflict, match="server is down"):
        await order(stage, left)
    assert stage.xact_statuses(left) == {XactStatus.IN_PROGRESS}
    await order(stage, left, heuristic=True, contradict=True)
    assert await stage.record(left) is RecordedDecision.NOT_RECORDED
    found = (await stage.heuristics())[left.gids[0]]
    assert (found.kind, found.decision) == (Settled.HEURISTIC_ROLLBACK, None)


@both_orders
async def test_a_refused_order_writes_no_tombstone(stage: Stage, order: Order) -> None:
    """Broken if an order of which is said that nothing was done has aborted the transaction."""
    left = await stage.undecided()
    await stage.operator().commit(left.gids[0], heuristic=True)
    left.gids.reverse()
    with pytest.raises(Conflict, match="--contradict"):
        await order(stage, left)
    assert stage.rows() == []


async def test_an_order_to_commit_finds_the_row(stage: Stage) -> None:
    """Broken if an operator has to take a heuristic decision about what is decided at the agent."""
    left = await stage.committed()
    await stage.operator().commit(left.gids[0])
    assert stage.databases["orders"].xact_status(left.gids[0]) is XactStatus.COMMITTED
    done = await stage.resolver().end(left.txid, COMMIT)
    assert [said for _, said in done] == ["done"]
    assert stage.xact_statuses(left) == {XactStatus.COMMITTED}
    assert await stage.heuristics() == {}


@pytest.mark.parametrize("gone", [False, True])
async def test_an_order_to_commit_what_has_not_committed(stage: Stage, gone: bool) -> None:
    """Broken if an order to commit aborts a transaction whose coordinator lives, or commits without a row."""
    left = await stage.undecided()
    if gone:
        await stage.end_session()
    with pytest.raises(Conflict, match="--heuristic"):
        await stage.operator().commit(left.gids[0])
    with pytest.raises(Conflict, match="--heuristic"):
        await stage.resolver().end(left.txid, COMMIT)
    assert stage.rows() == ([BURIED] if gone else [])
    expected = RecordedDecision.ABORT if gone else RecordedDecision.NOT_RECORDED
    assert await stage.record(left) is expected
    assert stage.xact_statuses(left) == {XactStatus.IN_PROGRESS}


async def shown(stage: Stage, left: Left) -> str:
    seen = await survey(stage.ledger, stage.registry)
    return (await explain(stage.ledger, stage.registry, seen.one(left.gids[0]), seen)).proof[-1]


async def test_an_operator_is_told_what_the_agent_shows(stage: Stage) -> None:
    """Broken if ``explain`` cannot say what a transaction waits for, or changes something."""
    left, done = await stage.undecided(), await stage.committed()
    assert "shows no row of it" in await shown(stage, left)
    assert "has committed" in await shown(stage, done)
    stage.agent.history = "another"
    assert "another history" in await shown(stage, left)
    stage.agent.down = DOWN
    assert "the server is down" in await shown(stage, left)
    assert stage.rows() == [done.row]
    assert await stage.record(done) is RecordedDecision.NOT_RECORDED


# A ledger that is lost.


def adoption(stage: Stage, *, secret: bool = True) -> Adoption:
    given = stage.ledger.machine.state.secret if secret else b""
    return Adoption(stage.registry, stage.ledger.ledger_id, given)


async def test_the_row_proves_the_commit_to_whoever_has_the_secret(stage: Stage) -> None:
    """Broken if a person has to guess what the agent's row proves, or may guess against it."""
    left, other = await stage.committed(), await stage.undecided()
    adopting = adoption(stage)
    seen = await adopting.look()
    found = seen.one(left.txid)
    assert (found.agent, seen.one(other.txid).agent) == (AGENT, "")
    assert "holds the row of its COMMIT" in found.why
    with pytest.raises(Conflict):
        await adopting.end(found, seen, ABORT)
    assert {line.result for line in await adopting.terminate(found)} == {"done"}
    assert stage.xact_statuses(left) == {XactStatus.COMMITTED}
    assert {line.result for line in await adopting.terminate(seen.one(other.txid))} == {"nothing"}
    assert stage.xact_statuses(other) == {XactStatus.IN_PROGRESS}


async def test_a_rollback_without_the_ledger_writes_the_tombstone_everywhere(stage: Stage) -> None:
    """Broken if the COMMIT of a coordinator that still lives commits the agent alone: which database is the
    agent was known to the ledger only."""
    left = await stage.undecided()
    adopting = adoption(stage)
    seen = await adopting.look()
    assert stage.rows() == []
    await adopting.end(seen.one(left.txid), seen, ABORT)
    assert stage.xact_statuses(left) == {XactStatus.ABORTED}
    assert not stage.agent.commit(left.entry, b"")
    assert all(list(each.agent.rows.values()) == [BURIED] for each in stage.databases.values())


async def test_a_row_that_came_meanwhile_stops_the_rollback(stage: Stage) -> None:
    left = await stage.undecided()
    adopting = adoption(stage)
    seen = await adopting.look()
    assert stage.agent.commit(left.entry, left.row.branches)
    with pytest.raises(Conflict, match="has committed"):
        await adopting.end(seen.one(left.txid), seen, ABORT)
    assert stage.xact_statuses(left) == {XactStatus.IN_PROGRESS}


async def test_an_agent_that_does_not_answer_stops_the_rollback(stage: Stage) -> None:
    """Broken if a database that may hold the row is passed over."""
    left = await stage.undecided()
    adopting = adoption(stage)
    stage.agent.down = DOWN
    seen = await adopting.look()
    with pytest.raises(NotAllSeen):
        await adopting.end(seen.one(left.txid), seen, ABORT)
    stage.agent.down = None
    seen = await adopting.look()
    stage.agent.holder = Holder(4711, "1.5")
    with pytest.raises(Conflict, match="pid 4711"):
        await adopting.end(seen.one(left.txid), seen, ABORT)
    stage.agent.holder = None
    for name in OTHERS:
        stage.databases[name].agent.down = ParticipantRefused(name, "it has no such table")
    await adopting.end(seen.one(left.txid), seen, ABORT)
    assert stage.xact_statuses(left) == {XactStatus.ABORTED}


async def test_without_the_secret_no_row_is_found(stage: Stage) -> None:
    left = await stage.committed()
    adopting = adoption(stage, secret=False)
    seen = await adopting.look()
    found = seen.one(left.txid)
    assert (found.agent, found.proved) == ("", False)
    await adopting.end(found, seen, COMMIT)
    assert stage.xact_statuses(left) == {XactStatus.COMMITTED}
