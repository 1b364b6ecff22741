"""Two sets of voters that must both agree (extended Raft paper §6; Ongaro's thesis §4.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

from undoubt.coordinator.quorum.majority import VoteResult, committed_index, vote_result

VOTERS_MAX = 1_000
_Voters = Annotated[frozenset[int], msgspec.Meta(max_length=VOTERS_MAX)]
"""Bounded before it is decoded."""


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
