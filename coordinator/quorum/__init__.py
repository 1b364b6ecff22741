"""Who must agree: the arithmetic of majorities, alone or joined in pairs.

:mod:`.majority` answers two questions about one set of voters: up to which log index has a majority
acknowledged, and is a vote won, lost or still open. :mod:`.joint` answers them for two sets that must
both agree, which is how a configuration is changed without a moment in which two disjoint majorities
exist (Ongaro and Ousterhout, "In Search of an Understandable Consensus Algorithm", extended version, §6).

Pure functions of sets and mappings: no state, nothing of Raft or Paxos. A voter is any integer.
"""

from __future__ import annotations

from undoubt.coordinator.quorum.joint import Joint
from undoubt.coordinator.quorum.majority import UNBOUNDED, VoteResult, committed_index, vote_result

__all__ = ["UNBOUNDED", "Joint", "VoteResult", "committed_index", "vote_result"]
