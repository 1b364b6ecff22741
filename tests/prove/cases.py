"""The crash matrix: every victim at every named step, generated from the steps that the code lists."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from coordinator.protocols import steps as two_phase
from coordinator.protocols.steps import TwoPhaseStep
from recovery import steps as recovery
from recovery.steps import RecoveryStep
from tests.prove.trap import KILL, PAUSE, Trap

UNDER_LOAD = 5
"""A coordinator's trap springs the fifth time, when other transactions are at other steps."""


class Victim(enum.StrEnum):
    COORDINATOR = "coordinator"
    RECOVERY = "recovery"
    DATABASE = "database"
    """Started again at once."""
    DATABASE_DOWN = "database_down"
    """Started again only after the process that needed it has ended."""
    POOLER = "pooler"
    """The PgBouncer before a database; started again at once."""


@dataclass(frozen=True, slots=True)
class Case:
    """``in_recovery``: the step is one of recovery's, after a coordinator was killed with its trap
    ``before``; else ``trap`` is the coordinator's own."""

    victim: Victim
    in_recovery: bool
    trap: Trap
    before: Trap | None = None

    def __str__(self) -> str:
        where = f"branch {self.trap.branch}" if self.trap.branch else "transaction"
        return f"{self.victim} at {self.trap.step} of {where}"


def cases(*, pooler: bool = False) -> list[Case]:
    """All of them, in a stable order; with ``pooler``, the one before a database dies as well."""
    more = (Victim.POOLER,) if pooler else ()
    found: list[Case] = []
    for victim in (Victim.COORDINATOR, Victim.DATABASE, Victim.DATABASE_DOWN, *more):
        how = KILL if victim is Victim.COORDINATOR else PAUSE
        for step in TwoPhaseStep:
            branches = (1, 2) if step in two_phase.PER_BRANCH else (0,)
            found += [Case(victim, False, Trap(how, step, branch, UNDER_LOAD)) for branch in branches]
    for victim in (Victim.RECOVERY, Victim.DATABASE, Victim.DATABASE_DOWN, *more):
        how = KILL if victim is Victim.RECOVERY else PAUSE
        for step in RecoveryStep:
            branches = (1, 2) if step in recovery.PER_BRANCH else (0,)
            found += [Case(victim, True, Trap(how, step, branch, 1), _before(step)) for branch in branches]
    return found


def _before(step: RecoveryStep) -> Trap:
    """Where the coordinator dies so that recovery passes ``step``: undecided with everything prepared, or
    decided with nothing told."""
    rolls_back = step in {RecoveryStep.BEFORE_ROLLBACK, RecoveryStep.AFTER_ROLLBACK}
    dies_at = TwoPhaseStep.BEFORE_DECIDE if rolls_back else TwoPhaseStep.AFTER_DECIDE
    return Trap(KILL, dies_at, 0, UNDER_LOAD)
