"""Two-phase commit over scripted participants: outcomes, order of effects, and what is told to whom."""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.coordinator.stage import NAMES, Stage
from undoubt.coordinator.errors import (
    HeuristicOutcome,
    LedgerUnavailable,
    OutcomeUnknown,
    TransactionAborted,
    TransactionEnded,
    WrongProcess,
)
from undoubt.coordinator.ledger.contract import BranchRecord, RecordedDecision, Verdict
from undoubt.coordinator.protocols.steps import TwoPhaseStep
from undoubt.participants.contract import Decision, Settled, Vote, Work, XactStatus
from undoubt.participants.errors import BranchFailed, ParticipantUnavailable, UnknownParticipant, UsageError
from undoubt.participants.scripted import Script


@pytest.fixture
async def stages() -> AsyncIterator[Any]:
    made: list[Stage] = []

    async def make(*scripts: Script, **settings: Any) -> Stage:
        settings.setdefault("drain_s", 0.2)
        stage = Stage(dict(zip(NAMES, scripts, strict=False)), **settings)
        made.append(stage)
        await stage.coordinator.start()
        return stage

    yield make
    for stage in made:
        for gate in stage.gates.values():
            gate.set()
        await stage.coordinator.close()


async def test_commits_everywhere_after_the_decision(stages: Any) -> None:
    """Broken if any branch is told to commit before the decision is recorded, or before all have prepared."""
    stage = await stages(Script(), Script())
    result = await stage.transfer()
    assert result.pending == ()
    assert stage.xact_statuses() == {XactStatus.COMMITTED}
    events = stage.events
    decided = events.index(TwoPhaseStep.AFTER_DECIDE)
    assert max(events.index(f"prepare {name}") for name in ("alpha", "beta")) < decided
    assert min(events.index(f"commit {name}") for name in ("alpha", "beta")) > decided
    assert await stage.coordinator.outcome(stage.txid) is RecordedDecision.COMMIT


@pytest.mark.parametrize("position", [0, 1, 2])
async def test_one_no_aborts_all(stages: Any, position: int) -> None:
    """Broken if a vote of any one participant is ignored, or if an abort leaves a decision record behind."""
    scripts = [Script(), Script(), Script()]
    scripts[position].prepare = Vote.ABORT
    stage = await stages(*scripts)
    with pytest.raises(TransactionAborted) as raised:
        await stage.transfer()
    assert isinstance(raised.value.cause, BranchFailed)
    assert raised.value.votes[f"{position + 1}:{NAMES[position]}"] is Vote.ABORT
    assert stage.xact_statuses() == {XactStatus.ABORTED}
    assert await stage.coordinator.outcome(stage.txid) is RecordedDecision.NOT_RECORDED
    # What an observer is told: who has refused, and that all were rolled back.
    assert [event for event in stage.events if "voted" in event] == [f"voted_abort {NAMES[position]}"]
    for name in NAMES:
        assert stage.events.index(f"before_abort {name}") < stage.events.index(f"after_abort {name}")


async def test_one_writer_commits_in_one_phase(stages: Any) -> None:
    """Broken if a single branch is prepared or recorded (cost), or not committed."""
    stage = await stages(Script())
    await stage.transfer()
    assert stage.participants["alpha"].trace() == ["begin", "one_phase"]
    assert await stage.coordinator.outcome(stage.txid) is RecordedDecision.NOT_RECORDED


async def test_readers_stay_open_until_the_writer_has_committed(stages: Any) -> None:
    """Broken if a read-only branch gives up its locks before the writers are committed."""
    stage = await stages(Script(work=Work.READ_ONLY), Script(), Script(work=Work.READ_ONLY))
    await stage.transfer()
    events = stage.events
    assert "prepare beta" not in events
    assert events.index("one_phase beta") < min(
        events.index("end_read_only alpha"), events.index("end_read_only gamma")
    )


