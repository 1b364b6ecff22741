"""The specifications: their published numbers, and that the search finds what is wrong."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from tests.house.tree import ROOT
from tests.models.paxos_commit import PaxosCommit, paxos_commit, phase2a
from tests.models.rules import Rule, RuleModel
from tests.models.search import Found, TooMany, explore
from tests.models.transaction import COMMIT, becomes, conflicts, rm, tcommit, two_phase


def test_atomic_commit_has_its_published_states() -> None:
    """Broken if a rule of TCommit is missing, too strict or too free, or consistency fails."""
    explored = explore(tcommit(3))
    assert (explored.count, explored.depth) == (34, 7)


def test_two_phase_commit_has_its_published_states() -> None:
    """Broken if a rule of TwoPhase is. 50816 is what the specification's authors found for six."""
    explored = explore(two_phase(3))
    assert (explored.count, explored.depth) == (288, 11)
    assert explore(two_phase(6)).count == 50816


def test_paxos_commit_reaches_both_outcomes() -> None:
    """Broken if consistency held only because nothing ever happens."""
    model = paxos_commit(1, 3, 2)
    states = explore(model, keep=True).states
    assert not isinstance(states, int)
    facts = set().union(*(model.facts(state) for state in states))
    assert {rm(0, "committed"), rm(0, "aborted"), phase2a(0, (1, "prepared"))} <= facts


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_paxos_commit_has_its_published_states() -> None:
    """Broken if a rule of PaxosCommit is missing, too strict or too free, or consistency fails; and if the
    command says it otherwise than the contributors' guide does."""
    arguments = ["--model", "paxoscommit", "--rms", "2", "--acceptors", "3", "--ballots", "2"]
    ended = subprocess.run(
        [sys.executable, "-m", "tests.models", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ended.stdout == "PaxosCommit rms=2 acceptors=3 ballots=2 states=1321761 depth=28\n"


class ReusedBallot(PaxosCommit):
    """Ballot 0 twice: a resource manager that is prepared says *aborted* after all, say after a timeout."""

    def resource_manager(self, one: int) -> list[Rule]:
        second = becomes(one, "aborted")
        rule = Rule(
            (rm(one, "prepared"),), drop=second["drop"], add=(*second["add"], phase2a(one, (0, "aborted")))
        )
        return [*super().resource_manager(one), rule]


class LeaderOfItsOwnMind(PaxosCommit):
    """A leader that proposes *aborted* whatever was accepted."""

    def leader_2a(self, ins: int, ballot: int) -> list[Rule]:
        aborted = (phase2a(ins, (ballot, "aborted")),)
        return [Rule(rule.when, rule.unless, (), aborted) for rule in super().leader_2a(ins, ballot)]


class HalfAQuorum(PaxosCommit):
    """One acceptor is enough."""

    def __init__(self, *bounds: Any) -> None:
        super().__init__(*bounds)
        self.majorities = [(acceptor,) for acceptor in self.acceptors]


@pytest.mark.parametrize("broken", [ReusedBallot, LeaderOfItsOwnMind, HalfAQuorum])
def test_a_broken_specification_is_found(broken: type[PaxosCommit]) -> None:
    """Broken if the search overlooks a split."""
    with pytest.raises(Found, match="'sent', 'abort'"):
        explore(broken(1, 3, 2).model(), states_max=100_000)


def test_a_search_has_a_bound() -> None:
    """Broken if a model that has become too large fills the memory instead of failing."""
    with pytest.raises(TooMany):
        explore(two_phase(6), states_max=10_000)


def test_the_shortest_way_is_shown() -> None:
    """Broken if what leads to a split could not be read."""
    careless = RuleModel(
        [rm(0, "working"), rm(1, "working")],
        [
            Rule((rm(0, "working"),), add=(COMMIT,)),
            Rule((COMMIT,), **becomes(0, "committed")),
            Rule((rm(1, "working"),), **becomes(1, "aborted")),
        ],
        conflicts(2),
    )
    with pytest.raises(Found) as caught:
        explore(careless)
    assert len(caught.value.way) == 4
