"""The coordinator around its transactions: sessions, participants that leave, closing; and what it tells
while something is still going on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from tests.coordinator.stage import Stage
from tests.recovery.world import until
from undoubt.coordinator import transaction
from undoubt.coordinator.coordinator import Coordinator, ParticipantInUse
from undoubt.coordinator.errors import HeuristicOutcome, LedgerUnavailable, OutcomeUnknown, TransactionAborted
from undoubt.coordinator.ledger.contract import RecordedDecision, Session
from undoubt.coordinator.ledger.session_mark import is_marked
from undoubt.coordinator.protocols.steps import ThreePhaseStep
from undoubt.participants.contract import PreparedBranch, Settled, Vote, XactStatus
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import TxId
from undoubt.participants.scripted import Script
from undoubt.recovery.service import RecoveryService

DOWN = LedgerUnavailable("the ledger is down, as told")


async def staged(*names: str, **settings: Any) -> Stage:
    stage = Stage({name: Script() for name in names}, **settings)
    await stage.coordinator.start()
    return stage


async def without_session(monkeypatch: pytest.MonkeyPatch) -> Stage:
    """The session has expired, and no other can be opened."""
    stage = await staged("alpha", session_ttl_s=1)

    async def open_session(name: str, ttl_s: float) -> Session:
        raise DOWN

    monkeypatch.setattr(stage.ledger, "open_session", open_session)
    await stage.ledger.elapse(2)
    with pytest.raises(TransactionAborted):
        async with stage.coordinator.transaction():
            await asyncio.sleep(60)  # until the session is known to be gone
    return stage


async def test_no_session_within_the_timeout_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if beginning a transaction hangs for as long as the ledger is down, whatever its timeout."""
    with monkeypatch.context() as patched:
        stage = await without_session(patched)
        with pytest.raises(LedgerUnavailable, match=r"0\.1 s.*down, as told"):
            async with stage.coordinator.transaction(timeout=0.1):
                pass
    assert await stage.transfer(timeout=60)
    await stage.coordinator.close()


async def test_whoever_waits_for_a_session_hears_that_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if a transaction that was about to begin hangs once its coordinator is closed."""
    stage = await without_session(monkeypatch)
    waiting = asyncio.create_task(stage.transfer(timeout=60))
    await asyncio.sleep(0)
    await stage.coordinator.close()
    with pytest.raises(UsageError, match="closed"):
        await waiting


async def test_a_transaction_made_before_the_end_does_not_begin_after_it() -> None:
    """Broken if an application works in a transaction whose session is closed."""
    stage = await staged("alpha")
    late = stage.coordinator.transaction()
    await stage.coordinator.close()
    with pytest.raises(UsageError, match="closed"):
        await late.start()


async def test_a_bug_does_not_end_the_renewals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if an error that nobody foresaw ends the lease, and later transactions hang."""
    stage = await staged("alpha", session_ttl_s=1)
    honest, renewed = stage.ledger.keep_alive, asyncio.Event()

    async def keep_alive(session: Session, floor: int) -> None:
        if not renewed.is_set():
            renewed.set()
            raise RuntimeError("nobody foresaw this")
        await honest(session, floor)
        stage.events.append("renewed")

    monkeypatch.setattr(stage.ledger, "keep_alive", keep_alive)
    await until(lambda: "renewed" in stage.events)
    await stage.coordinator.close()