async def test_readers_stay_open_while_a_writer_is_down(stages: Any) -> None:
    """Broken if readers end while a committed branch is still pending somewhere."""
    down = ParticipantUnavailable("beta", "down")
    stage = await stages(
        Script(), Script(commit=[down, down, None]), Script(work=Work.READ_ONLY), timeout_s=5.0, drain_s=60.0
    )
    result = await stage.transfer()
    assert [gid.participant for gid in result.pending] == ["beta"]
    assert "end_read_only gamma" not in stage.events
    await stage.coordinator.close()
    assert stage.xact_statuses() == {XactStatus.COMMITTED}
    assert stage.events[-1].startswith("after_finish")


async def test_commit_returns_with_pending_when_a_participant_is_down(stages: Any) -> None:
    """Broken if a committed transaction is reported as failed because one participant cannot be told."""
    stage = await stages(Script(), Script(commit=[ParticipantUnavailable("beta", "down")]))
    result = await stage.transfer()
    assert [gid.participant for gid in result.pending] == ["beta"]
    assert stage.participants["alpha"].trace()[-1] == "commit"
    await stage.coordinator.close()
    unfinished = await stage.ledger.unfinished()
    assert [record.txid for record in unfinished] == [stage.txid], "finished without having been applied"


async def test_unconfirmed_rollback_after_prepare_is_recorded(stages: Any) -> None:
    """Broken if a branch whose PREPARE was never answered may stay ACTIVE while this session lives."""
    lost = ParticipantUnavailable("beta", "connection lost")
    stage = await stages(Script(), Script(prepare=lost, rollback=[Settled.ABSENT]))
    with pytest.raises(TransactionAborted):
        await stage.transfer()
    gid = stage.participants["beta"].branches[-1].gid
    assert await stage.ledger.outcomes([gid]) == {gid: Verdict.ABORTED}
    assert await stage.coordinator.outcome(stage.txid) is RecordedDecision.ABORT


async def test_the_ledger_refusing_means_rolled_back(stages: Any) -> None:
    """Broken if a coordinator whose session expired commits on the strength of its votes."""
    stage = await stages(Script(), Script())
    arrived = stage.hold(TwoPhaseStep.BEFORE_DECIDE)
    task = asyncio.create_task(stage.transfer())
    await arrived.wait()
    for info in await stage.ledger.sessions():
        await stage.ledger.elapse(info.ttl_s * 2)
    stage.gates[TwoPhaseStep.BEFORE_DECIDE].set()
    with pytest.raises(TransactionAborted):
        await task
    assert stage.xact_statuses() == {XactStatus.ABORTED}


async def test_a_recorded_abort_wins_over_the_votes(stages: Any) -> None:
    """Broken if an operator's recorded ABORT is overtaken by a coordinator that is late with its COMMIT."""
    stage = await stages(Script(), Script())
    arrived = stage.hold(TwoPhaseStep.BEFORE_DECIDE)
    task = asyncio.create_task(stage.transfer())
    await arrived.wait()
    assert await stage.ledger.decide(stage.txid, Decision.ABORT, [BranchRecord(1, "alpha")]) is Decision.ABORT
    stage.gates[TwoPhaseStep.BEFORE_DECIDE].set()
    with pytest.raises((TransactionAborted, OutcomeUnknown)):
        await task
    assert XactStatus.COMMITTED not in stage.xact_statuses()


EVENTS_AFTER_PREPARE = [
    "prepare alpha",
    "after_prepare beta",
    TwoPhaseStep.BEFORE_DECIDE,
    TwoPhaseStep.AFTER_DECIDE,
    "commit alpha",
    "after_second_phase beta",
]


@pytest.mark.parametrize("event", EVENTS_AFTER_PREPARE)
async def test_cancelling_the_caller_after_prepare_does_not_stop_the_commit(stages: Any, event: str) -> None:
    """Broken if an impatient caller leaves prepared branches behind, or splits the outcome."""
    stage = await stages(Script(), Script(), drain_s=5.0)
    arrived = stage.hold(str(event))
    task = asyncio.create_task(stage.transfer())
    await arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    stage.gates[str(event)].set()
    await stage.coordinator.close()
    assert stage.xact_statuses() == {XactStatus.COMMITTED}
    assert stage.in_doubt() == 0


