"""Three-phase commit over scripted participants: order of effects, and what is told to whom.

How it ends when this process does not end it: ``test_termination.py``.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, NoReturn

import pytest

from tests.coordinator.stage import NAMES, Stage
from undoubt.coordinator.errors import LedgerUnavailable, OutcomeUnknown, TransactionAborted
from undoubt.coordinator.ledger.contract import RecordedDecision, Session
from undoubt.coordinator.protocols.steps import STEPS, ThreePhaseStep, TwoPhaseStep
from undoubt.participants.contract import Decision, Vote, XactStatus
from undoubt.participants.errors import BranchFailed, ParticipantRefused, ParticipantUnavailable
from undoubt.participants.ids import Gid, Protocol
from undoubt.participants.scripted import Script, ScriptedBranch
from undoubt.participants.three_phase import BranchState, Charter, Event, Termination


@pytest.fixture
async def stages() -> AsyncIterator[Any]:
    made: list[Stage] = []

    async def make(count: int = 3, *, scripts: tuple[Script, ...] = (), **settings: Any) -> Stage:
        given = scripts or tuple(Script() for _ in range(count))
        stage = Stage(dict(zip(NAMES, given, strict=False)), protocol="3pc", drain_s=0.2, **settings)
        made.append(stage)
        await stage.coordinator.start()
        return stage

    yield make
    for stage in made:
        stage.ledger.down = None
        for gate in stage.gates.values():
            gate.set()
        await stage.coordinator.close()


def states(stage: Stage) -> dict[str, str]:
    """The rows that are there, by participant."""
    return {
        name: str(row.state)
        for name, participant in stage.participants.items()
        for row in participant.states.rows.values()
    }


def last(events: list[str], what: str) -> int:
    return max(at for at, event in enumerate(events) if event.startswith(what))


async def test_each_phase_ends_before_the_next_begins(stages: Any) -> None:
    """Broken if a branch is prepared without a row, if a row says PRECOMMIT before all have voted, or if a
    branch commits before all rows say so."""
    stage = await stages()
    result = await stage.transfer()
    assert result.pending == ()
    assert stage.xact_statuses() == {XactStatus.COMMITTED}
    events = stage.events
    for name in NAMES:
        assert events.index(f"enlist {name}") < events.index(f"prepare {name}")
    assert last(events, "prepare ") < events.index(ThreePhaseStep.BEFORE_LEDGER_PRECOMMIT)
    assert events.index(ThreePhaseStep.AFTER_LEDGER_PRECOMMIT) < events.index("attempt alpha")
    assert last(events, "attempt ") < min(events.index(f"commit {name}") for name in NAMES)
    assert await stage.coordinator.outcome(stage.txid) is RecordedDecision.COMMIT


async def test_every_named_step_is_passed(stages: Any) -> None:
    """Broken if a step that the crash matrix is generated from is never reached."""
    stage = await stages(2)
    await stage.transfer()
    await stage.coordinator.close()
    passed = {event.split(" ")[0] for event in stage.events}
    assert {str(step) for step in STEPS[Protocol.THREE_PHASE]} <= passed


async def test_finished_rows_are_forgotten(stages: Any) -> None:
    """Broken if every transaction leaves a row behind for ever, or one is forgotten before it is finished."""
    stage = await stages(2)
    await stage.transfer()
    await stage.coordinator.close()
    assert states(stage) == {}
    assert not stage.ledger.machine.state.precommitted
    assert stage.ledger.machine.unfinished() == []


@pytest.mark.parametrize("position", [0, 1, 2])
async def test_one_no_buries_all_before_anything_is_rolled_back(stages: Any, position: int) -> None:
    """Broken if a vote is ignored, or a late PREPARE could find no tombstone."""
    scripts = (Script(), Script(), Script())
    scripts[position].prepare = Vote.ABORT
    stage = await stages(scripts=scripts)
    with pytest.raises(TransactionAborted) as raised:
        await stage.transfer()
    assert isinstance(raised.value.cause, BranchFailed)
    assert last(stage.events, "bury ") < min(stage.events.index(f"rollback {name}") for name in NAMES)
    assert XactStatus.COMMITTED not in stage.xact_statuses()
    assert await stage.coordinator.outcome(stage.txid) is RecordedDecision.NOT_RECORDED


async def test_a_branch_that_termination_has_seen_is_not_prepared(stages: Any) -> None:
    """Broken if PREPARE goes out although somebody has already counted on its absence."""
    stage = await stages(2)
    beta = stage.participants["beta"]
    stage.hold("begin beta")
    running = asyncio.create_task(stage.transfer())
    await stage.arrived["begin beta"].wait()
    key = stage.ledger.names.key(stage.txid.session, stage.txid.nonce)
    gid = Gid(stage.ledger.ledger_id, Protocol.THREE_PHASE, stage.txid, 2, "beta").tagged(key)
    charter = Charter((replace(gid, branch=1, participant="alpha"), gid), Termination.QUORUM)
    assert await beta.states.elect(gid, 2, charter) is not None
    stage.gates["begin beta"].set()
    with pytest.raises(TransactionAborted):
        await running
    assert "prepare" not in beta.trace()


async def test_tables_that_are_missing_abort_with_the_way_out(stages: Any) -> None:
    """Broken if the reason is lost."""
    stage = await stages(2)

    async def refused(gid: Gid, charter: Charter, note: bytes) -> bool:
        raise ParticipantRefused("beta", "run undoubt participants migrate beta")

    stage.participants["beta"].states.enlist = refused
    with pytest.raises(TransactionAborted, match="participants migrate beta"):
        await stage.transfer()


async def test_a_ledger_without_an_answer_aborts_before_any_row_says_precommit(stages: Any) -> None:
    """Broken if the third phase begins without the ledger, or the transaction hangs beyond its timeout."""
    stage = await stages(2)
    arrived = stage.hold(ThreePhaseStep.BEFORE_LEDGER_PRECOMMIT)
    running = asyncio.create_task(stage.transfer(timeout=0.3))
    await arrived.wait()
    stage.ledger.down = LedgerUnavailable("no disk")
    stage.gates[ThreePhaseStep.BEFORE_LEDGER_PRECOMMIT].set()
    with pytest.raises(TransactionAborted):
        await running
    assert not [event for event in stage.events if event.startswith("attempt")]
    assert set(states(stage).values()) == {BranchState.ABORT}
    stage.ledger.down = None


async def test_a_lost_session_aborts_before_any_row_says_precommit(stages: Any) -> None:
    """Broken if a coordinator whose session was given up goes on to the third phase."""
    stage = await stages(2)
    arrived = stage.hold(ThreePhaseStep.BEFORE_LEDGER_PRECOMMIT)
    running = asyncio.create_task(stage.transfer())
    await arrived.wait()
    book = stage.ledger.machine.state.sessions[stage.txid.session]
    await stage.ledger.close_session(Session(book.id, book.nonce, book.name, 10.0))
    stage.gates[ThreePhaseStep.BEFORE_LEDGER_PRECOMMIT].set()
    with pytest.raises(TransactionAborted):
        await running
    assert not [event for event in stage.events if event.startswith("attempt")]


async def test_a_ledger_that_is_lost_after_the_third_phase_holds_up_nothing(stages: Any) -> None:
    """Broken if a commit that the participants have fixed waits for a ledger that is gone."""
    stage = await stages(2)
    arrived = stage.hold(TwoPhaseStep.BEFORE_DECIDE)
    running = asyncio.create_task(stage.transfer())
    await arrived.wait()
    stage.ledger.down = LedgerUnavailable("no disk")
    stage.gates[TwoPhaseStep.BEFORE_DECIDE].set()
    result = await running
    assert result.pending == ()
    assert stage.xact_statuses() == {XactStatus.COMMITTED}
    stage.ledger.down = None


async def test_connections_do_not_wait_for_the_ledgers_copy(
    stages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if a ledger that nobody leads for a while uses up the connections of commits that are over; or
    if one is given back twice, while somebody else already has it."""
    released: Counter[Gid] = Counter()

    async def release(branch: ScriptedBranch) -> None:
        released[branch.gid] += 1

    monkeypatch.setattr(ScriptedBranch, "release", release)
    stage = await stages(2)
    stage.hold(TwoPhaseStep.BEFORE_DECIDE)
    await stage.transfer()
    assert sorted(released.values()) == [1, 1]
    stage.gates[TwoPhaseStep.BEFORE_DECIDE].set()
    await stage.coordinator.close()
    assert sorted(released.values()) == [1, 1]
    assert await stage.coordinator.outcome(stage.txid) is RecordedDecision.COMMIT


