"""The second phase and the rollback, which all commit protocols use."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, NoReturn

from undoubt.coordinator.errors import OutcomeUnknown, TransactionAborted
from undoubt.coordinator.protocols.causes import may_come_of_a_cancellation, why_doomed
from undoubt.coordinator.protocols.context import (
    CommitContext,
    CommitEvent,
    CommitState,
    applied_elsewhere,
    branch_record,
    heuristic_outcome,
    record_heuristic,
    repeat_until_answered,
)
from undoubt.coordinator.protocols.steps import AbortStep, TwoPhaseStep
from undoubt.participants.backoff import pauses
from undoubt.participants.contract import HEURISTICS, Branch, CommitNotSent, Decision, Settled
from undoubt.participants.errors import BranchFailed, ParticipantError, ParticipantRefused
from undoubt.participants.ids import Gid
from undoubt.participants.tasks import Answered, Continued, Uncancellable, all_of, started, uncancellable

log = logging.getLogger(__name__)

BUSY_ATTEMPTS_MAX = 8
"""How often a call is repeated to a branch that answers BUSY (after 10, 20, 40 … ms) before it is left to
recovery."""
HAZARD_LOOKS_MAX = 8
"""How often the ledger is asked (after 10, 20, 40 … ms) whether a recovery has committed a branch, if the
branch's database has no proof, before a hazard is recorded."""
ABORT_DUE = frozenset({CommitState.ABORTING_DUE, CommitState.LEFT_DUE})


async def apply(context: CommitContext) -> None:
    """Run the second phase: commit every branch. A branch whose COMMIT PREPARED fails is ``pending``: the
    transaction is committed nevertheless."""
    readers = context.readers
    context.pending = {branch.gid: branch for branch, _ in context.tally.prepared}
    report_bugs(
        context, await all_of(_commit_branch(context, branch) for branch, _ in context.tally.prepared)
    )
    if context.pending:
        context.move(CommitEvent.UNCONFIRMED)  # the caller does not wait for the readers, which end later
        if readers:
            await _repeat_until_confirmed(context)
    await end_readers(context, readers)


async def _repeat_until_confirmed(context: CommitContext) -> None:
    waits = pauses(0.05, 5.0)
    while context.pending:
        await asyncio.sleep(next(waits))
        await all_of(_commit_branch(context, branch) for branch in list(context.pending.values()))


def report_bugs(context: CommitContext, results: Sequence[BaseException | None]) -> None:
    """Log unexpected errors: the outcome is certain, so they are not raised to the caller."""
    for error in results:
        if isinstance(error, Exception):
            log.error("the second phase of %s: %s", context.txid, error, exc_info=error)


def _commit_branch(context: CommitContext, branch: Branch) -> Awaitable[None]:
    return _send_commit(context, branch) if context.observer is None else _commit_observed(context, branch)


async def _commit_observed(context: CommitContext, branch: Branch) -> None:
    await context.reach(TwoPhaseStep.BEFORE_SECOND_PHASE, branch.gid)
    await _send_commit(context, branch)


def _send_commit(context: CommitContext, branch: Branch) -> Awaitable[None]:
    """Send COMMIT PREPARED; where its answer is final at once, this costs no task."""
    asked = started(branch.commit)
    if isinstance(asked, Continued):
        return asked.then(partial(_committed, context, branch))
    return _commit_asked(context, branch, asked)


async def _commit_asked(context: CommitContext, branch: Branch, asked: Awaitable[Settled]) -> None:
    try:
        settled = await asked
    except ParticipantError:
        return  # stays pending: recovery finishes it from the recorded decision
    await _commit_on(context, branch, settled)


def _committed(
    context: CommitContext, branch: Branch, asked: Answered[Settled]
) -> Coroutine[Any, Any, None] | None:
    try:
        settled = asked.result()
    except ParticipantError:
        return None  # as above
    if settled is not Settled.APPLIED or context.observer is not None:
        return _commit_on(context, branch, settled)
    del context.pending[branch.gid]
    return None


