"""Linearizable reads without writing to the log (thesis §6.4).

The leader notes its commit index, then lets one round of heartbeats show that nobody has replaced it.
All reads that were asked for since the last ``Ready`` share a round. No clock is trusted: a lease (thesis
§6.4.1) would turn a paused process into one that reads the past.
"""

from __future__ import annotations

from undoubt.coordinator.raft.errors import NotLeader
from undoubt.coordinator.raft.ready import ReadState
from undoubt.coordinator.raft.state import RaftState


def ask(state: RaftState, context: bytes) -> None:
    if not state.leads:
        raise NotLeader(state.leader)
    state.reads.waiting.append(context)


def settle(state: RaftState) -> None:
    """Begin a round for the reads that wait; answer those whose round a quorum has confirmed."""
    reads, log = state.reads, state.log
    # Before it has committed an entry of its own term, a leader does not know what is committed.
    if reads.waiting and log.term(log.commit) == state.term:
        reads.round += 1
        reads.asked += [(reads.round, ReadState(context, log.commit)) for context in reads.waiting]
        reads.waiting = []
        state.heartbeat_due = True
    if not reads.asked:
        return
    confirmed = state.tracker.confirmed_round(state.node, reads.round)
    while reads.asked and reads.asked[0][0] <= confirmed:
        reads.answered.append(reads.asked.pop(0)[1])
