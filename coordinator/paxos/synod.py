"""One decision by Paxos: acceptors, a proposer's ballot, and what is chosen.

A *ballot* is one attempt to have a value chosen. Ballots are ordered; each belongs to one proposer, who
asks for at most one value in it. A value is *chosen* once a quorum has accepted it in one and the same
ballot.

1. (a) A proposer asks the acceptors to take part in its ballot. (b) An acceptor that has promised no higher
   one promises to take part in no lower one, and says what it has accepted last.
2. (a) With the promises of a quorum the proposer asks for a value: the one accepted in the highest ballot
   that was reported, if any was, else its own. (b) An acceptor that has promised no higher ballot accepts
   it.

No promise and no acceptance leaves an acceptor before it is durable: :class:`AcceptorAnswer` has what must be
stored first. An acceptor that has lost what it stored must never answer again under its name.

The first ballot of all, :data:`FIRST`, needs no promises, since nothing can have been accepted below it; it
belongs to one proposer, who uses it once.

Lamport, "The Part-Time Parliament", 1998, §2.3 (the basic protocol); "Paxos Made Simple", 2001, §2.2 to 2.3.
Values are compared by ``==``. Nothing here knows what they mean, or how anything travels or is stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Generic, TypeVar

import msgspec

from undoubt.coordinator.paxos.errors import PeerMisbehaved
from undoubt.coordinator.quorum import Joint, VoteResult
from undoubt.participants.invariant import invariant

V = TypeVar("V")

Natural = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Ballot(msgspec.Struct, frozen=True, array_like=True, order=True):
    """Ordered by round, then by proposer. No two proposers ever share a ``proposer``, not even two lives of
    one process, so that nobody asks for two values in one ballot."""

    round: Natural = 0
    proposer: Natural = 0


FIRST = Ballot()


class Accepted(msgspec.Struct, Generic[V], frozen=True, array_like=True):
    """An acceptor accepted ``value`` in ``ballot``. True for ever, once it is durable."""

    ballot: Ballot
    value: V


class Acceptance(msgspec.Struct, Generic[V], frozen=True, array_like=True):
    """All that an acceptor must remember of one decision.

    ``promised`` never falls; it is at least the ballot of ``accepted``.
    """

    promised: Ballot = FIRST
    accepted: Accepted[V] | None = None

    def on_1a(self, ballot: Ballot) -> AcceptorAnswer[V]:
        """Promise to take part in no ballot lower than ``ballot``. Repeated, it is answered again."""
        if ballot < self.promised:
            return AcceptorAnswer(self, granted=False)
        return AcceptorAnswer(Acceptance(ballot, self.accepted), granted=True)

    def on_2a(self, ballot: Ballot, value: V) -> AcceptorAnswer[V]:
        """Accept ``value`` in ``ballot``. Repeated, it is answered again.

        Raises PeerMisbehaved if another value has been accepted in that very ballot.
        """
        if ballot < self.promised:
            return AcceptorAnswer(self, granted=False)
        if self.accepted is not None and self.accepted.ballot == ballot and self.accepted.value != value:
            raise PeerMisbehaved(f"ballot {ballot} was used for {self.accepted.value} and then for {value}")
        return AcceptorAnswer(Acceptance(ballot, Accepted(ballot, value)), granted=True)


class AcceptorAnswer(msgspec.Struct, Generic[V], frozen=True):
    """What an acceptor answers: phase 1b or 2b if ``granted``, else that ``state.promised`` is higher.

    ``state`` must be durable before the answer leaves. It is also what the answer is about.
    """

    state: Acceptance[V]
    granted: bool


def value_for(promises: Iterable[Accepted[V] | None], own: V) -> V:
    """Phase 2a: what a proposer must ask for, given what each acceptor of a quorum has reported."""
    highest: Accepted[V] | None = None
    for accepted in promises:
        if accepted is not None and (highest is None or accepted.ballot > highest.ballot):
            highest = accepted
    return own if highest is None else highest.value


class Proposal(Generic[V]):
    """One ballot of a proposer who would like ``own`` to be chosen.

    Ask for promises; then, once ``promised`` returns a value, ask for that one, and never for another.
    """

    def __init__(self, ballot: Ballot, quorum: Joint, own: V) -> None:
        invariant(bool(quorum.incoming), "no acceptors, no agreement")
        self.ballot = ballot
        self._quorum = quorum
        self._own = own
        self._promises: dict[int, Accepted[V] | None] = {}
        self.value: V | None = None
        """Settled with the quorum's last promise."""

    def promised(self, acceptor: int, accepted: Accepted[V] | None) -> V | None:
        """``acceptor`` has promised this ballot and reported ``accepted``. The value to ask for, once there
        is one; later promises change nothing."""
        if self.value is None:
            self._promises[acceptor] = accepted
            if agreed(self._quorum, self._promises):
                self.value = value_for(self._promises.values(), self._own)
        return self.value


class Tally(Generic[V]):
    """Who has accepted what: a learner of one decision.

    May be told anything true, in any order and repeatedly: what is chosen stays chosen.
    """

    def __init__(self, quorum: Joint) -> None:
        invariant(bool(quorum.incoming), "no acceptors, no agreement")
        self._quorum = quorum
        self._values: dict[Ballot, V] = {}
        self._acceptors: dict[Ballot, frozenset[int]] = {}
        self.chosen: V | None = None

    def accepted(self, acceptor: int, accepted: Accepted[V]) -> None:
        """``acceptor`` has accepted it, durably. Raises PeerMisbehaved if that contradicts what is known."""
        ballot, value = accepted.ballot, accepted.value
        if self._values.setdefault(ballot, value) != value:
            raise PeerMisbehaved(f"ballot {ballot} was used for {self._values[ballot]} and for {value}")
        acceptors = self._acceptors.get(ballot, frozenset()) | {acceptor}
        self._acceptors[ballot] = acceptors
        if not agreed(self._quorum, acceptors):
            return
        if self.chosen is not None and self.chosen != value:
            raise PeerMisbehaved(f"{self.chosen} is chosen, and {value} too")
        self.chosen = value


def agreed(quorum: Joint, acceptors: Iterable[int]) -> bool:
    """Whether ``acceptors`` are a quorum, or more."""
    return quorum.vote_result(dict.fromkeys(acceptors, True)) is VoteResult.WON
