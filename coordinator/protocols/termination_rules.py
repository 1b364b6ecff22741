"""The rules by which an interrupted three-phase commit ends: pure functions of the rows that could be read.

There are two rules. Both are for rows that were read *by an election*
(:meth:`undoubt.participants.three_phase.States.elect`), so that no lower election can change them afterwards:

``quorum``
    Keidar and Dolev, *Increasing the Resilience of Distributed and Replicated Database Systems*, 1998, §4.3.
    Only a majority of the transaction's participants may try to commit or to abort, and the new attempt has
    the direction of the greatest attempt among them. Any two majorities share a row, so no partition can
    split the transaction. With two participants the majority is both participants.

``skeen``
    Skeen, *Nonblocking Commit Protocols*, 1981, §5. The participants that answer decide: COMMIT if any of
    them is prepared to commit. The rule never blocks. It is correct only if every participant that does not
    answer has crashed: in a partition each side takes the other side for crashed, and the transaction can
    split.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping

from undoubt.coordinator.quorum import majority_size
from undoubt.participants.three_phase import BranchState, Event, StateRow, Termination


class Move(enum.StrEnum):
    """The next step of the process that has won an election."""

    COMMIT = "commit"
    """The outcome is fixed: commit every branch."""
    ABORT = "abort"
    """The outcome is fixed: bury every row, roll back every branch."""
    TRY_COMMIT = "try commit"
    TRY_ABORT = "try abort"
    BLOCKED = "blocked"
    """Too few rows can be read for a decision."""
    CONFLICT = "conflict"
    """The rows contradict each other, and an operator must decide. Either one row says COMMIT and another
    ABORT, or one says COMMIT and too few rows have taken an attempt to commit: then a branch was finished
    manually. Or one row says PRECOMMIT and another INITIAL (never enlisted): then that row was lost, because
    its database was set back by a restore, or because its participant's name now leads to another
    database."""


CONTRADICTION = (
    "its rows contradict each other: a branch of it was finished manually, or one of its databases was"
    " set back by a restore or replaced by another"
)
"""The explanation of CONFLICT in messages."""


def may_lead_to_something(
    rule: Termination, members: Collection[int], read: Mapping[int, StateRow | None]
) -> bool:
    """Whether an election among the rows that were ``read`` can lead to an outcome. Otherwise elections would
    write to all these rows repeatedly while the other rows cannot be read."""
    fixed = {BranchState.COMMIT, BranchState.ABORT, BranchState.INITIAL}
    if rule is Termination.SKEEN or any(row is None or row.state in fixed for row in read.values()):
        return True
    return is_quorum(members, read)


def decide(rule: Termination, members: Collection[int], seen: Mapping[int, StateRow]) -> Move:
    """Return the next step. ``members`` are the numbers of all branches; ``seen`` has the rows in which the
    election was recorded."""
    states = {row.state for row in seen.values()}
    if BranchState.COMMIT in states:
        contradicted = BranchState.ABORT in states or (
            rule is Termination.QUORUM and never_fixed(members, seen)
        )
        return Move.CONFLICT if contradicted else Move.COMMIT
    if BranchState.ABORT in states:
        return Move.ABORT
    if BranchState.INITIAL in states:
        # That row was never enlisted and never will be, so no row can have been asked to try to commit.
        return Move.CONFLICT if BranchState.PRECOMMIT in states else Move.ABORT
    if rule is Termination.SKEEN and seen:
        return Move.TRY_COMMIT if BranchState.PRECOMMIT in states else Move.ABORT
    if rule is Termination.SKEEN or not is_quorum(members, seen):
        return Move.BLOCKED
    return Move.TRY_COMMIT if max_attempt_committable(seen.values()) else Move.TRY_ABORT


def never_fixed(members: Collection[int], seen: Mapping[int, StateRow]) -> bool:
    """Whether so many rows have never taken an attempt to commit that no such attempt can have succeeded. A
    branch that has committed nevertheless was committed manually, possibly before all branches had voted."""
    without_attempt = {
        number
        for number, row in seen.items()
        if row.state is BranchState.WAIT or (row.state is BranchState.COMMIT and not row.last_attempt)
    }
    return not is_quorum(members, set(members) - without_attempt)


def max_attempt_committable(rows: Collection[StateRow]) -> bool:
    """Is_Max_Attempt_Committable (Keidar and Dolev, §4.2): whether the greatest attempt was an attempt to
    commit. All rows of one attempt were asked the same."""
    greatest = max(row.last_attempt for row in rows)
    return all(row.state is BranchState.PRECOMMIT for row in rows if row.last_attempt == greatest)


def attempt_succeeded(
    rule: Termination, members: Collection[int], elected: Collection[int], changed: Collection[int]
) -> bool:
    """Whether an attempt has fixed the outcome. ``changed`` are the rows that took the attempt, of the rows
    ``elected``."""
    if rule is Termination.SKEEN:
        return set(elected) <= set(changed)
    return is_quorum(members, changed)


def is_quorum(members: Collection[int], some: Collection[int]) -> bool:
    """Whether ``some`` contains a majority of the transaction's branches."""
    all_members = set(members)
    return len(all_members & set(some)) >= majority_size(all_members)


OUTCOME_OF = {Event.TRY_COMMIT: Move.COMMIT, Event.TRY_ABORT: Move.ABORT}
"""The outcome that each kind of attempt fixes if it succeeds."""
