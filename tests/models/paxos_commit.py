"""PaxosCommit: the specification of Gray and Lamport's Paxos Commit.

Each resource manager's choice between *prepared* and *aborted* is one instance of Paxos. The acceptor's state
for an instance is ``mbal`` (it takes part in no lower ballot), ``bal`` and ``val`` (what it last accepted).
Ballot 0 belongs to the resource manager itself; any higher one to a leader who wants to know.
"""

from __future__ import annotations

from itertools import combinations, product

from tests.models.rules import Fact, Rule, RuleModel
from tests.models.transaction import ABORT, COMMIT, becomes, conflicts, outcome_rules, rm

Accepted = tuple[int, str]
"""``(bal, val)``."""

NOTHING: Accepted = (-1, "none")
VALUES = ("prepared", "aborted")


def mbal(ins: int, acceptor: int, ballot: int) -> Fact:
    return ("mbal", ins, acceptor, ballot)


def holds(ins: int, acceptor: int, accepted: Accepted) -> Fact:
    return ("accepted", ins, acceptor, *accepted)


def phase1a(ins: int, ballot: int) -> Fact:
    return ("1a", ins, ballot)


def phase1b(ins: int, ballot: int, accepted: Accepted, acceptor: int) -> Fact:
    return ("1b", ins, ballot, *accepted, acceptor)


def phase2a(ins: int, accepted: Accepted) -> Fact:
    return ("2a", ins, *accepted)


def phase2b(ins: int, accepted: Accepted, acceptor: int) -> Fact:
    return ("2b", ins, *accepted, acceptor)


class PaxosCommit:
    """Makes the rules. A majority is any smallest one, as in the published configuration."""

    def __init__(self, rms: int, acceptors: int, ballots: int) -> None:
        self.rms, self.acceptors, self.ballots = range(rms), range(acceptors), range(ballots)
        self.majorities = list(combinations(self.acceptors, acceptors // 2 + 1))

    def accepted_below(self, ballot: int) -> list[Accepted]:
        return [NOTHING, *product(range(ballot), VALUES)]

    def model(self) -> RuleModel:
        first = [rm(one, "working") for one in self.rms]
        for ins, acceptor in product(self.rms, self.acceptors):
            first += [mbal(ins, acceptor, 0), holds(ins, acceptor, NOTHING)]
        rules = self.decide()
        for one in self.rms:
            rules += self.resource_manager(one)
            for ballot in self.ballots[1:]:
                rules.append(Rule((), add=(phase1a(one, ballot),)))
                rules += self.leader_2a(one, ballot)
            for acceptor in self.acceptors:
                rules += self.acceptor_1b(one, acceptor) + self.acceptor_2b(one, acceptor)
        return RuleModel(first, rules, [(COMMIT, ABORT), *conflicts(len(self.rms))])

    def resource_manager(self, one: int) -> list[Rule]:
        """RMPrepare, RMChooseToAbort: the one use of ballot 0."""
        rules = []
        for value in VALUES:
            step = becomes(one, value)
            message = phase2a(one, (0, value))
            rules.append(Rule((rm(one, "working"),), drop=step["drop"], add=(*step["add"], message)))
        return [*rules, *outcome_rules(one)]

    def leader_2a(self, ins: int, ballot: int) -> list[Rule]:
        """Phase2a: once in a ballot, after a majority's 1b; the value of the highest ballot, else *aborted*.

        An acceptor sends at most one 1b in a ballot, so one answer of each of the majority is all there are.
        """
        unless = tuple(phase2a(ins, (ballot, value)) for value in VALUES)
        rules = []
        for majority in self.majorities:
            for answers in product(self.accepted_below(ballot), repeat=len(majority)):
                highest = max(answers)
                value = "aborted" if highest == NOTHING else highest[1]
                when = tuple(
                    phase1b(ins, ballot, answer, acceptor)
                    for answer, acceptor in zip(answers, majority, strict=True)
                )
                rules.append(Rule(when, unless, add=(phase2a(ins, (ballot, value)),)))
        return rules

    def decide(self) -> list[Rule]:
        """Decide: all instances have chosen *prepared*, or one has chosen *aborted*."""

        def chosen(ins: int, value: str) -> list[tuple[Fact, ...]]:
            return [
                tuple(phase2b(ins, (ballot, value), acceptor) for acceptor in majority)
                for ballot, majority in product(self.ballots, self.majorities)
            ]

        commits = product(*(chosen(ins, "prepared") for ins in self.rms))
        aborts = [when for ins in self.rms for when in chosen(ins, "aborted")]
        return [
            *(Rule(tuple(fact for part in parts for fact in part), add=(COMMIT,)) for parts in commits),
            *(Rule(when, add=(ABORT,)) for when in aborts),
        ]

    def acceptor_1b(self, ins: int, acceptor: int) -> list[Rule]:
        """Phase1b: promise a ballot that is higher than any before, and say what was accepted."""
        return [
            Rule(
                (phase1a(ins, ballot), mbal(ins, acceptor, lower), holds(ins, acceptor, accepted)),
                drop=(mbal(ins, acceptor, lower),),
                add=(mbal(ins, acceptor, ballot), phase1b(ins, ballot, accepted, acceptor)),
            )
            for ballot in self.ballots[1:]
            for lower in range(ballot)
            for accepted in self.accepted_below(lower + 1)
        ]

    def acceptor_2b(self, ins: int, acceptor: int) -> list[Rule]:
        """Phase2b: accept, unless a higher ballot was promised."""
        return [
            Rule(
                (phase2a(ins, (ballot, value)), mbal(ins, acceptor, lower), holds(ins, acceptor, accepted)),
                drop=(mbal(ins, acceptor, lower), holds(ins, acceptor, accepted)),
                add=(
                    mbal(ins, acceptor, ballot),
                    holds(ins, acceptor, (ballot, value)),
                    phase2b(ins, (ballot, value), acceptor),
                ),
            )
            for ballot in self.ballots
            for value in VALUES
            for lower in range(ballot + 1)
            for accepted in self.accepted_below(lower + 1)
        ]


def paxos_commit(rms: int, acceptors: int, ballots: int) -> RuleModel:
    return PaxosCommit(rms, acceptors, ballots).model()
