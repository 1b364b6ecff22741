"""One set of voters, of which more than half must agree."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Set
from typing import Final

UNBOUNDED: Final = 2**64 - 1
"""What an empty set of voters has acknowledged: everything, so that it never holds back its partner."""


class VoteResult(enum.Enum):
    PENDING = "pending"
    WON = "won"
    LOST = "lost"


def majority_size(voters: Set[int]) -> int:
    """The smallest number of voters of which any two groups share a member."""
    return len(voters) // 2 + 1


def committed_index(voters: Set[int], acknowledged: Mapping[int, int]) -> int:
    """The highest log index that a majority of ``voters`` has acknowledged.

    ``acknowledged`` maps voters to indexes; who is missing has acknowledged nothing (0), who is no voter
    does not count. No voters: :data:`UNBOUNDED`.
    """
    if not voters:
        return UNBOUNDED
    indexes = sorted((acknowledged.get(voter, 0) for voter in voters), reverse=True)
    return indexes[majority_size(voters) - 1]


def vote_result(voters: Set[int], votes: Mapping[int, bool]) -> VoteResult:
    """Whether ``votes`` (True: yes; missing: not yet heard) are a majority of ``voters``, or never can be.

    No voters: won, for the same reason as :data:`UNBOUNDED`.
    """
    if not voters:
        return VoteResult.WON
    yes = no = 0
    for voter in voters:
        vote = votes.get(voter)
        yes += vote is True
        no += vote is False
    needed = majority_size(voters)
    if yes >= needed:
        return VoteResult.WON
    if len(voters) - no < needed:
        return VoteResult.LOST
    return VoteResult.PENDING