async def test_a_renewal_without_answer_is_tried_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if one lost answer, which costs as much time as a request may take, costs the lease."""
    stage = await staged("alpha", session_ttl_s=3_600)
    tried = []

    async def keep_alive(session: Session, floor: int) -> None:
        tried.append(floor)
        raise DOWN

    monkeypatch.setattr(stage.ledger, "keep_alive", keep_alive)
    stage.coordinator._keeper._wake.set()  # a third of its lifetime is over
    await until(lambda: len(tried) > 1)
    await stage.coordinator.close()


@pytest.mark.parametrize("protocol", ["2pc", "3pc"])
async def test_closing_that_is_cancelled_leaves_nothing_running(protocol: str) -> None:
    """Broken if a commit goes on asking a ledger that is closed next: the loop could never end. And if the
    session is renewed for ever, under which its branches are prepared."""
    stage = await staged("alpha", "beta", drain_s=60, protocol=protocol)
    arrived = stage.hold("after_prepare alpha")
    committing = asyncio.create_task(stage.transfer(timeout=60))
    await arrived.wait()
    stage.ledger.down = DOWN
    stage.gates["after_prepare alpha"].set()
    closing = asyncio.create_task(stage.coordinator.close())
    await asyncio.sleep(0.05)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    with pytest.raises(OutcomeUnknown, match="closed"):
        await committing
    names = {task.get_name() for task in asyncio.all_tasks()}
    assert not [name for name in names if name.startswith(("commit ", "undoubt-"))]


async def test_a_participant_whose_removal_is_refused_was_there_all_the_time() -> None:
    """Broken if a transaction that is at work misses it meanwhile."""
    stage = await staged("alpha", "beta", protocol="3pc")
    arrived = stage.hold("before_enlist alpha")
    committing = asyncio.create_task(stage.transfer(timeout=60))
    await arrived.wait()
    asked = asyncio.Event()

    async def in_doubt() -> list[PreparedBranch]:
        await asked.wait()
        return []

    stage.participants["alpha"].in_doubt = in_doubt  # type: ignore[method-assign]
    removing = asyncio.create_task(stage.coordinator.remove_participant("alpha"))
    await asyncio.sleep(0)
    stage.gates["before_enlist alpha"].set()
    assert (await committing).pending == ()
    asked.set()
    with pytest.raises(ParticipantInUse):
        await removing
    await stage.coordinator.close()


async def test_rows_stay_while_the_ledger_does_not_know_that_it_is_finished(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Broken if a transaction that is unfinished has no row any more: without evidence, only the row proves
    that it has committed."""
    stage = await staged("alpha", "beta", protocol="3pc")

    async def finish(txids: Iterable[TxId]) -> None:
        raise DOWN

    with monkeypatch.context() as patched:
        patched.setattr(stage.ledger, "finish", finish)
        await stage.transfer(timeout=60)
        await until(lambda: "after_finish" in stage.events)
        await stage.coordinator.close()
    assert [len(one.states.rows) for one in stage.participants.values()] == [1, 1]


async def test_what_its_coordinator_has_given_up_is_ended_while_that_lives() -> None:
    """Broken if branches stay prepared for as long as the process lives that failed to end them."""
    stage = await staged("alpha", "beta", protocol="3pc", session_ttl_s=1)
    observe = stage.coordinator._observe
    assert observe is not None

    async def fail(step: Any, subject: str) -> None:
        if step is ThreePhaseStep.AFTER_PRECOMMIT:
            raise RuntimeError("nobody foresaw this")

    stage.coordinator._observe = fail
    with pytest.raises(OutcomeUnknown):
        await stage.transfer(timeout=60)
    assert stage.in_doubt() == 2
    floors = stage.ledger.machine.state.sessions
    await until(lambda: floors[1].floor == 2)
    for _ in stage.participants:  # one ends it, and the other finds the decision
        await RecoveryService(stage.ledger, stage.registry).run_once()
    assert stage.xact_statuses() == {XactStatus.COMMITTED}
    await stage.coordinator.close()


async def test_a_rollback_that_is_given_up_leaves_its_rows() -> None:
    """Broken if tombstones are deleted while a branch under them may still be prepared."""
    scripts = {"alpha": Script(), "beta": Script(prepare=Vote.ABORT)}
    stage = Stage(scripts, drain_s=0.05, protocol="3pc")
    await stage.coordinator.start()
    arrived = stage.hold("rollback alpha")
    committing = asyncio.create_task(stage.transfer(timeout=60))
    await arrived.wait()
    await stage.coordinator.close()
    with pytest.raises(TransactionAborted):
        await committing
    assert stage.in_doubt() == 1
    assert len(stage.participants["alpha"].states.rows) == 1


