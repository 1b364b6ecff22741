"""Decides when a node may leave that is an acceptor of Paxos Commit; the acceptors of a transaction never
change.

The transactions of a session are decided by a majority of the nodes that it was bound to. Nodes without which
there would be no such majority must stay while the session is open. The session's coordinator opens another
session, and closes this one, soon after it can be bound to other nodes: new members, or the members that
stay. A transaction that an ended session has left undecided is decided by its acceptors and recorded in the
ledger; then it needs no acceptors.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from undoubt.coordinator.errors import ClusterNotReady, LedgerError, OutcomeUnknown
from undoubt.coordinator.ledger.contract import SessionState
from undoubt.coordinator.ledger.state import SessionBook
from undoubt.coordinator.node.ledger import NodeLedger
from undoubt.coordinator.node.orphaned_votes import OrphanedVotes
from undoubt.coordinator.node.replica import Replica
from undoubt.coordinator.quorum import majority_size


class AcceptorRetirement:
    """Decides on the leader which sessions still need the nodes that are to leave."""

    def __init__(self, replica: Replica, ledger: NodeLedger, settling: OrphanedVotes) -> None:
        self._replica = replica
        self._ledger = ledger
        self._orphaned_votes = settling
        self.no_new_ones = ledger.binding
        """A lock. While it is held, no session is bound; otherwise a session could be bound to the former
        members."""

    def bound(self, gone: Iterable[int], *, open_: bool) -> list[SessionBook]:
        """Return the sessions, open or ended, that would have no majority of their acceptors without
        ``gone``."""
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
        """Make coordinators whose sessions need these nodes open sessions that do not."""
        if self.bound(gone, open_=True):
            self._ledger.bind_without(gone)

    async def settle(self, gone: Iterable[int]) -> None:
        """Decide the undecided transactions of ended sessions, while their acceptors are still members.
        Raises ``ClusterNotReady`` if a transaction cannot be decided now."""
        ended = {book.id: book for book in self.bound(gone, open_=False)}
        for txid in await self._orphaned_votes.left(ended.values()):
            try:
                await self._orphaned_votes.settle(txid)
            except (LedgerError, OutcomeUnknown, TimeoutError) as error:
                acceptors = ", ".join(map(str, ended[txid.session].acceptors))
                raise ClusterNotReady(
                    f"transaction {txid} is not decided, and that takes a majority of the nodes {acceptors}:"
                    f" let them answer first ({str(error) or 'no answer in time'})"
                ) from error
