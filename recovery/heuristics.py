"""Records that a database has ended a branch against the decision.

The ledger records it before the participant forgets it, so that a crash in between loses nothing. An operator
sees it (``undoubt indoubt list``) until ``undoubt indoubt forget``. A hazard, which only says that nothing
was proved, is closed by recovery once the branch is proved to have ended as recorded.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Set as AbstractSet

from undoubt.coordinator.ledger.acting import acting, new_act
from undoubt.coordinator.ledger.contract import Heuristic, Ledger, RecordedDecision
from undoubt.participants.contract import Participant, Settled, XactStatus
from undoubt.participants.ids import Gid
from undoubt.recovery.plan import RecordHeuristicOutcome
from undoubt.recovery.unfinished import ask_books

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


async def close_proved(ledger: Ledger, participant: Participant, applied: AbstractSet[Gid]) -> None:
    """Close the hazards of the participant's branches that ended as recorded: those of ``applied``, and those
    of which its database proves it. Each is recorded as an act of this process. Raises ``LedgerError`` or
    ``ParticipantError``."""
    for known in await ledger.heuristics():
        gid = known.gid
        if known.kind is not Settled.HEURISTIC_HAZARD or gid.participant not in participant.names:
            continue
        if gid not in applied and not await _is_applied(ledger, participant, gid):
            continue
        async with acting(ledger, new_act("recovery: hazard closed", gid, "it ended as recorded")):
            await ledger.forget_heuristic(gid)
        log.warning("the hazard of %s is closed: it is proved to have ended as recorded", gid)


async def _is_applied(ledger: Ledger, participant: Participant, gid: Gid) -> bool:
    info = await ledger.transaction(gid.txid)
    if info is None or info.record is RecordedDecision.NOT_RECORDED:
        return False
    record = next((one for one in info.branches if one.number == gid.branch), None)
    if record is None:
        return False
    committed = info.record is RecordedDecision.COMMIT
    xact_status = await ask_books(participant, gid, record)
    return xact_status is (XactStatus.COMMITTED if committed else XactStatus.ABORTED)
