"""Unfinished decisions are read in pages. Broken if recovery missed one, or an answer were as large as the
ledger."""

from __future__ import annotations

from typing import Any

import pytest

from tests.coordinator.ledger.conftest import Backend
from tests.coordinator.ledger.signing import TaggingLedger
from undoubt.coordinator.errors import VersionHeldBack
from undoubt.coordinator.ledger import calls, pages
from undoubt.coordinator.ledger.calls import CallingLedger
from undoubt.coordinator.ledger.commands import LIMIT_MAX
from undoubt.coordinator.ledger.contract import UNFINISHED_MAX, BranchRecord, DecisionRecord, Ledger
from undoubt.coordinator.ledger.pages import Pages, every_unfinished
from undoubt.participants.contract import Decision
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import Protocol, TxId

NONCE = "99b2" * 4
BRANCHES = (BranchRecord(1, "orders"), BranchRecord(2, "payments"))


def record(session: int, seq: int, branches: int = 2) -> DecisionRecord:
    listed = tuple(BranchRecord(number, "orders") for number in range(1, branches + 1))
    return DecisionRecord(TxId(session, NONCE, seq), Protocol.TWO_PHASE, Decision.COMMIT, listed, 0.0, "test")


def kept(*records: DecisionRecord) -> dict[TxId, DecisionRecord]:
    return {each.txid: each for each in records}


async def test_every_page_behind_the_last(backend: Backend) -> None:
    """On every backend: in ascending order, over sessions, and none twice."""
    ledger = backend.ledger
    first, second = await ledger.open_session("first", 60.0), await ledger.open_session("second", 60.0)
    asked = [session.txid(seq) for session in (second, first) for seq in (11, 2, 3, 1, 10)]
    for txid in asked:
        await ledger.decide(txid, Decision.COMMIT, BRANCHES)
    await ledger.finish([first.txid(3)])
    wanted = sorted(set(asked) - {first.txid(3)})
    told: list[TxId] = []
    while page := await ledger.unfinished(after=told[-1] if told else None, limit=4):
        assert len(page) <= 4
        told += [each.txid for each in page]
    assert told == wanted
    assert [each.txid async for each in every_unfinished(ledger.ledger)] == wanted
    assert [each.txid for each in await ledger.unfinished()] == wanted


@pytest.mark.parametrize("limit", [0, -1, LIMIT_MAX + 1, 2**70])
async def test_a_page_out_of_bounds_is_refused(backend: Backend, limit: int) -> None:
    """Broken if a limit that no database holds ended more than its own call."""
    with pytest.raises(UsageError):
        await backend.ledger.unfinished(limit=limit)
    with pytest.raises(UsageError):
        await backend.ledger.unfinished(after=TxId(1, NONCE, 2**70))
    assert await backend.ledger.unfinished() == []


def test_a_page_ends_where_its_records_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if a page of large records fits into no frame."""
    monkeypatch.setattr(pages, "BRANCHES_MAX", 10)
    unfinished = kept(*(record(1, seq, branches=7) for seq in range(1, 6)), record(1, 6, branches=500))
    found = Pages()
    told: list[int] = []
    sizes = []
    after: TxId | None = None
    while page := found.page(unfinished, after, 1_000):
        told += [each.txid.seq for each in page]
        sizes.append(len(page))
        after = page[-1].txid
    assert (told, sizes) == ([1, 2, 3, 4, 5, 6], [2, 2, 2])


def test_readers_that_begin_one_after_the_other() -> None:
    """What was unfinished when a reader began, and is when its page is read, is told to it."""
    unfinished = kept(*(record(1, seq) for seq in range(1, 7)))
    found = Pages()
    (first, second) = found.page(unfinished, None, 2)
    del unfinished[TxId(1, NONCE, 3)]
    unfinished |= kept(record(1, 9))
    assert [each.txid.seq for each in found.page(unfinished, None, 3)] == [1, 2, 4]
    assert [each.txid.seq for each in found.page(unfinished, second.txid, 9)] == [4, 5, 6, 9]
    assert found.page(unfinished, TxId(1, NONCE, 9), 9) == []
    unfinished |= kept(record(2, 1))
    assert [each.txid for each in found.page(unfinished, first.txid, 2)] == [
        TxId(1, NONCE, 2),
        TxId(1, NONCE, 4),
    ]


class OldLedger(CallingLedger):
    """Its owner is of version 0.1.0: it knows of no pages."""

    def __init__(self, records: list[DecisionRecord]) -> None:
        self._records = records
        self.asked: list[calls.AnyLedgerCall] = []

    async def _call(self, call: calls.AnyLedgerCall) -> Any:
        self.asked.append(call)
        if call.since() > 1:
            raise VersionHeldBack("too new")
        return list(self._records)


async def test_an_old_peer_tells_all_at_once() -> None:
    """Broken if a rolling upgrade stopped recovery, or had it read the same page for ever."""
    old: Any = OldLedger([record(2, 1), record(1, 10), record(1, 9)])
    ledger: Ledger = old
    told = [each.txid async for each in every_unfinished(ledger)]
    assert told == [TxId(1, NONCE, 9), TxId(1, NONCE, 10), TxId(2, NONCE, 1)]
    assert old.asked[0] == calls.UnfinishedCall(UNFINISHED_MAX)


async def test_an_old_client_is_told_all_at_once() -> None:
    """As version 0.1.0 asks: without a limit."""
    owner = TaggingLedger()
    session = await owner.open_session("test", 60.0)
    for seq in range(1, 5):
        await owner.decide(session.txid(seq), Decision.COMMIT, BRANCHES)
    asked = calls.decode_call(b"\x91\xaaunfinished")
    told: Any = await asked.serve(owner, remote=True)
    assert {each.txid.seq for each in told} == {1, 2, 3, 4}
