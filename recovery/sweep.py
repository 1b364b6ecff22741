"""Rows of three-phase commit that were not deleted, because their coordinator died or the database was down.

A row may be deleted once the ledger says that its transaction is finished: then no termination needs it. A
transaction without a decision in the ledger, whose coordinator is gone, is terminated first, even if no
branch of it is prepared, so that its decision is recorded."""

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
"""Age at which a tombstone may be deleted. A slow PREPARE may still arrive under it. The ledger has the
abort, but if the ledger is lost, only the tombstone is left."""


async def sweep(
    ledger: Ledger,
    terminator: Terminator,
    participant: Participant,
    old_s: float = OLD_S,
    buried_s: float = BURIED_S,
) -> list[Gid]:
    """Delete the rows that may be deleted; returns them. Raises ``LedgerError``, and ``ParticipantError``
    except for a database without such tables."""
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
