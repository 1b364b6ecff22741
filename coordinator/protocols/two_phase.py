r"""Two-phase commit with presumed abort. Open this file first.

::

    prepare all branches ─→ decide(COMMIT) in the ledger ─→ COMMIT PREPARED all ─→ finish
              │                        │
              └── any no, any doubt ───┴── ABORT already recorded ─→ roll back all

The only moment that counts is ``decide``: before it nothing is committed and everything may be rolled back;
after it everything will be committed, by this process or by recovery. A transaction that is aborted
leaves no record (presumed abort: Mohan, Lindsay and Obermarck, *Transaction Management in the R\* Distributed
Database Management System*, 1986, §3), unless a rollback could not be confirmed. A transaction with one
writing branch needs no vote and no record: its database decides (one-phase commit; X/Open XA, §2.3.2).
Branches that wrote nothing vote READ_ONLY, and stay open until every writer has committed: they may hold
locks, or a notification that must not go out yet.

Each ``await`` is a place where this process may die. :mod:`coordinator.protocols.steps` names them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import NoReturn

from coordinator.errors import LedgerError, OutcomeUnknown, SessionLost, TransactionAborted
from coordinator.ledger.contract import Decision
from coordinator.protocols.course import (
    Course,
    Phase,
    branch_record,
    heuristic_outcome,
    record_heuristic,
    repeat_until_answered,
)
from coordinator.protocols.steps import TwoPhaseStep
from coordinator.protocols.voting import Tally, classify, collect_votes
from coordinator.steadfast import all_of
from participants.contract import HEURISTICS, Branch, Settled
from participants.errors import BranchFailed, ParticipantError, ParticipantRefused

log = logging.getLogger(__name__)

BUSY_ATTEMPTS_MAX = 8
"""How often a branch that answers BUSY is asked again (after 10, 20, 40 … ms) before recovery takes over."""


async def two_phase_commit(course: Course) -> None:
    """Bring ``course`` to its end. Raises ``TransactionAborted``, ``OutcomeUnknown`` or, if the transaction
    is aborted but some branch is not, ``HeuristicOutcome``; heuristics of a committed one are in
    ``course.heuristics``."""
    writers, readers, failure = await classify(course)
    if failure is not None:
        await roll_back(course, course.branches, failure)
    if len(writers) <= 1:
        await _commit_in_one_phase(course, writers, readers)
        return
    tally = await collect_votes(course, writers)
    readers = [*readers, *tally.readers]
    if tally.failure is not None:
        await _abort_after_votes(course, tally, tally.failure)
    if not tally.prepared:
        course.enter(Phase.COMMITTED)
        await _end_readers(course, readers)
        return
    decision = await _decide(course, tally)
    if decision is Decision.ABORT:
        await roll_back(
            course, course.branches, SessionLost("the coordinator's session ended before the decision")
        )
    await _apply(course, [branch for branch, _ in tally.prepared], readers)


async def _decide(course: Course, tally: Tally) -> Decision:
    """The commit point. Repeated until there is an answer: from here on only the ledger knows."""
    records = [branch_record(branch, evidence) for branch, evidence in tally.prepared]
    await course.reach(TwoPhaseStep.BEFORE_DECIDE, course.txid)
    course.enter(Phase.DECIDING)
    try:
        decision = await repeat_until_answered(
            lambda: course.ledger.decide(course.txid, Decision.COMMIT, records, protocol=course.protocol)
        )
    except LedgerError as error:
        raise OutcomeUnknown(course.txid, f"the ledger did not take the decision: {error}") from error
    course.recorded = True
    if decision is Decision.COMMIT:
        course.enter(Phase.COMMITTED)
    await course.reach(TwoPhaseStep.AFTER_DECIDE, course.txid)
    return decision


async def _apply(course: Course, prepared: Sequence[Branch], readers: Sequence[Branch]) -> None:
    """Second phase. Whatever fails here is ``pending``: the transaction is committed all the same."""
    course.pending = {branch.gid: branch for branch in prepared}
    await all_of(_commit_branch(course, branch) for branch in prepared)
    course.enter(Phase.APPLIED)
    pause_s = 0.05
    while readers and course.pending:
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, 5.0)
        await all_of(_commit_branch(course, branch) for branch in list(course.pending.values()))
    await _end_readers(course, readers)


async def _commit_branch(course: Course, branch: Branch) -> None:
    await course.reach(TwoPhaseStep.BEFORE_SECOND_PHASE, branch.gid)
    try:
        settled = await _while_busy(branch.commit)
    except ParticipantError:
        return  # stays pending: recovery finishes it from the recorded decision
    await course.reach(TwoPhaseStep.AFTER_SECOND_PHASE, branch.gid)
    if settled is Settled.HEURISTIC_COMMIT:
        await branch.forget()  # on its own, but what was decided
    elif settled in HEURISTICS:
        await record_heuristic(course, branch, settled, Decision.COMMIT)
    if settled in HEURISTICS or settled is Settled.APPLIED:
        del course.pending[branch.gid]


async def _while_busy(call: Callable[[], Awaitable[Settled]]) -> Settled:
    settled = await call()
    for attempt in range(BUSY_ATTEMPTS_MAX):
        if settled is not Settled.BUSY:
            break
        await asyncio.sleep(0.01 * 2**attempt)
        settled = await call()
    return settled


async def _end_readers(course: Course, readers: Sequence[Branch]) -> None:
    for reader, result in zip(readers, await all_of(reader.commit() for reader in readers), strict=True):
        if isinstance(result, BaseException):
            log.warning("read-only branch %s did not end with its transaction: %s", reader.gid, result)
    course.enter(Phase.APPLIED)


async def _commit_in_one_phase(course: Course, writers: Sequence[Branch], readers: Sequence[Branch]) -> None:
    """At most one branch has anything to commit: its own COMMIT is the decision."""
    if writers and course.remaining_s() <= 0:
        await roll_back(course, course.branches, TimeoutError("the transaction's timeout has passed"))
    for writer in writers:
        course.enter(Phase.DECIDING)
        try:
            settled = await writer.commit_one_phase()
        except (BranchFailed, ParticipantRefused) as error:
            await roll_back(course, readers, error)
        except ParticipantError as error:
            raise OutcomeUnknown(course.txid, str(error)) from error
        else:
            await _judge_one_phase(course, writer, settled, readers)
    course.enter(Phase.COMMITTED)
    await _end_readers(course, readers)


async def _judge_one_phase(
    course: Course, writer: Branch, settled: Settled, readers: Sequence[Branch]
) -> None:
    """Return if it committed; raise what else is true."""
    match settled:
        case Settled.APPLIED:
            return
        case Settled.HEURISTIC_COMMIT:
            await writer.forget()
        case Settled.ABSENT | Settled.HEURISTIC_ROLLBACK:
            await writer.forget()
            participant = writer.gid.participant
            await roll_back(course, readers, BranchFailed(participant, "rolled back instead of committing"))
        case Settled.HEURISTIC_MIXED:
            await record_heuristic(course, writer, settled, Decision.COMMIT)
            raise heuristic_outcome(course, [settled], Decision.COMMIT)
        case Settled.HEURISTIC_HAZARD | Settled.BUSY:
            await writer.forget()
            where = f"participant {writer.gid.participant!r}"
            raise OutcomeUnknown(
                course.txid, f"the answer of {where} to COMMIT was lost, and nothing there proves either"
            )


async def _abort_after_votes(course: Course, tally: Tally, failure: BaseException) -> NoReturn:
    """Some branch will not, or may not, have prepared."""
    for branch, kind in tally.heuristic:
        await _note_heuristic_abort(course, branch, kind)
    ended = {branch.gid for branch, _ in tally.heuristic}
    live = [branch for branch in course.branches if branch.gid not in ended]
    await roll_back(course, live, failure)


async def roll_back(course: Course, branches: Sequence[Branch], cause: BaseException) -> NoReturn:
    """Roll back ``branches``; always raises, ``TransactionAborted`` unless a branch did otherwise.

    A rollback that cannot be confirmed after PREPARE was sent makes an ABORT record, so that
    the branch does not stay ACTIVE for as long as this coordinator's session lives.
    """
    course.cause = cause
    course.enter(Phase.ABORTED)
    results = await all_of(_while_busy(branch.rollback) for branch in branches)
    for branch, result in zip(branches, results, strict=True):
        uncertain = isinstance(result, BaseException) or result is Settled.BUSY
        if (uncertain and (branch.gid in course.asked or course.recorded)) or (
            result is Settled.ABSENT and branch.gid in course.unanswered
        ):
            course.pending[branch.gid] = branch
    if course.pending and not course.recorded:
        await record_abort(course, [branch for branch in branches if branch.gid in course.asked])
    kinds: list[Settled] = [*course.heuristics.values()]
    for branch, result in zip(branches, results, strict=True):
        if isinstance(result, Settled):
            kinds.append(result)
            if result in HEURISTICS:
                await _note_heuristic_abort(course, branch, result)
    if course.heuristics:
        raise heuristic_outcome(course, kinds, Decision.ABORT) from cause
    raise TransactionAborted(course.txid, cause, course.votes) from cause


async def _note_heuristic_abort(course: Course, branch: Branch, kind: Settled) -> None:
    if kind is Settled.HEURISTIC_ROLLBACK:
        await branch.forget()  # on its own, but what is being done anyway
    else:
        await record_heuristic(course, branch, kind, Decision.ABORT)


async def record_abort(course: Course, branches: Sequence[Branch]) -> None:
    """Write ABORT down, for as long as it takes."""
    records = [branch_record(branch, None) for branch in branches]
    await repeat_until_answered(
        lambda: course.ledger.decide(course.txid, Decision.ABORT, records, protocol=course.protocol)
    )
    course.recorded = True
