"""Last-agent commit: one branch commits in one phase, together with the row that is the decision.

::

    prepare all others ─→ row and COMMIT at the agent ─→ COMMIT PREPARED all others, and decide(COMMIT) in
              │                    │                     the ledger ─→ finish, delete the row
              │                    ├── refused: the row is not there, roll back all
              │                    └── no answer: tombstone, or the row that is there ─→ decide in the ledger
              └── a no, or no answer: nothing was sent to the agent, roll back all

Known as logging last resource (Oracle WebLogic Server, "Developing JTA Applications"), without the tombstone.
The calls to the agent: :mod:`undoubt.participants.last_agent`. ``tests/models/last_agent.py`` is the
specification.

The commit point is the COMMIT of the agent, which makes the row visible. The agent is not prepared, so its
database need not be able to prepare, and no call to the ledger comes before the commit point. The price: the
decision is not replicated by the ledger. While the agent's database is down, the other branches stay in
doubt.

An unanswered COMMIT proves nothing, and is never taken for a rollback: the COMMIT may still be on its way.
Then this process does what recovery does: it writes the tombstone under the key of the row, so that either
the COMMIT finds the tombstone and fails, or the tombstone finds the row. What is there then goes to the
ledger, and the ledger's answer counts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import NoReturn

import msgspec

from undoubt.coordinator.errors import LedgerError, OutcomeUnknown
from undoubt.coordinator.ledger.contract import BranchRecord
from undoubt.coordinator.protocols.context import (
    CommitContext,
    CommitEvent,
    record_heuristic,
    repeat_until_answered,
)
from undoubt.coordinator.protocols.first_phase import collect_votes, find_writers
from undoubt.coordinator.protocols.record_decision import apply_and_record, records_of
from undoubt.coordinator.protocols.second_phase import abort_after_votes, apply, roll_back
from undoubt.coordinator.protocols.steps import LastAgentStep
from undoubt.participants.backoff import pauses
from undoubt.participants.contract import Branch, Decision, Settled
from undoubt.participants.errors import BranchFailed, ParticipantError, ParticipantUnavailable, UsageError
from undoubt.participants.ids import Gid
from undoubt.participants.invariant import InvariantViolation
from undoubt.participants.last_agent import (
    AgentEntry,
    AgentPlace,
    AgentRow,
    AgentUnanswered,
    LastAgentBranch,
    agent_of,
)
from undoubt.participants.tasks import all_within

log = logging.getLogger(__name__)

LOOK_PAUSE_S = (0.05, 2.0)
"""The first and the longest pause between two attempts to find out whether the agent has committed."""


async def last_agent_commit(context: CommitContext) -> None:
    """Bring ``context`` to its end; raises the same errors as ``two_phase_commit``."""
    writers = await find_writers(context)
    if writers is None:
        return
    await _check_others(context, writers)
    agent, entry = await _agent(context)
    context.tally.reading.discard(agent.gid)  # it commits with the row, whatever it did
    await collect_votes(context, [branch for branch in writers if branch.gid != agent.gid])
    if context.tally.failure is not None:
        await abort_after_votes(context, context.tally.failure)
    records = records_of(context)
    await context.reach(LastAgentStep.BEFORE_AGENT, context.txid)
    context.agent_row = entry
    context.move(CommitEvent.AGENT_SENT)
    try:
        await agent.commit_as_agent(entry, msgspec.msgpack.encode(records))
    except BranchFailed as error:
        await roll_back(context, context.branches, error)
    except AgentUnanswered as error:
        await _find_out(context, agent.gid, entry, records, error)
    else:
        await context.reach(LastAgentStep.AFTER_AGENT, context.txid)
        await apply_and_record(context)


def branches_of(row: bytes) -> tuple[BranchRecord, ...]:
    """The branches that the row of a COMMIT lists: all but the agent's."""
    return msgspec.msgpack.decode(row, type=tuple[BranchRecord, ...])


