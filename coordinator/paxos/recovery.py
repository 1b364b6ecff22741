"""Finding the outcome of a transaction whose coordinator does not answer, by a higher ballot."""

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
    """One leader of a transaction. Several at once do no harm, but may keep each other from coming to an end:
    wait a random while before each ``begin`` after the first."""

    def __init__(self, txid: TxId, acceptors: Joint, proposer: int) -> None:
        """``proposer`` is a number that no other leader of this transaction ever uses, in this life of the
        process or another: 63 random bits."""
        super().__init__(txid, acceptors)
        invariant(proposer > 0, "0 is the coordinator, which does not recover")
        self.ballot = Ballot(0, proposer)
        self._highest = FIRST
        """The highest ballot that an acceptor is known to have promised."""
        self._promises: dict[int, Known] = {}
        self._bundle: Phase2a | None = None

    def begin(self) -> tuple[tuple[int, AcceptorRequest], ...]:
        """Phase 1a of a new ballot, higher than any that is known. Nothing once the outcome is known."""
        if self.outcome is not None or self.forgotten:
            return ()
        self.ballot = Ballot(max(self._highest.round, self.ballot.round) + 1, self.ballot.proposer)
        self._promises, self._bundle = {}, None
        return self.again()

    def again(self) -> tuple[tuple[int, AcceptorRequest], ...]:
        """The current ballot's requests, for whoever did not answer."""
        return self.to_all(self._bundle or Phase1a(self.txid, self.acceptors, self.ballot))

    @property
    def preempted(self) -> bool:
        """Another leader has a higher ballot: this one may come to nothing."""
        return self._highest > self.ballot

    def step(self, reply: AcceptorReply) -> tuple[tuple[int, AcceptorRequest], ...]:
        """An acceptor has answered; what to send now. Raises PeerMisbehaved if it contradicts what is
        known."""
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
        """Phase 2a, for all instances: in each the value of the highest ballot, else *aborted*.

        If no acceptor of a quorum has ever heard of the first ballot, it never was nor will be accepted by
        one; then nobody knows the list, and *aborted* is asked for in every instance there is.
        """
        values = tuple(self._value(position) for position in range(len(self.branches)))
        return Phase2a(self.txid, self.acceptors, self.ballot, self.branches, values)

    def _value(self, position: int) -> Value | None:
        """What to ask for in that instance; None: not enough have promised."""
        proposal = Proposal(self.ballot, self.acceptors, ABORTED)
        for acceptor, known in self._promises.items():
            proposal.promised(acceptor, known.instance(position))
        return proposal.value
