"""Last-agent commit over scripted participants: order of effects, and what is told to whom. Each test's
docstring says what is broken if it fails.

With real databases: ``tests/undoubt/test_last_agent.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.coordinator.stage import NAMES, Stage
from undoubt.coordinator.errors import LedgerUnavailable, OutcomeUnknown, TransactionAborted
from undoubt.coordinator.ledger.contract import RecordedDecision
from undoubt.coordinator.protocols.steps import STEPS, LastAgentStep, TwoPhaseStep
from undoubt.participants.contract import Decision, Vote, Work, XactStatus
from undoubt.participants.errors import BranchFailed, ParticipantUnavailable, UsageError
from undoubt.participants.ids import Protocol
from undoubt.participants.last_agent import AgentRow, AgentUnanswered
from undoubt.participants.scripted import Script
from undoubt.recovery.service import RecoveryService

AGENT = "gamma"
LOST = ParticipantUnavailable(AGENT, "the connection was lost")


@pytest.fixture
async def stages() -> AsyncIterator[Any]:
    made: list[Stage] = []

    async def make(count: int = 3, *, scripts: tuple[Script, ...] = (), **settings: Any) -> Stage:
        given = scripts or tuple(Script() for _ in range(count))
        stage = Stage(dict(zip(NAMES[-len(given) :], given, strict=True)), drain_s=0.2, **settings)
        made.append(stage)
        await stage.coordinator.start()
        return stage

    yield make
    for stage in made:
        stage.ledger.down = None
        for participant in stage.participants.values():
            participant.agent.down = None
        for gate in stage.gates.values():
            gate.set()
        await stage.coordinator.close()


async def transfer(stage: Stage, *names: str, timeout: float | None = None, **more: Any) -> Any:
    transaction = stage.coordinator.transaction(protocol="last", agent=AGENT, timeout=timeout, **more)
    async with transaction as tx:
        stage.txid = tx.id
        for name in names or stage.participants:
            await tx.branch(name)
        return await tx.commit()


def last(events: list[str], what: str) -> int:
    return max(at for at, event in enumerate(events) if event.startswith(what))


def rows(stage: Stage) -> list[Decision]:
    return [row.decision for row in stage.participants[AGENT].agent.rows.values()]


async def test_the_agent_commits_after_all_votes_and_before_all_others(stages: Any) -> None:
    """Broken if the agent commits before a branch is prepared, a branch commits before the agent, or the
    agent is prepared."""
    stage = await stages()
    result = await transfer(stage)
    assert result.pending == ()
    assert stage.xact_statuses() == {XactStatus.COMMITTED}
    events = stage.events
    assert events.index("check_as_agent gamma") < events.index("prepare alpha")
    assert last(events, "prepare ") < events.index("commit_as_agent gamma") < events.index("commit alpha")
    assert "prepare gamma" not in events
    await stage.coordinator.close()
    assert await stage.ledger.records([stage.txid]) == {stage.txid: RecordedDecision.COMMIT}


async def test_the_ledger_is_asked_nothing_before_the_commit(stages: Any) -> None:
    """Broken if a ledger that is down delays the commit, or the caller."""
    stage = await stages()
    async with stage.coordinator.transaction(protocol="last", agent=AGENT) as tx:
        for name in NAMES:
            await tx.branch(name)
        stage.ledger.down = LedgerUnavailable("no leader")
        await tx.commit()
        assert stage.xact_statuses() == {XactStatus.COMMITTED}
        assert await stage.coordinator.outcome(tx.id) is RecordedDecision.COMMIT


async def test_every_named_step_is_passed(stages: Any) -> None:
    """Broken if a step that the crash matrix is generated from is never reached."""
    stage = await stages()
    await transfer(stage)
    await stage.coordinator.close()
    assert {str(step) for step in STEPS[Protocol.LAST]} <= {event.split(" ")[0] for event in stage.events}


async def test_the_row_is_deleted_only_after_the_ledger_has_the_decision(stages: Any) -> None:
    """Broken if a tombstone could be written in place of a row that the ledger does not know: recovery would
    abort what has committed."""
    stage = await stages()
    held = stage.hold(TwoPhaseStep.BEFORE_DECIDE)
    committing = asyncio.create_task(transfer(stage))
    await held.wait()
    await committing
    assert rows(stage) == [Decision.COMMIT]
    assert LastAgentStep.BEFORE_FORGET not in stage.events
    stage.gates[TwoPhaseStep.BEFORE_DECIDE].set()
    await stage.coordinator.close()
    assert stage.events.index(TwoPhaseStep.AFTER_DECIDE) < stage.events.index(LastAgentStep.BEFORE_FORGET)
    assert rows(stage) == []


async def test_a_row_that_the_ledger_does_not_have_stays(stages: Any) -> None:
    """Broken if the row is deleted although the ledger did not answer."""
    stage = await stages()
    async with stage.coordinator.transaction(protocol="last", agent=AGENT) as tx:
        for name in NAMES:
            await tx.branch(name)
        stage.ledger.down = LedgerUnavailable("no leader")
        await tx.commit()
    await stage.coordinator.close()
    assert rows(stage) == [Decision.COMMIT]


@pytest.mark.parametrize("vote", [Vote.ABORT, LOST])
async def test_without_all_votes_nothing_is_sent_to_the_agent(stages: Any, vote: Any) -> None:
    """Broken if the agent commits although a branch is not prepared."""
    stage = await stages(scripts=(Script(), Script(prepare=vote), Script()))
    with pytest.raises(TransactionAborted):
        await transfer(stage)
    assert "commit_as_agent gamma" not in stage.events
    assert stage.xact_statuses() <= {XactStatus.ABORTED, XactStatus.IN_PROGRESS}
    assert stage.in_doubt() == 0
    assert rows(stage) == []


async def test_a_branch_that_cannot_be_the_agent_is_found_before_any_prepare(stages: Any) -> None:
    """Broken if branches are prepared for an agent that cannot commit."""
    refusal = BranchFailed(AGENT, "its transaction is read only")
    stage = await stages(scripts=(Script(), Script(), Script(agent_check=refusal)))
    with pytest.raises(TransactionAborted, match="read only"):
        await transfer(stage)
    assert not [event for event in stage.events if event.startswith("prepare ")]
    assert stage.xact_statuses() == {XactStatus.ABORTED}


async def test_a_refused_commit_aborts_all(stages: Any) -> None:
    """Broken if the others stay in doubt, or commit, though the agent has certainly not committed."""
    stage = await stages(scripts=(Script(), Script(), Script(agent=BranchFailed(AGENT, "deferred"))))
    with pytest.raises(TransactionAborted, match="deferred"):
        await transfer(stage)
    assert stage.xact_statuses() == {XactStatus.ABORTED}
    assert stage.in_doubt() == 0


async def test_an_unanswered_commit_that_has_not_arrived_is_aborted_for_ever(stages: Any) -> None:
    """Broken if a COMMIT that arrives after the rollback of the others still commits."""
    stage = await stages(scripts=(Script(), Script(), Script(agent=AgentUnanswered(LOST))))
    with pytest.raises(TransactionAborted, match="the connection was lost"):
        await transfer(stage)
    assert rows(stage) == [Decision.ABORT]
    stage.participants[AGENT].arrive()
    assert stage.xact_statuses() == {XactStatus.ABORTED}
    assert await stage.ledger.records([stage.txid]) == {stage.txid: RecordedDecision.ABORT}


async def test_an_unanswered_commit_that_has_arrived_commits_all(stages: Any) -> None:
    """Broken if silence is taken for a rollback."""
    stage = await stages(scripts=(Script(), Script(), Script(agent=AgentUnanswered(LOST))))
    agent = stage.participants[AGENT]
    original = agent.agent.conclude

    async def conclude(entry: Any) -> AgentRow | None:
        agent.arrive()
        row: AgentRow | None = await original(entry)
        return row

    agent.agent.conclude = conclude
    result = await transfer(stage)
    assert result.pending == ()
    assert stage.xact_statuses() == {XactStatus.COMMITTED}
    await stage.coordinator.close()
    assert await stage.ledger.records([stage.txid]) == {stage.txid: RecordedDecision.COMMIT}
    assert rows(stage) == [], "the ledger has it"


async def test_as_long_as_the_agent_is_silent_nothing_is_told(stages: Any) -> None:
    """Broken if a caller is told of an outcome that nobody knows, or a branch is ended without one."""
    stage = await stages(scripts=(Script(), Script(), Script(agent=AgentUnanswered(LOST))))
    agent = stage.participants[AGENT]
    held = stage.hold("commit_as_agent gamma")
    committing = asyncio.create_task(transfer(stage, timeout=0.2))
    await held.wait()
    agent.agent.down = LOST
    stage.gates["commit_as_agent gamma"].set()
    with pytest.raises(OutcomeUnknown):
        await committing
    assert stage.in_doubt() == 2
    agent.arrive()
    agent.agent.down = None
    while stage.in_doubt():
        await asyncio.sleep(0.01)
    assert stage.xact_statuses() == {XactStatus.COMMITTED}


async def test_in_another_history_a_missing_row_proves_nothing(stages: Any) -> None:
    """Broken if a transaction is aborted because a failover has lost its row."""
    stage = await stages(scripts=(Script(), Script(), Script(agent=AgentUnanswered(LOST))))
    held = stage.hold("commit_as_agent gamma")
    committing = asyncio.create_task(transfer(stage))
    await held.wait()
    stage.participants[AGENT].agent.history = "another"
    stage.gates["commit_as_agent gamma"].set()
    with pytest.raises(OutcomeUnknown, match="another history"):
        await committing
    assert stage.in_doubt() == 2
    assert rows(stage) == []


async def test_the_answer_of_the_ledger_counts(stages: Any) -> None:
    """Broken if a late tombstone, written after the row was copied and deleted, aborts what has committed."""
    stage = await stages(scripts=(Script(), Script(), Script(agent=AgentUnanswered(LOST))))
    decide = stage.ledger.decide

    async def decided(txid: Any, _: Any, branches: Any, **more: Any) -> Decision:
        recorded: Decision = await decide(txid, Decision.COMMIT, branches, **more)
        return recorded

    stage.ledger.decide = decided
    await transfer(stage)
    assert rows(stage) == [Decision.ABORT]
    others = [stage.participants[name] for name in NAMES[:2]]
    assert {each.xact_statuses[branch.xid] for each in others for branch in each.branches} == {
        XactStatus.COMMITTED
    }


async def test_one_writer_needs_no_row(stages: Any) -> None:
    """Broken if a transaction in one database pays for a decision."""
    stage = await stages(scripts=(Script(work=Work.READ_ONLY), Script(work=Work.READ_ONLY), Script()))
    await transfer(stage)
    assert "one_phase gamma" in stage.events
    assert rows(stage) == []
    assert stage.xact_statuses() == {XactStatus.COMMITTED}


async def test_an_agent_that_only_read_writes_the_row(stages: Any) -> None:
    """Broken if there is no decision for the prepared branches, or the agent is ended twice."""
    stage = await stages(scripts=(Script(), Script(), Script(work=Work.READ_ONLY)))
    held = stage.hold(LastAgentStep.AFTER_AGENT)
    committing = asyncio.create_task(transfer(stage))
    await held.wait()
    assert rows(stage) == [Decision.COMMIT]
    stage.gates[LastAgentStep.AFTER_AGENT].set()
    await committing
    assert stage.xact_statuses() == {XactStatus.COMMITTED}


async def test_readers_end_after_the_agent(stages: Any) -> None:
    """Broken if a reader's locks are released before the transaction has committed."""
    stage = await stages(scripts=(Script(work=Work.READ_ONLY), Script(), Script()))
    await transfer(stage)
    assert stage.events.index("commit_as_agent gamma") < stage.events.index("end_read_only alpha")


