"""What the ledger says of a transaction that is not in the book: begun before a restart, or elsewhere.

A transaction of a sidecar never commits without a record. So one without a record whose session is stored as
gone is aborted, for ever. That holds for sessions of sidecars alone, which their names show: a coordinator in
an application may commit in one phase, of which nothing is recorded.
"""

from __future__ import annotations

from undoubt.coordinator.ledger.contract import Ledger, RecordedDecision, SessionInfo, SessionState
from undoubt.participants.ids import TxId
from undoubt.serve.sidecar.types import State, TransactionShown

SESSION_NAME = "sidecar "
"""How the names of sidecars' sessions begin."""


async def look_up(ledger: Ledger, txid: TxId) -> TransactionShown | None:
    """None if the ledger knows nothing of it, which says nothing about its outcome. Raises
    ``LedgerError``."""
    known = await ledger.transaction(txid)
    if known is not None and known.record is not RecordedDecision.NOT_RECORDED:
        heuristics = {str(each.gid): str(each.kind) for each in known.heuristics}
        committed = known.record is RecordedDecision.COMMIT
        state: State = "committed" if committed else "aborted"
        return TransactionShown(
            str(txid), "heuristic" if heuristics else state, reason=known.cause, heuristics=heuristics
        )
    session = await _session_of(ledger, txid)
    if session is None or not session.name.startswith(SESSION_NAME):
        return None
    # The session was read after the record: what was decided before its end would have been seen.
    if session.state is SessionState.OPEN and txid.seq >= session.floor:
        return TransactionShown(str(txid), "unknown", reason="the sidecar that began it may still decide")
    if session.state is SessionState.RESTORED and txid.seq >= session.floor:
        return None
    recorded = (await ledger.records([txid]))[txid]
    if recorded is not RecordedDecision.NOT_RECORDED:
        return TransactionShown(str(txid), "committed" if recorded is RecordedDecision.COMMIT else "aborted")
    return TransactionShown(str(txid), "aborted", reason="it was not decided, and its session has ended")


async def _session_of(ledger: Ledger, txid: TxId) -> SessionInfo | None:
    for session in await ledger.sessions():
        if (session.id, session.nonce) == (txid.session, txid.nonce):
            return session
    return None
