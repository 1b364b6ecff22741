"""Rows of three-phase commit that nobody deleted, because their coordinator died, or the database was down.

A row may go once the ledger says that its transaction is finished: then nobody can want to terminate it any
more. A transaction that the ledger has no decision for, and whose coordinator is gone, is terminated first,
although no branch of it need be prepared: so the ledger, too, learns how it ended.
"""

from __future__ import annotations

from undoubt.coordinator.ledger.contract import Ledger, RecordedDecision
from undoubt.coordinator.ledger.pages import every_unfinished
from undoubt.participants.contract import Participant
from undoubt.participants.errors import ParticipantRefused
from undoubt.participants.ids import Gid
from undoubt.recovery.terminate import Terminator

SWEEP_INTERVAL_S = 60.0
OLD_S = 60.0
"""A live coordinator deletes its rows within a second."""
BURIED_S = 86_400.0
"""Under a tombstone a slow PREPARE may still be on its way. The ledger knows of the abort; but if that is
lost as well, nothing else does."""


async def sweep(
    ledger: Ledger,
    terminator: Terminator,
    participant: Participant,
    old_s: float = OLD_S,
    buried_s: float = BURIED_S,
) -> list[Gid]:
    """Delete what may go; returns what went. Raises ``LedgerError``, and ``ParticipantError`` except for a
    database without such tables."""
    try:
        rows = [
            gid for gid in await participant.states.stale(old_s, buried_s) if gid.ledger == ledger.ledger_id
        ]
    except ParticipantRefused:
        return []
    if not rows:
        return []
    records = await ledger.records({gid.txid for gid in rows})
    unfinished = {record.txid async for record in every_unfinished(ledger)}
    finished = [
        gid
        for gid in rows
        if records[gid.txid] is not RecordedDecision.NOT_RECORDED and gid.txid not in unfinished
    ]
    await participant.states.forget(finished)
    alive = await terminator.alive()
    for gid in rows:
        if records[gid.txid] is RecordedDecision.NOT_RECORDED and not alive(gid.txid):
            await terminator.end(participant, gid)
    return finished
