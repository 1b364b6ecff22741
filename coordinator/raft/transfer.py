"""Handing leadership to a chosen voter (thesis §3.10); by itself, where the leader's disk is full."""

from __future__ import annotations

from undoubt.coordinator.raft.election import successor
from undoubt.coordinator.raft.errors import ConfigRefused, NotLeader
from undoubt.coordinator.raft.messages import TimeoutNow
from undoubt.coordinator.raft.state import RaftState


def begin(state: RaftState, to: int) -> None:
    """From now on nothing is proposed here, until ``to`` leads or an election timeout has passed."""
    if not state.leads:
        raise NotLeader(state.leader)
    if to not in state.history.current.incoming:
        raise ConfigRefused(f"{to} is not a voter: leadership cannot go there")
    if to in (state.node, state.transferee):
        return
    progress = state.tracker.progress.get(to)
    if progress is not None and not progress.fit:
        raise ConfigRefused(f"the disk of node {to} is full, or does not answer: it cannot lead now")
    state.transferee = to
    state.transfer_elapsed = 0
    state.transfer_sent = False


def tick(state: RaftState) -> None:
    if state.transferee:
        state.transfer_elapsed += 1
        if state.transfer_elapsed >= state.settings.election_ticks:
            state.transferee = 0


def settle(state: RaftState) -> None:
    """Let the chosen one stand as soon as it has everything; give up if it is no voter, or not fit, any more.

    A leader whose disk is full chooses by itself, again and again: it takes no proposals, so the successor
    catches up. Without one it goes on, so that there are reads."""
    if state.disk_full and not state.transferee and (to := successor(state)):
        begin(state, to)
    if not state.transferee or state.transfer_sent:
        return
    progress = state.tracker.progress.get(state.transferee)
    voter = state.transferee in state.history.current.incoming
    if progress is None or not voter or not progress.fit:
        state.transferee = 0
    elif progress.match == state.log.last_index:
        state.transfer_sent = True
        state.send(TimeoutNow(state.transferee, state.node, state.term))
