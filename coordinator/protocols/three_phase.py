"""Three-phase commit: the participants can end it among themselves, without coordinator and ledger.

::

    enlist, prepare all ─→ PRECOMMIT in the ledger ─→ PRECOMMIT in every participant ─→ COMMIT PREPARED all
            │                      │                          │                         decide(COMMIT)
            └── any no, any doubt ─┴── bury, roll back all    └── not in all ─→ terminate

Skeen, *Nonblocking Commit Protocols*, 1981. The rows and their states:
:mod:`undoubt.participants.three_phase`; what ends it when this process does not:
:mod:`undoubt.coordinator.protocols.termination`.

The moment that counts is when every row says PRECOMMIT (in a termination, when its attempt has succeeded):
from then on every termination comes to COMMIT. What the ledger records afterwards is a copy, so that the
coordinator and whoever terminates can only ever record the same, and an unavailable ledger holds up nothing.

This process may abort by itself only as long as it has asked nobody to PRECOMMIT: until then no row can say
so, and every termination comes to ABORT too. Afterwards only a termination may.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Collection

from undoubt.coordinator.errors import OutcomeUnknown
from undoubt.coordinator.protocols.causes import why_recorded
from undoubt.coordinator.protocols.context import (
    CommitContext,
    CommitEvent,
    branch_record,
    repeat_until_answered,
)
from undoubt.coordinator.protocols.first_phase import first_phase, prepare
from undoubt.coordinator.protocols.record_decision import apply_and_record
from undoubt.coordinator.protocols.second_phase import abort_after_votes
from undoubt.coordinator.protocols.steps import ThreePhaseStep
from undoubt.coordinator.protocols.termination import Round, ask, bury
from undoubt.coordinator.protocols.termination_rules import CONTRADICTION, Move
from undoubt.coordinator.uncancellable import all_within
from undoubt.participants.backoff import pauses
from undoubt.participants.contract import Branch, PrepareResult, Vote
from undoubt.participants.errors import BranchFailed, ParticipantError
from undoubt.participants.ids import Gid
from undoubt.participants.three_phase import Charter, Event, States

log = logging.getLogger(__name__)

FIRST_ELECTION = 1
"""The transaction's own coordinator is elected without an election."""
ROUND_PAUSE_S = (0.05, 2.0)
"""Between two rounds of termination: the first pause at most, and the longest."""


async def three_phase_commit(context: CommitContext) -> None:
    """Bring ``context`` to its end; raises what ``two_phase_commit`` does."""
    if not await first_phase(context, _enlist_and_prepare, _bury):
        return
    await _precommit_in_ledger(context)
    context.move(CommitEvent.DECIDE_SENT)
    if not await _precommit_in_rows(context):
        await _terminate(context)
    await apply_and_record(context)


def _charter(context: CommitContext) -> Charter:
    """What stands in every row of the transaction."""
    return Charter(context.tally.asked, context.termination)


def _gids(context: CommitContext) -> dict[int, Gid]:
    """Every branch that has a row, by its number."""
    return {gid.branch: gid for gid in context.tally.asked}


async def _enlist_and_prepare(context: CommitContext, branch: Branch) -> PrepareResult:
    """PREPARE only under a row: whoever comes later must find it."""
    participant = context.find(branch.gid.participant)
    try:
        await context.reach(ThreePhaseStep.BEFORE_ENLIST, branch.gid)
        note, charter = context.key.note(branch.gid), _charter(context)
        enlisted = participant is not None and await participant.states.enlist(branch.gid, charter, note)
        await context.reach(ThreePhaseStep.AFTER_ENLIST, branch.gid)
    except ParticipantError as error:
        return PrepareResult(Vote.ABORT, reason=error)
    if not enlisted:
        reason = BranchFailed(branch.gid.participant, "somebody else has begun to end the transaction")
        return PrepareResult(Vote.ABORT, reason=reason)
    return await prepare(context, branch)


async def _precommit_in_ledger(context: CommitContext) -> None:
    records = [branch_record(branch, evidence) for branch, evidence in context.tally.prepared]
    await context.reach(ThreePhaseStep.BEFORE_LEDGER_PRECOMMIT, context.txid)
    context.move(CommitEvent.PRECOMMIT_SENT)
    asking = repeat_until_answered(
        lambda: context.ledger.precommit(context.txid, records, protocol=context.protocol)
    )
    [answer] = await all_within([asking], context.remaining_s())
    if isinstance(answer, asyncio.CancelledError):
        answer = TimeoutError("the ledger did not answer within the transaction's timeout")
    if isinstance(answer, BaseException):
        # No row was asked to PRECOMMIT yet: nothing but ABORT can come of it.
        await abort_after_votes(context, answer, await _bury(context))
    await context.reach(ThreePhaseStep.AFTER_LEDGER_PRECOMMIT, context.txid)


async def _precommit_in_rows(context: CommitContext) -> bool:
    """Whether every row has become PRECOMMIT: then COMMIT is fixed. If not, only a termination can tell."""

    async def precommit(states: States, gid: Gid) -> bool:
        await context.reach(ThreePhaseStep.BEFORE_PRECOMMIT, gid)
        changed = await states.attempt(gid, FIRST_ELECTION, Event.TRY_COMMIT)
        await context.reach(ThreePhaseStep.AFTER_PRECOMMIT, gid)
        return changed

    gids = _gids(context)
    answers, _ = await ask(gids, context.find, precommit)
    return len(answers) == len(gids) and all(answers.values())


async def _terminate(context: CommitContext) -> None:
    """Round after round until the outcome is fixed; returns if it is COMMIT. The caller waits until its
    deadline, and is then told that nobody knows yet."""
    gids, limits = _gids(context), pauses(*ROUND_PAUSE_S)
    while True:
        ended = await Round(_charter(context), context.find, context.observer).run()
        match ended.move:
            case Move.COMMIT:
                return
            case Move.ABORT:
                why = await why_recorded(context.ledger, context.txid)
                await abort_after_votes(context, why, [gids[number] for number in ended.unburied])
            case Move.CONFLICT:
                raise OutcomeUnknown(context.txid, CONTRADICTION)
            case _:
                log.info("termination of %s is blocked: %s", context.txid, ended.silent or "by another")
        # Two that compete must not do so for ever.
        await asyncio.sleep(random.uniform(0, next(limits)))  # noqa: S311 - jitter


async def _bury(context: CommitContext) -> Collection[Gid]:
    """A tombstone comes before the rollback. Branches without one are left to recovery."""
    gids = _gids(context)
    _, unburied = await bury(gids, _charter(context), context.find, context.observer)
    return [gids[number] for number in unburied]
