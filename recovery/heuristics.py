"""Records that a database has ended a branch against the decision.

The ledger records it before the participant forgets it, so that a crash in between loses nothing. An operator
sees it (``undoubt indoubt list``) until ``undoubt indoubt forget``.
"""

from __future__ import annotations

import logging
import time

from undoubt.coordinator.ledger.contract import Heuristic, Ledger
from undoubt.participants.contract import Participant, Settled
from undoubt.recovery.plan import RecordHeuristicOutcome

log = logging.getLogger(__name__)

_NOTES = {
    Settled.HEURISTIC_COMMIT: "the transaction was aborted, and this branch was committed by hand",
    Settled.HEURISTIC_ROLLBACK: "the transaction is committed, and its database proves that this branch was"
    " rolled back, or its prepare lost",
    Settled.HEURISTIC_MIXED: "part of this branch is committed, part is rolled back",
    Settled.HEURISTIC_HAZARD: "the transaction is committed, this branch is no longer prepared, and nothing"
    " there proves what became of it: no evidence, or another system or timeline answers",
}


async def record(ledger: Ledger, participant: Participant, found: RecordHeuristicOutcome) -> None:
    """Record ``found``, then let the participant forget it. May be repeated. Raises ``LedgerError`` or
    ``ParticipantError``."""
    note = _NOTES[found.kind]
    log.error("%s: %s (%s)", found.kind, found.gid, note)
    await ledger.record_heuristic(Heuristic(found.gid, found.kind, found.decision, time.time(), note))
    await participant.forget(found.gid)
