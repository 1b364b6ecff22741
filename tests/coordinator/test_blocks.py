"""A block ends without an error only if its transaction has committed, or the application has rolled it back.

``make prove PROOF=blocks`` runs every way into a block with every way out of it, on real databases.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from tests.coordinator.stage import Stage
from undoubt.coordinator.errors import OutcomeUnknown, TransactionAborted
from undoubt.coordinator.transaction import Transaction
from undoubt.participants.contract import Vote, XactStatus
from undoubt.participants.errors import ParticipantUnavailable
from undoubt.participants.scripted import Script

VICTIM = TimeoutError("victim of a deadlock, says the test")
TIMEOUT_S = 0.3
"""Long enough for a busy machine to open a branch first."""


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    made = Stage({"alpha": Script(), "beta": Script()}, drain_s=0.2)
    await made.coordinator.start()
    yield made
    for gate in made.gates.values():
        gate.set()
    await made.coordinator.close()


def this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


async def swallow_a_cancellation() -> None:
    """As shutdown handlers do it, and TaskGroup before Python 3.13: nothing takes the request back."""
    this_task().cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(1)


async def in_a_task(coroutine: Any) -> Any:
    return await asyncio.create_task(coroutine)


@pytest.mark.parametrize("cancelled_before", [False, True])
@pytest.mark.parametrize("swallows", [False, True])
@pytest.mark.parametrize("door", ["block", "run"])
async def test_an_abort_from_outside_is_never_silent(
    stage: Stage, door: str, swallows: bool, cancelled_before: bool
) -> None:
    """Broken if a task that was cancelled once before hears nothing of the abort of its transaction."""

    async def body(tx: Transaction) -> str:
        await tx.branch("alpha")
        stage.coordinator.cancel(tx.id, VICTIM)
        if swallows:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(1)
        return "done"

    async def program() -> None:
        if cancelled_before:
            await swallow_a_cancellation()
        before = this_task().cancelling()
        try:
            if door == "run":
                await stage.coordinator.run(body)
            else:
                async with stage.coordinator.transaction() as tx:
                    await body(tx)
        finally:
            assert this_task().cancelling() == before

    with pytest.raises(TransactionAborted) as raised:
        await in_a_task(program())
    assert raised.value.cause is VICTIM
    assert stage.xact_statuses() == {XactStatus.ABORTED}


async def test_a_cancellation_in_the_same_moment_is_not_lost(stage: Stage) -> None:
    """Broken if the block's own cancellation hides that the task was cancelled by somebody else as well."""

    async def program() -> None:
        async with stage.coordinator.transaction() as tx:
            await tx.branch("alpha")
            stage.coordinator.cancel(tx.id, VICTIM)
            this_task().cancel()

    with pytest.raises(asyncio.CancelledError):
        await in_a_task(program())
    assert stage.xact_statuses() == {XactStatus.ABORTED}


async def test_an_error_of_the_application_passes(stage: Stage) -> None:
    async def program() -> None:
        async with stage.coordinator.transaction() as tx:
            await tx.branch("alpha")
            stage.coordinator.cancel(tx.id, VICTIM)
            raise KeyError("the application's own")

    with pytest.raises(KeyError):
        await in_a_task(program())
    assert stage.xact_statuses() == {XactStatus.ABORTED}


@contextlib.asynccontextmanager
async def wrapped(stage: Stage) -> AsyncIterator[Transaction]:
    async with stage.coordinator.transaction(timeout=TIMEOUT_S) as tx:
        yield tx


async def yielded(stage: Stage) -> AsyncIterator[Transaction]:
    async with stage.coordinator.transaction(timeout=TIMEOUT_S) as tx:
        yield tx


async def through_a_block(stage: Stage, body: Callable[[Transaction], Awaitable[None]]) -> None:
    async with stage.coordinator.transaction(timeout=TIMEOUT_S) as tx:
        await body(tx)


async def through_a_wrapper(stage: Stage, body: Callable[[Transaction], Awaitable[None]]) -> None:
    async with wrapped(stage) as tx:
        await body(tx)


