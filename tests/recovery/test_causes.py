"""A transaction that somebody else has aborted: what its own application is told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.coordinator.stage import Stage
from undoubt.coordinator.errors import (
    AbortedByOthers,
    DistributedDeadlock,
    LedgerUnavailable,
    TransactionAborted,
)
from undoubt.coordinator.ledger.contract import record_of
from undoubt.participants.contract import Decision, Vote, XactStatus
from undoubt.participants.errors import BranchFailed
from undoubt.participants.scripted import Script
from undoubt.recovery.operator.resolve import Operator


async def held(stage: Stage, event: str) -> asyncio.Task[Any]:
    """A transfer that has come to ``event``."""
    await stage.coordinator.start()
    arrived = stage.hold(event)
    task = asyncio.create_task(stage.transfer(timeout=30))
    await arrived.wait()
    return task


async def told(stage: Stage, task: asyncio.Task[Any], event: str) -> BaseException:
    stage.gates[event].set()
    with pytest.raises(TransactionAborted) as raised:
        await task
    await stage.coordinator.close()
    assert stage.xact_statuses() == {XactStatus.ABORTED}
    assert isinstance(raised.value.cause, BaseException)
    return raised.value.cause


async def test_an_operators_rollback_before_the_decision() -> None:
    """Broken if the caller reads that its session has ended, and looks for the reason in the wrong place."""
    stage = Stage({"alpha": Script(), "beta": Script()})
    task = await held(stage, "before_decide")
    [gid] = stage.participants["alpha"].prepared
    await Operator(stage.ledger, stage.registry).roll_back(gid)
    cause = await told(stage, task, "before_decide")
    assert isinstance(cause, AbortedByOthers)
    assert "an operator rolled it back" in str(cause)


async def test_an_abort_without_a_recorded_cause() -> None:
    """Broken if a session that is alive is said to have ended."""
    stage = Stage({"alpha": Script(), "beta": Script()})
    task = await held(stage, "before_decide")
    [gid] = stage.participants["alpha"].prepared
    await stage.ledger.decide(gid.txid, Decision.ABORT, [record_of(gid)], protocol=gid.protocol)
    cause = await told(stage, task, "before_decide")
    assert isinstance(cause, AbortedByOthers)
    assert "recorded ABORT before the decision" in str(cause)


class Deadlock:
    """As another process's detector writes it down."""

    def __init__(self, stage: Stage) -> None:
        self._ledger = stage.ledger

    async def write_down(self, txid: Any) -> None:
        await self._ledger.doom(
            txid, str(DistributedDeadlock(txid, [str(txid), "beta/17"], ["alpha", "beta"]))
        )


CANCELLED = BranchFailed("beta", "canceling statement due to user request", sqlstate="57014")
SWALLOWED = BranchFailed("beta", "an SQL error in this branch was swallowed", sqlstate="25P02")


@pytest.mark.parametrize("failure", [CANCELLED, SWALLOWED])
async def test_a_deadlock_that_is_written_down_while_it_votes(failure: BranchFailed) -> None:
    """Broken if a PREPARE that a detector has cancelled is told as a cancelled statement, and not
    repeated."""
    stage = Stage({"alpha": Script(), "beta": Script(work=failure)})
    task = await held(stage, "poll beta")
    await Deadlock(stage).write_down(stage.txid)
    cause = await told(stage, task, "poll beta")
    assert isinstance(cause, DistributedDeadlock)
    assert cause.retryable


async def test_a_ledger_that_does_not_answer_hides_no_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if an abort that is certain is told late, or not at all, since its cause cannot be found out."""
    stage = Stage({"alpha": Script(), "beta": Script(work=CANCELLED)})

    async def unavailable(*_: Any) -> None:
        raise LedgerUnavailable("it is down, as told")

    monkeypatch.setattr(stage.ledger, "doomed", unavailable)
    task = await held(stage, "poll beta")
    assert await told(stage, task, "poll beta") is CANCELLED


async def test_another_failure_is_not_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if every abort costs a round trip to the ledger."""
    stage = Stage({"alpha": Script(), "beta": Script(prepare=Vote.ABORT)})
    asked = []

    async def doomed(txid: Any) -> None:
        asked.append(txid)

    monkeypatch.setattr(stage.ledger, "doomed", doomed)
    task = await held(stage, "prepare beta")
    assert isinstance(await told(stage, task, "prepare beta"), BranchFailed)
    assert asked == []
