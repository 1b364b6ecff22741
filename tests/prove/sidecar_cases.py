"""The crash matrix through the sidecar: who dies, at every named step, for both ways to run a branch."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from tests.prove.cases import UNDER_LOAD
from tests.prove.trap import KILL, PAUSE, Trap
from undoubt.coordinator.protocols import steps as protocols
from undoubt.coordinator.protocols.steps import STEPS
from undoubt.participants.ids import Protocol


class Way(enum.StrEnum):
    """How a branch is run."""

    OWN_DRIVER = "own driver"
    THROUGH_SIDECAR = "through the sidecar"


class CallerStep(enum.StrEnum):
    """The steps of a service, in the order in which one transaction passes them."""

    AFTER_BEGIN = "after_begin"
    AFTER_ANNOUNCE = "after_announce"
    AFTER_SQL = "after_sql"
    AFTER_PREPARE = "after_prepare_by_caller"
    COMMIT_ASKED = "commit_asked"
    """Its request is on the way, or being worked on."""
    AFTER_ANSWER = "after_answer"


PER_BRANCH: frozenset[enum.StrEnum] = frozenset(
    {*protocols.PER_BRANCH, CallerStep.AFTER_ANNOUNCE, CallerStep.AFTER_SQL, CallerStep.AFTER_PREPARE}
)
OF_OWN_DRIVER: frozenset[enum.StrEnum] = frozenset({CallerStep.AFTER_ANNOUNCE, CallerStep.AFTER_PREPARE})
"""Steps of a caller that runs its branches itself."""


class SidecarVictim(enum.StrEnum):
    CALLER = "caller"
    """The service; the sidecar lives on, and aborts at the deadline what is not decided."""
    SIDECAR = "sidecar"
    """Another one takes its place; the service asks that for what was not answered."""
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class SidecarCase:
    """``trap`` is at a step of the service or of the coordinator in the sidecar."""

    victim: SidecarVictim
    way: Way
    trap: Trap

    @property
    def of_node(self) -> bool:
        return False

    @property
    def in_caller(self) -> bool:
        """The step is the service's."""
        return self.trap.step in set(CallerStep)

    def __str__(self) -> str:
        what = f"branch {self.trap.branch}" if self.trap.branch else "transaction"
        return f"{self.victim} at {self.trap.step} of {what}, {self.way}"


def sidecar_cases(protocol: Protocol = Protocol.TWO_PHASE) -> list[SidecarCase]:
    """All of them, in a stable order. Three-phase commit takes no branches of callers' own drivers. The
    second branch of last-agent commit is the agent's: the sidecar runs it, and it passes no step of a
    protocol."""
    found = []
    of_both: frozenset[enum.StrEnum] = PER_BRANCH
    if protocol is Protocol.LAST:
        of_both = frozenset({CallerStep.AFTER_SQL})
    for way in Way:
        if way is Way.OWN_DRIVER and protocol is Protocol.THREE_PHASE:
            continue
        steps: list[enum.StrEnum] = [
            step for step in CallerStep if way is Way.OWN_DRIVER or step not in OF_OWN_DRIVER
        ]
        for step in (*steps, *STEPS[protocol]):
            for victim in SidecarVictim:
                alone = SidecarVictim.CALLER if step in set(CallerStep) else SidecarVictim.SIDECAR
                how = KILL if victim is alone else PAUSE
                branches = ((1, 2) if step in of_both else (1,)) if step in PER_BRANCH else (0,)
                found += [
                    SidecarCase(victim, way, Trap(how, step, branch, UNDER_LOAD)) for branch in branches
                ]
    return found
