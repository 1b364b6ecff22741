"""Three-phase commit's terminations: what splits, what never does, and that the search can tell."""

from __future__ import annotations

import pytest

from tests.models.search import Found, explore
from tests.models.three_phase import Actor, Row, ThreePhase


def test_skeens_termination_splits_under_a_partition() -> None:
    """Broken if the documentation warns of what cannot happen. One side has seen *p* and commits; the other
    has not and aborts."""
    with pytest.raises(Found) as caught:
        explore(ThreePhase(2, 2, "skeen", partition=True))
    rows = [state.split("   ")[0].split() for state in caught.value.way]
    assert any(sorted(row[0] for row in each) == ["p", "w"] for each in rows)
    assert sorted(row[0] for row in rows[-1]) == ["a", "c"]


def test_skeens_termination_that_reads_everybody_does_not_split() -> None:
    """Broken if it were unsafe even where nobody is cut off, with a coordinator that is only slow."""
    explore(ThreePhase(2, 2, "skeen", partition=False), states_max=20_000)


def test_quorum_termination_does_not_split() -> None:
    """Broken if two terminators, or a terminator and a coordinator that is only slow, could end it
    differently, in whatever order and however cut off."""
    explore(ThreePhase(2, 2, "quorum"), states_max=10_000)
    explore(ThreePhase(3, 1, "quorum"), states_max=10_000)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_quorum_termination_of_more_does_not_split() -> None:
    """As above."""
    explore(ThreePhase(2, 3, "quorum"), states_max=100_000)
    explore(ThreePhase(3, 2, "quorum"), states_max=1_000_000)


@pytest.mark.parametrize("termination", ["skeen", "quorum"])
def test_both_ends_are_reached(termination: str) -> None:
    """Broken if nothing splits because nothing ever ends."""
    states = explore(ThreePhase(2, 1, termination, partition=False), keep=True).states
    assert not isinstance(states, int)
    ends = {tuple(row.state for row in world.rows) for world in states}
    assert {("c", "c"), ("a", "a")} <= ends
    by_terminators = {world.actors[1].phase for world in states}
    assert {"commit", "abort"} <= by_terminators


class IgnoresP(ThreePhase):
    """Aborts whatever was pre-committed."""

    def judge_quorum(self, actor: Actor) -> Actor:
        blind = [row and row._replace(state=row.state.replace("p", "w")) for row in actor.seen]
        return super().judge_quorum(actor._replace(seen=tuple(blind)))


class ForgetsTheAttempt(ThreePhase):
    """Writes the state of an attempt, and not its number."""

    def attempt_row(self, row: Row, state: str, number: int) -> Row:
        return row._replace(state=state)


class AsksNoMajority(ThreePhase):
    def majority(self, count: int) -> bool:
        return count >= 1


class NeedsNoElection(ThreePhase):
    """Writes also where another has been elected meanwhile."""

    def is_elected(self, row: Row, number: int) -> bool:
        return True


BROKEN = [
    pytest.param(IgnoresP(3, 1, "quorum"), id="a termination that ignores a p"),
    pytest.param(
        ForgetsTheAttempt(3, 2, "quorum"), id="a last attempt that is not stored", marks=pytest.mark.slow
    ),
    pytest.param(AsksNoMajority(2, 2, "quorum"), id="no majority"),
    pytest.param(NeedsNoElection(2, 2, "quorum"), id="no election"),
]


@pytest.mark.parametrize("model", BROKEN)
def test_a_planted_error_splits_the_transaction(model: ThreePhase) -> None:
    """Broken if the search overlooks it."""
    with pytest.raises(Found):
        explore(model, states_max=1_000_000)
