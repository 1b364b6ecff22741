"""Majorities, of one set of voters or of two sets that must both agree.

The functions are pure functions of sets and mappings; Raft and Paxos use the same ones. A voter is any
integer.

================  ============================================================================================
:mod:`.majority`  computes the log index that a majority has acknowledged, and whether a vote is won, lost or
                  open; for one set of voters, and for two sets that must both agree: so a configuration
                  changes without two disjoint majorities (Ongaro and Ousterhout, "In Search of an
                  Understandable Consensus Algorithm", extended version, §6).
================  ============================================================================================
"""

from __future__ import annotations

from undoubt.coordinator.quorum.majority import (
    UNBOUNDED,
    VOTERS_MAX,
    Joint,
    VoteResult,
    committed_index,
    majority_size,
    vote_result,
)

__all__ = [
    "UNBOUNDED",
    "VOTERS_MAX",
    "Joint",
    "VoteResult",
    "committed_index",
    "majority_size",
    "vote_result",
]
