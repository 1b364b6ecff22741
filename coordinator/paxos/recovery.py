"""Finds, by a higher ballot, the outcome of a transaction whose coordinator does not answer."""

from __future__ import annotations

from undoubt.coordinator.paxos.learner import Learner
from undoubt.coordinator.paxos.messages import (
    ABORTED,
    REST,
    AcceptorReply,
    AcceptorRequest,
    Known,
    Phase1a,
    Phase1b,
    Phase2a,
    Refused,
    Value,
)
from undoubt.coordinator.paxos.synod import FIRST, Ballot, Proposal
from undoubt.coordinator.quorum import Joint
from undoubt.participants.ids import TxId
from undoubt.participants.invariant import invariant


class Recovery(Learner):
    """One later leader of a transaction. Several leaders at the same time are safe, but may prevent each
    other from finishing: wait a random time before each ``begin`` after the first."""

    def __init__(self, txid: TxId, acceptors: Joint, proposer: int) -> None:
        """``proposer`` is a number that no other leader of this transaction ever uses, also not after a
        restart of the process: 63 random bits."""
        super().__init__(txid, acceptors)
        invariant(proposer > 0, "proposer 0 is the coordinator, which does not recover")
        self.ballot = Ballot(0, proposer)
        self._highest = FIRST
        """The highest ballot that an acceptor is known to have promised."""
        self._promises: dict[int, Known] = {}
        self._bundle: Phase2a | None = None

    def begin(self) -> tuple[tuple[int, AcceptorRequest], ...]:
        """Begin a new ballot, higher than all known ballots, and return its phase 1a. Returns no message once
        the outcome is known."""
        if self.outcome is not None or self.forgotten:
            return ()
        self.ballot = Ballot(max(self._highest.round, self.ballot.round) + 1, self.ballot.proposer)
        self._promises, self._bundle = {}, None
        return self.again()

    def again(self) -> tuple[tuple[int, AcceptorRequest], ...]:
        """Return the requests of the current ballot again, for acceptors that did not answer."""
        return self.to_all(self._bundle or Phase1a(self.txid, self.acceptors, self.ballot))

    @property
    def preempted(self) -> bool:
        """True if another leader has a higher ballot, so that this ballot may fail."""
        return self._highest > self.ballot

    def step(self, reply: AcceptorReply) -> tuple[tuple[int, AcceptorRequest], ...]:
        """Process an acceptor's answer, and return the messages to send now. Raises PeerMisbehaved if the
        answer contradicts what is known."""
        if not self.learn(reply) or self.outcome is not None or self.forgotten:
            return ()
        match reply:
            case Refused():
                self._highest = max(self._highest, reply.promised)
            case Phase1b() if reply.ballot == self.ballot and self._bundle is None:
                self._promises[reply.acceptor] = reply.known
                if self._value(REST) is not None:
                    self._bundle = self._propose()
                    return self.again()
            case _:
                pass
        return ()

    def _propose(self) -> Phase2a:
        """Return phase 2a for all instances: for each, the value of the highest ballot, or *aborted* if there
        is none.

        If no acceptor of a quorum has received the first ballot, no quorum has accepted it or ever will. Then
        no acceptor of the quorum has the list of branches, and the message asks for *aborted* in all
        instances.
        """
        values = tuple(self._value(position) for position in range(len(self.branches)))
        return Phase2a(self.txid, self.acceptors, self.ballot, self.branches, values)

    def _value(self, position: int) -> Value | None:
        """Return the value to propose in that instance; None if too few acceptors have promised."""
        proposal = Proposal(self.ballot, self.acceptors, ABORTED)
        for acceptor, known in self._promises.items():
            proposal.promised(acceptor, known.instance(position))
        return proposal.value
