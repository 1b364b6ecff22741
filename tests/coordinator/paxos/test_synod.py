"""One decision by Paxos: the paper's promises, and every property under faults."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.coordinator.paxos.synod_network import Ask1a, Ask2a, Synod
from undoubt.coordinator.paxos import FIRST, Accepted, Ballot, PeerMisbehaved
from undoubt.coordinator.paxos.synod import Acceptance, AcceptorAnswer, Proposal, Tally, value_for
from undoubt.coordinator.quorum import Joint
from undoubt.participants.invariant import InvariantViolation

THREE = Joint(frozenset({1, 2, 3}))
LOW, HIGH = Ballot(1, 7), Ballot(2, 3)


# Paxos Made Simple §2.2, 2.3.


def test_p1a_an_acceptor_accepts_unless_it_promised_a_higher_ballot() -> None:
    """Broken if a promise binds nobody, or binds the wrong way round."""
    promised = Acceptance[str]().on_1a(HIGH).state
    assert promised.promised == HIGH
    assert not promised.on_2a(LOW, "a").granted
    assert promised.on_2a(LOW, "a").state == promised
    assert promised.on_2a(HIGH, "a").state == Acceptance(HIGH, Accepted(HIGH, "a"))
    assert promised.on_2a(Ballot(3, 1), "a").state == Acceptance(Ballot(3, 1), Accepted(Ballot(3, 1), "a"))


def test_an_acceptance_is_a_promise_too() -> None:
    """Broken if an acceptor that accepts without a promise (the first ballot, or a lost 1a) takes part in a
    lower ballot afterwards."""
    accepted = Acceptance[str]().on_2a(HIGH, "a").state
    assert not accepted.on_1a(LOW).granted
    assert not accepted.on_2a(LOW, "b").granted


def test_a_promise_reports_what_was_accepted_last() -> None:
    """Broken if a proposer could miss a value that is chosen."""
    state = Acceptance[str]().on_2a(FIRST, "a").state.on_2a(LOW, "b").state
    assert state.on_1a(HIGH) == AcceptorAnswer(Acceptance(HIGH, Accepted(LOW, "b")), granted=True)


def test_repeated_requests_are_answered_alike() -> None:
    """Broken if a lost answer could never be had again, or a repetition changed something."""
    state = Acceptance[str]().on_1a(LOW).state
    assert state.on_1a(LOW) == AcceptorAnswer(state, granted=True)
    accepted = state.on_2a(LOW, "a").state
    assert accepted.on_2a(LOW, "a") == AcceptorAnswer(accepted, granted=True)


def test_two_values_in_one_ballot_are_a_broken_peer() -> None:
    """Broken if what no proposer does were taken for normal."""
    state = Acceptance[str]().on_2a(LOW, "a").state
    with pytest.raises(PeerMisbehaved, match="was used for a and then for b"):
        state.on_2a(LOW, "b")
    tally = Tally[str](THREE)
    tally.accepted(1, Accepted(LOW, "a"))
    with pytest.raises(PeerMisbehaved, match="was used for a and for b"):
        tally.accepted(2, Accepted(LOW, "b"))


def test_p2c_a_proposer_takes_the_value_of_the_highest_ballot() -> None:
    """Broken if it takes its own, the first heard, or the one that most have accepted."""
    assert value_for([None, None], "own") == "own"
    assert value_for([Accepted(LOW, "a"), None, Accepted(HIGH, "b"), Accepted(LOW, "a")], "own") == "b"
    # Ballots are compared by round first.
    assert value_for([Accepted(Ballot(1, 9), "a"), Accepted(Ballot(2, 1), "b")], "own") == "b"


def test_a_proposal_waits_for_a_quorum_and_then_stands() -> None:
    """Broken if a minority's word counts, one acceptor counts twice, or a late promise changes the value."""
    proposal = Proposal(HIGH, THREE, "own")
    assert proposal.promised(1, None) is None
    assert proposal.promised(1, None) is None
    assert proposal.promised(4, None) is None, "4 is no acceptor"
    assert proposal.promised(2, Accepted(FIRST, "a")) == "a"
    assert proposal.promised(3, Accepted(LOW, "b")) == "a"


