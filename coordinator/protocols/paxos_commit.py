"""Paxos Commit: a quorum of acceptors stores the votes, so no single process can block the transaction.

::

    prepare all branches ─→ vote: every acceptor stores all votes ─→ COMMIT PREPARED all, and
              │                        │                              decide(COMMIT) in the ledger ─→ finish
              │                        └── a recovery was faster: the decision that the acceptors chose
              └── a no, or no answer: nothing is voted, roll back all

Gray and Lamport, *Consensus on Transaction Commit*, 2006. The rules and the duties of each process:
:mod:`undoubt.coordinator.paxos`. The object that calls the acceptors is ``context.ledger.acceptors``.

The commit point is the moment when a quorum of acceptors has stored the votes: that needs no leader, so
neither a dead leader of the ledger nor an election delays it. A transaction whose votes were not sent to the
acceptors can never commit, and may be rolled back by this process alone. Once the votes are sent, only the
answer of the acceptors decides: no timeout makes the transaction aborted. The ledger records a copy of the
decision afterwards; then the acceptors may forget the transaction.
"""

from __future__ import annotations

from undoubt.coordinator.errors import LedgerError, OutcomeUnknown
from undoubt.coordinator.ledger.contract import Acceptors
from undoubt.coordinator.protocols.causes import why_recorded
from undoubt.coordinator.protocols.context import (
    CommitContext,
    CommitEvent,
    branch_record,
    repeat_until_answered,
)
from undoubt.coordinator.protocols.first_phase import first_phase
from undoubt.coordinator.protocols.record_decision import apply_and_record
from undoubt.coordinator.protocols.second_phase import record_abort, roll_back
from undoubt.coordinator.protocols.steps import PaxosStep
from undoubt.participants.contract import Decision
from undoubt.participants.errors import UsageError


async def paxos_commit(context: CommitContext) -> None:
    """Bring ``context`` to its end; raises the same errors as ``two_phase_commit``."""
    if not await first_phase(context):
        return
    if await _vote(context, acceptors_of(context)) is Decision.ABORT:
        # The acceptors keep ABORT until the ledger has recorded it.
        await record_abort(context, [branch for branch, _ in context.tally.prepared])
        await roll_back(context, context.branches, await why_recorded(context.ledger, context.txid))
    await apply_and_record(context)


def acceptors_of(context: CommitContext) -> Acceptors:
    """Return the acceptors of the ledger. Raises ``UsageError`` if the ledger has none."""
    acceptors = context.ledger.acceptors
    if acceptors is None:
        raise UsageError("Paxos Commit needs the nodes of a cluster as acceptors (ledger.url = raft://…)")
    return acceptors


async def _vote(context: CommitContext, acceptors: Acceptors) -> Decision:
    """Pass the commit point: send the votes, repeatedly until there is an answer, and return the decision."""
    records = [branch_record(branch, evidence) for branch, evidence in context.tally.prepared]
    await context.reach(PaxosStep.BEFORE_VOTE, context.txid)
    context.move(CommitEvent.DECIDE_SENT)
    try:
        decision = await repeat_until_answered(lambda: acceptors.vote(context.txid, records))
    except LedgerError as error:
        raise OutcomeUnknown(context.txid, f"the acceptors did not report the outcome: {error}") from error
    await context.reach(PaxosStep.AFTER_VOTE, context.txid)
    return decision
