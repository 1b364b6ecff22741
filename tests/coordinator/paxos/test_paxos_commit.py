"""Paxos Commit: one transaction, its coordinator and whoever comes after it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.coordinator.paxos.network import BRANCHES, PREPARED, THREE, Network, txid
from undoubt.coordinator.paxos import (
    ABORTED,
    FIRST,
    Accepted,
    Ballot,
    BranchInstance,
    FirstBallot,
    Forgotten,
    Known,
    Learner,
    Marks,
    PeerMisbehaved,
    Phase1a,
    Phase1b,
    Phase2a,
    Phase2b,
    Recovery,
    Refused,
    Value,
)
from undoubt.coordinator.quorum import Joint
from undoubt.participants.contract import Decision
from undoubt.participants.invariant import InvariantViolation

TX = txid()
BOTH = dict.fromkeys(BRANCHES, PREPARED)
ALL_PREPARED = Known(BRANCHES, (Accepted(FIRST, PREPARED),) * 2)


# The coordinator's one ballot.


def test_all_prepared_is_committed() -> None:
    """Broken if a quorum's word is not enough, or the word of less is."""
    leader = FirstBallot(TX, THREE, BOTH)
    outcomes: list[Decision | None] = []
    for acceptor in (2, 2, 8, 3):
        leader.step(Phase2b(TX, acceptor, ALL_PREPARED))
        outcomes.append(leader.outcome)
    # Neither a repetition nor an acceptor that is not of the session makes a quorum.
    assert outcomes == [None, None, None, Decision.COMMIT]
    assert (leader.branches, leader.chosen) == (BRANCHES, (PREPARED, PREPARED))


def test_one_instance_without_a_quorum_is_no_commit() -> None:
    """Broken if instances were added up."""
    leader = FirstBallot(TX, THREE, BOTH)
    first, second = (
        Known(BRANCHES, (Accepted(FIRST, PREPARED), None)),
        Known(BRANCHES, (None, Accepted(FIRST, PREPARED))),
    )
    for acceptor, known in enumerate((first, first, second), 1):
        leader.step(Phase2b(TX, acceptor, known))
    assert leader.outcome is None


def test_one_aborted_is_aborted() -> None:
    """Broken if the prepared ones outvoted it."""
    network = Network()
    leader = network.first_ballot(TX, votes={BRANCHES[0]: PREPARED, BRANCHES[1]: ABORTED})
    network.send(leader, leader.messages())
    network.settle()
    assert leader.outcome is Decision.ABORT


def test_all_votes_and_the_full_list_go_in_one_bundle_to_all() -> None:
    """Broken if an acceptor could know a vote and not who else takes part."""
    leader = FirstBallot(TX, THREE, {BRANCHES[1]: PREPARED, BRANCHES[0]: PREPARED})
    bundle = Phase2a(TX, THREE, FIRST, BRANCHES, (PREPARED, PREPARED))
    assert leader.messages() == ((1, bundle), (2, bundle), (3, bundle))


def test_the_first_ballot_is_used_once() -> None:
    """Broken if the votes of a repetition could be others, or a coordinator could take them back or abort by
    itself: it has no way to say anything but its votes, and a question."""
    votes = dict(BOTH)
    leader = FirstBallot(TX, THREE, votes)
    sent = leader.messages()
    votes[BRANCHES[0]] = ABORTED
    leader.step(Refused(TX, 1, Ballot(1, 5), Known()))
    assert leader.messages() == sent
    public = {name for name in dir(leader) if not name.startswith("_")}
    assert public == {
        "txid", "acceptors", "branches", "forgotten", "outcome", "chosen", "superseded", "unheard",
        "messages", "ask", "to_all", "learn", "name", "step",
    }  # fmt: skip


def test_votes_for_nothing_are_no_votes() -> None:
    """Broken if a transaction of no branches, of which all are prepared, were committed."""
    with pytest.raises(InvariantViolation):
        FirstBallot(TX, THREE, {})


