"""Proposes the votes in ballot 0, for the coordinator, and then learns the outcome."""

from __future__ import annotations

from collections.abc import Mapping

from undoubt.coordinator.paxos.learner import Learner
from undoubt.coordinator.paxos.messages import (
    AcceptorReply,
    AcceptorRequest,
    BranchInstance,
    Phase1b,
    Phase2a,
    Phase2b,
    Refused,
    Value,
)
from undoubt.coordinator.paxos.synod import FIRST
from undoubt.coordinator.quorum import Joint, VoteResult
from undoubt.participants.ids import TxId
from undoubt.participants.invariant import invariant


class FirstBallot(Learner):
    """The first ballot of one transaction. The coordinator makes it once, when every branch has voted; from
    then on only the acceptors have the outcome. A vote cannot be taken back or repeated with another value. A
    coordinator that has waited too long may ask the acceptors, but must not decide."""

    def __init__(self, txid: TxId, acceptors: Joint, votes: Mapping[BranchInstance, Value]) -> None:
        super().__init__(txid, acceptors)
        invariant(bool(votes), f"{txid} has no branch to vote for")
        branches = tuple(sorted(votes, key=lambda branch: branch.number))
        self.name(branches)
        self._bundle = Phase2a(txid, acceptors, FIRST, branches, tuple(votes[each] for each in branches))
        self._accepted: dict[int, bool] = {}

    def messages(self) -> tuple[tuple[int, AcceptorRequest], ...]:
        """Return the votes, all in one bundle, for every acceptor. Further calls return the same bundle, to
        be sent again to acceptors that did not answer."""
        return self.to_all(self._bundle)

    @property
    def superseded(self) -> bool:
        """True if no quorum can accept the first ballot, because another leader is finding the outcome; then
        ``ask``."""
        return self.acceptors.vote_result(self._accepted) is VoteResult.LOST

    @property
    def unheard(self) -> tuple[int, ...]:
        """The acceptors that have not answered yet."""
        return tuple(sorted(self.acceptors.voters - self._accepted.keys()))

    def step(self, reply: AcceptorReply) -> None:
        """Process an acceptor's answer. Raises PeerMisbehaved if the answer contradicts what is known."""
        if not self.learn(reply):
            return
        match reply:
            case Refused():
                self._accepted[reply.acceptor] = False
            case Phase2b():
                if any(each is not None and each.ballot == FIRST for each in reply.known.accepted):
                    self._accepted[reply.acceptor] = True
            case _:
                invariant(not isinstance(reply, Phase1b), "the first ballot has no phase 1")