async def test_a_commit_on_its_way_into_the_ledger_is_told_as_one(stages: Any) -> None:
    """Broken if whoever was told that it is committed then hears that nothing is known of it."""
    stage = await stages(2)
    stage.hold(TwoPhaseStep.BEFORE_DECIDE)
    await stage.transfer()
    assert (await stage.ledger.records([stage.txid]))[stage.txid] is RecordedDecision.NOT_RECORDED
    assert await stage.coordinator.outcome(stage.txid) is RecordedDecision.COMMIT
    stage.gates[TwoPhaseStep.BEFORE_DECIDE].set()
    await stage.coordinator.close()
    assert (await stage.ledger.records([stage.txid]))[stage.txid] is RecordedDecision.COMMIT


@pytest.mark.parametrize("position", [0, 1, 2])
async def test_a_participant_that_is_silent_in_the_third_phase_is_outvoted(
    stages: Any, position: int
) -> None:
    """Broken if one participant that is down blocks a commit that a quorum could finish."""
    stage = await stages()
    silent(stage, NAMES[position])
    result = await stage.transfer()
    assert [gid.participant for gid in result.pending] in ([], [NAMES[position]])
    assert await stage.coordinator.outcome(stage.txid) is RecordedDecision.COMMIT
    others = [name for name in NAMES if name != NAMES[position]]
    for name in others:
        assert stage.participants[name].prepared == {}


