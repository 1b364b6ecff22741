"""Ends an interrupted three-phase commit from the participants' rows, without coordinator and ledger.

One round: start an election at every participant that answers, decide by the rows that were returned
(:mod:`.termination_rules`), make the attempt, and bury every row if the outcome is ABORT. The caller finishes
the prepared branches afterwards: the coordinator's second phase, or recovery. A round that finds another
election as high as its own stops. Rounds may be repeated at any time, and several processes may run rounds
simultaneously.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from undoubt.coordinator.protocols import termination_rules as rules
from undoubt.coordinator.protocols.steps import Observer, TerminationStep, reach
from undoubt.coordinator.protocols.termination_rules import Move
from undoubt.participants.contract import Participant
from undoubt.participants.errors import ParticipantError
from undoubt.participants.ids import Gid
from undoubt.participants.tasks import all_within
from undoubt.participants.three_phase import Charter, Event, StateRow, States, Termination

T = TypeVar("T")

ANSWER_TIMEOUT_S = 5.0
"""A participant that has not answered within this time, in seconds, counts as silent in this round."""

Find = Callable[[str], Participant | None]
"""Returns a participant by name; None if this process has no participant of that name."""


class PresumedCrashed(str):
    """Why a row is silent, if its participant did not answer in time. Any other reason is an error, which
    came without a wait."""

    __slots__ = ()


@dataclass(slots=True)
class Terminated:
    """The result of one round. ``move`` is COMMIT or ABORT if the outcome is fixed, for ever and everywhere;
    otherwise BLOCKED or CONFLICT. ``seen`` has the rows as elected, or as read if an election would lead to
    nothing; ``silent`` has the reason for each missing row. Both are by branch number."""

    move: Move
    seen: dict[int, StateRow] = field(default_factory=dict)
    silent: dict[int, str] = field(default_factory=dict)
    unburied: frozenset[int] = frozenset()
    """With ABORT: the numbers of the branches whose rows could not be buried."""


class Round:
    """One election of the transaction whose branches ``charter`` lists.

    ``left_out``: the participants that are not asked, by name, with the reason. Only the rule ``quorum``
    allows that; under it, a participant that did not answer one question in time is not asked the next
    questions either.
    """

    def __init__(
        self,
        charter: Charter,
        find: Find,
        observer: Observer | None = None,
        *,
        left_out: Mapping[str, str] | None = None,
    ) -> None:
        self._charter = charter
        self._find = find
        self._observer = observer
        self._gids = {member.branch: member for member in charter.members}
        self._election = 0
        self._silent: dict[int, str] = {}
        self._left_out: dict[int, str] = {}
        if charter.rule is Termination.QUORUM:
            self._leave_out(
                {member.branch: (left_out or {}).get(member.participant) for member in charter.members}
            )

    async def run(self) -> Terminated:
        """Run one round. A participant that fails does not make the round fail: its row counts as silent, and
        the rule says what follows."""
        read = await self._ask(self._gids.keys(), lambda states, gid: states.read(gid))
        if not rules.may_lead_to_something(self._charter.rule, self._gids.keys(), read):
            rows = {number: row for number, row in read.items() if row is not None}
            return Terminated(Move.BLOCKED, rows, self._silent)
        seen = await self._elect(read)
        if seen is None:
            return Terminated(Move.BLOCKED, {}, self._silent)
        move = rules.decide(self._charter.rule, self._gids.keys(), seen)
        if move is Move.TRY_COMMIT:
            move = await self._attempt(Event.TRY_COMMIT, seen)
        elif move is Move.TRY_ABORT:
            move = await self._attempt(Event.TRY_ABORT, seen)
        unburied = frozenset[int]()
        if move is Move.ABORT:
            asked = {number: gid for number, gid in self._gids.items() if number not in self._left_out}
            move, unburied = await bury(asked, self._charter, self._find, self._observer)
            unburied |= self._left_out.keys()
        return Terminated(move, seen, self._silent, unburied)

    async def _elect(self, read: Mapping[int, StateRow | None]) -> dict[int, StateRow] | None:
        """Return the rows of all branches that take part; None if a row has taken part in another election
        that is as high."""
        self._election = max((row.last_elected for row in read.values() if row is not None), default=1) + 1

        async def elect(states: States, gid: Gid) -> StateRow | None:
            await reach(self._observer, TerminationStep.BEFORE_ELECT, gid)
            row = await states.elect(gid, self._election, self._charter)
            await reach(self._observer, TerminationStep.AFTER_ELECT, gid)
            return row

        elected = await self._ask(self._gids.keys(), elect)
        if any(row is None for row in elected.values()):
            return None
        return {number: row for number, row in elected.items() if row is not None}

    async def _attempt(self, event: Event, seen: Mapping[int, StateRow]) -> Move:
        async def attempt(states: States, gid: Gid) -> bool:
            await reach(self._observer, TerminationStep.BEFORE_ATTEMPT, gid)
            changed = await states.attempt(gid, self._election, event)
            await reach(self._observer, TerminationStep.AFTER_ATTEMPT, gid)
            return changed

        answers = await self._ask(seen.keys(), attempt)
        changed = [number for number, did in answers.items() if did]
        if rules.attempt_succeeded(self._charter.rule, self._gids.keys(), seen.keys(), changed):
            return rules.OUTCOME_OF[event]
        return Move.BLOCKED

    async def _ask(
        self, numbers: Collection[int], call: Callable[[States, Gid], Awaitable[T]]
    ) -> dict[int, T]:
        """Ask the rows ``numbers`` concurrently; return the answers that arrived, by branch number."""
        asked = {number: self._gids[number] for number in numbers if number not in self._left_out}
        answers, silent = await ask(asked, self._find, call)
        self._silent |= silent
        if self._charter.rule is Termination.QUORUM:
            self._leave_out(
                {number: why for number, why in silent.items() if isinstance(why, PresumedCrashed)}
            )
        return answers

    def _leave_out(self, numbers: Mapping[int, str | None]) -> None:
        self._left_out |= {number: why for number, why in numbers.items() if why is not None}
        self._silent |= self._left_out


async def bury(
    gids: Mapping[int, Gid], charter: Charter, find: Find, observer: Observer | None = None
) -> tuple[Move, frozenset[int]]:
    """Set every tombstone that can be set now; ABORT is fixed. Returns ABORT, or CONFLICT if a branch was
    committed manually nevertheless; and the numbers of the rows that could not be buried, which a later round
    will bury."""

    async def one(states: States, gid: Gid) -> bool:
        await reach(observer, TerminationStep.BEFORE_BURY, gid)
        buried = await states.bury(gid, charter)
        await reach(observer, TerminationStep.AFTER_BURY, gid)
        return buried

    answers, silent = await ask(gids, find, one)
    return Move.ABORT if all(answers.values()) else Move.CONFLICT, frozenset(silent)


async def ask(
    gids: Mapping[int, Gid], find: Find, call: Callable[[States, Gid], Awaitable[T]]
) -> tuple[dict[int, T], dict[int, str]]:
    """Ask all rows concurrently. Returns the answers, and the reasons why rows gave none, both by branch
    number."""
    silent: dict[int, str] = {}
    asked: dict[int, Awaitable[T]] = {}
    for number, gid in gids.items():
        participant = find(gid.participant)
        if participant is None:
            silent[number] = f"participant {gid.participant!r} is not configured here"
        else:
            asked[number] = call(participant.states, gid)
    results = await all_within((_awaited(one) for one in asked.values()), ANSWER_TIMEOUT_S)
    answers: dict[int, T] = {}
    for number, result in zip(asked, results, strict=True):
        if isinstance(result, ParticipantError):
            silent[number] = str(result)
        elif isinstance(result, asyncio.CancelledError):
            silent[number] = PresumedCrashed(f"no answer within {ANSWER_TIMEOUT_S:g} s")
        elif isinstance(result, BaseException):
            raise result
        else:
            answers[number] = result
    return answers, silent


async def _awaited(awaitable: Awaitable[T]) -> T:
    return await awaitable
