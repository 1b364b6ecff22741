"""Computes majorities of one set of voters, and of two sets that must both agree (extended Raft paper §6;
Ongaro's thesis §4.3)."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Set
from typing import Annotated, Final

import msgspec

UNBOUNDED: Final = 2**64 - 1
"""The index that an empty set of voters has acknowledged. It is greater than every index, so that an empty
set never limits the other set of a pair."""
VOTERS_MAX = 1_000
_Voters = Annotated[frozenset[int], msgspec.Meta(max_length=VOTERS_MAX)]
"""A set of voters, whose size is checked before its elements are decoded."""


class VoteResult(enum.Enum):
    PENDING = "pending"
    WON = "won"
    LOST = "lost"


def majority_size(voters: Set[int]) -> int:
    """The smallest number of voters of which any two groups share a member."""
    return len(voters) // 2 + 1


def committed_index(voters: Set[int], acknowledged: Mapping[int, int]) -> int:
    """The highest log index that a majority of ``voters`` has acknowledged.

    ``acknowledged`` maps voters to indexes; a voter that is missing there has acknowledged nothing (0), and a
    node that is not a voter does not count. Without voters, the result is :data:`UNBOUNDED`.
    """
    if not voters:
        return UNBOUNDED
    indexes = sorted((acknowledged.get(voter, 0) for voter in voters), reverse=True)
    return indexes[majority_size(voters) - 1]


def vote_result(voters: Set[int], votes: Mapping[int, bool]) -> VoteResult:
    """Return whether ``votes`` (True: yes; missing: no answer yet) are a majority of ``voters``, or can never
    be.

    Without voters, the result is WON, for the same reason as :data:`UNBOUNDED`.
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


class Joint(msgspec.Struct, frozen=True, array_like=True):
    """The incoming voters and, during a change, the outgoing voters (otherwise empty)."""

    incoming: _Voters = frozenset()
    outgoing: _Voters = frozenset()

    @property
    def voters(self) -> frozenset[int]:
        return self.incoming | self.outgoing

    def committed_index(self, acknowledged: Mapping[int, int]) -> int:
        """The highest index that a majority of *both* sets has acknowledged."""
        index = committed_index(self.incoming, acknowledged)
        return min(index, committed_index(self.outgoing, acknowledged)) if self.outgoing else index

    def vote_result(self, votes: Mapping[int, bool]) -> VoteResult:
        """The result of both sets: WON if both have won, LOST if one has lost."""
        result = vote_result(self.incoming, votes)
        if not self.outgoing:
            return result
        results = {result, vote_result(self.outgoing, votes)}
        if VoteResult.LOST in results:
            return VoteResult.LOST
        if VoteResult.PENDING in results:
            return VoteResult.PENDING
        return VoteResult.WON

    def __str__(self) -> str:
        sets = [self.incoming, *([self.outgoing] if self.outgoing else [])]
        return "&&".join(f"({' '.join(map(str, sorted(each)))})" for each in sets)
