"""The named steps of two-phase commit: where a process can die, and tests make it.

Every protocol calls ``observe(step, subject)`` between two effects. In production nobody listens. The
crash matrix is generated from :class:`TwoPhaseStep`, so a step that is added here is crashed at.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable


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


PER_BRANCH = frozenset(
    {
        TwoPhaseStep.BEFORE_PREPARE,
        TwoPhaseStep.AFTER_PREPARE,
        TwoPhaseStep.BEFORE_SECOND_PHASE,
        TwoPhaseStep.AFTER_SECOND_PHASE,
    }
)
"""Steps passed once for each branch; their subject is the branch's gid, else the transaction's id."""

Observer = Callable[[enum.StrEnum, str], Awaitable[None] | None]
"""Told the step and its subject: ``str(gid)`` or ``str(txid)``."""
