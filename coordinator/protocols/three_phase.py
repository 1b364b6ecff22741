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
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from undoubt.coordinator.errors import OutcomeUnknown
from undoubt.coordinator.protocols.causes import why_recorded
from undoubt.coordinator.protocols.context import CommitContext, Phase, branch_record, repeat_until_answered
from undoubt.coordinator.protocols.first_phase import VoteTally, classify, collect_votes, prepare
from undoubt.coordinator.protocols.record_decision import apply_and_record
from undoubt.coordinator.protocols.second_phase import (
    abort_after_votes,
    commit_in_one_phase,
    commit_readers_alone,
    roll_back,
)
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


class _Rows(NamedTuple):
    """The transaction's rows: every writing branch by its number, and what stands in all of them."""

    gids: dict[int, Gid]
    charter: Charter


async def three_phase_commit(context: CommitContext) -> None:
    """Bring ``context`` to its end; raises what ``two_phase_commit`` does."""
    writers, readers, failure = await classify(context)
    if failure is not None:
        await roll_back(context, context.branches, failure)
    if len(writers) <= 1:
        await commit_in_one_phase(context, writers, readers)
        return
    gids = {branch.gid.branch: branch.gid for branch in writers}
    rows = _Rows(gids, Charter(tuple(gids.values()), context.termination))
    context.rows = tuple(gids.values())

    async def vote(branch: Branch) -> PrepareResult:
        return await _enlist_and_prepare(context, rows, branch)

    tally = await collect_votes(context, writers, vote)
    readers = [*readers, *tally.readers]
    if tally.failure is not None:
        await _abort(context, rows, tally, tally.failure)
    if not tally.prepared:
        await bury(rows.gids, rows.charter, context.find)  # nothing of it is left to end
        await commit_readers_alone(context, readers)
        return
    await _precommit_in_ledger(context, rows, tally)
    context.enter(Phase.DECIDING)
    if not await _precommit_in_rows(context, rows):
        await _terminate(context, rows, tally)
    context.enter(Phase.COMMITTED)
    await apply_and_record(context, tally, readers)


async def _enlist_and_prepare(context: CommitContext, rows: _Rows, branch: Branch) -> PrepareResult:
    """PREPARE only under a row: whoever comes later must find it."""
    participant = context.find(branch.gid.participant)
    try:
        await context.reach(ThreePhaseStep.BEFORE_ENLIST, branch.gid)
        note = context.key.note(branch.gid)
        enlisted = participant is not None and await participant.states.enlist(branch.gid, rows.charter, note)
        await context.reach(ThreePhaseStep.AFTER_ENLIST, branch.gid)
    except ParticipantError as error:
        return PrepareResult(Vote.ABORT, reason=error)
    if not enlisted:
        reason = BranchFailed(branch.gid.participant, "somebody else has begun to end the transaction")
        return PrepareResult(Vote.ABORT, reason=reason)
    return await prepare(context, branch)


async def _precommit_in_ledger(context: CommitContext, rows: _Rows, tally: VoteTally) -> None:
    records = [branch_record(branch, evidence) for branch, evidence in tally.prepared]
    await context.reach(ThreePhaseStep.BEFORE_LEDGER_PRECOMMIT, context.txid)
    context.precommitted = True
    asking = repeat_until_answered(
        lambda: context.ledger.precommit(context.txid, records, protocol=context.protocol)
    )
    [answer] = await all_within([asking], context.remaining_s())
    if isinstance(answer, asyncio.CancelledError):
        answer = TimeoutError("the ledger did not answer within the transaction's timeout")
    if isinstance(answer, BaseException):
        await _abort(context, rows, tally, answer)
    await context.reach(ThreePhaseStep.AFTER_LEDGER_PRECOMMIT, context.txid)


async def _precommit_in_rows(context: CommitContext, rows: _Rows) -> bool:
    """Whether every row has become PRECOMMIT: then COMMIT is fixed. If not, only a termination can tell."""

    async def precommit(states: States, gid: Gid) -> bool:
        await context.reach(ThreePhaseStep.BEFORE_PRECOMMIT, gid)
        changed = await states.attempt(gid, FIRST_ELECTION, Event.TRY_COMMIT)
        await context.reach(ThreePhaseStep.AFTER_PRECOMMIT, gid)
        return changed

    answers, _ = await ask(rows.gids, context.find, precommit)
    return len(answers) == len(rows.gids) and all(answers.values())


async def _terminate(context: CommitContext, rows: _Rows, tally: VoteTally) -> None:
    """Round after round until the outcome is fixed; returns if it is COMMIT. The caller waits until its
    deadline, and is then told that nobody knows yet."""
    limits = pauses(*ROUND_PAUSE_S)
    while True:
        ended = await Round(rows.charter, context.find, context.observer).run()
        match ended.move:
            case Move.COMMIT:
                return
            case Move.ABORT:
                why = await why_recorded(context.ledger, context.txid)
                await _roll_back_buried(context, tally, why, [rows.gids[number] for number in ended.unburied])
            case Move.CONFLICT:
                raise OutcomeUnknown(context.txid, CONTRADICTION)
            case _:
                log.info("termination of %s is blocked: %s", context.txid, ended.silent or "by another")
        # Two that compete must not do so for ever.
        await asyncio.sleep(random.uniform(0, next(limits)))  # noqa: S311 - jitter


async def _abort(context: CommitContext, rows: _Rows, tally: VoteTally, failure: BaseException) -> NoReturn:
    """Before any row was asked to PRECOMMIT: nothing but ABORT can come of it."""
    _, unburied = await bury(rows.gids, rows.charter, context.find, context.observer)
    await _roll_back_buried(context, tally, failure, [rows.gids[number] for number in unburied])


async def _roll_back_buried(
    context: CommitContext, tally: VoteTally, failure: BaseException, unburied: Sequence[Gid]
) -> NoReturn:
    """A tombstone comes before the rollback. Branches without one are left to recovery."""
    await abort_after_votes(context, tally, failure, leave=unburied)
