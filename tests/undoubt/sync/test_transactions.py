"""The synchronous API over scripted participants: what a thread is told, and when."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from tests.undoubt.sync.support import Background, Stage, until
from undoubt.coordinator.errors import AlreadyCommitted, OutcomeUnknown, TransactionAborted, TransactionEnded
from undoubt.coordinator.ledger.commands import DrawSecret
from undoubt.coordinator.ledger.contract import RecordedDecision
from undoubt.participants.contract import Vote, XactStatus
from undoubt.participants.errors import BranchFailed, ParticipantUnavailable, UnknownParticipant, UsageError
from undoubt.participants.scripted import ScriptedParticipant
from undoubt.sync import Transaction


@pytest.fixture
def stages() -> Iterator[Any]:
    made: list[Stage] = []

    def make(**settings: Any) -> Stage:
        made.append(Stage(**settings))
        return made[-1]

    yield make
    for stage in made:
        stage.close()


@pytest.fixture
def stage(stages: Callable[..., Stage]) -> Stage:
    return stages()


def transfer(tx: Transaction) -> None:
    tx.branch("alpha")
    tx.branch("beta")


def test_the_block_commits(stage: Stage) -> None:
    with stage.coordinator.transaction() as tx:
        transfer(tx)
        assert tx.active
        assert tx.participants == ("alpha", "beta")
    assert stage.xact_statuses() == {XactStatus.COMMITTED}
    assert stage.coordinator.outcome(tx.id) is RecordedDecision.COMMIT


def test_several_branches_at_once(stage: Stage) -> None:
    """Broken if they come in another order than asked for, or one after the other: each waits for both."""
    gates = [stage.gate("begin alpha"), stage.gate("begin beta")]

    def work() -> list[Any]:
        with stage.coordinator.transaction() as tx:
            return [branch.gid.participant for branch in tx.branches("beta", "alpha")]  # type: ignore[attr-defined]

    working = Background(work)
    for gate in gates:
        gate.wait()
    for gate in gates:
        gate.open.set()
    assert working.ended() == ["beta", "alpha"]
    assert stage.xact_statuses() == {XactStatus.COMMITTED}


def test_one_of_several_branches_cannot_be_opened(stage: Stage) -> None:
    stage.participants["beta"].script.begin = ParticipantUnavailable("beta", "down")
    with pytest.raises(ParticipantUnavailable), stage.coordinator.transaction() as tx:
        tx.branches("alpha", "beta")
    assert stage.xact_statuses() == {XactStatus.ABORTED}


def test_an_exception_rolls_back_and_passes(stage: Stage) -> None:
    with pytest.raises(ZeroDivisionError), stage.coordinator.transaction() as tx:
        transfer(tx)
        1 / 0  # noqa: B018
    assert stage.xact_statuses() == {XactStatus.ABORTED}


def test_commit_tells_and_ends(stage: Stage) -> None:
    """Broken if a transaction could be used, or ended, again."""
    with stage.coordinator.transaction() as tx:
        transfer(tx)
        assert tx.commit().pending == ()
        with pytest.raises(TransactionEnded):
            tx.branch("alpha")
        with pytest.raises(TransactionEnded):
            tx.commit()
    assert stage.xact_statuses() == {XactStatus.COMMITTED}


def test_rollback_ends(stage: Stage) -> None:
    tx = stage.coordinator.transaction().start()
    transfer(tx)
    tx.rollback()
    tx.rollback()
    assert stage.xact_statuses() == {XactStatus.ABORTED}


def test_a_no_of_one_branch_aborts_both(stage: Stage) -> None:
    stage.participants["beta"].script.prepare = Vote.ABORT
    with pytest.raises(TransactionAborted) as caught, stage.coordinator.transaction() as tx:
        transfer(tx)
    assert isinstance(caught.value.cause, BranchFailed)
    assert stage.xact_statuses() == {XactStatus.ABORTED}


def test_a_branch_that_cannot_be_opened_is_told_as_it_is(stage: Stage) -> None:
    """As in the async API: the error of the database, not a general one."""
    stage.participants["beta"].script.begin = ParticipantUnavailable("beta", "down")
    with pytest.raises(ParticipantUnavailable), stage.coordinator.transaction() as tx:
        transfer(tx)
    with pytest.raises(UnknownParticipant), stage.coordinator.transaction() as tx:
        tx.branch("gamma")
    with pytest.raises(TransactionAborted), stage.coordinator.transaction() as tx:
        tx.branch("alpha")
        with pytest.raises(ParticipantUnavailable):
            tx.branch("beta")
    assert stage.xact_statuses() == {XactStatus.ABORTED}


def test_the_timeout_aborts_at_the_next_call_and_at_the_end(stage: Stage) -> None:
    """Broken if a thread that does not look could commit what was rolled back, or is never told."""
    aborted = pytest.raises(TransactionAborted, match="timeout")
    with aborted as caught, stage.coordinator.transaction(timeout=0.3) as tx:
        tx.branch("alpha")
        until(lambda: not tx.active)
        with pytest.raises(TransactionAborted, match="timeout"):
            tx.branch("beta")
        with pytest.raises(TransactionAborted, match="timeout"):
            tx.commit()
    assert isinstance(caught.value.cause, TimeoutError)
    assert stage.xact_statuses() == {XactStatus.ABORTED}


def test_the_end_waits_for_the_rollback(stage: Stage) -> None:
    """Broken if the block ends while its branches still hold their locks."""
    gate = stage.gate("rollback alpha")

    def body() -> None:
        with stage.coordinator.transaction(timeout=0.3) as tx:
            tx.branch("alpha")
            gate.wait()

    ended = Background(body)
    gate.wait()
    ended.join(0.05)
    assert ended.is_alive()
    gate.open.set()
    with pytest.raises(TransactionAborted):
        ended.ended()


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (psycopg.errors.QueryCanceled("canceling statement"), TransactionAborted),
        (UsageError("after the end of its branch"), TransactionAborted),
        (ValueError("the application's own"), ValueError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_what_a_cancelled_statement_says_is_explained(
    stage: Stage, raised: BaseException, told: type[BaseException]
) -> None:
    """Broken if the user is told "statement canceled" and not why, or loses an error of the application."""
    with pytest.raises(told) as caught, stage.coordinator.transaction(timeout=0.3) as tx:
        tx.branch("alpha")
        until(lambda: not tx.active)
        raise raised
    if told is TransactionAborted:
        assert isinstance(caught.value, TransactionAborted)
        assert isinstance(caught.value.cause, TimeoutError)
        assert caught.value.__context__ is raised


def test_doomed_while_a_branch_is_opened(stage: Stage) -> None:
    """Broken if the waiting thread gets a cancellation that nobody asked for, or waits for ever."""
    gate = stage.gate("begin beta")

    def body() -> None:
        with stage.coordinator.transaction() as tx:
            stage.txid = tx.id
            transfer(tx)

    ended = Background(body)
    gate.wait()
    stage.coordinator._portal.call(cancel, stage)
    with pytest.raises(TransactionAborted, match="a deadlock, say"):
        ended.ended()
    assert stage.xact_statuses() == {XactStatus.ABORTED}


async def cancel(stage: Stage) -> None:
    assert stage.engine is not None
    assert stage.txid is not None
    assert stage.engine.cancel(stage.txid, RuntimeError("a deadlock, say"))


def test_two_threads_commit_one_transaction(stage: Stage) -> None:
    """Broken if it is committed twice, or one of them waits for ever."""
    gate = stage.gate("prepare alpha")
    tx = stage.coordinator.transaction().start()
    transfer(tx)
    first = Background(tx.commit)
    gate.wait()
    with pytest.raises(TransactionEnded):
        tx.commit()
    with pytest.raises(TransactionEnded):
        tx.rollback()
    gate.open.set()
    assert first.ended().txid == tx.id
    assert stage.xact_statuses() == {XactStatus.COMMITTED}


def test_many_threads(stage: Stage) -> None:
    """Broken if a call's answer reached another's thread."""

    def work() -> list[Any]:
        ids = []
        for _ in range(20):
            with stage.coordinator.transaction() as tx:
                transfer(tx)
                ids.append(tx.id)
        return ids

    threads = [Background(work) for _ in range(16)]
    ids = [txid for thread in threads for txid in thread.ended()]
    assert len(set(ids)) == 320
    assert stage.xact_statuses() == {XactStatus.COMMITTED}
    assert {stage.coordinator.outcome(txid) for txid in ids} == {RecordedDecision.COMMIT}


def test_run_retries_what_may_help(stage: Stage) -> None:
    calls = []

    def function(tx: Transaction, amount: int) -> int:
        calls.append(tx.id)
        transfer(tx)
        if len(calls) < 3:
            raise psycopg.errors.SerializationFailure
        return amount

    assert stage.coordinator.run(function, 7) == 7
    assert len(set(calls)) == 3
    with pytest.raises(UsageError, match="needs a cluster"):
        stage.coordinator.run(function, 7, protocol="paxos")
    with pytest.raises(psycopg.errors.SerializationFailure):
        stage.coordinator.run(lambda _: raise_(psycopg.errors.SerializationFailure()), retries=1)


def test_run_does_not_repeat_what_may_have_happened(stage: Stage) -> None:
    calls = []

    def function(tx: Transaction) -> None:
        calls.append(tx)
        raise OutcomeUnknown(tx.id, "as told")

    with pytest.raises(OutcomeUnknown):
        stage.coordinator.run(function)
    assert len(calls) == 1


def test_run_does_not_repeat_what_the_function_has_committed(stage: Stage) -> None:
    calls = []

    def function(tx: Transaction) -> None:
        calls.append(tx)
        transfer(tx)
        tx.commit()
        raise psycopg.errors.SerializationFailure

    with pytest.raises(psycopg.errors.SerializationFailure):
        stage.coordinator.run(function)
    assert len(calls) == 1


def test_participants_come_and_go(stage: Stage) -> None:
    gamma = ScriptedParticipant("gamma")
    stage.coordinator.add_participant(gamma)
    assert list(stage.coordinator.participants) == ["alpha", "beta", "gamma"]
    with pytest.raises(UsageError, match="registered already"):
        stage.coordinator.add_participant(gamma)
    stage.coordinator.remove_participant("gamma")
    assert list(stage.coordinator.participants) == ["alpha", "beta"]


async def test_refused_inside_an_event_loop(stages: Any) -> None:
    """Broken if a coroutine could stop its whole loop by a call that looks harmless."""
    with pytest.raises(UsageError, match=r"async with undoubt\.connect"):
        stages()
    stage = await asyncio.to_thread(stages)
    with pytest.raises(UsageError, match=r"asyncio\.to_thread"):
        stage.coordinator.transaction()
    with pytest.raises(UsageError, match=r"asyncio\.to_thread"):
        stage.coordinator.close()

    def body() -> None:
        with stage.coordinator.transaction() as tx:
            transfer(tx)

    await asyncio.to_thread(body)
    assert stage.xact_statuses() == {XactStatus.COMMITTED}
    await asyncio.to_thread(stage.close)


def raise_(error: BaseException) -> Any:
    raise error


def test_what_commit_raised_is_raised_again(stage: Stage) -> None:
    """Broken if a body that swallows the error of its own ``commit`` makes the block end without one."""
    stage.participants["beta"].script.prepare = Vote.ABORT
    with pytest.raises(TransactionAborted), stage.coordinator.transaction() as tx:
        tx.branches("alpha", "beta")
        with contextlib.suppress(TransactionAborted):
            tx.commit()
    assert stage.xact_statuses() == {XactStatus.ABORTED}


def test_a_rollback_of_the_application_is_no_error(stage: Stage) -> None:
    with stage.coordinator.transaction() as tx:
        tx.branch("alpha")
        tx.rollback()
    assert stage.xact_statuses() == {XactStatus.ABORTED}


def test_a_repeated_key_returns_the_first_result(stage: Stage) -> None:
    """A thread would do the work of another thread again."""
    calls = []

    def order(tx: Transaction) -> dict[str, int]:
        transfer(tx)
        calls.append(tx.id)
        return {"order": len(calls)}

    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda: results.append(stage.coordinator.run(order, key="order-42")))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [{"order": 1}] * 3
    with stage.coordinator.transaction(key="order-42") as tx:
        assert tx.repeated
        assert (tx.id, tx.result) == (calls[0], {"order": 1})
        with pytest.raises(AlreadyCommitted):
            tx.branch("alpha")
    assert tx.commit().repeated
    with stage.coordinator.transaction(key="another") as tx:
        assert not tx.repeated
        tx.branch("alpha")
        tx.result = b"bytes"
    found: Any = stage.coordinator.run(order, key="another")
    assert found == b"bytes"
    assert len(calls) == 1


def test_a_transaction_inside_the_block_of_its_own_key(stage: Stage) -> None:
    """It would wait for itself until its timeout. And a function may set the result and return nothing."""

    def work(tx: Transaction) -> None:
        transfer(tx)
        tx.result = made = list[str]()
        made.append("a lamp")
        with pytest.raises(UsageError, match="wait for itself"):
            stage.coordinator.run(transfer, key="k", timeout=60)

    for _ in range(2):
        assert stage.coordinator.run(work, key="k") == ["a lamp"]


def test_last_agent_commit_in_threads(stages: Callable[..., Stage]) -> None:
    """Broken if a thread cannot name the agent, or the agent does not commit last."""
    stage = stages()
    stage.ledger.machine.apply(DrawSecret(b"s" * 32))
    with stage.coordinator.transaction(protocol="last", agent="alpha") as tx:
        transfer(tx)
    stage.coordinator.run(transfer, protocol="last", agent="beta")
    calls = {name: [call for call, _ in one.calls] for name, one in stage.participants.items()}
    assert calls["alpha"].count("commit_as_agent") == calls["beta"].count("commit_as_agent") == 1
    assert stage.xact_statuses() == {XactStatus.COMMITTED}
    with pytest.raises(UsageError, match="agent="):
        stage.coordinator.transaction(agent="alpha")
