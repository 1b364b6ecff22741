"""Three-phase commit: the participants can end it among themselves, without coordinator and ledger.

::

    enlist, prepare all ─→ PRECOMMIT in the ledger ─→ PRECOMMIT in every participant ─→ COMMIT PREPARED all
            │                      │                          │                         decide(COMMIT)
            └── any no, any doubt ─┴── bury, roll back all    └── not in all ─→ terminate

Skeen, *Nonblocking Commit Protocols*, 1981. The rows and their states: :mod:`undoubt.participants.states`;
what ends it when this process does not: :mod:`undoubt.coordinator.protocols.termination`.

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
from undoubt.coordinator.protocols.copied import apply_and_record
from undoubt.coordinator.protocols.course import Course, Phase, branch_record, repeat_until_answered
from undoubt.coordinator.protocols.ending import (
    abort_after_votes,
    commit_in_one_phase,
    commit_readers_alone,
    roll_back,
)
from undoubt.coordinator.protocols.steps import ThreePhaseStep
from undoubt.coordinator.protocols.termination import Round, ask, bury
from undoubt.coordinator.protocols.termination_rules import CONTRADICTION, Move
from undoubt.coordinator.protocols.voting import Tally, classify, collect_votes, prepare
from undoubt.coordinator.steadfast import all_within
from undoubt.participants.contract import Branch, PrepareResult, Vote
from undoubt.participants.errors import BranchFailed, ParticipantError
from undoubt.participants.ids import Gid
from undoubt.participants.states import Charter, Event, States

log = logging.getLogger(__name__)

FIRST_ELECTION = 1
"""The transaction's own coordinator is elected without an election."""
ROUND_PAUSE_S = (0.05, 2.0)
"""Between two rounds of termination: the first pause at most, and the longest."""


class _Rows(NamedTuple):
    """The transaction's rows: every writing branch by its number, and what stands in all of them."""

    gids: dict[int, Gid]
    charter: Charter


async def three_phase_commit(course: Course) -> None:
    """Bring ``course`` to its end; raises what ``two_phase_commit`` does."""
    writers, readers, failure = await classify(course)
    if failure is not None:
        await roll_back(course, course.branches, failure)
    if len(writers) <= 1:
        await commit_in_one_phase(course, writers, readers)
        return
    gids = {branch.gid.branch: branch.gid for branch in writers}
    rows = _Rows(gids, Charter(tuple(gids.values()), course.termination))
    course.rows = tuple(gids.values())

    async def vote(branch: Branch) -> PrepareResult:
        return await _enlist_and_prepare(course, rows, branch)

    tally = await collect_votes(course, writers, vote)
    readers = [*readers, *tally.readers]
    if tally.failure is not None:
        await _abort(course, rows, tally, tally.failure)
    if not tally.prepared:
        await bury(rows.gids, rows.charter, course.find)  # nothing of it is left to end
        await commit_readers_alone(course, readers)
        return
    await _precommit_in_ledger(course, rows, tally)
    course.enter(Phase.DECIDING)
    if not await _precommit_in_rows(course, rows):
        await _terminate(course, rows, tally)
    course.enter(Phase.COMMITTED)
    await apply_and_record(course, tally, readers)


async def _enlist_and_prepare(course: Course, rows: _Rows, branch: Branch) -> PrepareResult:
    """PREPARE only under a row: whoever comes later must find it."""
    participant = course.find(branch.gid.participant)
    try:
        await course.reach(ThreePhaseStep.BEFORE_ENLIST, branch.gid)
        note = course.key.note(branch.gid)
        enlisted = participant is not None and await participant.states.enlist(branch.gid, rows.charter, note)
        await course.reach(ThreePhaseStep.AFTER_ENLIST, branch.gid)
    except ParticipantError as error:
        return PrepareResult(Vote.ABORT, reason=error)
    if not enlisted:
        reason = BranchFailed(branch.gid.participant, "somebody else has begun to end the transaction")
        return PrepareResult(Vote.ABORT, reason=reason)
    return await prepare(course, branch)


async def _precommit_in_ledger(course: Course, rows: _Rows, tally: Tally) -> None:
    records = [branch_record(branch, evidence) for branch, evidence in tally.prepared]
    await course.reach(ThreePhaseStep.BEFORE_LEDGER_PRECOMMIT, course.txid)
    course.precommitted = True
    asking = repeat_until_answered(
        lambda: course.ledger.precommit(course.txid, records, protocol=course.protocol)
    )
    [answer] = await all_within([asking], course.remaining_s())
    if isinstance(answer, asyncio.CancelledError):
        answer = TimeoutError("the ledger did not answer within the transaction's timeout")
    if isinstance(answer, BaseException):
        await _abort(course, rows, tally, answer)
    await course.reach(ThreePhaseStep.AFTER_LEDGER_PRECOMMIT, course.txid)


async def _precommit_in_rows(course: Course, rows: _Rows) -> bool:
    """Whether every row has become PRECOMMIT: then COMMIT is fixed. If not, only a termination can tell."""

    async def precommit(states: States, gid: Gid) -> bool:
        await course.reach(ThreePhaseStep.BEFORE_PRECOMMIT, gid)
        changed = await states.attempt(gid, FIRST_ELECTION, Event.TRY_COMMIT)
        await course.reach(ThreePhaseStep.AFTER_PRECOMMIT, gid)
        return changed

    answers, _ = await ask(rows.gids, course.find, precommit)
    return len(answers) == len(rows.gids) and all(answers.values())


async def _terminate(course: Course, rows: _Rows, tally: Tally) -> None:
    """Round after round until the outcome is fixed; returns if it is COMMIT. The caller waits until its
    deadline, and is then told that nobody knows yet."""
    pause_s, longest_s = ROUND_PAUSE_S
    while True:
        ended = await Round(rows.charter, course.find, course.observer).run()
        match ended.move:
            case Move.COMMIT:
                return
            case Move.ABORT:
                why = await why_recorded(course.ledger, course.txid)
                await _roll_back_buried(course, tally, why, [rows.gids[number] for number in ended.unburied])
            case Move.CONFLICT:
                raise OutcomeUnknown(course.txid, CONTRADICTION)
            case _:
                log.info("termination of %s is blocked: %s", course.txid, ended.silent or "by another")
        await asyncio.sleep(random.uniform(0, pause_s))  # noqa: S311 - two that compete must not do so for ever
        pause_s = min(pause_s * 2, longest_s)


async def _abort(course: Course, rows: _Rows, tally: Tally, failure: BaseException) -> NoReturn:
    """Before any row was asked to PRECOMMIT: nothing but ABORT can come of it."""
    _, unburied = await bury(rows.gids, rows.charter, course.find, course.observer)
    await _roll_back_buried(course, tally, failure, [rows.gids[number] for number in unburied])


async def _roll_back_buried(
    course: Course, tally: Tally, failure: BaseException, unburied: Sequence[Gid]
) -> NoReturn:
    """A tombstone comes before the rollback. Branches without one are left to recovery."""
    await abort_after_votes(course, tally, failure, leave=unburied)