def test_a_superseded_coordinator_learns_what_the_recovery_chose() -> None:
    """Broken if a coordinator whose votes come too late waited for ever, or believed in them."""
    network = Network()
    recovery = network.recovery(TX)
    network.send(recovery, recovery.begin())
    network.settle()
    assert recovery.outcome is Decision.ABORT
    leader = network.first_ballot(TX)
    network.send(leader, leader.messages())
    network.settle()
    assert (leader.superseded, leader.unheard) == (True, ())
    assert leader.outcome is Decision.ABORT


def test_a_refusal_by_a_minority_changes_nothing() -> None:
    """Broken if one recovery that reached one acceptor stopped a commit."""
    network = Network()
    recovery = network.recovery(TX)
    network.send(recovery, recovery.begin())
    network.settle(3)
    leader = network.first_ballot(TX)
    network.send(leader, leader.messages())
    network.settle()
    assert not leader.superseded
    assert leader.outcome is Decision.COMMIT


def test_asking_changes_nothing() -> None:
    """Broken if whoever only wants to know disturbed whoever decides."""
    network = Network()
    leader, learner = network.first_ballot(TX), Learner(TX, THREE)
    network.send(leader, learner.ask())
    network.settle()
    assert [node.disk.records for node in network.nodes.values()] == [{}, {}, {}]
    network.send(leader, leader.messages())
    network.settle()
    assert leader.outcome is Decision.COMMIT


def test_with_one_acceptor_it_is_two_phase_commit() -> None:
    """Broken if F = 0 cost more than a decision in a ledger does: one question, one write, one answer."""
    alone = Joint(frozenset({1}))
    network = Network(1)
    leader = network.first_ballot(TX, acceptors=alone)
    network.send(leader, leader.messages())
    network.arrive(0)
    assert len(network.nodes[1].writing) == 1
    network.settle()
    assert leader.outcome is Decision.COMMIT
    assert network.sent == 2


# Whoever comes after it.


def test_a_recovery_finds_what_was_chosen() -> None:
    """Broken if a committed transaction could be aborted afterwards; with any quorum that answers."""
    for up in [(1, 2), (1, 3), (2, 3), (1, 2, 3)]:
        network = Network()
        leader = network.first_ballot(TX)
        network.send(leader, leader.messages())
        network.settle()
        recovery = network.recovery(TX)
        network.send(recovery, recovery.begin())
        network.settle(*up)
        assert recovery.outcome is leader.outcome is Decision.COMMIT
        assert (recovery.branches, recovery.chosen) == (BRANCHES, (PREPARED, PREPARED))


def test_a_recovery_completes_what_one_acceptor_has() -> None:
    """Broken if a vote that a quorum may have accepted is taken for none: 1 may have, 3 is silent."""
    network = Network()
    leader = network.first_ballot(TX)
    network.send(leader, leader.messages())
    network.settle(1)
    recovery = network.recovery(TX)
    network.send(recovery, recovery.begin())
    network.settle(1, 2)
    assert recovery.outcome is Decision.COMMIT


def test_a_recovery_of_a_vote_that_nobody_has_aborts() -> None:
    """Broken if a transaction whose coordinator died before it voted stayed in doubt, or could commit
    later."""
    network = Network()
    recovery = network.recovery(TX)
    network.send(recovery, recovery.begin())
    network.settle(1, 2)
    assert recovery.outcome is Decision.ABORT
    assert recovery.branches == (), "nobody knows them, and nobody needs to"
    leader = network.first_ballot(TX)
    network.send(leader, leader.messages())
    network.settle()
    assert leader.outcome is Decision.ABORT


def test_a_later_recovery_that_knows_the_list_still_aborts() -> None:
    """Broken if instances that the first recovery could not name were open to the second.

    The votes reach 3 alone; a recovery hears 1 and 2, which know nothing, and aborts what it cannot name;
    another hears 2 and 3, sees the votes of the first ballot, and must not propose them."""
    network = Network()
    first = network.recovery(TX)
    network.send(first, first.begin())
    network.settle(1, 2)
    assert first.outcome is Decision.ABORT
    leader = network.first_ballot(TX)
    network.send(leader, leader.messages())
    network.settle(3)
    assert leader.outcome is None
    second = network.recovery(TX)
    network.send(second, second.begin())
    network.settle(2, 3)
    assert second.outcome is Decision.ABORT
    assert second.branches == BRANCHES


