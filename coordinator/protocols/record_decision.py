"""Ends a commit that participants or acceptors have fixed: the branches are committed while the ledger
records its copy of the decision. Neither the branches nor the caller wait for the ledger."""

from __future__ import annotations

import logging

from undoubt.coordinator.errors import LedgerError, OutcomeUnknown
from undoubt.coordinator.ledger.contract import BranchRecord
from undoubt.coordinator.protocols.context import (
    CommitContext,
    CommitEvent,
    branch_record,
    repeat_until_answered,
)
from undoubt.coordinator.protocols.second_phase import apply, report_bugs
from undoubt.coordinator.protocols.steps import TwoPhaseStep
from undoubt.participants.contract import Decision
from undoubt.participants.tasks import all_of

log = logging.getLogger(__name__)


def records_of(context: CommitContext) -> list[BranchRecord]:
    """The prepared branches, as the ledger records them. If none is prepared, because the agent of last-agent
    commit is alone: its own branch, without a transaction id, since the ledger records no decision without a
    name."""
    prepared = [branch_record(branch, evidence) for branch, evidence in context.tally.prepared]
    return prepared or [branch_record(branch, None) for branch in context.branches]


async def apply_and_record(context: CommitContext) -> None:
    """Commit the branches and record COMMIT; returns once both are done, or the ledger has refused the
    record."""
    context.move(CommitEvent.COMMIT_FIXED)
    # In this order: the caller waits for COMMIT PREPARED, so that is sent first.
    report_bugs(context, await all_of([_apply(context), _record(context)]))


async def _apply(context: CommitContext) -> None:
    await apply(context)
    # A ledger that has no leader for a while must not delay the release of connections.
    await context.release()


async def _record(context: CommitContext) -> None:
    """Record COMMIT. If that fails, recovery finds the decision in the participants or acceptors that have
    fixed it."""
    records = records_of(context)
    await context.reach(TwoPhaseStep.BEFORE_DECIDE, context.txid)
    try:
        await repeat_until_answered(
            lambda: context.ledger.decide(context.txid, Decision.COMMIT, records, protocol=context.protocol)
        )
    except (LedgerError, OutcomeUnknown) as error:
        log.warning("the ledger did not record that %s is committed: %s", context.txid, error)
        return
    context.move(CommitEvent.COMMIT_RECORDED)
    await context.reach(TwoPhaseStep.AFTER_DECIDE, context.txid)