@pytest.mark.parametrize("event", ["begin alpha", "begin beta", "poll alpha", "poll beta"])
async def test_cancelling_the_caller_before_prepare(stages: Any, event: str) -> None:
    """Broken if a cancelled body commits, or leaves a branch open; from commit on it goes to its end."""
    stage = await stages(Script(), Script(), drain_s=5.0)
    arrived = stage.hold(event)
    task = asyncio.create_task(stage.transfer())
    await arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        stage.gates[event].set()
        await task
    await stage.coordinator.close()
    expected = {XactStatus.COMMITTED} if event.startswith("poll") else {XactStatus.ABORTED}
    assert stage.xact_statuses() <= expected
    assert stage.in_doubt() == 0


async def test_closing_the_loop_drains_a_commit() -> None:
    """Broken if asyncio.run's cancellation of all tasks on its way out leaves branches in doubt."""
    stages_made: list[Stage] = []

    async def program() -> None:
        stage = Stage({"alpha": Script(), "beta": Script()})
        stages_made.append(stage)
        await stage.coordinator.start()
        arrived = stage.hold(TwoPhaseStep.BEFORE_DECIDE)
        task = asyncio.create_task(stage.transfer())
        await arrived.wait()
        task.cancel()
        asyncio.get_running_loop().call_later(0.05, stage.gates[TwoPhaseStep.BEFORE_DECIDE].set)

    await asyncio.to_thread(asyncio.run, program())
    assert stages_made[0].xact_statuses() == {XactStatus.COMMITTED}
    # The loop is gone while something was to be delivered: what asyncio logs of that belongs to this test.
    stages_made.clear()
    gc.collect()


async def test_a_prepare_that_hangs_is_aborted_at_the_deadline(stages: Any) -> None:
    """Broken if one participant that never answers holds the others' locks for ever."""
    stage = await stages(Script(), Script())
    stage.hold("prepare beta")
    with pytest.raises(TransactionAborted) as raised:
        await stage.transfer(timeout=0.1)
    assert isinstance(raised.value.cause, TimeoutError)
    assert stage.xact_statuses() == {XactStatus.ABORTED}


async def test_a_body_that_hangs_is_interrupted_at_the_deadline(stages: Any) -> None:
    """Broken if a transaction can outlive its timeout by never coming to commit."""
    stage = await stages(Script())
    with pytest.raises(TransactionAborted) as raised:
        async with stage.coordinator.transaction(timeout=0.2) as tx:
            await tx.branch("alpha")
            await asyncio.Event().wait()
    assert isinstance(raised.value.cause, TimeoutError)
    assert stage.xact_statuses() == {XactStatus.ABORTED}
    current = asyncio.current_task()
    assert current is not None and current.cancelling() == 0


async def test_a_branch_that_hangs_while_it_opens_tells_why(stages: Any) -> None:
    """Broken if a transaction without ``async with`` that times out while a branch is being opened raises
    ``CancelledError``: nobody has cancelled the caller, and its whole task would end."""
    stage = await stages(Script())
    arrived = stage.hold("begin alpha")
    tx = await stage.coordinator.transaction(timeout=30).start()
    opening = asyncio.create_task(tx.branch("alpha"))
    await arrived.wait()
    assert stage.coordinator.cancel(tx.id, TimeoutError("too late"))
    with pytest.raises(TransactionAborted, match="too late"):
        await opening


async def test_one_phase_does_not_commit_after_the_deadline(stages: Any) -> None:
    """Broken if the single branch of a transaction commits later than its caller was promised."""
    stage = await stages(Script())
    with pytest.raises(TransactionAborted) as raised:
        async with stage.coordinator.transaction(timeout=0.3) as tx:
            await tx.branch("alpha")
            time.sleep(0.35)  # an application that blocks the loop: nothing can interrupt it in time
            await tx.commit()
    assert isinstance(raised.value.cause, TimeoutError)
    assert stage.xact_statuses() == {XactStatus.ABORTED}


