"""Three-phase commit: the participants can end it among themselves, without coordinator and ledger.

::

    enlist, prepare all ─→ PRECOMMIT in the ledger ─→ PRECOMMIT in every participant ─→ COMMIT PREPARED all
            │                      │                          │                         decide(COMMIT)
            └── a no, or no answer ┴── bury, roll back all    └── not in all ─→ terminate

Skeen, *Nonblocking Commit Protocols*, 1981. The rows and their states:
:mod:`undoubt.participants.three_phase`. If this process does not end the transaction, a termination does:
:mod:`undoubt.coordinator.protocols.termination`.

The commit point is the moment when every row says PRECOMMIT (in a termination, when its attempt has
succeeded): after it every termination comes to COMMIT. The ledger records a copy afterwards, so the
coordinator and a termination can only record the same decision, and an unavailable ledger delays nothing.

This process may abort alone only before it has asked any participant to PRECOMMIT: until then no row can say
PRECOMMIT, and every termination comes to ABORT too. Afterwards only a termination may abort.
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
from undoubt.participants.backoff import pauses
from undoubt.participants.contract import Branch, PrepareResult, Vote
from undoubt.participants.errors import BranchFailed, ParticipantError
from undoubt.participants.ids import Gid
from undoubt.participants.tasks import all_within
from undoubt.participants.three_phase import Charter, Event, States

log = logging.getLogger(__name__)

FIRST_ELECTION = 1
"""The election number that the transaction's own coordinator uses, without an election."""
ROUND_PAUSE_S = (0.05, 2.0)
"""The pause between two rounds of termination, in seconds: the limit of the first pause, and the limit of
all."""


async def three_phase_commit(context: CommitContext) -> None:
    """Bring ``context`` to its end; raises the same errors as ``two_phase_commit``."""
    if not await first_phase(context, _enlist_and_prepare, _bury):
        return
    await _precommit_in_ledger(context)
    context.move(CommitEvent.DECIDE_SENT)
    if not await _precommit_in_rows(context):
        await _terminate(context)
    await apply_and_record(context)


def _charter(context: CommitContext) -> Charter:
    """Return the charter that every row of the transaction contains."""
    return Charter(context.tally.asked, context.termination)


def _gids(context: CommitContext) -> dict[int, Gid]:
    """Return the branches that have a row, by number."""
    return {gid.branch: gid for gid in context.tally.asked}


async def _enlist_and_prepare(context: CommitContext, branch: Branch) -> PrepareResult:
    """Write the row, then send PREPARE: a termination needs the row of every prepared branch."""
    participant = context.find(branch.gid.participant)
    try:
        await context.reach(ThreePhaseStep.BEFORE_ENLIST, branch.gid)
        note, charter = context.key.note(branch.gid), _charter(context)
        enlisted = participant is not None and await participant.states.enlist(branch.gid, charter, note)
        await context.reach(ThreePhaseStep.AFTER_ENLIST, branch.gid)
    except ParticipantError as error:
        return PrepareResult(Vote.ABORT, reason=error)
    if not enlisted:
        reason = BranchFailed(branch.gid.participant, "another process has begun to end the transaction")
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
        # No row was asked to PRECOMMIT yet: only ABORT is possible.
        await abort_after_votes(context, answer, await _bury(context))
    await context.reach(ThreePhaseStep.AFTER_LEDGER_PRECOMMIT, context.txid)


async def _precommit_in_rows(context: CommitContext) -> bool:
    """Send PRECOMMIT to every row. Returns True if every row says PRECOMMIT: COMMIT is fixed. Otherwise only
    a termination can find the outcome."""

    async def precommit(states: States, gid: Gid) -> bool:
        await context.reach(ThreePhaseStep.BEFORE_PRECOMMIT, gid)
        changed = await states.attempt(gid, FIRST_ELECTION, Event.TRY_COMMIT)
        await context.reach(ThreePhaseStep.AFTER_PRECOMMIT, gid)
        return changed

    gids = _gids(context)
    answers, _ = await ask(gids, context.find, precommit)
    return len(answers) == len(gids) and all(answers.values())


async def _terminate(context: CommitContext) -> None:
    """Run rounds of termination until the outcome is fixed; returns if it is COMMIT. At its deadline the
    caller gets ``OutcomeUnknown`` while the rounds go on."""
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
                log.info("termination of %s is blocked: %s", context.txid, ended.silent or "another election")
        # Random pauses, so that two competing terminations do not block each other for ever.
        await asyncio.sleep(random.uniform(0, next(limits)))  # noqa: S311 - jitter


async def _bury(context: CommitContext) -> Collection[Gid]:
    """Set the tombstones, which must precede the rollback. Returns the branches without one, which are left
    to recovery."""
    gids = _gids(context)
    _, unburied = await bury(gids, _charter(context), context.find, context.observer)
    return [gids[number] for number in unburied]