def test_a_value_is_chosen_in_one_ballot() -> None:
    """Broken if acceptances of different ballots were added up."""
    tally = Tally[str](THREE)
    tally.accepted(1, Accepted(FIRST, "a"))
    tally.accepted(1, Accepted(FIRST, "a"))
    tally.accepted(2, Accepted(LOW, "a"))
    tally.accepted(7, Accepted(LOW, "a"))
    assert tally.chosen != "a"
    tally.accepted(3, Accepted(LOW, "a"))
    assert tally.chosen == "a"
    tally.accepted(1, Accepted(HIGH, "a"))
    assert tally.chosen == "a"


def test_both_sets_of_a_joint_quorum_must_agree() -> None:
    """Broken if one of the two could choose alone."""
    tally = Tally[str](Joint(frozenset({1, 2, 3}), frozenset({3, 4, 5})))
    for acceptor in (1, 2, 3):
        tally.accepted(acceptor, Accepted(LOW, "a"))
    assert tally.chosen != "a"
    tally.accepted(4, Accepted(LOW, "a"))
    assert tally.chosen == "a"


def test_nobody_is_not_a_quorum() -> None:
    """Broken if an empty set of acceptors, of which all agree, chose by itself."""
    for make in (lambda: Tally[str](Joint()), lambda: Proposal(LOW, Joint(), "a")):
        with pytest.raises(InvariantViolation):
            make()


# Agreement, validity, progress.

SETS = [
    Joint(frozenset({1})),
    Joint(frozenset({1, 2})),
    THREE,
    Joint(frozenset(range(1, 6))),
    Joint(frozenset({1, 2, 3}), frozenset({2, 3, 4})),
    Joint(frozenset({1, 2, 3}), frozenset({3, 4, 5})),
]


class SynodMachine(RuleBasedStateMachine):
    """Any order of events. At the end one proposer is left, and comes to its end with any quorum."""

    synod: Synod

    def make(self, quorum: Joint, first: str | None) -> Synod:
        return Synod(quorum, first)

    @initialize(quorum=st.sampled_from(SETS), first=st.sampled_from([None, "first"]))
    def begin(self, quorum: Joint, first: str | None) -> None:
        self.synod = self.make(quorum, first)

    @rule(round_number=st.integers(1, 3), proposer=st.integers(1, 3))
    def propose(self, round_number: int, proposer: int) -> None:
        ballot = Ballot(round_number, proposer)
        if ballot not in self.synod.proposals:
            self.synod.propose(ballot, f"of {proposer}")

    @precondition(lambda self: self.synod.asked)
    @rule(data=st.data())
    def request_arrives(self, data: st.DataObject) -> None:
        acceptor = data.draw(st.sampled_from(sorted(self.synod.disks)))
        self.synod.ask(acceptor, data.draw(st.sampled_from(self.synod.asked)))

    @rule(data=st.data())
    def disk_syncs(self, data: st.DataObject) -> None:
        self.synod.sync(data.draw(st.sampled_from(sorted(self.synod.disks))))

    @rule(data=st.data())
    def acceptor_crashes(self, data: st.DataObject) -> None:
        self.synod.crash(data.draw(st.sampled_from(sorted(self.synod.disks))))

    @precondition(lambda self: self.synod.replies)
    @rule(data=st.data())
    def reply_arrives(self, data: st.DataObject) -> None:
        self.synod.hear(data.draw(st.sampled_from(self.synod.replies)))

    @invariant()
    def agreement_and_validity(self) -> None:
        if hasattr(self, "synod"):
            self.synod.check()

    def teardown(self) -> None:
        if hasattr(self, "synod"):
            assert self.synod.calm(set(self.synod.disks), "last") is not None


