"""Reports finished transactions to the ledger and the participants, in batches."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence

from undoubt.coordinator.errors import LedgerError
from undoubt.coordinator.ledger.contract import Ledger
from undoubt.coordinator.protocols.steps import LastAgentStep, Observer, TwoPhaseStep, reach
from undoubt.coordinator.supervision import Supervised
from undoubt.participants.errors import ParticipantError
from undoubt.participants.ids import Gid, TxId
from undoubt.participants.last_agent import AgentEntry, agent_of
from undoubt.participants.registry import Registry

log = logging.getLogger(__name__)

BATCH_DELAY_S = 0.05
BATCH_TRANSACTIONS_MAX = 1_000


class Finisher:
    """Reports the finished transactions to ledger and participants, in batches, after the callers have their
    results. A transaction that cannot be reported stays unfinished in the ledger, and recovery finishes it.

    Rows of three-phase commit are deleted last: until the ledger says that a transaction is finished, a
    recovery may still terminate the transaction from its rows. The row of last-agent commit is deleted once
    the ledger holds the COMMIT that the row says.
    """

    def __init__(self, ledger: Ledger, participants: Registry, observer: Observer | None) -> None:
        self._ledger = ledger
        self._participants = participants
        self._rows: list[Gid] = []
        self._agent_rows: list[tuple[str, AgentEntry]] = []
        self._observer = observer
        self.finished: list[TxId] = []
        """Transactions that are finished, in this order. Who adds one sets :attr:`filled`."""
        self.filled = asyncio.Event()
        self._emptied = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = Supervised("finish", self._deliver_batches).start("undoubt-finish")

    def forget(self, rows: Iterable[Gid]) -> None:
        """Delete these rows once everything that was added before is delivered."""
        self._rows += rows
        self.filled.set()

    def forget_agent_row(self, participant: str, entry: AgentEntry) -> None:
        """Delete the row of a COMMIT, which the ledger has recorded."""
        self._agent_rows.append((participant, entry))
        self.filled.set()

    @property
    def _idle(self) -> bool:
        return not (self.finished or self._rows or self._agent_rows)

    async def flush(self) -> None:
        """Return once everything that was added so far is delivered, or left to recovery."""
        while not self._idle and self._task is not None and not self._task.done():
            self._emptied.clear()
            await self._emptied.wait()

    async def close(self) -> None:
        """Stop the background task, and deliver everything that was added."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._deliver()

    async def _deliver_batches(self) -> None:
        while True:
            await self.filled.wait()
            await asyncio.sleep(BATCH_DELAY_S)
            await self._deliver()
            if self._idle:
                self.filled.clear()
                self._emptied.set()

    async def _deliver(self) -> None:
        await self._finish()
        rows = list(self._rows)  # their transactions were added before them, and are finished now
        await self._forget(rows)
        del self._rows[: len(rows)]
        await self._forget_agent_rows()

    async def _forget_agent_rows(self) -> None:
        while self._agent_rows:
            batch = self._agent_rows[:BATCH_TRANSACTIONS_MAX]
            await self._forget_batch(batch)
            del self._agent_rows[: len(batch)]

    async def _forget_batch(self, batch: Sequence[tuple[str, AgentEntry]]) -> None:
        txids = [entry.txid for _, entry in batch]
        await self._reach(LastAgentStep.BEFORE_FORGET, txids)
        by_participant: dict[str, list[bytes]] = {}
        for name, entry in batch:
            by_participant.setdefault(name, []).append(entry.key)
        for name, keys in by_participant.items():
            agent = agent_of(self._participants.find(name))
            try:
                if agent is not None:
                    await agent.forget(keys)
            except ParticipantError as error:
                log.warning("%d rows of recorded transactions are left in %r: %s", len(keys), name, error)
        await self._reach(LastAgentStep.AFTER_FORGET, txids)

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
        while self.finished:
            batch = self.finished[:BATCH_TRANSACTIONS_MAX]
            await self._reach(TwoPhaseStep.BEFORE_FINISH, batch)
            try:
                await self._ledger.finish(batch)
            except LedgerError as error:
                log.warning("%d transactions are left for recovery to finish: %s", len(batch), error)
                left = set(batch)
                self._rows = [gid for gid in self._rows if gid.txid not in left]
            del self.finished[: len(batch)]
            await self._reach(TwoPhaseStep.AFTER_FINISH, batch)

    async def _reach(self, step: TwoPhaseStep | LastAgentStep, batch: list[TxId]) -> None:
        for txid in batch:
            await reach(self._observer, step, txid)
