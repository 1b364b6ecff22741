"""Finds transactions of ended sessions that only the acceptors of Paxos Commit have, and records their
outcomes.

The acceptors have an outcome before the ledger has it. A coordinator that dies in between may have applied
the outcome in every participant: then no branch is prepared, recovery finds nothing, and only the acceptors
have the outcome. The leader looks for such transactions and records what the acceptors have chosen, so that
the ledger has the outcome and the acceptors may forget the transaction.
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
"""The interval may be long: only a query for the outcome waits for it."""

ASK_S = 0.5
"""The timeout for one node's answer; a node that does not answer may never return."""


class OrphanedVotes:
    """Records outcomes that only the acceptors have; works on the leader."""

    def __init__(self, replica: Replica, ledger: NodeLedger, wire: WireSettings) -> None:
        self._replica = replica
        self._ledger = ledger
        self._wire = wire
        self.upkeep = Upkeep(
            "node settling",
            self._keep_up,
            INTERVAL_S,
            undone="outcomes of the acceptors cannot be recorded now",
        )

    async def _keep_up(self) -> None:
        if self._ledger.leads:
            await self.settle_all()

    async def settle_all(self) -> None:
        """Look once for such transactions, and record their outcomes. A transaction that cannot be settled
        now is tried again in the next look."""
        blocked: set[int] = set()
        for txid in await self.left(self._ended()):
            if txid.session in blocked:
                continue
            try:
                await self.settle(txid)
            except (UndoubtError, TimeoutError) as error:
                blocked.add(txid.session)
                log.info("the outcome of %s is not known yet: %s", txid, str(error) or "no answer in time")

    def _ended(self) -> list[SessionBook]:
        books = self._replica.replicated.machine.state.sessions.values()
        return [book for book in books if book.acceptors and book.state is not SessionState.OPEN]

    async def left(self, ended: Iterable[SessionBook]) -> list[TxId]:
        """Return the transactions of these sessions that an acceptor has reported and for which the ledger
        has no decision."""
        books = {book.id: book for book in ended}
        asked = {node for book in books.values() for node in book.acceptors}
        held = await asyncio.gather(*(self._held(node, tuple(books)) for node in sorted(asked)))
        # The asked nodes may have applied less of the log than this node.
        machine = self._replica.replicated.machine
        reported = {txid for each in held for txid in each}
        return sorted(txid for txid in reported if machine.record(txid) is RecordedDecision.NOT_RECORDED)

    async def _held(self, node: int, sessions: tuple[int, ...]) -> Sequence[TxId]:
        """Return all transactions that ``node`` has of these sessions, as far as it answers."""
        found: list[TxId] = []
        try:
            for first in range(0, len(sessions), SESSIONS_MAX):
                some, after = sessions[first : first + SESSIONS_MAX], None
                while more := await self._page(node, HeldCall(some, after)):
                    if after is not None and more[-1] <= after:
                        break  # otherwise this would never end
                    found += more
                    after = more[-1]
        except LedgerError as error:
            log.info("node %d did not report its transactions: %s", node, error)
        return found

    async def _page(self, node: int, call: HeldCall) -> Sequence[TxId]:
        replica = self._replica
        if node == replica.raft.node:
            return replica.acceptors.held(call.sessions, call.after)
        address = replica.replicated.addresses.get(node)
        if address is None:
            return ()
        page: list[TxId] = await ask(address, call, ASK_S, self._wire)
        return page

    async def settle(self, txid: TxId) -> None:
        """Find the outcome of ``txid`` from its acceptors, and record it. Raises ``UndoubtError`` and
        ``TimeoutError``."""
        async with asyncio.timeout(ASK_S):
            found = await self._ledger.acceptors.settle(txid)
            await self._ledger.record_chosen(txid, found)
