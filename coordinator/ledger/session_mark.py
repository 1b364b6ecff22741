"""The mark of a session whose every commit is recorded.

A coordinator that prepares every branch and records every commit marks each session before a transaction
begins in it. Of a marked session, a transaction without a record was not committed in one phase. The name of
a session proves nothing, since any application chooses its own.

The mark is a recorded COMMIT of a transaction number that no coordinator reaches. The ledger records a COMMIT
only for names with the tags of the session's key, which the ledger gives to the opener of the session alone:
so no other process can mark a session, and no application marks one by accident. It needs no field of its
own, so nodes of every version keep it, for as long as they keep the session."""

from __future__ import annotations

from undoubt.coordinator.errors import SessionLost
from undoubt.coordinator.ledger.contract import (
    Ledger,
    RecordedDecision,
    Session,
    SessionInfo,
    TransactionInfo,
    record_of,
)
from undoubt.participants.contract import Decision
from undoubt.participants.ids import Gid, Protocol, SessionKey, TxId

MARK_SEQ = 2**62
"""The number of the mark among the transactions of its session."""
MARK_PARTICIPANT = "undoubt.records-all"
"""What the mark names in the place of a participant."""


async def mark(ledger: Ledger, session: Session, key: SessionKey) -> None:
    """Mark ``session``, durably. Only the opener of the session can. May be repeated. Raises ``SessionLost``
    if the session is gone, and ``LedgerError``."""
    txid = session.txid(MARK_SEQ)
    gid = Gid(ledger.ledger_id, Protocol.TWO_PHASE, txid, 1, MARK_PARTICIPANT).tagged(key)
    if await ledger.decide(txid, Decision.COMMIT, [record_of(gid)]) is not Decision.COMMIT:
        raise SessionLost(f"session {session.id} was closed or has expired")
    await ledger.finish([txid])


def is_mark(txid: TxId) -> bool:
    """Whether ``txid`` is the transaction id of a mark, which is no transaction of anybody."""
    return txid.seq == MARK_SEQ


async def transactions_without_marks(
    ledger: Ledger, *, limit: int, before: TxId | None = None
) -> list[TransactionInfo]:
    """At most ``limit`` transactions, as ``ledger.transactions`` returns them, without marks. Raises
    ``LedgerError``."""
    found: list[TransactionInfo] = []
    while len(found) < limit:
        page = await ledger.transactions(limit=limit, before=before)
        found += [info for info in page if not is_mark(info.txid)]
        if len(page) < limit:
            break
        before = page[-1].txid
    return found[:limit]


async def is_marked(ledger: Ledger, session: Session | SessionInfo) -> bool:
    """Raises ``LedgerError``."""
    txid = TxId(session.id, session.nonce, MARK_SEQ)
    return (await ledger.records([txid]))[txid] is RecordedDecision.COMMIT
