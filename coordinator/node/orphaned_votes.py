"""What ended coordinators have left at the acceptors of Paxos Commit, and not recorded.

The acceptors know an outcome before the ledger does. A coordinator that dies in between may have applied it
everywhere: then nothing is prepared any more, no recovery has a branch to ask about, and only the acceptors
know. Whoever leads looks for such transactions, and records what the acceptors chose: so the ledger tells how
they ended, and the acceptors may forget them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence

from undoubt.coordinator.errors import LedgerError
from undoubt.coordinator.ledger.cluster.messages import SESSIONS_MAX, HeldCall
from undoubt.coordinator.ledger.cluster.status import ask
from undoubt.coordinator.ledger.contract import RecordedDecision, SessionState
from undoubt.coordinator.ledger.state import SessionBook
from undoubt.coordinator.node.ledger import NodeLedger
from undoubt.coordinator.node.replica import Replica
from undoubt.coordinator.supervision import Upkeep
from undoubt.coordinator.wire import WireSettings
from undoubt.participants.errors import UndoubtError
from undoubt.participants.ids import TxId

log = logging.getLogger(__name__)

INTERVAL_S = 5.0
"""Nothing waits for it but those who ask how it ended."""

ASK_S = 0.5
"""Who is silent for longer is not waited for: it may be gone for good."""


class Settling:
    """Of the node that leads."""

    def __init__(self, replica: Replica, ledger: NodeLedger, wire: WireSettings) -> None:
        self._replica = replica
        self._ledger = ledger
        self._wire = wire
        self.upkeep = Upkeep(
            "node settling",
            self._keep_up,
            INTERVAL_S,
            undone="what acceptors decided is not recorded now",
        )

    async def _keep_up(self) -> None:
        if self._ledger.leads:
            await self.settle_all()

    async def settle_all(self) -> None:
        """One look. What cannot be settled now is tried again at the next."""
        blocked: set[int] = set()
        for txid in await self.left(self._ended()):
            if txid.session in blocked:
                continue
            try:
                await self.settle(txid)
            except (UndoubtError, TimeoutError) as error:
                blocked.add(txid.session)
                log.info("what became of %s is not known yet: %s", txid, str(error) or "no answer in time")

    def _ended(self) -> list[SessionBook]:
        books = self._replica.replicated.machine.state.sessions.values()
        return [book for book in books if book.acceptors and book.state is not SessionState.OPEN]

    async def left(self, ended: Iterable[SessionBook]) -> list[TxId]:
        """All transactions of these sessions that some acceptor which answers keeps and the ledger does not
        hold."""
        books = {book.id: book for book in ended}
        asked = {node for book in books.values() for node in book.acceptors}
        held = await asyncio.gather(*(self._held(node, tuple(books)) for node in sorted(asked)))
        # Whoever was asked may not have applied as much as is applied here.
        machine = self._replica.replicated.machine
        told = {txid for each in held for txid in each}
        return sorted(txid for txid in told if machine.record(txid) is RecordedDecision.NOT_RECORDED)

    async def _held(self, node: int, sessions: tuple[int, ...]) -> Sequence[TxId]:
        """All of it, as far as that node answers."""
        told: list[TxId] = []
        try:
            for first in range(0, len(sessions), SESSIONS_MAX):
                some, after = sessions[first : first + SESSIONS_MAX], None
                while more := await self._told(node, HeldCall(some, after)):
                    if after is not None and more[-1] <= after:
                        break  # it would go on for ever
                    told += more
                    after = more[-1]
        except LedgerError as error:
            log.info("what node %d holds is not known: %s", node, error)
        return told

    async def _told(self, node: int, call: HeldCall) -> Sequence[TxId]:
        replica = self._replica
        if node == replica.raft.node:
            return replica.acceptors.held(call.sessions, call.after)
        address = replica.replicated.addresses.get(node)
        if address is None:
            return ()
        told: list[TxId] = await ask(address, call, ASK_S, self._wire)
        return told

    async def settle(self, txid: TxId) -> None:
        """Have its acceptors choose, and record it. Raises ``UndoubtError`` and ``TimeoutError``."""
        async with asyncio.timeout(ASK_S):
            found = await self._ledger.acceptors.settle(txid)
            await self._ledger.record_chosen(txid, found)