def silent(stage: Stage, name: str) -> None:
    """From the third phase on ``name`` answers nothing about its row."""
    memory = stage.participants[name].states

    async def dead(*_: object) -> NoReturn:
        raise ParticipantUnavailable(name, "does not answer")

    async def attempt(*_: object) -> NoReturn:
        for call in ("read", "elect", "attempt", "bury"):
            setattr(memory, call, dead)
        await dead()

    setattr(memory, "attempt", attempt)  # noqa: B010 - a function of any arguments


async def test_without_a_quorum_the_outcome_is_unknown_and_nothing_is_rolled_back(stages: Any) -> None:
    """Broken if one of two participants that is silent is taken for a no after it may have been told."""
    stage = await stages(2)
    silent(stage, "beta")
    with pytest.raises(OutcomeUnknown):
        await stage.transfer(timeout=0.3)
    assert stage.in_doubt() == 2
    assert not [event for event in stage.events if event.startswith(("rollback", "commit"))]


async def test_a_termination_that_was_faster_is_believed(stages: Any) -> None:
    """Broken if the coordinator commits what somebody else has ended otherwise meanwhile."""
    stage = await stages()
    arrived = stage.hold(ThreePhaseStep.AFTER_LEDGER_PRECOMMIT)
    running = asyncio.create_task(stage.transfer())
    await arrived.wait()
    for participant in stage.participants.values():
        for gid, row in list(participant.states.rows.items()):
            assert await participant.states.elect(gid, 2, row.charter) is not None
            assert await participant.states.attempt(gid, 2, Event.TRY_ABORT)
    stage.gates[ThreePhaseStep.AFTER_LEDGER_PRECOMMIT].set()
    with pytest.raises(TransactionAborted):
        await running
    assert stage.xact_statuses() == {XactStatus.ABORTED}
    assert (await stage.ledger.records([stage.txid]))[stage.txid] is RecordedDecision.ABORT


@pytest.mark.parametrize("rule", list(Termination))
async def test_the_rule_stands_in_every_row(stages: Any, rule: Termination) -> None:
    """Broken if whoever comes later ends the transaction by another rule than its coordinator's."""
    stage = await stages(2, termination=rule)
    arrived = stage.hold(ThreePhaseStep.AFTER_LEDGER_PRECOMMIT)
    running = asyncio.create_task(stage.transfer())
    await arrived.wait()
    rows = [row for one in stage.participants.values() for row in one.states.rows.values()]
    assert [row.charter.rule for row in rows] == [rule, rule]
    assert {(gid.branch, gid.participant) for gid in rows[0].charter.members} == {(1, "alpha"), (2, "beta")}
    stage.gates[ThreePhaseStep.AFTER_LEDGER_PRECOMMIT].set()
    await running


async def test_one_writer_needs_no_row(stages: Any) -> None:
    """Broken if a transaction in one database pays for the protocol."""
    stage = await stages(1)
    await stage.transfer()
    assert stage.participants["alpha"].trace() == ["begin", "one_phase"]
    assert stage.ledger.machine.unfinished() == []


async def test_cancelling_the_caller_does_not_stop_it(stages: Any) -> None:
    """Broken if a request that is given up leaves a transaction between its phases."""
    stage = await stages(2)
    arrived = stage.hold(ThreePhaseStep.AFTER_LEDGER_PRECOMMIT)
    running = asyncio.create_task(stage.transfer())
    await arrived.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    stage.gates[ThreePhaseStep.AFTER_LEDGER_PRECOMMIT].set()
    await settled(lambda: stage.xact_statuses() == {XactStatus.COMMITTED})
    assert (await stage.ledger.records([stage.txid]))[stage.txid] is RecordedDecision(str(Decision.COMMIT))


async def settled(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)
