"""One instance of Paxos: the acceptor's state, the proposer's ballot, and the tally of the chosen value.

A *ballot* is one attempt to have a value chosen. Ballots are ordered; each belongs to one proposer, which
asks for at most one value in it. A value is *chosen* once a quorum has accepted it in the same ballot.

1. (a) A proposer asks the acceptors to take part in its ballot. (b) An acceptor that has promised no higher
   ballot promises to take part in no lower ballot, and reports what it has accepted last.
2. (a) With the promises of a quorum the proposer asks for a value: the value accepted in the highest
   reported ballot, or its own value if no acceptance was reported. (b) An acceptor that has promised no
   higher ballot accepts the value.

An acceptor sends a promise or an acceptance only once that is durable: :class:`AcceptorAnswer` contains the
state that must be stored first. An acceptor that has lost what it stored must never answer again under its
number.

The lowest ballot, :data:`FIRST`, needs no promises, since nothing can have been accepted in a lower ballot;
it belongs to one proposer, which uses it once.

Lamport, "The Part-Time Parliament", 1998, §2.3 (the basic protocol); "Paxos Made Simple", 2001, §2.2 to 2.3.
Values are compared by ``==``. This module does not depend on their meaning, or on how messages are sent and
state is stored.
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
    """The number of a ballot, ordered by round, then by proposer. No two proposers ever share a ``proposer``,
    also not before and after a restart of one process, so that no two values are asked for in one ballot."""

    round: Natural = 0
    proposer: Natural = 0


FIRST = Ballot()


class Accepted(msgspec.Struct, Generic[V], frozen=True, array_like=True):
    """An acceptor has accepted ``value`` in ``ballot``; once durable, this never changes."""

    ballot: Ballot
    value: V


class Acceptance(msgspec.Struct, Generic[V], frozen=True, array_like=True):
    """The state that an acceptor must keep for one instance.

    ``promised`` never decreases; it is at least the ballot of ``accepted``.
    """

    promised: Ballot = FIRST
    accepted: Accepted[V] | None = None

    def on_1a(self, ballot: Ballot) -> AcceptorAnswer[V]:
        """Promise to take part in no ballot lower than ``ballot``. A repeated request is answered again."""
        if ballot < self.promised:
            return AcceptorAnswer(self, granted=False)
        return AcceptorAnswer(Acceptance(ballot, self.accepted), granted=True)

    def on_2a(self, ballot: Ballot, value: V) -> AcceptorAnswer[V]:
        """Accept ``value`` in ``ballot``. A repeated request is answered again.

        Raises PeerMisbehaved if another value was accepted in the same ballot.
        """
        if ballot < self.promised:
            return AcceptorAnswer(self, granted=False)
        if self.accepted is not None and self.accepted.ballot == ballot and self.accepted.value != value:
            raise PeerMisbehaved(f"ballot {ballot} was used for {self.accepted.value} and then for {value}")
        return AcceptorAnswer(Acceptance(ballot, Accepted(ballot, value)), granted=True)


class AcceptorAnswer(msgspec.Struct, Generic[V], frozen=True):
    """An acceptor's answer: phase 1b or 2b if ``granted``, otherwise a refusal, because ``state.promised`` is
    higher.

    ``state`` must be durable before the answer is sent; the answer contains it.
    """

    state: Acceptance[V]
    granted: bool


def value_for(promises: Iterable[Accepted[V] | None], own: V) -> V:
    """Return the value that a proposer must ask for in phase 2a, given the reports of a quorum of
    acceptors."""
    highest: Accepted[V] | None = None
    for accepted in promises:
        if accepted is not None and (highest is None or accepted.ballot > highest.ballot):
            highest = accepted
    return own if highest is None else highest.value


class Proposal(Generic[V]):
    """One ballot of a proposer, which proposes ``own`` if no other value was reported.

    Ask for promises; once ``promised`` returns a value, ask for that value, and never for another.
    """

    def __init__(self, ballot: Ballot, quorum: Joint, own: V) -> None:
        invariant(bool(quorum.incoming), "no acceptors, no agreement")
        self.ballot = ballot
        self._quorum = quorum
        self._own = own
        self._promises: dict[int, Accepted[V] | None] = {}
        self.value: V | None = None
        """The value to ask for, set with the promise that completes the quorum; None before."""

    def promised(self, acceptor: int, accepted: Accepted[V] | None) -> V | None:
        """Note that ``acceptor`` has promised this ballot and reported ``accepted``. Returns the value to ask
        for, or None before a quorum has promised; later promises change nothing."""
        if self.value is None:
            self._promises[acceptor] = accepted
            if agreed(self._quorum, self._promises):
                self.value = value_for(self._promises.values(), self._own)
        return self.value


class Tally(Generic[V]):
    """Counts the acceptances of one instance, and finds the chosen value.

    Acceptances may be reported in any order and repeatedly; a chosen value stays chosen.
    """

    def __init__(self, quorum: Joint) -> None:
        invariant(bool(quorum.incoming), "no acceptors, no agreement")
        self._quorum = quorum
        self._values: dict[Ballot, V] = {}
        self._acceptors: dict[Ballot, frozenset[int]] = {}
        self.chosen: V | None = None

    def accepted(self, acceptor: int, accepted: Accepted[V]) -> None:
        """Note that ``acceptor`` has durably accepted ``accepted``. Raises PeerMisbehaved if that contradicts
        what is known."""
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
    """Whether ``acceptors`` contain a quorum."""
    return quorum.vote_result(dict.fromkeys(acceptors, True)) is VoteResult.WON