async def test_a_deadlock_victim_learns_why(stages: Any) -> None:
    """Broken if a cancelled victim sees a bare CancelledError instead of the deadlock."""
    stage = await stages(Script())
    cause = UsageError("deadlock, says the test")
    with pytest.raises(TransactionAborted) as raised:
        async with stage.coordinator.transaction() as tx:
            await tx.branch("alpha")
            asyncio.get_running_loop().call_soon(stage.coordinator.cancel, tx.id, cause)
            await asyncio.Event().wait()
    assert raised.value.cause is cause


async def test_an_unanswered_decide_is_repeated_and_told_as_unknown(stages: Any) -> None:
    """Broken if silence of the ledger is taken for an abort: branches rolled back under a recorded COMMIT."""
    stage = await stages(Script(), Script(), drain_s=5.0)
    real = stage.ledger.decide
    answers = itertools.count()

    async def decide(*args: Any, **kwargs: Any) -> Decision:
        decision: Decision = await real(*args, **kwargs)
        if next(answers) < 6:
            raise LedgerUnavailable("the answer is lost")
        return decision

    stage.ledger.decide = decide
    with pytest.raises(OutcomeUnknown):
        await stage.transfer(timeout=0.1)
    assert stage.in_doubt() == 2
    await stage.coordinator.close()
    assert stage.xact_statuses() == {XactStatus.COMMITTED}


HEURISTIC_COMMITS = [
    ([Settled.HEURISTIC_ROLLBACK, None], Settled.HEURISTIC_MIXED),
    ([Settled.HEURISTIC_ROLLBACK, Settled.HEURISTIC_ROLLBACK], Settled.HEURISTIC_ROLLBACK),
    ([Settled.HEURISTIC_HAZARD, None], Settled.HEURISTIC_HAZARD),
    ([Settled.HEURISTIC_MIXED, None], Settled.HEURISTIC_MIXED),
]


@pytest.mark.usefixtures("few_looks")
@pytest.mark.parametrize(("answers", "kind"), HEURISTIC_COMMITS)
async def test_heuristics_are_recorded_and_told(
    stages: Any, answers: list[Settled | None], kind: Settled
) -> None:
    """Broken if a database that did other than decided is passed over in silence."""
    stage = await stages(*[Script(commit=[answer]) for answer in answers])
    with pytest.raises(HeuristicOutcome) as raised:
        await stage.transfer()
    assert raised.value.kind is kind
    recorded = {heuristic.gid.participant for heuristic in await stage.ledger.heuristics()}
    assert recorded == {name for name, answer in zip(NAMES, answers, strict=False) if answer is not None}
    for name in recorded:
        assert stage.participants[name].trace()[-1] == "forget"


async def test_a_dba_who_rolled_back_by_hand_is_noticed(stages: Any) -> None:
    """Broken if "does not exist" at COMMIT PREPARED is taken for done."""
    stage = await stages(Script(), Script())
    arrived = stage.hold(TwoPhaseStep.AFTER_DECIDE)
    task = asyncio.create_task(stage.transfer())
    await arrived.wait()
    victim = stage.participants["beta"]
    victim.finish_by_hand(next(iter(victim.prepared)), Decision.ABORT)
    stage.gates[TwoPhaseStep.AFTER_DECIDE].set()
    with pytest.raises(HeuristicOutcome) as raised:
        await task
    assert raised.value.kind is Settled.HEURISTIC_MIXED


async def test_one_phase_without_an_answer_is_unknown(stages: Any) -> None:
    """Broken if a lost COMMIT is reported as either outcome without proof."""
    stage = await stages(Script(one_phase=Settled.HEURISTIC_HAZARD))
    with pytest.raises(OutcomeUnknown):
        await stage.transfer()


async def test_misuse_is_refused_clearly(stages: Any) -> None:
    """Broken if a second commit, a late branch or an unknown name has an effect."""
    stage = await stages(Script())
    async with stage.coordinator.transaction() as tx:
        await tx.branch("alpha")
        with pytest.raises(UnknownParticipant, match="nobody"):
            await tx.branch("nobody")
        await tx.commit()
        with pytest.raises(TransactionEnded):
            await tx.commit()
        with pytest.raises(TransactionEnded):
            await tx.branch("alpha")
    with pytest.raises(UsageError, match="protocol must be one of"):
        stage.coordinator.transaction(protocol="4pc")


