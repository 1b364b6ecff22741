"""Pages of unfinished decisions: they are read in parts, so that no answer is as large as the ledger.

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
"""A page ends after the record with which it has so many branches: it fits into a frame, however large its
records are."""


async def every_unfinished(ledger: Ledger) -> AsyncIterator[DecisionRecord]:
    """The records that were unfinished when the first page was read and still are when their own page is
    read. Raises ``LedgerError``."""
    after: TxId | None = None
    while page := await ledger.unfinished(after=after):
        for record in page:
            yield record
        after = page[-1].txid


class Pages:
    """Computes pages of records in memory. The ids are sorted once for each new reader, not for each page."""

    def __init__(self) -> None:
        self._sorted: list[TxId] = []

    def page(
        self, unfinished: Mapping[TxId, DecisionRecord], after: TxId | None, limit: int
    ) -> list[DecisionRecord]:
        """At most ``limit`` records of ``unfinished`` after ``after``, in ascending order. Concurrent readers
        share the sorted ids: an earlier reader may get the ids of a later one, from which only finished
        transactions are missing."""
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
    """The records after ``after``, sorted by id. ``records`` are all unfinished ones, as a process of version
    0.1.0 returns them."""
    return sorted(
        (record for record in records if after is None or record.txid > after), key=lambda record: record.txid
    )
