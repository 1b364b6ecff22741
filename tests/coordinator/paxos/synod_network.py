"""One decision among acceptors whose disks are slow, over a network that loses, repeats and reorders.

Everything that was ever sent may arrive at any time, any number of times, or never. An acceptor that crashes
forgets what it had not stored. What has been chosen is worked out from what left the acceptors, with
arithmetic of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations

from undoubt.coordinator.paxos.synod import (
    FIRST,
    Acceptance,
    Accepted,
    AcceptorAnswer,
    Ballot,
    Proposal,
    Tally,
)
from undoubt.coordinator.quorum import Joint


@dataclass(frozen=True)
class Ask1a:
    ballot: Ballot


@dataclass(frozen=True)
class Ask2a:
    ballot: Ballot
    value: str


@dataclass(frozen=True)
class Reply:
    """A granted 1b or 2b: ``state`` is the acceptor's, as it was to be stored before this left."""

    acceptor: int
    to: Ballot
    state: Acceptance[str]
    accepted: bool


@dataclass
class Disk:
    """``current`` is in memory; ``held`` are answers that wait until ``stored`` has caught up."""

    stored: Acceptance[str] = field(default_factory=Acceptance[str])
    current: Acceptance[str] = field(default_factory=Acceptance[str])
    held: list[Reply] = field(default_factory=list)


class Synod:
    """``proposals`` by ballot; the proposer of the first ballot needs none, and is ``first``."""

    def __init__(self, quorum: Joint, first: str | None) -> None:
        self.quorum = quorum
        self.disks = {number: Disk() for number in quorum.voters}
        self.proposals: dict[Ballot, Proposal[str]] = {}
        self.asked: list[Ask1a | Ask2a] = []
        self.replies: list[Reply] = []
        self.wanted = set[str]()
        self.tally = Tally[str](quorum)
        if first is not None:
            self.wanted.add(first)
            self.asked.append(Ask2a(FIRST, first))

    def propose(self, ballot: Ballot, own: str) -> None:
        assert ballot not in self.proposals
        self.wanted.add(own)
        self.proposals[ballot] = Proposal(ballot, self.quorum, own)
        self.asked.append(Ask1a(ballot))

    def ask(self, acceptor: int, request: Ask1a | Ask2a) -> None:
        disk = self.disks[acceptor]
        if isinstance(request, Ask1a):
            answer = disk.current.on_1a(request.ballot)
        else:
            answer = disk.current.on_2a(request.ballot, request.value)
        self.answer(acceptor, request, answer)

    def answer(self, acceptor: int, request: Ask1a | Ask2a, answer: AcceptorAnswer[str]) -> None:
        disk = self.disks[acceptor]
        disk.current = answer.state
        if answer.granted:
            disk.held.append(Reply(acceptor, request.ballot, answer.state, isinstance(request, Ask2a)))

    def sync(self, acceptor: int) -> None:
        disk = self.disks[acceptor]
        disk.stored = disk.current
        self.replies += disk.held
        disk.held = []

    def crash(self, acceptor: int) -> None:
        disk = self.disks[acceptor]
        disk.current, disk.held = disk.stored, []

    def hear(self, reply: Reply) -> None:
        """It arrives at the proposer of its ballot and at the learner."""
        if reply.accepted:
            assert reply.state.accepted is not None
            self.tally.accepted(reply.acceptor, reply.state.accepted)
            return
        proposal = self.proposals[reply.to]
        if proposal.value is None:
            value = proposal.promised(reply.acceptor, reply.state.accepted)
            if value is not None:
                self.asked.append(Ask2a(reply.to, value))

    def chosen(self) -> set[str]:
        """Every value that a quorum has accepted in one ballot, as far as it ever left the acceptors."""
        accepted: dict[Accepted[str], set[int]] = {}
        for reply in self.replies:
            if reply.accepted and reply.state.accepted is not None:
                accepted.setdefault(reply.state.accepted, set()).add(reply.acceptor)
        return {fact.value for fact, acceptors in accepted.items() if self.is_quorum(acceptors)}

    def is_quorum(self, acceptors: set[int]) -> bool:
        sets = [each for each in (self.quorum.incoming, self.quorum.outgoing) if each]
        return all(
            any(set(few) <= acceptors for few in combinations(each, len(each) // 2 + 1)) for each in sets
        )

    def check(self) -> None:
        """Agreement and validity."""
        chosen = self.chosen()
        assert len(chosen) <= 1, f"chosen: {chosen}"
        assert chosen <= self.wanted, f"nobody wanted {chosen}"
        if self.tally.chosen is not None:
            assert {self.tally.chosen} == chosen, f"the learner heard {self.tally.chosen}, chosen is {chosen}"

    def calm(self, acceptors: set[int], own: str) -> str | None:
        """One proposer is left, and those acceptors answer it: what is chosen."""
        top = max([FIRST, *self.proposals, *(disk.current.promised for disk in self.disks.values())])
        ballot = Ballot(top.round + 1, 99)
        asked, heard = len(self.asked), len(self.replies)
        self.propose(ballot, own)
        while asked < len(self.asked):
            for acceptor in sorted(acceptors):
                self.ask(acceptor, self.asked[asked])
                self.sync(acceptor)
            asked += 1
            for reply in self.replies[heard:]:
                heard += 1
                self.hear(reply)
            self.check()
        return self.tally.chosen
