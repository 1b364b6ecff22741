"""Pages of unfinished decisions: what is asked in pieces, so that no answer is as large as a ledger.

::

    async for record in every_unfinished(ledger):
        ...
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import AsyncIterator, Mapping, Sequence

from undoubt.coordinator.ledger.contract import DecisionRecord, Ledger
from undoubt.participants.ids import TxId

BRANCHES_MAX = 10_000
"""A page ends behind the record with which its branches are as many: however large its records are, it fits
into a frame."""


async def every_unfinished(ledger: Ledger) -> AsyncIterator[DecisionRecord]:
    """All that was unfinished when the first page was read, and is when its own page is. Raises
    ``LedgerError``."""
    after: TxId | None = None
    while page := await ledger.unfinished(after=after):
        for record in page:
            yield record
        after = page[-1].txid


class Pages:
    """Of what one process keeps. The ids are sorted once for a reader that begins, not for every page."""

    def __init__(self) -> None:
        self._sorted: list[TxId] = []

    def page(
        self, unfinished: Mapping[TxId, DecisionRecord], after: TxId | None, limit: int
    ) -> list[DecisionRecord]:
        """Of ``unfinished``, in ascending order, at most ``limit`` behind ``after``. Several readers share
        the ids: one that began earlier meets those of one that began later, which lack only what is
        finished."""
        if after is None or not self._sorted:
            self._sorted = sorted(unfinished)
        found: list[DecisionRecord] = []
        branches = 0
        for position in range(0 if after is None else bisect_right(self._sorted, after), len(self._sorted)):
            record = unfinished.get(self._sorted[position])
            if record is None:
                continue
            if len(found) == limit or branches >= BRANCHES_MAX:
                break
            found.append(record)
            branches += len(record.branches)
        if not found:
            self._sorted = []
        return found


def behind(records: Sequence[DecisionRecord], after: TxId | None) -> list[DecisionRecord]:
    """Of all unfinished ones, as a process of version 0.1.0 tells them."""
    return sorted(
        (record for record in records if after is None or record.txid > after), key=lambda record: record.txid
    )
