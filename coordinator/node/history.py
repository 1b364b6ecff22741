"""Finished transactions on their way from the machine into the storage's history.

They ride along with an image of the machine, since the entries that could tell them again are dropped after
it, and leave by themselves once there are many.
"""

from __future__ import annotations

from collections.abc import Mapping

from undoubt.coordinator.ledger.contract import DecisionRecord
from undoubt.coordinator.node.fsm import NodeStateMachine
from undoubt.coordinator.node.storage.contract import Finished
from undoubt.participants.ids import TxId

RECORDS_MAX = 256
"""Those that wait for a write to ride along with."""


class HistoryBuffer:
    def __init__(self, replicated: NodeStateMachine, keep_ms: int) -> None:
        self._replicated = replicated
        self._keep_ms = keep_ms
        self._unwritten: dict[TxId, DecisionRecord] = {}
        self._being_written: dict[TxId, DecisionRecord] = {}

    def lately(self) -> Mapping[TxId, DecisionRecord]:
        """What is finished and may not be in the storage yet."""
        self._collect()
        return self._unwritten | self._being_written

    @property
    def due(self) -> bool:
        return self._replicated.machine.history_waiting + len(self._unwritten) >= RECORDS_MAX

    def begin(self) -> Finished:
        """All that is to be written; afterwards :meth:`stored`."""
        self._collect()
        finished, self._unwritten = self._unwritten, {}
        self._being_written |= finished
        now_ms = self._replicated.machine.state.time_ms
        return Finished(tuple(finished.values()), now_ms, self._keep_ms)

    def stored(self, finished: Finished) -> None:
        for record in finished.records:
            self._being_written.pop(record.txid, None)

    def not_stored(self, finished: Finished) -> None:
        """There was no room."""
        for record in finished.records:
            self._unwritten[record.txid] = self._being_written.pop(record.txid, record)

    def _collect(self) -> None:
        for record in self._replicated.finished():
            self._unwritten[record.txid] = record
