"""A ledger that is lost with its process: for tests of code that uses a ledger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from undoubt.coordinator.errors import LedgerUnavailable
from undoubt.coordinator.ledger.commands import RULES, Command, Judge, decode, encode
from undoubt.coordinator.ledger.contract import DecisionRecord
from undoubt.coordinator.ledger.history import newest
from undoubt.coordinator.ledger.machine import Machine
from undoubt.coordinator.ledger.state_machine_ledger import TIME_STEP_S, StateMachineLedger
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.ids import TxId, new_ledger_id


class MemoryLedger(StateMachineLedger):
    """A ledger in memory. Its time advances only by ``elapse``. If ``down`` is set, commands raise it."""

    backend = "memory"

    def __init__(self, ledger_id: str | None = None, settings: LedgerSettings | None = None) -> None:
        self.now_s = 0.0
        self.down: LedgerUnavailable | None = None
        self.commands: list[Command] = []
        self._kept: dict[TxId, DecisionRecord] = {}
        super().__init__(
            Machine(ledger_id or new_ledger_id()),
            settings or LedgerSettings(url="memory://"),
            clock=lambda: self.now_s,
        )
        self.machine.apply(Judge(RULES))

    async def elapse(self, seconds: float) -> None:
        """Advance time by ``seconds``: sessions that are not renewed expire, old sessions are dropped."""
        self._leases.due(self.machine.session_infos(), self.now_s)
        end_s = self.now_s + seconds
        while True:
            self.now_s = min(self.now_s + TIME_STEP_S, end_s)
            await self.expire_due()
            await self.advance_time()
            if self.now_s == end_s:
                return

    async def close(self) -> None:
        """Nothing to release."""

    async def propose(self, command: Command) -> Any:
        if self.down is not None:
            raise self.down
        durable = decode(encode(command))  # the command as another backend would read it from its log
        self.commands.append(durable)
        result = self.machine.apply(durable)
        for record in self.machine.drain_history():
            self._kept[record.txid] = record
        return result

    async def _history_of(self, txid: TxId) -> DecisionRecord | None:
        return self._kept.get(txid)

    async def _history(self, limit: int, before: DecisionRecord | None) -> Sequence[DecisionRecord]:
        kept = sorted(self._kept.values(), key=newest)
        if before is not None:
            kept = [record for record in kept if newest(before) < newest(record)]
        return kept[:limit]