TestSynod = SynodMachine.TestCase
TestSynod.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def run(synod: Synod, random: Random, steps: int) -> None:
    """One schedule. Mostly things arrive; at times they arrive again, much later."""
    rounds = 0
    for _ in range(steps):
        acceptor = random.choice(sorted(synod.disks))
        match random.choices(["propose", "ask", "sync", "crash", "hear"], [1, 12, 8, 1, 8])[0]:
            case "propose" if rounds < 6:
                rounds += 1
                synod.propose(Ballot(random.randrange(1, 4), rounds), f"of {rounds}")
            case "ask" if synod.asked:
                synod.ask(acceptor, random.choice(synod.asked))
            case "sync":
                synod.sync(acceptor)
            case "crash":
                synod.crash(acceptor)
            case "hear" if synod.replies:
                synod.hear(random.choice(synod.replies[-6:] if random.random() < 0.7 else synod.replies))
            case _:
                pass
        synod.check()


def schedule(seed: int, kind: type[Synod] = Synod) -> Synod:
    random = Random(seed)
    synod = kind(random.choice(SETS), random.choice([None, "first"]))
    run(synod, random, 120)
    return synod


def test_agreement_validity_and_progress_under_faults() -> None:
    """Broken if two values are chosen, one that nobody proposed is, or a lone proposer with a quorum comes
    to no end. Also broken if the schedules are so tame that nothing is ever chosen before the calm."""
    chosen = 0
    for seed in range(800):
        try:
            synod = schedule(seed)
            before = synod.chosen()
            chosen += bool(before)
            # Any quorum will do.
            acceptors = set(synod.disks)
            for acceptor in Random(seed).sample(sorted(acceptors), len(acceptors)):
                if synod.is_quorum(acceptors - {acceptor}):
                    acceptors.remove(acceptor)
            after = synod.calm(acceptors, "last")
            assert after is not None
            assert before <= {after}, "what was chosen changed"
        except (AssertionError, PeerMisbehaved) as error:
            error.add_note(f"seed {seed}")
            raise
    assert chosen > 300


class AnswersBeforeStoring(Synod):
    def answer(self, acceptor: int, request: Ask1a | Ask2a, answer: AcceptorAnswer[str]) -> None:
        super().answer(acceptor, request, answer)
        self.replies += self.disks[acceptor].held
        self.disks[acceptor].held = []


class ForgetsPromises(Synod):
    """Stores what it accepts, and not what it promises."""

    def sync(self, acceptor: int) -> None:
        super().sync(acceptor)
        disk = self.disks[acceptor]
        accepted = disk.stored.accepted
        disk.stored = Acceptance(FIRST if accepted is None else accepted.ballot, accepted)


class PrefersItsOwn(Synod):
    """Proposes its own value if any acceptor of the quorum has accepted nothing."""

    def propose(self, ballot: Ballot, own: str) -> None:
        super().propose(ballot, own)
        proposal = self.proposals[ballot]
        promised, heard = proposal.promised, list[Accepted[str] | None]()

        def stubborn(acceptor: int, accepted: Accepted[str] | None) -> str | None:
            heard.append(accepted)
            value = promised(acceptor, accepted)
            if value is not None and None in heard:
                proposal.value = value = own
            return value

        proposal.promised = stubborn  # type: ignore[method-assign]


class SharesABallot(Synod):
    """A restarted proposer uses its ballot again, for another value."""

    def hear(self, reply: object) -> None:
        asked = len(self.asked)
        super().hear(reply)  # type: ignore[arg-type]
        for request in self.asked[asked:]:
            if isinstance(request, Ask2a):
                self.wanted.add("another")
                self.asked.append(Ask2a(request.ballot, "another"))


@pytest.mark.parametrize("broken", [AnswersBeforeStoring, ForgetsPromises, PrefersItsOwn, SharesABallot])
def test_the_schedules_find_what_is_broken(broken: type[Synod]) -> None:
    """Broken if the test above passes whatever the code does."""
    with pytest.raises((AssertionError, PeerMisbehaved)):
        for seed in range(800):
            schedule(seed, broken)