def test_a_recovery_takes_the_value_of_the_highest_ballot() -> None:
    """Broken if it took the first that it hears, or that of the most acceptors."""
    aborted = Known(BRANCHES, (Accepted(Ballot(1, 9), ABORTED), Accepted(Ballot(1, 9), PREPARED)))
    recovery = Recovery(TX, THREE, 5)
    recovery.begin()
    assert recovery.step(Phase1b(TX, 1, recovery.ballot, ALL_PREPARED)) == ()
    (_, bundle), *_ = recovery.step(Phase1b(TX, 2, recovery.ballot, aborted))
    assert bundle == Phase2a(TX, THREE, recovery.ballot, BRANCHES, (ABORTED, PREPARED))


def test_what_was_voted_for_one_by_one_is_recovered_one_by_one() -> None:
    """Broken if an instance's default were decided for all of them."""
    known = Known(BRANCHES, (Accepted(FIRST, PREPARED), None))
    recovery = Recovery(TX, THREE, 5)
    recovery.begin()
    recovery.step(Phase1b(TX, 1, recovery.ballot, Known()))
    (_, bundle), *_ = recovery.step(Phase1b(TX, 2, recovery.ballot, known))
    assert bundle == Phase2a(TX, THREE, recovery.ballot, BRANCHES, (PREPARED, ABORTED))


def test_promises_of_an_earlier_attempt_do_not_count() -> None:
    """Broken if two promises for different ballots made a quorum."""
    recovery = Recovery(TX, THREE, 5)
    recovery.begin()
    old = recovery.ballot
    recovery.step(Phase1b(TX, 1, old, Known()))
    recovery.begin()
    assert recovery.ballot > old
    assert recovery.step(Phase1b(TX, 2, old, Known())) == ()
    assert recovery.step(Phase1b(TX, 3, recovery.ballot, Known())) == ()


def test_a_ballot_has_one_bundle() -> None:
    """Broken if a promise that comes late changed what was asked for."""
    recovery = Recovery(TX, THREE, 5)
    recovery.begin()
    recovery.step(Phase1b(TX, 1, recovery.ballot, Known()))
    sent = recovery.step(Phase1b(TX, 2, recovery.ballot, Known()))
    assert recovery.step(Phase1b(TX, 3, recovery.ballot, ALL_PREPARED)) == ()
    assert recovery.again() == sent


def test_a_preempted_recovery_goes_higher() -> None:
    """Broken if it tried for ever with ballots that are refused."""
    recovery = Recovery(TX, THREE, 5)
    recovery.begin()
    preempted = [recovery.preempted]
    recovery.step(Refused(TX, 1, Ballot(7, 3), Known()))
    preempted.append(recovery.preempted)
    (_, request), *_ = recovery.begin()
    assert isinstance(request, Phase1a)
    assert request.ballot == Ballot(8, 5)
    assert [*preempted, recovery.preempted] == [False, True, False]


def test_two_recoveries_agree() -> None:
    """Broken if the second, which overtakes the first between its two phases, finds otherwise."""
    network = Network()
    leader = network.first_ballot(TX)
    network.send(leader, leader.messages())
    network.settle(1)
    first, second = network.recovery(TX), network.recovery(TX)
    network.send(first, first.begin())
    network.arrive_at(2, 3)
    network.send(second, second.begin())
    network.settle()
    for _ in range(3):
        for each in (first, second):
            network.send(each, each.begin())
            network.settle()
    assert first.outcome is second.outcome is not None


def test_a_recovery_that_knows_says_no_more() -> None:
    """Broken if a transaction that is over were voted on again and again."""
    network = Network()
    recovery = network.recovery(TX)
    network.send(recovery, recovery.begin())
    network.settle()
    assert recovery.begin() == ()
    assert recovery.step(Phase1b(TX, 1, recovery.ballot, Known())) == ()


def test_the_coordinators_number_is_not_a_recoverys() -> None:
    """Broken if a recovery could use the first ballot."""
    with pytest.raises(InvariantViolation):
        Recovery(TX, THREE, 0)


# The set of acceptors is bound.