async def test_the_agent_takes_part_though_it_was_not_used(stages: Any) -> None:
    """Broken if a transaction that does not touch its agent cannot commit."""
    stage = await stages()
    await transfer(stage, "alpha", "beta")
    assert stage.events.index("begin gamma") < stage.events.index("prepare alpha")
    assert stage.xact_statuses() == {XactStatus.COMMITTED}


async def test_an_agent_that_cannot_be_begun_aborts(stages: Any) -> None:
    stage = await stages(scripts=(Script(), Script(), Script(begin=LOST)))
    with pytest.raises(TransactionAborted, match="the connection was lost"):
        await transfer(stage, "alpha", "beta")
    assert stage.xact_statuses() == {XactStatus.ABORTED}


async def test_an_agent_is_named_with_this_protocol_alone(stages: Any) -> None:
    stage = await stages()
    begin = stage.coordinator.transaction
    for wrong in ({"agent": AGENT}, {"protocol": "last", "agent": AGENT, "key": "k"}):
        with pytest.raises(UsageError):
            begin(**wrong)
    with pytest.raises(UsageError, match="nobody"):
        begin(protocol="last", agent="nobody")


async def agent_of(stage: Stage) -> str:
    async with stage.coordinator.transaction(protocol="last") as tx:
        assert tx.lease.agent is not None
        return str(tx.lease.agent.participant)


