"""One set of voters of which more than half must agree, and two such sets that must both agree (extended Raft
paper §6; Ongaro's thesis §4.3)."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Set
from typing import Annotated, Final

import msgspec

UNBOUNDED: Final = 2**64 - 1
"""What an empty set of voters has acknowledged: everything, so that it never holds back its partner."""
VOTERS_MAX = 1_000
_Voters = Annotated[frozenset[int], msgspec.Meta(max_length=VOTERS_MAX)]
"""Bounded before it is decoded."""


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


class Joint(msgspec.Struct, frozen=True, array_like=True):
    """The voters that are coming in and, during a change, those that are going out (else empty)."""

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
        """Won if won in both, lost if lost in one."""
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
