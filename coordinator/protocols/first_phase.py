"""The first phase, common to every commit protocol: who wrote, and how does each vote."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from undoubt.coordinator.protocols.context import CommitContext, label
from undoubt.coordinator.protocols.steps import TwoPhaseStep
from undoubt.coordinator.uncancellable import all_within
from undoubt.participants.contract import (
    Branch,
    Evidence,
    HeuristicAtPrepare,
    PrepareResult,
    PrepareUnanswered,
    Settled,
    Vote,
    Work,
)


@dataclass(slots=True)
class VoteTally:
    """The votes, sorted. ``failure`` is the first reason to abort, in the order of the branches."""

    prepared: list[tuple[Branch, Evidence | None]] = field(default_factory=list)
    readers: list[Branch] = field(default_factory=list)
    heuristic: list[tuple[Branch, Settled]] = field(default_factory=list)
    failure: BaseException | None = None


async def classify(context: CommitContext) -> tuple[list[Branch], list[Branch], BaseException | None]:
    """Writing branches, reading branches, and the first failure.

    Branches that are known to write are not asked; a transaction's only branch counts as writing, since
    COMMIT ends it either way.
    """
    if len(context.branches) <= 1:
        return list(context.branches), [], None
    unsure = [branch for branch in context.branches if not branch.surely_writes]
    answers = await all_within((branch.poll() for branch in unsure), context.remaining_s())
    for branch, answer in zip(unsure, answers, strict=True):
        if isinstance(answer, BaseException):
            return [], [], _as_timeout(answer, f"no answer from {label(branch)} within the timeout")
        if answer is Work.READ_ONLY:
            context.reading.add(branch.gid)
            context.votes[label(branch)] = Vote.READ_ONLY
    writers = [branch for branch in context.branches if branch.gid not in context.reading]
    readers = [branch for branch in context.branches if branch.gid in context.reading]
    return writers, readers, None


async def collect_votes(
    context: CommitContext, writers: Sequence[Branch], vote: Callable[[Branch], Awaitable[PrepareResult]]
) -> VoteTally:
    """Ask all of ``writers`` for their ``vote`` at once and wait for every answer, until the deadline."""
    tally = VoteTally()
    context.asked = {branch.gid for branch in writers}
    answers = await all_within((_awaited(vote(branch)) for branch in writers), context.remaining_s())
    for branch, answer in zip(writers, answers, strict=True):
        failure = _count(context, tally, branch, answer)
        tally.failure = tally.failure or failure
    if tally.failure is None and context.remaining_s() <= 0:
        tally.failure = TimeoutError("every branch is prepared, but the transaction's timeout has passed")
    return tally


async def _awaited(vote: Awaitable[PrepareResult]) -> PrepareResult:
    return await vote


async def prepare(context: CommitContext, branch: Branch) -> PrepareResult:
    """Send PREPARE, and wait for the vote."""
    await context.reach(TwoPhaseStep.BEFORE_PREPARE, branch.gid)
    result = await branch.prepare()
    await context.reach(TwoPhaseStep.AFTER_PREPARE, branch.gid)
    return result


def _count(
    context: CommitContext, tally: VoteTally, branch: Branch, answer: PrepareResult | BaseException
) -> BaseException | None:
    """Sort one answer into ``tally``; return a reason to abort."""
    match answer:
        case PrepareResult(vote=Vote.PREPARED, evidence=evidence):
            tally.prepared.append((branch, evidence))
        case PrepareResult(vote=Vote.READ_ONLY):
            tally.readers.append(branch)
            context.reading.add(branch.gid)
        case PrepareResult(reason=reason):
            context.votes[label(branch)] = Vote.ABORT
            return reason or TimeoutError(f"{label(branch)} votes abort")
        case HeuristicAtPrepare():
            tally.heuristic.append((branch, answer.kind))
            return answer
        case PrepareUnanswered():
            context.unanswered.add(branch.gid)
            return answer.cause
        case BaseException():
            context.unanswered.add(branch.gid)
            return _as_timeout(answer, f"no vote of {label(branch)} within the timeout")
    context.votes[label(branch)] = answer.vote
    return None


def _as_timeout(error: BaseException, message: str) -> BaseException:
    """Only the deadline cancels a call of ours; whoever reads the cause should see that."""
    return TimeoutError(message) if isinstance(error, asyncio.CancelledError) else error