async def _commit_on(context: CommitContext, branch: Branch, settled: Settled) -> None:
    """Do what follows from the first answer of ``branch`` to COMMIT PREPARED."""
    try:
        settled = await _while_busy(branch.commit, settled)
    except ParticipantError:
        return  # as above
    await context.reach(TwoPhaseStep.AFTER_SECOND_PHASE, branch.gid)
    if settled is Settled.HEURISTIC_COMMIT or (
        settled is Settled.HEURISTIC_HAZARD and await _committed_by_recovery(context, branch.gid)
    ):
        await branch.forget()  # committed as decided, though not by this coordinator
    elif settled in HEURISTICS:
        await record_heuristic(context, branch, settled, Decision.COMMIT)
    if settled in HEURISTICS or settled is Settled.APPLIED:
        del context.pending[branch.gid]


async def _while_busy(call: Callable[[], Awaitable[Settled]], first: Settled | None = None) -> Settled:
    """Repeat ``call`` while it answers BUSY. ``first``: its first answer, if it was called already."""
    settled = first or await call()
    if settled is not Settled.BUSY:
        return settled
    for pause_s in islice(pauses(0.01), BUSY_ATTEMPTS_MAX):
        await asyncio.sleep(pause_s)
        if (settled := await call()) is not Settled.BUSY:
            break
    return settled


async def _committed_by_recovery(context: CommitContext, gid: Gid) -> bool:
    """Whether the ledger shows that a recovery has committed the branch. After a promotion, a database's
    transaction ids from before the promotion are no evidence; but a recovery that has committed the branch
    has finished the transaction in the ledger."""
    for pause_s in islice(pauses(0.01), HAZARD_LOOKS_MAX):
        if await repeat_until_answered(lambda: applied_elsewhere(context.ledger, gid)):
            return True
        await asyncio.sleep(pause_s)
    return False


async def end_readers(context: CommitContext, readers: Sequence[Branch]) -> None:
    """Commit the branches that have only read, as far as their databases show; the transaction is committed.

    A function can write through a foreign table without a transaction id in this database. So if COMMIT is
    answered with an error, or with ROLLBACK, a write may be lost: that is recorded and raised as a heuristic
    outcome. A lost connection is only logged, since most losses of a connection that has only read are
    harmless.
    """
    ends = await _commit_readers(context, readers)
    for reader, error in [*ends.unsent, *ends.lost]:
        log.warning("read-only branch %s did not end with its transaction: %s", reader.gid, error)
    await _note_lost_writes(context, ends.refused)
    if not context.pending:
        context.move(CommitEvent.CONFIRMED)


async def commit_readers_alone(context: CommitContext, readers: Sequence[Branch]) -> None:
    """Commit a transaction of which no branch has written, as far as the databases show: the answers to
    COMMIT are the decision.

    If certainly no branch has committed, the transaction is aborted. If some branches have committed, it is
    not known whether the others had something to commit, so each of the others gets a heuristic outcome. A
    lost answer leaves the outcome unknown, unless the other answers are mixed already: a branch without a
    transaction id may have written through a foreign table, or may have a notification to send, and there is
    no cheap way to learn from a database that it has not.
    """
    if readers and context.remaining_s() <= 0:
        await roll_back(context, readers, TimeoutError("the transaction's timeout has passed"))
    context.move(CommitEvent.COMMIT_SENT)
    ends = await _commit_readers(context, readers)
    undone = [*ends.refused, *ends.unsent]
    if ends.lost and not (undone and ends.committed):
        lost = "; ".join(str(error) for _, error in ends.lost)
        raise OutcomeUnknown(
            context.txid, f"the answer to COMMIT was lost, and nothing proves the outcome: {lost}"
        ) from ends.lost[0][1]
    if undone and not ends.committed:
        await roll_back(context, (), undone[0][1])
    context.move(CommitEvent.BRANCH_COMMITTED)
    await _note_lost_writes(context, undone)
    for reader, error in ends.lost:
        await record_heuristic(context, reader, Settled.HEURISTIC_HAZARD, Decision.COMMIT, note=str(error))
    context.move(CommitEvent.CONFIRMED)


