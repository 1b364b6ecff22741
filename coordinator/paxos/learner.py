"""Computes the outcome of a transaction from what its acceptors have accepted."""

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
    """Learns the outcome of one transaction from its acceptors' answers. It proposes nothing; its subclasses
    :class:`.FirstBallot` and :class:`.Recovery` do."""

    def __init__(self, txid: TxId, acceptors: Joint) -> None:
        """``acceptors`` are the nodes to which the transaction's session is bound, whatever the cluster's
        members are now."""
        self.txid = txid
        self.acceptors = acceptors
        self.branches: tuple[BranchInstance, ...] = ()
        """All branches of the transaction; empty until an acceptor that knows them has answered."""
        self._forgotten: set[int] = set()
        self._named: list[Tally[Value]] = []
        self._unnamed = Tally[Value](acceptors)

    @property
    def outcome(self) -> Decision | None:
        """COMMIT if all instances have chosen *prepared*, ABORT if one has chosen *aborted*; both never
        change. None: the outcome is not known yet, which must never be treated as aborted."""
        if self._unnamed.chosen is not None or any(tally.chosen == ABORTED for tally in self._named):
            return Decision.ABORT
        if self._named and all(tally.chosen is not None for tally in self._named):
            return Decision.COMMIT
        return None

    @property
    def forgotten(self) -> bool:
        """True if so many acceptors have forgotten the transaction that no quorum of the others is left: the
        ledger has the outcome. An acceptor that has forgotten counts like one that does not answer, so a
        quorum of the others still proves an outcome."""
        return self.acceptors.vote_result(dict.fromkeys(self._forgotten, False)) is VoteResult.LOST

    @property
    def chosen(self) -> tuple[Value | None, ...]:
        """One value for each of ``branches``; None where no value is known to be chosen."""
        return tuple(tally.chosen for tally in self._named)

    def ask(self) -> tuple[tuple[int, AcceptorRequest], ...]:
        """Return a question for each acceptor, which changes nothing there."""
        return self.to_all(Ask(self.txid, self.acceptors))

    def to_all(self, request: AcceptorRequest) -> tuple[tuple[int, AcceptorRequest], ...]:
        return tuple((acceptor, request) for acceptor in sorted(self.acceptors.voters))

    def learn(self, reply: AcceptorReply) -> bool:
        """Process an acceptor's answer. Returns False for an answer from a node that is not an acceptor of
        this transaction, which is ignored. Raises PeerMisbehaved if the answer contradicts what is known."""
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
        """Set the list of branches; an empty list is ignored. Raises PeerMisbehaved if another list is
        known."""
        if not branches:
            return
        if not self.branches:
            self.branches = branches
            self._named = [Tally[Value](self.acceptors) for _ in branches]
        elif self.branches != branches:
            raise PeerMisbehaved(f"{self.txid} has two lists of branches: {self.branches} and {branches}")
