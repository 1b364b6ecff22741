"""etcd-io/raft's cases for majorities and joint majorities, all of them."""

from __future__ import annotations

from itertools import combinations

import pytest

from tests.coordinator.quorum.datadriven import Case, folder, parse
from undoubt.coordinator.quorum import UNBOUNDED, Joint, VoteResult, committed_index, vote_result

CASES = {"joint_commit.txt": 50, "joint_vote.txt": 39, "majority_commit.txt": 16, "majority_vote.txt": 22}
RESULTS = {"VoteWon": VoteResult.WON, "VoteLost": VoteResult.LOST, "VotePending": VoteResult.PENDING}


def quorum_of(case: Case) -> Joint:
    incoming = frozenset(map(int, case.arguments.get("cfg", ())))
    outgoing = frozenset(int(each) for each in case.arguments.get("cfgj", ()) if each != "zero")
    return Joint(incoming, outgoing)


def given(case: Case, name: str) -> dict[int, str]:
    """Values in the order in which voters are first named: ``cfg``, then ``cfgj``."""
    joined = (each for each in case.arguments.get("cfgj", ()) if each != "zero")
    named = [*case.arguments.get("cfg", ()), *joined]
    ids = list(dict.fromkeys(map(int, named)))
    values = case.arguments.get(name, ())
    assert len(ids) == len(values), case.where
    return {voter: value for voter, value in zip(ids, values, strict=True) if value != "_"}


def check_committed(case: Case) -> None:
    quorum = quorum_of(case)
    acknowledged = {voter: int(value) for voter, value in given(case, "idx").items()}
    last = case.expected[-1]
    expected = UNBOUNDED if "∞" in last else int(last)
    assert quorum.committed_index(acknowledged) == expected
    assert Joint(quorum.outgoing, quorum.incoming).committed_index(acknowledged) == expected
    if not quorum.outgoing:
        assert committed_index(quorum.incoming, acknowledged) == expected


def check_vote(case: Case) -> None:
    quorum = quorum_of(case)
    votes = {voter: value == "y" for voter, value in given(case, "votes").items()}
    expected = RESULTS[case.expected[-1]]
    assert quorum.vote_result(votes) is expected
    assert Joint(quorum.outgoing, quorum.incoming).vote_result(votes) is expected
    if not quorum.outgoing:
        assert vote_result(quorum.incoming, votes) is expected


def test_outside_cases() -> None:
    """Broken if an index counts as committed, or an election as won, without a majority of each set."""
    ran: dict[str, int] = {}
    wrong = []
    for path in folder("quorum"):
        cases = parse(path)
        ran[path.name] = len(cases)
        for case in cases:
            try:
                {"committed": check_committed, "vote": check_vote}[case.command](case)
            except AssertionError as error:
                wrong.append(f"{case.where}: {error}")
    assert wrong == []
    print(ran)
    assert ran == CASES


@pytest.mark.parametrize("size", range(1, 8))
def test_any_two_majorities_share_a_voter(size: int) -> None:
    """Broken if two leaders of one term, or two decisions, could each find a majority."""
    voters = frozenset(range(1, size + 1))
    winning = [
        frozenset(group)
        for count in range(size + 1)
        for group in combinations(voters, count)
        if vote_result(voters, dict.fromkeys(group, True)) is VoteResult.WON
    ]
    assert winning
    assert all(left & right for left, right in combinations(winning, 2))


@pytest.mark.parametrize("size", range(1, 8))
def test_a_lost_vote_can_never_be_won(size: int) -> None:
    """Broken if a candidate gave up, or carried on, against what the missing votes can still change."""
    voters = frozenset(range(1, size + 1))
    for count in range(size + 1):
        against = dict.fromkeys(range(1, count + 1), False)
        best = against | dict.fromkeys(voters - set(against), True)
        never = vote_result(voters, best) is not VoteResult.WON
        assert (vote_result(voters, against) is VoteResult.LOST) is never