@dataclass(slots=True)
class _Ends:
    """The results of COMMIT for branches that have only read, with the errors."""

    committed: list[Branch] = field(default_factory=list)
    refused: list[tuple[Branch, BaseException]] = field(default_factory=list)
    """Answered with an error, or with ROLLBACK."""
    unsent: list[tuple[Branch, BaseException]] = field(default_factory=list)
    """Rolled back, because COMMIT was not sent."""
    lost: list[tuple[Branch, BaseException]] = field(default_factory=list)
    """Not answered: the branch may have committed."""


async def _commit_readers(context: CommitContext, readers: Sequence[Branch]) -> _Ends:
    ends = _Ends()
    for reader, result in zip(readers, await all_of(reader.commit() for reader in readers), strict=True):
        if isinstance(result, BranchFailed | ParticipantRefused):
            ends.refused.append((reader, result))
        elif isinstance(result, CommitNotSent):
            ends.unsent.append((reader, result.cause))
        elif isinstance(result, BaseException):
            ends.lost.append((reader, result))
        else:
            ends.committed.append(reader)
    return ends


async def _note_lost_writes(context: CommitContext, refused: Sequence[tuple[Branch, BaseException]]) -> None:
    for reader, error in refused:
        log.error(
            "the COMMIT of read-only branch %s of a committed transaction failed: %s", reader.gid, error
        )
        context.heuristic_cause = context.heuristic_cause or error
        await record_heuristic(context, reader, Settled.HEURISTIC_ROLLBACK, Decision.COMMIT, note=str(error))


async def commit_in_one_phase(context: CommitContext, writers: Sequence[Branch]) -> None:
    """Commit a transaction of which at most one branch has something to commit: the COMMIT of that branch is
    the decision."""
    readers = context.readers
    if not writers:
        await commit_readers_alone(context, readers)
        return
    if context.remaining_s() <= 0:
        await roll_back(context, context.branches, TimeoutError("the transaction's timeout has passed"))
    for writer in writers:
        context.move(CommitEvent.COMMIT_SENT)
        try:
            settled = await writer.commit_one_phase()
        except (BranchFailed, ParticipantRefused) as error:
            await roll_back(context, readers, error)
        except ParticipantError as error:
            raise OutcomeUnknown(context.txid, str(error)) from error
        else:
            await _judge_one_phase(context, writer, settled, readers)
    context.move(CommitEvent.BRANCH_COMMITTED)
    await end_readers(context, readers)


async def _judge_one_phase(
    context: CommitContext, writer: Branch, settled: Settled, readers: Sequence[Branch]
) -> None:
    """Return if ``writer`` has committed; otherwise raise the error for ``settled``."""
    match settled:
        case Settled.APPLIED:
            return
        case Settled.HEURISTIC_COMMIT:
            await writer.forget()
        case Settled.ABSENT | Settled.HEURISTIC_ROLLBACK:
            await writer.forget()
            participant = writer.gid.participant
            await roll_back(context, readers, BranchFailed(participant, "rolled back instead of committing"))
        case Settled.HEURISTIC_MIXED:
            await record_heuristic(context, writer, settled, Decision.COMMIT)
            raise heuristic_outcome(context, [settled], Decision.COMMIT)
        case Settled.HEURISTIC_HAZARD | Settled.BUSY:
            await writer.forget()
            where = f"participant {writer.gid.participant!r}"
            raise OutcomeUnknown(
                context.txid,
                f"the answer of {where} to COMMIT was lost, and nothing there proves the outcome",
            )


async def abort_after_votes(
    context: CommitContext, failure: BaseException, leave: Collection[Gid] = ()
) -> NoReturn:
    """Roll back after a branch has not prepared, or may not have. ``leave``: as in :func:`roll_back`."""
    heuristic = context.tally.heuristic
    for branch, kind in heuristic:
        await _note_heuristic_abort(context, branch, kind)
    ended = {branch.gid for branch, _ in heuristic}
    live = [branch for branch in context.branches if branch.gid not in ended]
    await roll_back(context, live, failure, leave)