def test_both_sets_of_a_joint_configuration_decide() -> None:
    """Broken if a session that was opened while the membership changed could be decided by one of the two."""
    joint = Joint(frozenset({1, 2, 3}), frozenset({3, 4, 5}))
    network = Network(5)
    leader = network.first_ballot(TX, acceptors=joint)
    network.send(leader, leader.messages())
    network.settle(1, 2)
    assert leader.outcome is None
    network.send(leader, leader.messages())
    network.settle(4, 3)
    assert leader.outcome is Decision.COMMIT


def test_an_acceptor_with_a_record_refuses_another_set() -> None:
    """Broken if a recovery that asks today's members were answered by one that is bound to yesterday's."""
    network = Network(5)
    leader = network.first_ballot(TX)
    network.send(leader, leader.messages())
    network.settle()
    moved = network.recovery(TX, acceptors=Joint(frozenset({3, 4, 5})))
    network.send(moved, moved.begin())
    with pytest.raises(PeerMisbehaved, match="acceptors"):
        network.settle(3)


# The forgotten mark.


def test_votes_that_arrive_after_everything_was_forgotten_commit_nothing() -> None:
    """Broken if a message that was under way for long decided anew what had been decided otherwise.

    A recovery aborts, the ledger has that, the acceptors forget; then the coordinator's votes arrive."""
    network = Network()
    recovery = network.recovery(TX)
    network.send(recovery, recovery.begin())
    network.settle()
    assert recovery.outcome is Decision.ABORT
    for number in network.nodes:
        network.forget(number, Marks(1, ((1, 2),)))
    leader = network.first_ballot(TX)
    network.send(leader, leader.messages())
    network.settle()
    assert (leader.outcome, leader.forgotten) == (None, True)


def test_a_recovery_of_what_is_forgotten_leaves_it_to_the_ledger() -> None:
    """Broken if it took the acceptors' silence for no vote."""
    recovery = Recovery(TX, THREE, 5)
    recovery.begin()
    recovery.step(Forgotten(TX, 1))
    recovery.step(Forgotten(TX, 1))
    assert not recovery.forgotten, "2 and 3 may still know"
    recovery.step(Forgotten(TX, 2))
    assert (recovery.outcome, recovery.forgotten, recovery.begin()) == (None, True, ())
    assert recovery.step(Phase1b(TX, 2, recovery.ballot, Known())) == ()
    assert recovery.step(Phase1b(TX, 3, recovery.ballot, Known())) == ()


# What cannot be.


CONTRADICTIONS: dict[str, Callable[[Learner], object]] = {
    "another list": lambda each: each.learn(
        Phase2b(TX, 1, Known(BRANCHES[:1], (Accepted(FIRST, PREPARED),)))
    ),
    "another vote": lambda each: each.learn(
        Phase2b(TX, 1, Known(BRANCHES, (Accepted(FIRST, PREPARED), Accepted(FIRST, ABORTED))))
    ),
    "other evidence": lambda each: each.learn(
        Phase2b(TX, 1, Known(BRANCHES, (Accepted(FIRST, PREPARED), Accepted(FIRST, Value(True, b"?")))))
    ),
}


@pytest.mark.parametrize("tell", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_contradiction_is_a_broken_peer(tell: Callable[[Learner], object]) -> None:
    """Broken if an outcome were drawn from answers that cannot all be true."""
    learner = Learner(TX, THREE)
    learner.learn(Phase2b(TX, 2, ALL_PREPARED))
    with pytest.raises(PeerMisbehaved):
        tell(learner)
    assert learner.outcome is None


def test_an_answer_about_another_transaction_is_the_drivers_mistake() -> None:
    """Broken if one transaction's votes were counted for another."""
    with pytest.raises(InvariantViolation):
        Learner(TX, THREE).learn(Phase2b(txid(2), 1, ALL_PREPARED))


def test_branches_are_compared_by_name_too() -> None:
    """Broken if branch 2 of one database could stand for branch 2 of another."""
    learner = Learner(TX, THREE)
    learner.learn(Phase2b(TX, 2, ALL_PREPARED))
    other = (BRANCHES[0], BranchInstance(2, "elsewhere"))
    with pytest.raises(PeerMisbehaved):
        learner.learn(Phase2b(TX, 1, Known(other, ALL_PREPARED.accepted)))