async def test_a_rollback_that_is_given_up_is_not_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if the ledger hears that a transaction is finished whose branches are still prepared."""
    finished: list[TxId] = []
    stage = await staged("alpha", "beta", drain_s=0.05)
    arrived = stage.hold("before_decide")
    committing = asyncio.create_task(stage.transfer(timeout=60))
    await arrived.wait()

    async def finish(txids: Iterable[TxId]) -> None:
        finished.extend(txids)

    monkeypatch.setattr(stage.ledger, "finish", finish)
    (book,) = stage.ledger.machine.state.sessions.values()
    await stage.ledger.close_session(Session(book.id, book.nonce, book.name, 10.0))
    arrived = stage.hold("rollback alpha")
    stage.gates["before_decide"].set()
    await arrived.wait()
    await stage.coordinator.close()
    with pytest.raises(TransactionAborted):
        await committing
    assert stage.in_doubt() == 1
    assert finished == []


async def test_a_branch_that_is_known_to_have_committed_is_told_before_the_others_are_undone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Broken if a caller hears "in no database" of what is known to be in one, because another is slow."""
    monkeypatch.setattr(transaction, "ROLLBACK_GRACE_S", 0.01)
    stage = Stage({"alpha": Script(), "beta": Script(prepare=Settled.HEURISTIC_COMMIT)})
    await stage.coordinator.start()
    stage.hold("rollback alpha")
    with pytest.raises(HeuristicOutcome) as raised:
        await stage.transfer(timeout=0.1)
    assert raised.value.kind is Settled.HEURISTIC_MIXED
    stage.gates["rollback alpha"].set()
    await stage.coordinator.close()


class SerializationFailure(Exception):
    sqlstate = "40001"


@pytest.mark.parametrize("vote", [Vote.PREPARED, Vote.ABORT])
async def test_run_does_not_repeat_what_the_function_has_committed(vote: Vote) -> None:
    """Broken if what comes after a function's own commit, a statement elsewhere that cannot be serialized,
    has it done twice; or if what is certain not to have committed is not tried again."""
    stage = Stage({"alpha": Script(), "beta": Script(prepare=vote)})
    await stage.coordinator.start()
    attempts = []

    async def work(tx: Any) -> None:
        attempts.append(tx.id)
        for name in stage.participants:
            await tx.branch(name)
        try:
            await tx.commit()
        finally:
            raise SerializationFailure

    with pytest.raises(SerializationFailure):
        await stage.coordinator.run(work, retries=2)
    assert len(attempts) == (1 if vote is Vote.PREPARED else 3)
    await stage.coordinator.close()


async def test_bugs_of_the_second_phase_are_seen(caplog: pytest.LogCaptureFixture) -> None:
    """Broken if an error that nobody foresaw leaves a branch to recovery, and no trace."""
    stage = Stage({"alpha": Script(), "beta": Script(commit=[RuntimeError("nobody foresaw this")])})
    await stage.coordinator.start()
    assert len((await stage.transfer()).pending) == 1
    assert "nobody foresaw this" in caplog.text
    await stage.coordinator.close()


async def test_a_vote_that_aborts_is_told_as_aborted() -> None:
    """Broken if the tests above pass because nothing is ever told as aborted."""
    stage = Stage({"alpha": Script(), "beta": Script(prepare=Vote.ABORT)})
    await stage.coordinator.start()
    with pytest.raises(TransactionAborted):
        await stage.transfer()
    await stage.coordinator.close()


async def test_every_session_of_a_coordinator_that_records_all_is_marked() -> None:
    """Broken if others cannot tell it from one that commits in one phase, also after its session was
    replaced; or if it commits a single branch without a record."""
    stage = Stage({"alpha": Script()}, session_transactions_max=1)
    coordinator = Coordinator(stage.ledger, stage.registry, stage.coordinator.settings, records_all=True)
    async with coordinator:
        for _ in range(2):
            async with coordinator.transaction() as tx:
                await tx.branch("alpha")
            assert await coordinator.outcome(tx.id) is RecordedDecision.COMMIT
        async with asyncio.timeout(10):
            while True:  # a session is listed a moment before it is marked
                sessions = await stage.ledger.sessions()
                marked = [await is_marked(stage.ledger, session) for session in sessions]
                if len(marked) > 1 and all(marked):
                    break
                await asyncio.sleep(0.01)


async def test_no_session_of_another_coordinator_is_marked() -> None:
    """Broken if an application's commit in one phase, of which nothing is recorded, is told as an abort."""
    stage = await staged("alpha")
    assert not any([await is_marked(stage.ledger, session) for session in await stage.ledger.sessions()])
    await stage.coordinator.close()
