"""Finished transactions that have left the state machine and are not yet in the store of history, and the
view of history that readers have meanwhile.

A record is in the machine until the transaction is finished, then here, and then in the store. It is removed
from here only after it is stored. So a reader that looks here first and then in the store finds it once or
twice, and never misses it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from undoubt.coordinator.ledger.contract import DecisionRecord
from undoubt.coordinator.ledger.machine import Machine
from undoubt.participants.ids import TxId

ReadPage = Callable[[int, DecisionRecord | None], Awaitable[Sequence[DecisionRecord]]]
"""Reads the store: at most so many records, newest first, older than the given record."""


class RecentHistory:
    """The transactions that ``machine`` has finished and the store may not have yet."""

    def __init__(self, machine: Machine) -> None:
        self.unwritten: dict[TxId, DecisionRecord] = {}
        """Records that were taken from the machine and not yet given to the store."""
        self._machine = machine
        self._being_written: dict[TxId, DecisionRecord] = {}

    def recent(self) -> Mapping[TxId, DecisionRecord]:
        self._collect()
        return self.unwritten | self._being_written

    def begin(self) -> tuple[DecisionRecord, ...]:
        """The records to store now. The caller then calls :meth:`stored` or :meth:`not_stored`."""
        self._collect()
        records, self.unwritten = self.unwritten, {}
        self._being_written |= records
        return tuple(records.values())

    def stored(self, records: Iterable[DecisionRecord]) -> None:
        for record in records:
            self._being_written.pop(record.txid, None)

    def not_stored(self, records: Iterable[DecisionRecord]) -> None:
        """Take back ``records``, for which the store had no room."""
        for record in records:
            self.unwritten[record.txid] = self._being_written.pop(record.txid, record)

    async def page(
        self, limit: int, before: DecisionRecord | None, stored: ReadPage
    ) -> Sequence[DecisionRecord]:
        """A page of the store, merged with the records that the store may not have yet."""
        merged = {
            txid: record
            for txid, record in self.recent().items()
            if before is None or newest(before) < newest(record)
        }
        for record in await stored(limit, before):
            merged[record.txid] = record
        return sorted(merged.values(), key=newest)[:limit]

    def _collect(self) -> None:
        for record in self._machine.drain_history():
            self.unwritten[record.txid] = record


def newest(record: DecisionRecord) -> tuple[float, TxId]:
    """Sorts the newest decision first."""
    txid = record.txid
    return (-record.decided_at, TxId(-txid.session, txid.nonce, -txid.seq))
