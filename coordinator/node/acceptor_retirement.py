"""Letting nodes go that are acceptors of Paxos Commit: whose those of a transaction are never changes.

The transactions of a session are decided by a majority of the nodes that it was bound to. Nodes without which
there would be none stay for as long as the session is open. Its coordinator opens another one, and closes
this one, soon after others are there to be bound to: new members, or those that stay. What an ended session
has left undecided is settled, and recorded in the ledger, where it needs no acceptors any more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from undoubt.coordinator.errors import ClusterNotReady, LedgerError, OutcomeUnknown
from undoubt.coordinator.ledger.contract import SessionState
from undoubt.coordinator.ledger.state import SessionBook
from undoubt.coordinator.node.ledger import NodeLedger
from undoubt.coordinator.node.orphaned_votes import Settling
from undoubt.coordinator.node.replica import Replica
from undoubt.coordinator.quorum import majority_size


class Release:
    """Of the node that leads."""

    def __init__(self, replica: Replica, ledger: NodeLedger, settling: Settling) -> None:
        self._replica = replica
        self._ledger = ledger
        self._settling = settling
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
        for txid in await self._settling.left(ended.values()):
            try:
                await self._settling.settle(txid)
            except (LedgerError, OutcomeUnknown, TimeoutError) as error:
                acceptors = ", ".join(map(str, ended[txid.session].acceptors))
                raise ClusterNotReady(
                    f"transaction {txid} is not decided, and that takes a majority of the nodes {acceptors}:"
                    f" let them answer first ({str(error) or 'no answer in time'})"
                ) from error
