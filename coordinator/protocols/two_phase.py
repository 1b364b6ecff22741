r"""Two-phase commit with presumed abort. Open this file first.

::

    prepare all branches ─→ decide(COMMIT) in the ledger ─→ COMMIT PREPARED all ─→ finish
              │                        │
              └── a no, or no answer ──┴── ABORT already recorded ─→ roll back all

The commit point is ``decide``: before it nothing is committed and every branch may be rolled back; after it
every branch will be committed, by this process or by recovery. An aborted transaction leaves no record
(presumed abort: Mohan, Lindsay and Obermarck, *Transaction Management in the R\* Distributed Database
Management System*, 1986, §3), unless a rollback could not be confirmed. A transaction with one writing branch
needs no vote and no record: the database of that branch decides (one-phase commit; X/Open XA, §2.3.2).
A transaction with an idempotency key is always voted on and recorded, with its key and its result in the same
command: a repetition has to find them.
Branches that wrote nothing vote READ_ONLY, and stay open until every writer has committed, because they may
hold locks, or a notification that must not be sent before.

At each ``await`` this process may die. :mod:`undoubt.coordinator.protocols.steps` names these places.
"""

from __future__ import annotations

from collections.abc import Sequence

from undoubt.coordinator.errors import LedgerError, OutcomeUnknown
from undoubt.coordinator.ledger.contract import BranchRecord
from undoubt.coordinator.protocols.causes import why_recorded
from undoubt.coordinator.protocols.context import (
    CommitContext,
    CommitEvent,
    branch_record,
    repeat_until_answered,
)
from undoubt.coordinator.protocols.first_phase import first_phase
from undoubt.coordinator.protocols.second_phase import apply, roll_back
from undoubt.coordinator.protocols.steps import TwoPhaseStep
from undoubt.participants.contract import Decision


async def two_phase_commit(context: CommitContext) -> None:
    """Bring ``context`` to its end. Raises ``TransactionAborted``, ``OutcomeUnknown`` or, if the transaction
    is aborted but some branch is not, ``HeuristicOutcome``. The heuristic outcomes of a committed transaction
    are in ``context.heuristics``."""
    if not await first_phase(context):
        return
    decision = await _decide(context)
    if decision is Decision.ABORT:
        await roll_back(context, context.branches, await why_recorded(context.ledger, context.txid))
    await apply(context)


async def _record(context: CommitContext, records: Sequence[BranchRecord]) -> Decision:
    ledger, txid, given = context.ledger, context.txid, context.given_key
    if given is None:
        return await ledger.decide(txid, Decision.COMMIT, records, protocol=context.protocol)
    return await ledger.commit_key(txid, given.key, given.proof, given.result, records)


async def _decide(context: CommitContext) -> Decision:
    """Pass the commit point: send COMMIT to the ledger, repeatedly until there is an answer, and return the
    decision. Once COMMIT is sent, only the ledger knows the decision."""
    records = [branch_record(branch, evidence) for branch, evidence in context.tally.prepared]
    await context.reach(TwoPhaseStep.BEFORE_DECIDE, context.txid)
    context.move(CommitEvent.DECIDE_SENT)
    try:
        decision = await repeat_until_answered(lambda: _record(context, records))
    except LedgerError as error:
        raise OutcomeUnknown(context.txid, f"the ledger did not accept the decision: {error}") from error
    committed = decision is Decision.COMMIT
    context.move(CommitEvent.COMMIT_RECORDED if committed else CommitEvent.ABORT_RECORDED)
    await context.reach(TwoPhaseStep.AFTER_DECIDE, context.txid)
    return decision
