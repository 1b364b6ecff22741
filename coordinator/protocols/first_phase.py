"""The first phase of every commit protocol: finds out which branches have written, and collects the votes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence

from undoubt.coordinator.protocols.context import CommitContext, label
from undoubt.coordinator.protocols.second_phase import (
    abort_after_votes,
    commit_in_one_phase,
    commit_readers_alone,
    roll_back,
)
from undoubt.coordinator.protocols.steps import AbortStep, TwoPhaseStep
from undoubt.participants.contract import (
    Branch,
    HeuristicAtPrepare,
    PrepareResult,
    PrepareUnanswered,
    Vote,
    Work,
)
from undoubt.participants.ids import Gid
from undoubt.participants.tasks import all_within, started

AskVote = Callable[[CommitContext, Branch], Awaitable[PrepareResult]]
"""Sends PREPARE, and before it what the protocol requires; returns the vote."""
Withdraw = Callable[[CommitContext], Awaitable[Collection[Gid]]]
"""Undoes what the protocol has sent before PREPARE. Returns the branches that only recovery may roll back."""


def prepare(context: CommitContext, branch: Branch) -> Awaitable[PrepareResult]:
    """Send PREPARE, and return the vote."""
    return started(branch.prepare) if context.observer is None else _prepare_observed(context, branch)


async def _prepare_observed(context: CommitContext, branch: Branch) -> PrepareResult:
    await context.reach(TwoPhaseStep.BEFORE_PREPARE, branch.gid)
    result = await branch.prepare()
    if result.vote is not Vote.PREPARED:
        await context.reach(_VOTES[result.vote], branch.gid)
    await context.reach(TwoPhaseStep.AFTER_PREPARE, branch.gid)
    return result


_VOTES = {Vote.ABORT: AbortStep.VOTED_ABORT, Vote.READ_ONLY: AbortStep.VOTED_READ_ONLY}


async def withdraw_nothing(_: CommitContext) -> Collection[Gid]:
    return ()


async def first_phase(
    context: CommitContext, vote: AskVote = prepare, withdraw: Withdraw = withdraw_nothing
) -> bool:
    """Run the first phase. Returns True if branches are prepared, or the transaction has an idempotency key,
    and none has voted ABORT: a decision is needed. Returns False if the transaction has committed without a
    decision, because at most one branch has written. If the transaction aborts, raises the errors of
    :func:`roll_back`."""
    writers = await find_writers(context)
    if writers is None:
        return False
    await collect_votes(context, writers, vote)
    if context.tally.failure is not None:
        await abort_after_votes(context, context.tally.failure, await withdraw(context))
    if not context.tally.prepared and context.given_key is None:
        await withdraw(context)
        await commit_readers_alone(context, context.readers)
        return False
    return True


async def find_writers(context: CommitContext) -> Sequence[Branch] | None:
    """Return the branches that have written, or have to be prepared in any case. None if the transaction has
    committed without a decision, because at most one branch has written. If the transaction aborts, raises
    the errors of :func:`roll_back`."""
    writers, failure = await _classify(context)
    if failure is not None:
        await roll_back(context, context.branches, failure)
    recorded = context.prepares_all or context.given_key is not None
    if len(writers) <= 1 and not recorded:
        await commit_in_one_phase(context, writers)
        return None
    return writers


async def _classify(context: CommitContext) -> tuple[Sequence[Branch], BaseException | None]:
    """Return the branches that have written, and the first failure.

    Branches that are known to write are not asked; the only branch of a transaction counts as writing, since
    COMMIT ends it in any case, and so does every branch of a transaction with ``prepares_all``.
    """
    if len(context.branches) <= 1 or context.prepares_all:
        return context.branches, None
    unsure = [branch for branch in context.branches if not branch.surely_writes]
    answers = await all_within((branch.poll() for branch in unsure), context.remaining_s())
    for branch, answer in zip(unsure, answers, strict=True):
        if isinstance(answer, BaseException):
            return [], _as_timeout(answer, f"no answer from {label(branch)} within the timeout")
        if answer is Work.READ_ONLY:
            context.tally.reading.add(branch.gid)
            context.tally.votes[label(branch)] = Vote.READ_ONLY
    return [branch for branch in context.branches if branch.gid not in context.tally.reading], None


async def collect_votes(context: CommitContext, writers: Sequence[Branch], vote: AskVote = prepare) -> None:
    """Ask all ``writers`` concurrently for their ``vote``, and wait for all answers, until the deadline."""
    tally = context.tally
    tally.asked = tuple(branch.gid for branch in writers)
    answers = await all_within((vote(context, branch) for branch in writers), context.remaining_s())
    for branch, answer in zip(writers, answers, strict=True):
        failure = _count(context, branch, answer)
        tally.failure = tally.failure or failure
    if tally.failure is None and context.remaining_s() <= 0:
        tally.failure = TimeoutError("every branch is prepared, but the transaction's timeout has passed")


def _count(
    context: CommitContext, branch: Branch, answer: PrepareResult | BaseException
) -> BaseException | None:
    """Add one answer to the tally; return a reason to abort, or None."""
    tally = context.tally
    match answer:
        case PrepareResult(vote=Vote.PREPARED, evidence=evidence):
            tally.prepared.append((branch, evidence))
        case PrepareResult(vote=Vote.READ_ONLY):
            tally.reading.add(branch.gid)
        case PrepareResult(reason=reason):
            tally.votes[label(branch)] = Vote.ABORT
            return reason or TimeoutError(f"{label(branch)} votes abort")
        case HeuristicAtPrepare():
            tally.heuristic.append((branch, answer.kind))
            return answer
        case PrepareUnanswered():
            tally.unanswered.add(branch.gid)
            return answer.cause
        case BaseException():
            tally.unanswered.add(branch.gid)
            return _as_timeout(answer, f"no vote of {label(branch)} within the timeout")
    tally.votes[label(branch)] = answer.vote
    return None


def _as_timeout(error: BaseException, message: str) -> BaseException:
    """Replace a cancellation by ``TimeoutError(message)``: only the deadline cancels these calls, and the
    cause should say so."""
    return TimeoutError(message) if isinstance(error, asyncio.CancelledError) else error
