"""The named steps of the commit protocols: where a process can die, and tests make it.

Every protocol calls ``observe(step, subject)`` between two effects. In production nobody listens. The
crash matrix is generated from :data:`STEPS`, so a step that is added here is crashed at.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable

from undoubt.participants.ids import Protocol


class TwoPhaseStep(enum.StrEnum):
    """In the order in which one transaction passes them."""

    BEFORE_PREPARE = "before_prepare"
    AFTER_PREPARE = "after_prepare"
    BEFORE_DECIDE = "before_decide"
    AFTER_DECIDE = "after_decide"
    BEFORE_SECOND_PHASE = "before_second_phase"
    AFTER_SECOND_PHASE = "after_second_phase"
    BEFORE_FINISH = "before_finish"
    AFTER_FINISH = "after_finish"


class ThreePhaseStep(enum.StrEnum):
    """What three-phase commit adds to them: before PREPARE, and between the votes and the decision."""

    BEFORE_ENLIST = "before_enlist"
    AFTER_ENLIST = "after_enlist"
    BEFORE_LEDGER_PRECOMMIT = "before_ledger_precommit"
    AFTER_LEDGER_PRECOMMIT = "after_ledger_precommit"
    BEFORE_PRECOMMIT = "before_precommit"
    AFTER_PRECOMMIT = "after_precommit"


class PaxosStep(enum.StrEnum):
    """What Paxos Commit adds: the decision is the votes', and what is decided in the ledger a copy of it."""

    BEFORE_VOTE = "before_vote"
    AFTER_VOTE = "after_vote"


class TerminationStep(enum.StrEnum):
    """Of one round of termination; each once for every branch that is asked."""

    BEFORE_ELECT = "before_elect"
    AFTER_ELECT = "after_elect"
    BEFORE_ATTEMPT = "before_attempt"
    AFTER_ATTEMPT = "after_attempt"
    BEFORE_BURY = "before_bury"
    AFTER_BURY = "after_bury"


PER_BRANCH = frozenset(
    {
        TwoPhaseStep.BEFORE_PREPARE,
        TwoPhaseStep.AFTER_PREPARE,
        TwoPhaseStep.BEFORE_SECOND_PHASE,
        TwoPhaseStep.AFTER_SECOND_PHASE,
        ThreePhaseStep.BEFORE_ENLIST,
        ThreePhaseStep.AFTER_ENLIST,
        ThreePhaseStep.BEFORE_PRECOMMIT,
        ThreePhaseStep.AFTER_PRECOMMIT,
        *TerminationStep,
    }
)
"""Steps passed once for each branch; their subject is the branch's gid, else the transaction's id."""

STEPS: dict[Protocol, tuple[enum.StrEnum, ...]] = {
    Protocol.TWO_PHASE: tuple(TwoPhaseStep),
    Protocol.THREE_PHASE: (
        ThreePhaseStep.BEFORE_ENLIST,
        ThreePhaseStep.AFTER_ENLIST,
        TwoPhaseStep.BEFORE_PREPARE,
        TwoPhaseStep.AFTER_PREPARE,
        ThreePhaseStep.BEFORE_LEDGER_PRECOMMIT,
        ThreePhaseStep.AFTER_LEDGER_PRECOMMIT,
        ThreePhaseStep.BEFORE_PRECOMMIT,
        ThreePhaseStep.AFTER_PRECOMMIT,
        TwoPhaseStep.BEFORE_DECIDE,
        TwoPhaseStep.AFTER_DECIDE,
        TwoPhaseStep.BEFORE_SECOND_PHASE,
        TwoPhaseStep.AFTER_SECOND_PHASE,
        TwoPhaseStep.BEFORE_FINISH,
        TwoPhaseStep.AFTER_FINISH,
    ),
    Protocol.PAXOS: (
        TwoPhaseStep.BEFORE_PREPARE,
        TwoPhaseStep.AFTER_PREPARE,
        PaxosStep.BEFORE_VOTE,
        PaxosStep.AFTER_VOTE,
        TwoPhaseStep.BEFORE_DECIDE,
        TwoPhaseStep.AFTER_DECIDE,
        TwoPhaseStep.BEFORE_SECOND_PHASE,
        TwoPhaseStep.AFTER_SECOND_PHASE,
        TwoPhaseStep.BEFORE_FINISH,
        TwoPhaseStep.AFTER_FINISH,
    ),
}
"""All steps of a protocol."""

Observer = Callable[[enum.StrEnum, str], Awaitable[None] | None]
"""Told the step and its subject: ``str(gid)`` or ``str(txid)``, or, by recovery, a participant's name."""


async def reach(observer: Observer | None, step: enum.StrEnum, subject: object) -> None:
    """Tell the observer, if there is one, and wait for it if it wants that."""
    if observer is not None:
        told = observer(step, str(subject))
        if told is not None:
            await told