async def test_the_only_participant_that_cannot_prepare_is_the_agent(stages: Any) -> None:
    """Broken if an application has to know which of its databases cannot prepare, or if one of two is
    chosen."""
    stage = await stages(scripts=(Script(), Script(prepares=False), Script()))
    assert await agent_of(stage) == "beta"
    chosen = await stages(scripts=(Script(), Script(prepares=False), Script()), agent="alpha")
    assert await agent_of(chosen) == "alpha"
    for scripts in ((Script(), Script()), (Script(prepares=False), Script(prepares=False))):
        stage = await stages(scripts=scripts)
        with pytest.raises(UsageError, match="needs agent="):
            await agent_of(stage)


@pytest.mark.parametrize("work", [Work.WRITES, Work.READ_ONLY])
async def test_a_second_branch_that_cannot_prepare_is_refused_before_any_prepare(
    stages: Any, work: Work
) -> None:
    """Broken if branches are prepared although another one cannot be. One that has only read, and need not be
    prepared, is no hindrance."""
    stage = await stages(scripts=(Script(prepares=False, work=work), Script(), Script(prepares=False)))
    if work is Work.READ_ONLY:
        await transfer(stage)
        assert stage.xact_statuses() == {XactStatus.COMMITTED}
        return
    with pytest.raises(TransactionAborted, match="'alpha' cannot prepare"):
        await transfer(stage)
    assert not [event for event in stage.events if event.startswith("prepare ")]
    assert stage.xact_statuses() == {XactStatus.ABORTED}


