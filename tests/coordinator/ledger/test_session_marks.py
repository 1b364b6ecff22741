"""Marks of sessions are kept as decisions, and are shown to nobody as one."""

from __future__ import annotations

from tests.coordinator.ledger.signing import TaggingLedger
from undoubt.coordinator.ledger.contract import BranchRecord
from undoubt.coordinator.ledger.session_mark import is_mark, mark, transactions_without_marks
from undoubt.participants.contract import Decision
from undoubt.participants.ids import SessionKey, TxId


async def test_a_page_is_full_though_there_are_marks() -> None:
    """Broken if a page with marks is taken for the last one, or has more than it should."""
    ledger = TaggingLedger()
    decided: list[TxId] = []
    for _ in range(5):
        session = await ledger.open_session("sidecar", 30.0)
        await mark(ledger, session, SessionKey(session.key))
        txid = session.txid(1)
        await ledger.decide(txid, Decision.COMMIT, (BranchRecord(1, "orders"),))
        decided.append(txid)
    for limit in range(1, 7):
        seen: list[TxId] = []
        while found := await transactions_without_marks(
            ledger, limit=limit, before=seen[-1] if seen else None
        ):
            assert len(found) <= limit
            seen += [info.txid for info in found]
        assert sorted(seen) == sorted(decided), limit
    assert not any(is_mark(txid) for txid in decided)
    await ledger.close()