async def through_a_stack(stage: Stage, body: Callable[[Transaction], Awaitable[None]]) -> None:
    async with contextlib.AsyncExitStack() as stack:
        await body(await stack.enter_async_context(wrapped(stage)))


async def through_a_fixture(stage: Stage, body: Callable[[Transaction], Awaitable[None]]) -> None:
    """As pytest-asyncio runs them: each step in a task of its own."""
    fixture = yielded(stage)
    tx: Transaction = await in_a_task(anext(fixture))
    await body(tx)
    await in_a_task(anext(fixture))


async def through_a_generator(stage: Stage, body: Callable[[Transaction], Awaitable[None]]) -> None:
    async for tx in yielded(stage):
        await body(tx)


async def started(stage: Stage, body: Callable[[Transaction], Awaitable[None]]) -> None:
    tx = await stage.coordinator.transaction(timeout=TIMEOUT_S).start()
    await body(tx)
    await tx.commit()


WAYS_IN = [
    through_a_block,
    through_a_wrapper,
    through_a_stack,
    through_a_fixture,
    through_a_generator,
    started,
]


@pytest.mark.parametrize("way_in", WAYS_IN)
async def test_the_timeout_undoes_it_whoever_entered_it(stage: Stage, way_in: Any) -> None:
    """Broken if the timeout cancels a task that is not inside the block, or nobody, and the locks stay."""
    in_block = way_in in {through_a_block, through_a_wrapper}
    seen = []

    async def body(tx: Transaction) -> None:
        await tx.branch("alpha")
        cancelled = False
        try:
            while tx.active:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            cancelled = True
        seen.append(cancelled)
        with pytest.raises(TransactionAborted, match="timeout"):
            await tx.branch("beta")

    async def program() -> None:
        with pytest.raises(TransactionAborted, match="timeout"):
            await way_in(stage, body)
        await asyncio.sleep(0)  # nothing is left that would be delivered here
        assert this_task().cancelling() == 0

    await in_a_task(program())
    assert seen == [in_block]
    assert stage.xact_statuses() == {XactStatus.ABORTED}


async def test_a_block_that_is_left_late_holds_nothing(stage: Stage) -> None:
    """Broken if a body that swallows its cancellation keeps the locks of a transaction that is over."""
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(pytest.raises(TransactionAborted, match="timeout"))
        async with stage.coordinator.transaction(timeout=TIMEOUT_S) as tx:
            await tx.branch("alpha")
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
            while stage.xact_statuses() != {XactStatus.ABORTED}:
                await asyncio.sleep(0.01)


async def test_the_deadline_holds_after_a_branch_that_failed(stage: Stage) -> None:
    """Broken if a branch that could not be opened, and whose error was swallowed, disarms the timeout."""
    down = ParticipantUnavailable("beta", "it is down, as told")
    stage.participants["beta"].script.begin = down
    tx = await stage.coordinator.transaction(timeout=TIMEOUT_S).start()
    await tx.branch("alpha")
    with pytest.raises(ParticipantUnavailable):
        await tx.branch("beta")
    while stage.xact_statuses() != {XactStatus.ABORTED}:
        await asyncio.sleep(0.01)
    with pytest.raises(TransactionAborted) as raised:
        await tx.commit()
    assert raised.value.cause is down


async def test_what_commit_raised_is_raised_again(stage: Stage) -> None:
    """Broken if a body that swallows the error of its own ``commit`` makes the block end without one."""
    stage.participants["beta"].script.prepare = Vote.ABORT
    with pytest.raises(TransactionAborted):
        async with stage.coordinator.transaction() as tx:
            for name in ("alpha", "beta"):
                await tx.branch(name)
            with contextlib.suppress(TransactionAborted):
                await tx.commit()
    assert stage.xact_statuses() == {XactStatus.ABORTED}


