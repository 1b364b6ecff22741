"""The search over our own acceptors and leaders: nothing wrong in them, and what is planted is found."""

from __future__ import annotations

import pytest

from tests.coordinator.paxos.broken import (
    AnswersAtOnce,
    ForgetsWithoutAMark,
    LowestBallot,
    OfItsOwnMind,
    OneIsEnough,
)
from tests.models.our_paxos import Bounds, Kinds, Leading, our_paxos
from tests.models.processes import System
from tests.models.search import Found, explore
from undoubt.coordinator.paxos.synod import Acceptance, Accepted, AcceptorAnswer, Ballot
from undoubt.coordinator.quorum import Joint
from undoubt.participants.contract import Decision


def joint(incoming: set[int], outgoing: set[int] = frozenset()) -> Joint:  # type: ignore[assignment]
    return Joint(frozenset(incoming), frozenset(outgoing))


SMALL = {
    "three acceptors, one recovery": Bounds(forget=False),
    "one acceptor: two-phase commit": Bounds(acceptors=joint({1}), nodes=1, recoveries=2, slow=True),
    "two acceptors, two recoveries": Bounds(acceptors=joint({1, 2}), nodes=2, recoveries=2),
    "two acceptors, two rounds": Bounds(acceptors=joint({1, 2}), nodes=2, rounds=2),
    "a joint configuration": Bounds(acceptors=joint({1, 2}, {2, 3}), forget=False),
    "slow disks, nobody recovers": Bounds(recoveries=0, slow=True),
}
LARGE = {
    "three acceptors that forget": Bounds(),
    "two recoveries": Bounds(recoveries=2, forget=False),
    "two acceptors with slow disks": Bounds(
        acceptors=joint({1, 2}), nodes=2, recoveries=2, slow=True, forget=False
    ),
}


@pytest.mark.parametrize("bounds", SMALL.values(), ids=SMALL)
def test_every_state_is_consistent(bounds: Bounds) -> None:
    """Broken if in any order of events two leaders know two outcomes, an instance chooses two values, or a
    commit lacks a vote."""
    explore(our_paxos(bounds), states_max=100_000)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("bounds", LARGE.values(), ids=LARGE)
def test_every_state_of_the_larger_ones_is_consistent(bounds: Bounds) -> None:
    """As above."""
    explore(our_paxos(bounds), states_max=1_000_000)


def leaders(system: System, states: frozenset[tuple[int, ...]]) -> list[Leading]:
    return [each for state in states for each in system.processes(state) if isinstance(each, Leading)]


def test_both_outcomes_are_reached_by_everybody() -> None:
    """Broken if nothing is wrong only because nothing ever happens."""
    system = our_paxos(Bounds(forget=False))
    states = explore(system, keep=True).states
    assert not isinstance(states, int)
    reached = {(type(each).__name__, each.outcome) for each in leaders(system, states)}
    assert reached == {
        (who, outcome) for who in ("Coordinator", "Recovering") for outcome in (None, *Decision)
    }


BROKEN: dict[str, tuple[Bounds, Kinds]] = {
    "a vote and a promise not stored before the answer": (
        Bounds(forget=False),
        Kinds(acceptor=AnswersAtOnce),
    ),
    "a value that is not the accepted one": (Bounds(forget=False), Kinds(recovery=OfItsOwnMind)),
    "a value not of the highest ballot": (
        Bounds(branches=1, recoveries=2, forget=False),
        Kinds(recovery=LowestBallot),
    ),
    "one promise taken for a quorum": (Bounds(forget=False), Kinds(recovery=OneIsEnough)),
    "acceptors that moved by one": (
        Bounds(nodes=4, forget=False),
        Kinds(recovery_acceptors=joint({2, 3, 4})),
    ),
    "acceptors that moved by two": (
        Bounds(nodes=5, forget=False),
        Kinds(recovery_acceptors=joint({3, 4, 5})),
    ),
    "records forgotten without a mark": (Bounds(), Kinds(acceptor=ForgetsWithoutAMark)),
    "a disk that was lost": (Bounds(forget=False), Kinds(loses_disks=True)),
    "a timeout that decides": (Bounds(forget=False), Kinds(gives_up_late=True)),
}


@pytest.mark.parametrize(("bounds", "kinds"), BROKEN.values(), ids=BROKEN)
def test_a_planted_error_splits_the_transaction(bounds: Bounds, kinds: Kinds) -> None:
    """Broken if the search overlooks it, or finds it only because somebody complains."""
    with pytest.raises(Found):
        explore(our_paxos(bounds, kinds, strict=False), states_max=300_000)


def test_a_reused_first_ballot_is_noticed() -> None:
    """Broken if a coordinator that votes twice passes for one that is right."""
    with pytest.raises(Found, match="was used for"):
        explore(our_paxos(Bounds(forget=False), Kinds(votes_max=2)), states_max=100_000)


def test_a_reused_first_ballot_splits_nothing_as_long_as_acceptors_look() -> None:
    """Broken if an acceptor could be talked out of what it accepted. Two values in one ballot are never
    both chosen, and a recovery that sees both stops."""
    explore(our_paxos(Bounds(forget=False), Kinds(votes_max=2), strict=False), states_max=100_000)


def test_a_reused_first_ballot_splits_the_transaction_if_they_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if the search could not see what the rule is for."""

    def on_2a(self: Acceptance[object], ballot: Ballot, value: object) -> AcceptorAnswer[object]:
        if ballot < self.promised:
            return AcceptorAnswer(self, granted=False)
        return AcceptorAnswer(Acceptance(ballot, Accepted(ballot, value)), granted=True)

    monkeypatch.setattr(Acceptance, "on_2a", on_2a)
    with pytest.raises(Found, match="two values are chosen"):
        explore(our_paxos(Bounds(forget=False), Kinds(votes_max=2), strict=False), states_max=100_000)
