"""Paxos Commit: no single process knows the outcome alone, so none can keep the others waiting.

::

    prepare all branches ─→ vote: every acceptor stores all votes ─→ COMMIT PREPARED all, and
              │                        │                              decide(COMMIT) in the ledger ─→ finish
              │                        └── a recovery was faster: whatever the acceptors chose
              └── any no, any doubt: not voted, roll back all

Gray and Lamport, *Consensus on Transaction Commit*, 2006. The rules, and what each process owes to them:
:mod:`undoubt.coordinator.paxos`; who asks the acceptors: ``context.ledger.acceptors``.

The moment that counts is when a quorum of acceptors has stored the votes: nobody leads it, so neither a dead
leader of the ledger nor an election holds it up. A transaction that is not voted on can never commit, and may
be rolled back by this process alone. From the first vote on only the acceptors' answer tells what became of
it: no time that passes makes it aborted. What the ledger records afterwards is a copy, after which the
acceptors may forget.
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
    """Bring ``context`` to its end; raises what ``two_phase_commit`` does."""
    if not await first_phase(context):
        return
    if await _vote(context, acceptors_of(context)) is Decision.ABORT:
        # The acceptors hold it until the ledger does.
        await record_abort(context, [branch for branch, _ in context.tally.prepared])
        await roll_back(context, context.branches, await why_recorded(context.ledger, context.txid))
    await apply_and_record(context)


def acceptors_of(context: CommitContext) -> Acceptors:
    """Raises ``UsageError`` where the ledger has none."""
    acceptors = context.ledger.acceptors
    if acceptors is None:
        raise UsageError("Paxos Commit needs the nodes of a cluster as acceptors (ledger.url = raft://…)")
    return acceptors


async def _vote(context: CommitContext, acceptors: Acceptors) -> Decision:
    """The commit point. Repeated, with the same votes, until there is an answer."""
    records = [branch_record(branch, evidence) for branch, evidence in context.tally.prepared]
    await context.reach(PaxosStep.BEFORE_VOTE, context.txid)
    context.move(CommitEvent.DECIDE_SENT)
    try:
        decision = await repeat_until_answered(lambda: acceptors.vote(context.txid, records))
    except LedgerError as error:
        raise OutcomeUnknown(context.txid, f"the acceptors did not tell the outcome: {error}") from error
    await context.reach(PaxosStep.AFTER_VOTE, context.txid)
    return decision