async def test_a_commit_that_was_not_waited_for_is_waited_for(stage: Stage) -> None:
    """Broken if a block ends without an error while nobody knows yet what became of its commit."""
    arrived = stage.hold("prepare beta")

    async def open_the_gate() -> None:
        await arrived.wait()
        await asyncio.sleep(0.05)
        stage.gates["prepare beta"].set()

    opening = asyncio.create_task(open_the_gate())
    async with stage.coordinator.transaction() as tx:
        for name in ("alpha", "beta"):
            await tx.branch(name)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(tx.commit(), 0.01)
    assert stage.xact_statuses() == {XactStatus.COMMITTED}
    await opening


async def test_a_commit_whose_outcome_is_unknown_is_not_silent(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("undoubt.coordinator.transaction.VOTING_GRACE_S", 0.05)
    stage.hold("before_decide")
    with pytest.raises(OutcomeUnknown):
        async with stage.coordinator.transaction(timeout=0.1) as tx:
            for name in ("alpha", "beta"):
                await tx.branch(name)
            with contextlib.suppress(OutcomeUnknown):
                await tx.commit()


async def test_a_rollback_of_the_application_is_no_error(stage: Stage) -> None:
    async with stage.coordinator.transaction() as tx:
        await tx.branch("alpha")
        await tx.rollback()
    assert stage.xact_statuses() == {XactStatus.ABORTED}


async def test_a_commit_that_was_refused_is_raised_again(stage: Stage) -> None:
    """Broken if a body that swallows every error of its branches and its commit makes the block silent."""
    down = ParticipantUnavailable("beta", "it is down, as told")
    stage.participants["beta"].script.begin = down
    with pytest.raises(TransactionAborted, match="down"):
        async with stage.coordinator.transaction() as tx:
            await tx.branch("alpha")
            with contextlib.suppress(ParticipantUnavailable):
                await tx.branch("beta")
            with contextlib.suppress(TransactionAborted):
                await tx.commit()
    assert stage.xact_statuses() == {XactStatus.ABORTED}


@pytest.mark.parametrize("door", ["block", "commit", "run"])
@pytest.mark.parametrize("by", ["cancel", "timeout"])
async def test_a_commit_that_goes_on_is_noted(stage: Stage, door: str, by: str) -> None:
    """Broken if whoever is cancelled while the block's end commits cannot tell it from a rollback. A timeout
    of asyncio raises another exception, whose cause is the cancellation."""
    preparing = stage.hold("prepare beta")
    seen: list[Transaction] = []
    limit = asyncio.timeout(None)

    async def work(tx: Transaction) -> None:
        seen.append(tx)
        await tx.branch("alpha")
        await tx.branch("beta")
        if door == "commit":
            await tx.commit()

    async def program() -> None:
        if door == "run":
            await stage.coordinator.run(work)
        else:
            async with stage.coordinator.transaction() as tx:
                await work(tx)

    async def limited() -> None:
        async with limit:
            await program()

    task = asyncio.create_task(limited())
    await preparing.wait()
    if by == "cancel":
        task.cancel()
    else:
        limit.reschedule(0.0)
    with pytest.raises(asyncio.CancelledError if by == "cancel" else TimeoutError) as raised:
        await task
    cancelled = raised.value if by == "cancel" else raised.value.__cause__
    assert cancelled is not None
    [note] = cancelled.__notes__
    assert f"the commit of transaction {seen[0].id} goes on" in note
    assert seen[0].may_have_committed
    stage.gates["prepare beta"].set()
    await seen[0].committed()
    assert stage.xact_statuses() == {XactStatus.COMMITTED}


async def test_an_error_after_the_commit_is_noted(stage: Stage) -> None:
    """The block's error does not say that everything was rolled back, if it was committed before."""
    with pytest.raises(ZeroDivisionError) as raised:
        async with stage.coordinator.transaction() as tx:
            await tx.branch("alpha")
            await tx.branch("beta")
            await tx.commit()
            raise ZeroDivisionError
    assert raised.value.__notes__ == [f"transaction {tx.id} has committed"]
    with pytest.raises(OutcomeUnknown) as outcome:
        async with stage.coordinator.transaction() as tx:
            await tx.branch("alpha")
            await tx.branch("beta")
            await tx.commit()
            raise OutcomeUnknown(tx.id, "says the test")
    assert not getattr(outcome.value, "__notes__", [])
