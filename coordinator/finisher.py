"""Tells ledger and participants, in batches and off the hot path, which transactions are finished."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence

from undoubt.coordinator.errors import LedgerError
from undoubt.coordinator.ledger.contract import Ledger
from undoubt.coordinator.protocols.steps import Observer, TwoPhaseStep
from undoubt.coordinator.supervision import Supervised
from undoubt.participants.errors import ParticipantError
from undoubt.participants.ids import Gid, TxId
from undoubt.participants.registry import Registry

log = logging.getLogger(__name__)

BATCH_DELAY_S = 0.05
BATCH_TRANSACTIONS_MAX = 1_000


class Finisher:
    """Collects transaction ids; what it cannot deliver, recovery finds unfinished and finishes.

    Rows of three-phase commit are deleted last: as long as the ledger does not say that a transaction is
    finished, somebody may still want to terminate it.
    """

    def __init__(self, ledger: Ledger, participants: Registry, observer: Observer | None) -> None:
        self._ledger = ledger
        self._participants = participants
        self._rows: list[Gid] = []
        self._observer = observer
        self._waiting: list[TxId] = []
        self._task: asyncio.Task[None] | None = None

    def add(self, txid: TxId) -> None:
        self._waiting.append(txid)
        self._begin()

    def _begin(self) -> None:
        if self._task is None or self._task.done():
            self._task = Supervised("finish", self._deliver_later).start("undoubt-finish")

    def forget(self, rows: Iterable[Gid]) -> None:
        """Delete these rows once everything that was added before is delivered."""
        self._rows += rows
        self._begin()

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
        while self._waiting or self._rows:
            await asyncio.sleep(BATCH_DELAY_S)
            await self._deliver()

    async def _deliver(self) -> None:
        await self._finish()
        rows = list(self._rows)  # their transactions were added before them, and are finished now
        await self._forget(rows)
        del self._rows[: len(rows)]

    async def _forget(self, rows: Sequence[Gid]) -> None:
        by_participant: dict[str, list[Gid]] = {}
        for gid in rows:
            by_participant.setdefault(gid.participant, []).append(gid)
        for name, gids in by_participant.items():
            participant = self._participants.find(name)
            try:
                if participant is not None:
                    await participant.states.forget(gids)
            except ParticipantError as error:
                log.warning("%d rows of finished transactions are left in %r: %s", len(gids), name, error)

    async def _finish(self) -> None:
        while self._waiting:
            batch = self._waiting[:BATCH_TRANSACTIONS_MAX]
            await self._tell(TwoPhaseStep.BEFORE_FINISH, batch)
            try:
                await self._ledger.finish(batch)
            except LedgerError as error:
                log.warning("%d transactions are left for recovery to finish: %s", len(batch), error)
                left = set(batch)
                self._rows = [gid for gid in self._rows if gid.txid not in left]
            del self._waiting[: len(batch)]
            await self._tell(TwoPhaseStep.AFTER_FINISH, batch)

    async def _tell(self, step: TwoPhaseStep, batch: list[TxId]) -> None:
        if self._observer is None:
            return
        for txid in batch:
            told = self._observer(step, str(txid))
            if told is not None:
                await told
