"""Letting nodes go that are acceptors of Paxos Commit: whose those of a transaction are never changes.

The transactions of a session are decided by a majority of the nodes that it was bound to. Nodes without which
there would be none stay for as long as the session is open. Its coordinator opens another one, and closes
this one, soon after others are there to be bound to: new members, or those that stay. What an ended session
has left undecided is settled, and recorded in the ledger, where it needs no acceptors any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence

from coordinator.errors import ClusterNotReady, LedgerError, OutcomeUnknown
from coordinator.ledger.cluster import operate
from coordinator.ledger.cluster.messages import HeldCall
from coordinator.ledger.contract import SessionState
from coordinator.ledger.state import SessionBook
from coordinator.node.ledger import NodeLedger
from coordinator.node.replica import Replica
from coordinator.quorum.majority import majority_size
from coordinator.wire import WireSettings
from participants.ids import Protocol, TxId

ASK_S = 0.5
"""Who is silent for longer is not waited for: it may be gone for good."""


class Release:
    """Of the node that leads."""

    def __init__(self, replica: Replica, ledger: NodeLedger, wire: WireSettings) -> None:
        self._replica = replica
        self._ledger = ledger
        self._wire = wire
        self.no_new_ones = ledger.binding
        """While it is held no session is bound: to the members of before it would be."""

    def bound(self, gone: Iterable[int], *, open_: bool) -> list[SessionBook]:
        """Sessions, open or ended, that would have no majority of their acceptors left without ``gone``."""
        configuration, leaving = self._replica.raft.configuration, set(gone)
        staying = (configuration.incoming | configuration.learners) - leaving

        def lost(acceptors: set[int]) -> bool:
            return bool(acceptors & leaving) and len(acceptors & staying) < majority_size(acceptors)

        return [
            book
            for book in self._replica.replicated.machine.state.sessions.values()
            if (book.state is SessionState.OPEN) is open_ and lost(set(book.acceptors))
        ]

    def ask_to_move(self, gone: Collection[int]) -> None:
        """Have coordinators whose sessions need these nodes open others that do not."""
        if self.bound(gone, open_=True):
            self._ledger.bind_without(gone)

    async def settle(self, gone: Iterable[int]) -> None:
        """Bring what is undecided of ended sessions to its end, as long as that is possible. Raises
        ``ClusterNotReady`` for what cannot be now."""
        ended = {book.id: book for book in self.bound(gone, open_=False)}
        asked = {node for book in ended.values() for node in book.acceptors}
        held = await asyncio.gather(*map(self._held, sorted(asked)))
        for txid in sorted({txid for each in held for txid in each if txid.session in ended}):
            try:
                async with asyncio.timeout(ASK_S):
                    found = await self._ledger.acceptors.settle(txid)
                    await self._ledger.decide(txid, found.decision, found.branches, protocol=Protocol.PAXOS)
            except (LedgerError, OutcomeUnknown, TimeoutError) as error:
                acceptors = ", ".join(map(str, ended[txid.session].acceptors))
                raise ClusterNotReady(
                    f"transaction {txid} is not decided, and that takes a majority of the nodes {acceptors}:"
                    f" let them answer first ({str(error) or 'no answer in time'})"
                ) from error

    async def _held(self, node: int) -> Sequence[TxId]:
        replica = self._replica
        if node == replica.raft.node:
            return replica.acceptors.held()
        address = replica.replicated.addresses.get(node)
        if address is None:
            return ()
        try:
            told: list[TxId] = await operate.ask(address, HeldCall(), ASK_S, self._wire)
        except LedgerError:
            return ()
        return told
