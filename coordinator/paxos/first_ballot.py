"""The coordinator's part: the one use of ballot 0, and after that nothing but learning."""

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
    """Made once per transaction, when every branch has voted: from here on only the acceptors know. There
    is no way to take a vote back, to vote again, or to give up: whoever waits too long may ask, not
    decide."""

    def __init__(self, txid: TxId, acceptors: Joint, votes: Mapping[BranchInstance, Value]) -> None:
        super().__init__(txid, acceptors)
        invariant(bool(votes), f"{txid} has no branch to vote for")
        branches = tuple(sorted(votes, key=lambda branch: branch.number))
        self.name(branches)
        self._bundle = Phase2a(txid, acceptors, FIRST, branches, tuple(votes[each] for each in branches))
        self._accepted: dict[int, bool] = {}

    def messages(self) -> tuple[tuple[int, AcceptorRequest], ...]:
        """The votes, all in one bundle, for every acceptor. Asked for again it is the same bundle: send it to
        whoever did not answer."""
        return self.to_all(self._bundle)

    @property
    def superseded(self) -> bool:
        """No quorum can accept the first ballot any more: somebody else is finding the outcome. ``ask``."""
        return self.acceptors.vote_result(self._accepted) is VoteResult.LOST

    @property
    def unheard(self) -> tuple[int, ...]:
        """Acceptors that have not answered at all."""
        return tuple(sorted(self.acceptors.voters - self._accepted.keys()))

    def step(self, reply: AcceptorReply) -> None:
        """An acceptor has answered. Raises PeerMisbehaved if it contradicts what is known."""
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
