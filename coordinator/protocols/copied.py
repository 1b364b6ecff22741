"""The end of a commit that others than the ledger have fixed (participants, or acceptors): branches are
committed while the ledger gets its copy of the decision, and wait for it no more than the caller does."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from undoubt.coordinator.errors import LedgerError, OutcomeUnknown
from undoubt.coordinator.ledger.contract import Decision
from undoubt.coordinator.protocols.course import Course, branch_record, repeat_until_answered
from undoubt.coordinator.protocols.ending import apply, report_bugs
from undoubt.coordinator.protocols.steps import TwoPhaseStep
from undoubt.coordinator.protocols.voting import Tally
from undoubt.coordinator.steadfast import all_of
from undoubt.participants.contract import Branch

log = logging.getLogger(__name__)


async def apply_and_record(course: Course, tally: Tally, readers: Sequence[Branch]) -> None:
    """Returns once both are done, or the ledger has refused its copy."""
    course.fixed_elsewhere = True
    # In this order: what the caller waits for is sent first.
    report_bugs(course, await all_of([_apply(course, tally, readers), _record(course, tally)]))


async def _apply(course: Course, tally: Tally, readers: Sequence[Branch]) -> None:
    await apply(course, [branch for branch, _ in tally.prepared], readers)
    # A ledger without a leader for a while must not hold back connections that others could use.
    await course.release()


async def _record(course: Course, tally: Tally) -> None:
    """What cannot be recorded is found, by whoever recovers, where it was fixed."""
    records = [branch_record(branch, evidence) for branch, evidence in tally.prepared]
    await course.reach(TwoPhaseStep.BEFORE_DECIDE, course.txid)
    try:
        await repeat_until_answered(
            lambda: course.ledger.decide(course.txid, Decision.COMMIT, records, protocol=course.protocol)
        )
    except (LedgerError, OutcomeUnknown) as error:
        log.warning("the ledger did not record that %s is committed: %s", course.txid, error)
        return
    course.recorded = True
    await course.reach(TwoPhaseStep.AFTER_DECIDE, course.txid)
