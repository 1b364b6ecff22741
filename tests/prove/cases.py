"""The crash matrix: every victim at every named step, generated from the steps that the code lists."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from coordinator.protocols import steps as protocols
from coordinator.protocols.steps import STEPS, TerminationStep, ThreePhaseStep, TwoPhaseStep
from participants.ids import Protocol
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
    LEDGER = "ledger"
    """The ledger's server; started again at once."""
    LEDGER_DOWN = "ledger_down"
    """Started again while the process that needs it asks for it."""


LEDGER_STEPS: frozenset[enum.StrEnum] = frozenset(
    {
        TwoPhaseStep.BEFORE_DECIDE,
        TwoPhaseStep.AFTER_DECIDE,
        TwoPhaseStep.BEFORE_FINISH,
        ThreePhaseStep.BEFORE_LEDGER_PRECOMMIT,
        RecoveryStep.AFTER_SCAN,
        RecoveryStep.BEFORE_FINISH,
    }
)
"""Before and after which the ledger is asked."""


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


def cases(
    protocol: Protocol = Protocol.TWO_PHASE, *, pooler: bool = False, ledger: bool = False
) -> list[Case]:
    """All of them, in a stable order; with ``pooler``, the one before a database dies as well, and with
    ``ledger`` the ledger's server."""
    more = (Victim.POOLER,) if pooler else ()
    found: list[Case] = []
    recovers: list[enum.StrEnum] = list(RecoveryStep)
    if protocol is Protocol.THREE_PHASE:
        recovers += TerminationStep
    for victim in (Victim.COORDINATOR, Victim.DATABASE, Victim.DATABASE_DOWN, *more):
        how = KILL if victim is Victim.COORDINATOR else PAUSE
        for step in STEPS[protocol]:
            branches = (1, 2) if step in protocols.PER_BRANCH else (0,)
            found += [Case(victim, False, Trap(how, step, branch, UNDER_LOAD)) for branch in branches]
    for victim in (Victim.RECOVERY, Victim.DATABASE, Victim.DATABASE_DOWN, *more):
        how = KILL if victim is Victim.RECOVERY else PAUSE
        for step in recovers:
            branches = (1, 2) if step in recovery.PER_BRANCH | protocols.PER_BRANCH else (0,)
            before = _before(step, protocol)
            found += [Case(victim, True, Trap(how, step, branch, 1), before) for branch in branches]
    for victim in (Victim.LEDGER, Victim.LEDGER_DOWN) if ledger else ():
        for step in (step for step in STEPS[protocol] if step in LEDGER_STEPS):
            found.append(Case(victim, False, Trap(PAUSE, step, 0, UNDER_LOAD)))
        for step in (step for step in recovers if step in LEDGER_STEPS):
            found.append(Case(victim, True, Trap(PAUSE, step, 0, 1), _before(step, protocol)))
    return found


ROLLS_BACK: frozenset[enum.StrEnum] = frozenset(
    {
        RecoveryStep.BEFORE_ROLLBACK,
        RecoveryStep.AFTER_ROLLBACK,
        TerminationStep.BEFORE_BURY,
        TerminationStep.AFTER_BURY,
    }
)
"""Steps of recovery that only a transaction which it aborts passes."""


def _before(step: enum.StrEnum, protocol: Protocol) -> Trap:
    """Where the coordinator dies so that recovery passes ``step``: it must abort with everything prepared, or
    commit with nothing told."""
    dies_at: dict[tuple[Protocol, bool], enum.StrEnum] = {
        (Protocol.TWO_PHASE, True): TwoPhaseStep.BEFORE_DECIDE,
        (Protocol.TWO_PHASE, False): TwoPhaseStep.AFTER_DECIDE,
        (Protocol.THREE_PHASE, True): ThreePhaseStep.BEFORE_LEDGER_PRECOMMIT,
        (Protocol.THREE_PHASE, False): TwoPhaseStep.BEFORE_DECIDE,
    }
    return Trap(KILL, dies_at[protocol, step in ROLLS_BACK], 0, UNDER_LOAD)
