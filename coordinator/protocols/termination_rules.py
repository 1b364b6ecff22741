"""How an interrupted three-phase commit ends, as pure functions of the rows that could be read.

Two rules, each for rows that were read *while electing*
(:meth:`undoubt.participants.three_phase.States.elect`), so that no lower election can change them any more:

``quorum``
    Keidar and Dolev, *Increasing the Resilience of Distributed and Replicated Database Systems*, 1998, §4.3.
    Only a majority of the transaction's participants may try to commit or to abort, and it does what the
    greatest attempt among them did. Any two majorities share a row, so no partition can split it. With two
    participants a majority is both.

``skeen``
    Skeen, *Nonblocking Commit Protocols*, 1981, §5. Whoever is up decides: commit if any of them is prepared
    to commit. Never blocks, and is right as long as who does not answer is dead. Under a partition each side
    takes the other for dead, and the transaction can split.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping

from undoubt.coordinator.quorum import majority_size
from undoubt.participants.three_phase import BranchState, Event, StateRow, Termination


class Move(enum.StrEnum):
    """What the winner of an election does next."""

    COMMIT = "commit"
    """The outcome is fixed: commit every branch."""
    ABORT = "abort"
    """The outcome is fixed: bury every row, roll back every branch."""
    TRY_COMMIT = "try commit"
    TRY_ABORT = "try abort"
    BLOCKED = "blocked"
    """Too few rows can be read: nobody may decide yet."""
    CONFLICT = "conflict"
    """The rows contradict each other, and a person must look. Committed here, and buried there, or too few of
    them asked to commit: somebody finished a branch by hand. Prepared to commit here, never enlisted there:
    that row was lost, its database set back by a restore, or its participant's name leads to another database
    by now."""


CONTRADICTION = (
    "its rows contradict each other: somebody has finished a branch of it by hand, or one of its databases"
    " was set back by a restore or replaced by another"
)
"""CONFLICT, for people."""


def may_lead_to_something(
    rule: Termination, members: Collection[int], read: Mapping[int, StateRow | None]
) -> bool:
    """Whether an election among those that were ``read`` can: if not, it would write to all of them, again
    and again for as long as the others are away."""
    fixed = {BranchState.COMMIT, BranchState.ABORT, BranchState.INITIAL}
    if rule is Termination.SKEEN or any(row is None or row.state in fixed for row in read.values()):
        return True
    return is_quorum(members, read)


def decide(rule: Termination, members: Collection[int], seen: Mapping[int, StateRow]) -> Move:
    """``members`` are the numbers of all branches, ``seen`` the rows of those that were elected at."""
    states = {row.state for row in seen.values()}
    if BranchState.COMMIT in states:
        contradicted = BranchState.ABORT in states or (
            rule is Termination.QUORUM and never_fixed(members, seen)
        )
        return Move.CONFLICT if contradicted else Move.COMMIT
    if BranchState.ABORT in states:
        return Move.ABORT
    if BranchState.INITIAL in states:
        # It was never enlisted and never will be, so nobody can have been told to try to commit.
        return Move.CONFLICT if BranchState.PRECOMMIT in states else Move.ABORT
    if rule is Termination.SKEEN and seen:
        return Move.TRY_COMMIT if BranchState.PRECOMMIT in states else Move.ABORT
    if rule is Termination.SKEEN or not is_quorum(members, seen):
        return Move.BLOCKED
    return Move.TRY_COMMIT if max_attempt_committable(seen.values()) else Move.TRY_ABORT


def never_fixed(members: Collection[int], seen: Mapping[int, StateRow]) -> bool:
    """Whether so many rows have never taken an attempt to commit that none can have succeeded. What has
    committed then was committed by hand, and perhaps not every branch had even voted."""
    untold = {
        number
        for number, row in seen.items()
        if row.state is BranchState.WAIT or (row.state is BranchState.COMMIT and not row.last_attempt)
    }
    return not is_quorum(members, set(members) - untold)


def max_attempt_committable(rows: Collection[StateRow]) -> bool:
    """Is_Max_Attempt_Committable (Keidar and Dolev, §4.2): whether those that took part in the greatest
    attempt were asked to commit in it. All of one attempt were asked the same."""
    greatest = max(row.last_attempt for row in rows)
    return all(row.state is BranchState.PRECOMMIT for row in rows if row.last_attempt == greatest)


def attempt_succeeded(
    rule: Termination, members: Collection[int], elected: Collection[int], changed: Collection[int]
) -> bool:
    """Whether an attempt has fixed the outcome: ``changed`` are those that took it, of the ``elected``."""
    if rule is Termination.SKEEN:
        return set(elected) <= set(changed)
    return is_quorum(members, changed)


def is_quorum(members: Collection[int], some: Collection[int]) -> bool:
    """A majority of the transaction's branches."""
    everyone = set(members)
    return len(everyone & set(some)) >= majority_size(everyone)


OUTCOME_OF = {Event.TRY_COMMIT: Move.COMMIT, Event.TRY_ABORT: Move.ABORT}
"""What an attempt that has succeeded fixes."""