async def test_a_branch_that_cannot_open_dooms_the_transaction(stages: Any) -> None:
    """Broken if an application that swallows the error commits a part of what it meant."""
    stage = await stages(Script(), Script(begin=ParticipantUnavailable("beta", "down")))
    with pytest.raises(TransactionAborted):
        async with stage.coordinator.transaction() as tx:
            await tx.branch("alpha")
            try:
                await tx.branch("beta")
            except ParticipantUnavailable:
                stage.events.append("swallowed")
    assert "swallowed" in stage.events
    assert stage.xact_statuses() == {XactStatus.ABORTED}


async def test_a_fork_is_refused(stages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if a forked worker may decide under its parent's session."""
    stage = await stages(Script())
    with monkeypatch.context() as patched:
        patched.setattr("undoubt.coordinator.coordinator.os.getpid", lambda: -1)
        with pytest.raises(WrongProcess):
            stage.coordinator.transaction()


async def test_sessions_rotate_and_floors_rise(stages: Any) -> None:
    """Broken if one session grows for ever, or a floor passes an undecided transaction."""
    stage = await stages(Script(), session_transactions_max=3)
    async with stage.coordinator.transaction() as held:
        for _ in range(6):
            await stage.transfer()
            await asyncio.sleep(0)
        numbers = {info.id for info in await stage.ledger.sessions()}
        assert len(numbers) >= 2
        await held.branch("alpha")
        gid = stage.participants["alpha"].branches[-1].gid
        assert gid.txid == held.id
        assert await stage.ledger.outcomes([gid]) == {gid: Verdict.ACTIVE}


async def test_run_retries_what_may_be_retried(stages: Any) -> None:
    """Broken if a serialization failure reaches the user, or an unknown outcome is run twice."""
    stage = await stages(Script())
    attempts: list[int] = []

    class SerializationFailure(Exception):
        sqlstate = "40001"

    async def work(tx: Any, goal: int) -> str:
        await tx.branch("alpha")
        attempts.append(1)
        if len(attempts) < goal:
            raise SerializationFailure
        return "done"

    assert await stage.coordinator.run(work, 3) == "done"
    assert len(attempts) == 3
    with pytest.raises(UsageError, match="needs a cluster"):
        await stage.coordinator.run(work, 1, protocol="paxos")

    attempts.clear()
    stage.participants["alpha"].script.one_phase = Settled.HEURISTIC_HAZARD
    with pytest.raises(OutcomeUnknown):
        await stage.coordinator.run(work, 1)
    assert len(attempts) == 1


async def test_run_does_not_repeat_what_is_still_voting(stages: Any) -> None:
    """Broken if a retryable error that leaves the function beside a commit of its own has the function run
    again: the commit goes on, and what it does is done twice."""
    stage = await stages(Script(), Script())
    preparing, gate = asyncio.Event(), asyncio.Event()
    attempts: list[asyncio.Task[object]] = []

    async def before(call: str, _: object) -> None:
        if call == "prepare":
            preparing.set()
            await gate.wait()

    class SerializationFailure(Exception):
        sqlstate = "40001"

    async def work(tx: Any) -> None:
        await tx.branch("alpha")
        await tx.branch("beta")
        attempts.append(asyncio.create_task(tx.commit()))
        await preparing.wait()
        raise SerializationFailure

    stage.participants["alpha"].before = before
    with pytest.raises(SerializationFailure) as raised:
        await stage.coordinator.run(work)
    assert "goes on" in raised.value.__notes__[0]
    gate.set()
    await asyncio.gather(*attempts)
    assert len(attempts) == 1
    assert stage.xact_statuses() == {XactStatus.COMMITTED}


async def test_a_participant_in_use_cannot_be_removed(stages: Any) -> None:
    """Broken if a database can be taken away while branches of it are unresolved."""
    stage = await stages(Script(), Script(commit=[ParticipantUnavailable("beta", "down")]))
    await stage.transfer()
    with pytest.raises(UsageError, match="unresolved"):
        await stage.coordinator.remove_participant("beta")
    assert "beta" in stage.registry
