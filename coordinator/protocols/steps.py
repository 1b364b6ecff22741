"""The named steps of the commit protocols, at which tests make the process die.

Every protocol calls ``observe(step, subject)`` between two effects. In production only a sidecar has an
observer: its console keeps when each step happened. The crash matrix is generated from :data:`STEPS`, so it
contains each step that is added there.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable

from undoubt.participants.ids import Protocol


class TwoPhaseStep(enum.StrEnum):
    """The steps of two-phase commit, in the order in which one transaction passes them."""

    BEFORE_PREPARE = "before_prepare"
    AFTER_PREPARE = "after_prepare"
    BEFORE_DECIDE = "before_decide"
    AFTER_DECIDE = "after_decide"
    BEFORE_SECOND_PHASE = "before_second_phase"
    AFTER_SECOND_PHASE = "after_second_phase"
    BEFORE_FINISH = "before_finish"
    AFTER_FINISH = "after_finish"


class ThreePhaseStep(enum.StrEnum):
    """The additional steps of three-phase commit: before PREPARE, and between the votes and the decision."""

    BEFORE_ENLIST = "before_enlist"
    AFTER_ENLIST = "after_enlist"
    BEFORE_LEDGER_PRECOMMIT = "before_ledger_precommit"
    AFTER_LEDGER_PRECOMMIT = "after_ledger_precommit"
    BEFORE_PRECOMMIT = "before_precommit"
    AFTER_PRECOMMIT = "after_precommit"


class PaxosStep(enum.StrEnum):
    """The additional steps of Paxos Commit: the votes at the acceptors are the decision, and the ledger
    records a copy."""

    BEFORE_VOTE = "before_vote"
    AFTER_VOTE = "after_vote"


class LastAgentStep(enum.StrEnum):
    """The additional steps of last-agent commit: the COMMIT of the agent is the decision, and the agent's row
    is deleted after the ledger has recorded a copy."""

    BEFORE_AGENT = "before_agent"
    AFTER_AGENT = "after_agent"
    BEFORE_FORGET = "before_forget"
    AFTER_FORGET = "after_forget"


class AbortStep(enum.StrEnum):
    """What a transaction passes, with any protocol, if a branch does not prepare or it is rolled back. The
    console draws these steps; they are not in :data:`STEPS`, which a transaction that commits passes too."""

    VOTED_ABORT = "voted_abort"
    VOTED_READ_ONLY = "voted_read_only"
    BEFORE_ABORT = "before_abort"
    AFTER_ABORT = "after_abort"


class TerminationStep(enum.StrEnum):
    """The steps of one round of termination; each is passed once for every branch that is asked."""

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
"""The steps that are passed once for each branch; their subject is the branch's gid. The subject of all other
steps is the transaction's id."""

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
    Protocol.LAST: (
        TwoPhaseStep.BEFORE_PREPARE,
        TwoPhaseStep.AFTER_PREPARE,
        LastAgentStep.BEFORE_AGENT,
        LastAgentStep.AFTER_AGENT,
        TwoPhaseStep.BEFORE_DECIDE,
        TwoPhaseStep.AFTER_DECIDE,
        TwoPhaseStep.BEFORE_SECOND_PHASE,
        TwoPhaseStep.AFTER_SECOND_PHASE,
        TwoPhaseStep.BEFORE_FINISH,
        TwoPhaseStep.AFTER_FINISH,
        LastAgentStep.BEFORE_FORGET,
        LastAgentStep.AFTER_FORGET,
    ),
}
"""All steps of each protocol."""

Observer = Callable[[enum.StrEnum, str], Awaitable[None] | None]
"""Called with the step and its subject: ``str(gid)`` or ``str(txid)``; by recovery, also with a participant's
name."""


async def reach(observer: Observer | None, step: enum.StrEnum, subject: object) -> None:
    """Call the observer, if there is one, and await what it returns, if that is not None."""
    if observer is not None:
        observed = observer(step, str(subject))
        if observed is not None:
            await observed
