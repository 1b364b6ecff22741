"""Tells the ledger, in batches and off the hot path, which transactions are finished."""

from __future__ import annotations

import asyncio
import logging

from coordinator.errors import LedgerError
from coordinator.ledger.contract import Ledger
from coordinator.protocols.steps import Observer, TwoPhaseStep
from participants.ids import TxId

log = logging.getLogger(__name__)

BATCH_DELAY_S = 0.05
BATCH_TRANSACTIONS_MAX = 1_000


class Finisher:
    """Collects transaction ids; what it cannot deliver, recovery finds unfinished and finishes."""

    def __init__(self, ledger: Ledger, observer: Observer | None) -> None:
        self._ledger = ledger
        self._observer = observer
        self._waiting: list[TxId] = []
        self._task: asyncio.Task[None] | None = None

    def add(self, txid: TxId) -> None:
        self._waiting.append(txid)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._deliver_later(), name="undoubt-finish")

    async def flush(self) -> None:
        """Return once everything that was added so far is delivered, or given up."""
        if self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    async def close(self) -> None:
        """Deliver what waits."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._deliver()

    async def _deliver_later(self) -> None:
        while self._waiting:
            await asyncio.sleep(BATCH_DELAY_S)
            await self._deliver()

    async def _deliver(self) -> None:
        while self._waiting:
            batch = self._waiting[:BATCH_TRANSACTIONS_MAX]
            await self._tell(TwoPhaseStep.BEFORE_FINISH, batch)
            try:
                await self._ledger.finish(batch)
            except LedgerError as error:
                log.warning("%d transactions are left for recovery to finish: %s", len(batch), error)
            del self._waiting[: len(batch)]
            await self._tell(TwoPhaseStep.AFTER_FINISH, batch)

    async def _tell(self, step: TwoPhaseStep, batch: list[TxId]) -> None:
        if self._observer is None:
            return
        for txid in batch:
            told = self._observer(step, str(txid))
            if told is not None:
                await told