async def test_an_agent_alone_is_recorded_if_every_commit_is(stages: Any) -> None:
    """Broken if a process that asks the ledger for the outcome never gets it, because no branch was
    prepared; or if recovery takes the agent's own branch for one that was lost."""
    stage = await stages()
    held = stage.hold(TwoPhaseStep.BEFORE_FINISH)
    await transfer(stage, AGENT, prepares_all=True)
    await held.wait()
    assert await stage.ledger.records([stage.txid]) == {stage.txid: RecordedDecision.COMMIT}
    await RecoveryService(stage.ledger, stage.registry, hazard_grace_s=0.01).run_once()
    assert await stage.ledger.heuristics() == []
    assert await stage.ledger.unfinished() == []
    stage.gates[TwoPhaseStep.BEFORE_FINISH].set()


async def test_a_branch_alone_is_prepared_if_every_branch_is(stages: Any) -> None:
    """Broken if a transaction that has one branch, which is not the agent's, cannot commit."""
    stage = await stages()
    await transfer(stage, "alpha", prepares_all=True)
    assert "commit_as_agent gamma" in stage.events
    assert stage.xact_statuses() == {XactStatus.COMMITTED}


async def test_sessions_of_an_agent_are_its_own(stages: Any) -> None:
    """Broken if recovery finds no agent by the transaction's id, or the agent of another one."""
    stage = await stages()
    await transfer(stage)
    other = stage.coordinator.transaction(protocol="last", agent="alpha")
    plain = stage.coordinator.transaction()
    async with other, plain:
        keys = await stage.ledger.agent_keys([stage.txid, other.id, plain.id])
    assert [key and key.binding.participant for key in keys] == [AGENT, "alpha", None]


async def bound_to(stage: Stage) -> str:
    """The history of the session under which a transaction begins now."""
    async with stage.coordinator.transaction(protocol="last", agent=AGENT) as tx:
        [key] = await stage.ledger.agent_keys([tx.id])
    assert key is not None
    return key.binding.history


async def test_after_a_failover_transactions_begin_in_the_new_history(stages: Any) -> None:
    """Broken if no transaction of that agent can commit any more."""
    stage = await stages(session_ttl_s=1.0)
    await transfer(stage)
    stage.participants[AGENT].agent.history = "another"
    with pytest.raises(TransactionAborted, match="another history"):
        await transfer(stage)
    while await bound_to(stage) == "the first history":
        await asyncio.sleep(0.05)
    await transfer(stage)
    assert stage.xact_statuses() == {XactStatus.COMMITTED, XactStatus.ABORTED}


@pytest.mark.parametrize("arrives", [False, True])
async def test_recovery_ends_what_a_dead_coordinator_left(stages: Any, arrives: bool) -> None:
    """Broken if an undecided transaction is presumed aborted, or stays in doubt, once its coordinator has
    died."""
    stage = await stages(scripts=(Script(), Script(), Script(agent=AgentUnanswered(LOST))))
    agent = stage.participants[AGENT]
    held = stage.hold("commit_as_agent gamma")
    committing = asyncio.create_task(transfer(stage, timeout=0.2))
    await held.wait()
    agent.agent.down = LOST
    stage.gates["commit_as_agent gamma"].set()
    with pytest.raises(OutcomeUnknown):
        await committing
    await stage.coordinator.close()
    agent.agent.down = None
    if arrives:
        agent.arrive()
    assert stage.in_doubt() == 2
    await stage.ledger.elapse(3600.0)
    await RecoveryService(stage.ledger, stage.registry).run_once()
    assert stage.in_doubt() == 0
    agent.arrive()
    assert stage.xact_statuses() == {XactStatus.COMMITTED if arrives else XactStatus.ABORTED}
