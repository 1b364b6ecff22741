"""Seeded runs of Paxos Commit under faults; what must hold is checked after every step."""

from __future__ import annotations

import pytest

from tests.coordinator.paxos.broken import AnswersAtOnce, ForgetsWithoutAMark, OfItsOwnMind, OneIsEnough
from tests.coordinator.paxos.simulation import Simulation, Transaction
from undoubt.coordinator.paxos import ABORTED, Acceptor, PeerMisbehaved, Recovery
from undoubt.coordinator.quorum import Joint
from undoubt.participants.contract import Decision

STEPS = 700
SEEDS_PER_TEST = 25


def run(
    seed: int, kind: type[Simulation] = Simulation, acceptor_type: type[Acceptor] = Acceptor
) -> Simulation:
    simulation = kind(seed, acceptor_type)
    try:
        simulation.run(STEPS)
    except (AssertionError, PeerMisbehaved) as error:
        error.add_note(f"seed {seed}")
        raise
    return simulation


@pytest.mark.parametrize("first", range(0, 200, SEEDS_PER_TEST))
def test_one_outcome_under_faults_and_an_end_after_them(first: int) -> None:
    """Broken if two leaders find two outcomes, a commit lacks a vote, something leaves an acceptor before
    it is stored, what was chosen changes, or a transaction stays without an outcome once the faults are
    over."""
    for seed in range(first, first + SEEDS_PER_TEST):
        run(seed)


def test_the_runs_reach_what_they_are_for() -> None:
    """Broken if the runs above pass because next to nothing happens in them."""
    runs = [run(seed) for seed in range(40)]
    outcomes = [outcome for each in runs for outcome in each.ledger.values()]
    assert outcomes.count(Decision.COMMIT) > 60
    assert outcomes.count(Decision.ABORT) > 60
    assert sum(each.restarts for each in runs) > 100
    assert sum(each.forgotten for each in runs) > 20
    recoveries = [
        leader for each in runs for leader in each.network.leaders.values() if isinstance(leader, Recovery)
    ]
    committed = [each for each in recoveries if each.outcome is Decision.COMMIT]
    assert len(committed) > 60, "recoveries that completed what the coordinator began"
    assert sum(each.ballot.round > 1 for each in recoveries) > 30


def test_a_seed_replays() -> None:
    """Broken if a failing seed could not be looked at again."""
    one, two = run(12), run(12)
    assert (one.ledger, one.network.sent, one.network.witness.facts) == (
        two.ledger, two.network.sent, two.network.witness.facts,
    )  # fmt: skip


# Planted errors.


class WithItsOwnMind(Simulation):
    recovery_type = OfItsOwnMind


class WithOneIsEnough(Simulation):
    recovery_type = OneIsEnough


class WithMovingAcceptors(Simulation):
    """Whoever recovers asks the nodes that are members now."""

    def acceptors_for(self, transaction: Transaction) -> Joint:
        return Joint(frozenset({1, 4, 5})) if self.random.random() < 0.5 else transaction.acceptors


class WithASecondVote(Simulation):
    """A coordinator that waited too long uses the first ballot again, to say *aborted*."""

    def lead(self, transaction: Transaction) -> None:
        super().lead(transaction)
        if transaction.voted and self.random.random() < 0.2:
            votes = dict.fromkeys(transaction.votes, ABORTED)
            leader = self.network.first_ballot(transaction.txid, acceptors=transaction.acceptors, votes=votes)
            transaction.leaders.append(leader)
            self.network.send(leader, leader.messages())


class WithoutPatience(Simulation):
    """A coordinator that waited too long takes the transaction for aborted."""

    def lead(self, transaction: Transaction) -> None:
        super().lead(transaction)
        if transaction.voted and self.random.random() < 0.2:
            recorded = self.ledger.setdefault(transaction.txid, Decision.ABORT)
            assert recorded is Decision.ABORT


BROKEN: dict[str, tuple[type[Simulation], type[Acceptor]]] = {
    "answers at once": (Simulation, AnswersAtOnce),
    "forgets without a mark": (Simulation, ForgetsWithoutAMark),
    "a leader of its own mind": (WithItsOwnMind, Acceptor),
    "one promise is enough": (WithOneIsEnough, Acceptor),
    "acceptors that move": (WithMovingAcceptors, Acceptor),
    "a second vote": (WithASecondVote, Acceptor),
    "a timeout that decides": (WithoutPatience, Acceptor),
}


@pytest.mark.parametrize(("kind", "acceptor_type"), BROKEN.values(), ids=BROKEN)
def test_the_runs_find_what_is_broken(kind: type[Simulation], acceptor_type: type[Acceptor]) -> None:
    """Broken if the runs above pass whatever the code does."""
    with pytest.raises((AssertionError, PeerMisbehaved)):
        for seed in range(200):
            run(seed, kind, acceptor_type)
