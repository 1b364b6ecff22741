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

Each ``await`` is a place where this process may die. :mod:`undoubt.coordinator.protocols.steps` names them.
"""

from __future__ import annotations

from undoubt.coordinator.errors import LedgerError, OutcomeUnknown
from undoubt.coordinator.ledger.contract import Decision
from undoubt.coordinator.protocols.causes import why_recorded
from undoubt.coordinator.protocols.course import Course, Phase, branch_record, repeat_until_answered
from undoubt.coordinator.protocols.ending import (
    abort_after_votes,
    apply,
    commit_in_one_phase,
    commit_readers_alone,
    roll_back,
)
from undoubt.coordinator.protocols.steps import TwoPhaseStep
from undoubt.coordinator.protocols.voting import Tally, classify, collect_votes, prepare


async def two_phase_commit(course: Course) -> None:
    """Bring ``course`` to its end. Raises ``TransactionAborted``, ``OutcomeUnknown`` or, if the transaction
    is aborted but some branch is not, ``HeuristicOutcome``; heuristics of a committed one are in
    ``course.heuristics``."""
    writers, readers, failure = await classify(course)
    if failure is not None:
        await roll_back(course, course.branches, failure)
    if len(writers) <= 1:
        await commit_in_one_phase(course, writers, readers)
        return
    tally = await collect_votes(course, writers, lambda branch: prepare(course, branch))
    readers = [*readers, *tally.readers]
    if tally.failure is not None:
        await abort_after_votes(course, tally, tally.failure)
    if not tally.prepared:
        await commit_readers_alone(course, readers)
        return
    decision = await _decide(course, tally)
    if decision is Decision.ABORT:
        await roll_back(course, course.branches, await why_recorded(course.ledger, course.txid))
    await apply(course, [branch for branch, _ in tally.prepared], readers)


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
