"""What has become of a transaction, from what its acceptors have accepted."""

from __future__ import annotations

from undoubt.coordinator.paxos.errors import PeerMisbehaved
from undoubt.coordinator.paxos.messages import (
    ABORTED,
    AcceptorReply,
    AcceptorRequest,
    Ask,
    BranchInstance,
    Forgotten,
    Known,
    Value,
)
from undoubt.coordinator.paxos.synod import Accepted, Tally
from undoubt.coordinator.quorum import Joint, VoteResult
from undoubt.participants.contract import Decision
from undoubt.participants.ids import TxId
from undoubt.participants.invariant import invariant


class Learner:
    """Listens to the acceptors of one transaction. It proposes nothing: :class:`.FirstBallot` and
    :class:`.Recovery` do, and learn besides."""

    def __init__(self, txid: TxId, acceptors: Joint) -> None:
        """``acceptors`` are those that the transaction's session is bound to, whoever is a member now."""
        self.txid = txid
        self.acceptors = acceptors
        self.branches: tuple[BranchInstance, ...] = ()
        """All of the transaction's, or empty as long as no acceptor that answered knows."""
        self._forgotten: set[int] = set()
        self._named: list[Tally[Value]] = []
        self._unnamed = Tally[Value](acceptors)

    @property
    def outcome(self) -> Decision | None:
        """COMMIT if all instances chose *prepared*, ABORT if one chose *aborted*; either is for ever.
        None: not known yet, which is never to be taken for aborted."""
        if self._unnamed.chosen is not None or any(tally.chosen == ABORTED for tally in self._named):
            return Decision.ABORT
        if self._named and all(tally.chosen is not None for tally in self._named):
            return Decision.COMMIT
        return None

    @property
    def forgotten(self) -> bool:
        """So many acceptors have let it go that no quorum of the others is left: the ledger holds the
        outcome. One that has counts as one that is silent: a quorum that still knows can be believed."""
        return self.acceptors.vote_result(dict.fromkeys(self._forgotten, False)) is VoteResult.LOST

    @property
    def chosen(self) -> tuple[Value | None, ...]:
        """One value for each of ``branches``, None where none is known to be chosen."""
        return tuple(tally.chosen for tally in self._named)

    def ask(self) -> tuple[tuple[int, AcceptorRequest], ...]:
        """What each acceptor is to be asked, by whoever only wants to know."""
        return self.to_all(Ask(self.txid, self.acceptors))

    def to_all(self, request: AcceptorRequest) -> tuple[tuple[int, AcceptorRequest], ...]:
        return tuple((acceptor, request) for acceptor in sorted(self.acceptors.voters))

    def learn(self, reply: AcceptorReply) -> bool:
        """An acceptor has answered. False: it is none of this transaction's, and was not listened to. Raises
        PeerMisbehaved if it contradicts what is known."""
        invariant(reply.txid == self.txid, f"an answer about {reply.txid}, expected was {self.txid}")
        if reply.acceptor not in self.acceptors.voters:
            return False
        if isinstance(reply, Forgotten):
            self._forgotten.add(reply.acceptor)
        else:
            self._add(reply.acceptor, reply.known)
        return True

    def _add(self, acceptor: int, known: Known) -> None:
        self.name(known.branches)
        if known.unnamed is not None:
            self._unnamed.accepted(acceptor, Accepted(known.unnamed, ABORTED))
        for tally, accepted in zip(self._named, known.accepted, strict=False):
            if accepted is not None:
                tally.accepted(acceptor, accepted)

    def name(self, branches: tuple[BranchInstance, ...]) -> None:
        """Somebody knows the list."""
        if not branches:
            return
        if not self.branches:
            self.branches = branches
            self._named = [Tally[Value](self.acceptors) for _ in branches]
        elif self.branches != branches:
            raise PeerMisbehaved(f"{self.txid} has two lists of branches: {self.branches} and {branches}")