async def roll_back(
    context: CommitContext, branches: Sequence[Branch], cause: BaseException, leave: Collection[Gid] = ()
) -> NoReturn:
    """Roll back ``branches`` and raise ``TransactionAborted``, or ``HeuristicOutcome`` if a branch did
    otherwise. Branches in ``leave`` are left to recovery.

    If a rollback is not confirmed after PREPARE was sent, ABORT is recorded; otherwise the branch would count
    as ACTIVE until this coordinator's session ends. ABORT is also recorded if the ledger may hold PRECOMMIT.
    """
    context.cause = context.interruption or cause
    context.move(CommitEvent.ABORT_CERTAIN)
    finding_out = _find_out(context)
    tally, recorded = context.tally, context.state is CommitState.ABORTING_RECORDED
    asked = [branch for branch in branches if branch.gid in tally.asked]
    context.pending = {branch.gid: branch for branch in branches if branch.gid in leave}
    branches = [branch for branch in branches if branch.gid not in leave]
    results = await all_of(_roll_back_branch(context, branch) for branch in branches)
    for branch, result in zip(branches, results, strict=True):
        uncertain = isinstance(result, BaseException) or result is Settled.BUSY
        if (uncertain and (branch.gid in tally.asked or recorded)) or (
            result is Settled.ABSENT and branch.gid in tally.unanswered
        ):
            context.pending[branch.gid] = branch
    cause = await finding_out
    if context.pending:
        context.move(CommitEvent.UNCONFIRMED)
    if context.state in ABORT_DUE:
        await record_abort(context, asked)
    kinds: list[Settled] = [*context.heuristics.values()]
    for branch, result in zip(branches, results, strict=True):
        if isinstance(result, Settled):
            if branch.gid not in tally.reading or result in HEURISTICS:
                kinds.append(result)
            if result in HEURISTICS:
                await _note_heuristic_abort(context, branch, result)
    if not (context.pending or tally.unanswered):
        context.move(CommitEvent.CONFIRMED)
    if context.heuristics:
        raise heuristic_outcome(context, kinds, Decision.ABORT) from cause
    raise TransactionAborted(context.txid, cause, tally.votes) from cause


async def _roll_back_branch(context: CommitContext, branch: Branch) -> Settled:
    await context.reach(AbortStep.BEFORE_ABORT, branch.gid)
    settled = await _while_busy(branch.rollback)
    await context.reach(AbortStep.AFTER_ABORT, branch.gid)
    return settled


def _find_out(context: CommitContext) -> Uncancellable[BaseException]:
    """Start a task that returns the cause to report: if a branch failed because a statement was cancelled,
    the recorded cause of the cancellation, if there is one. The ledger is asked while branches are rolled
    back, and before ABORT may be recorded, since the record of ABORT deletes the cause."""

    async def find_out() -> BaseException:
        known = context.cause or TimeoutError("aborted")
        if context.interruption is None and may_come_of_a_cancellation(known):
            context.cause = known = await why_doomed(context.ledger, context.txid) or known
        return known

    return uncancellable(find_out())


async def _note_heuristic_abort(context: CommitContext, branch: Branch, kind: Settled) -> None:
    if kind is Settled.HEURISTIC_ROLLBACK:
        await branch.forget()  # rolled back as decided, though not by this coordinator
    else:
        await record_heuristic(context, branch, kind, Decision.ABORT)


async def record_abort(context: CommitContext, branches: Sequence[Branch]) -> None:
    """Record ABORT in the ledger; repeated until the ledger answers."""
    records = [branch_record(branch, None) for branch in branches]
    await repeat_until_answered(
        lambda: context.ledger.decide(context.txid, Decision.ABORT, records, protocol=context.protocol)
    )
    context.move(CommitEvent.ABORT_RECORDED)
