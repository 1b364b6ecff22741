"""The named steps of recovery. The crash matrix is generated from this list."""

from __future__ import annotations

import enum


class RecoveryStep(enum.StrEnum):
    """The steps of one pass over one participant, in order."""

    BEFORE_SCAN = "before_scan"
    AFTER_SCAN = "after_scan"
    AFTER_OUTCOMES = "after_outcomes"
    BEFORE_COMMIT = "before_commit"
    AFTER_COMMIT = "after_commit"
    BEFORE_ROLLBACK = "before_rollback"
    AFTER_ROLLBACK = "after_rollback"
    BEFORE_FINISH = "before_finish"
    AFTER_FINISH = "after_finish"


class AgentStep(enum.StrEnum):
    """The steps about the agent of a last-agent commit: around the tombstone, and around the copy of a row
    that was left, which is deleted afterwards. Their subject is the transaction."""

    BEFORE_CONCLUDE = "before_conclude"
    AFTER_CONCLUDE = "after_conclude"
    BEFORE_COPY = "before_copy"
    AFTER_COPY = "after_copy"


PER_BRANCH = frozenset(
    {
        RecoveryStep.BEFORE_COMMIT,
        RecoveryStep.AFTER_COMMIT,
        RecoveryStep.BEFORE_ROLLBACK,
        RecoveryStep.AFTER_ROLLBACK,
    }
)
"""Steps whose subject is the gid of a branch. The subject of a finish step is the transaction, that of the
others is the participant."""