async def _check_others(context: CommitContext, writers: Sequence[Branch]) -> None:
    """Roll back all branches, before any is prepared, if another one than the agent's cannot be."""
    name = "" if context.agent is None else context.agent.participant
    others = {branch.gid.participant for branch in writers if not branch.prepares} - {name}
    if others:
        names = " and ".join(map(repr, sorted(others)))
        cause = UsageError(
            f"{names} cannot prepare (max_prepared_transactions is 0), and the agent of last-agent commit,"
            f" the only branch that need not, is {name!r}"
        )
        await roll_back(context, context.branches, cause)


async def _agent(context: CommitContext) -> tuple[LastAgentBranch, AgentEntry]:
    """Return the branch that is the agent, and what identifies its row. Rolls back all branches, of which
    none is prepared yet, if the branch cannot be the agent."""
    binding = context.agent
    if binding is None or not context.key:
        raise InvariantViolation(f"{context.txid} runs in a session without an agent, or without a key")
    place = AgentPlace(binding.system, binding.history)
    entry = AgentEntry(context.ledger.ledger_id, context.txid, context.key.agent(context.txid), place)
    name = binding.participant
    agents = [branch for branch in context.branches if branch.gid.participant == name]
    agent = next((branch for branch in agents if isinstance(branch, LastAgentBranch)), None)
    if agent is None:
        cause = UsageError(f"the branch in the agent, {name!r}, cannot be one that another process prepares")
        await roll_back(context, context.branches, cause)
    [answer] = await all_within([agent.check_as_agent(entry)], context.remaining_s())
    if isinstance(answer, asyncio.CancelledError):
        answer = TimeoutError(f"no answer from the agent, {name!r}, within the timeout")
    if isinstance(answer, BaseException):
        await roll_back(context, context.branches, answer)
    return agent, entry


async def _find_out(
    context: CommitContext,
    agent: Gid,
    entry: AgentEntry,
    records: Sequence[BranchRecord],
    unanswered: AgentUnanswered,
) -> None:
    """Find out what became of a COMMIT without an answer, as recovery does, and do the same. At its deadline
    the caller gets ``OutcomeUnknown`` while this goes on."""
    row = await _conclude(context, entry, agent.participant, unanswered)
    try:
        decision = await repeat_until_answered(
            lambda: context.ledger.decide(context.txid, row.decision, records, protocol=context.protocol)
        )
    except LedgerError as error:
        raise OutcomeUnknown(context.txid, f"the ledger did not accept the decision: {error}") from error
    if decision is Decision.COMMIT:
        context.move(CommitEvent.COMMIT_RECORDED)
        await apply(context)
        return
    context.move(CommitEvent.ABORT_RECORDED)
    await _roll_back_others(context, agent, row, unanswered.cause)


async def _roll_back_others(
    context: CommitContext, agent: Gid, row: AgentRow, cause: BaseException
) -> NoReturn:
    """Roll back all branches but the agent's, which has ended. If the ledger holds ABORT although the agent
    has committed, that is a heuristic outcome."""
    for branch in context.branches:
        if branch.gid == agent and row.decision is Decision.COMMIT:
            await record_heuristic(context, branch, Settled.HEURISTIC_COMMIT, Decision.ABORT)
    await roll_back(context, [branch for branch in context.branches if branch.gid != agent], cause)


async def _conclude(
    context: CommitContext, entry: AgentEntry, name: str, unanswered: AgentUnanswered
) -> AgentRow:
    """Return the row, or the tombstone, of the transaction; repeated until the agent answers."""
    waits = pauses(*LOOK_PAUSE_S)
    while True:
        try:
            row = await _ask(context, entry, name)
        except ParticipantError as error:
            log.info("whether the agent of %s has committed is not known yet: %s", context.txid, error)
        else:
            if row is not None:
                return row
            raise OutcomeUnknown(
                context.txid,
                f"the answer to COMMIT was lost ({unanswered}), and the agent's database is in another"
                " history now, where a missing row proves nothing",
            ) from unanswered.cause
        await asyncio.sleep(next(waits))


async def _ask(context: CommitContext, entry: AgentEntry, name: str) -> AgentRow | None:
    agent = agent_of(context.find(name))
    if agent is None:
        raise ParticipantUnavailable(name, "this process has no such participant now")
    return await agent.conclude(entry)
