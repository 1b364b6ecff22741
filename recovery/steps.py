"""The named steps of recovery, listed once; the crash matrix is generated from them."""

from __future__ import annotations

import enum

from undoubt.coordinator.protocols.steps import Observer


class RecoveryStep(enum.StrEnum):
    """In the order in which one pass over one participant meets them."""

    BEFORE_SCAN = "before_scan"
    AFTER_SCAN = "after_scan"
    AFTER_OUTCOMES = "after_outcomes"
    BEFORE_COMMIT = "before_commit"
    AFTER_COMMIT = "after_commit"
    BEFORE_ROLLBACK = "before_rollback"
    AFTER_ROLLBACK = "after_rollback"
    BEFORE_FINISH = "before_finish"
    AFTER_FINISH = "after_finish"


PER_BRANCH = frozenset(
    {
        RecoveryStep.BEFORE_COMMIT,
        RecoveryStep.AFTER_COMMIT,
        RecoveryStep.BEFORE_ROLLBACK,
        RecoveryStep.AFTER_ROLLBACK,
    }
)
"""Steps whose subject is a branch's gid; the others name the participant, and finish the transaction."""


async def reach(observe: Observer | None, step: RecoveryStep, subject: object) -> None:
    """Tell the observer, and wait for it if it wants that."""
    if observe is not None:
        told = observe(step, str(subject))
        if told is not None:
            await told
