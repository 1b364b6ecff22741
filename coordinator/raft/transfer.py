"""Handing leadership to a chosen voter (thesis §3.10)."""

from __future__ import annotations

from coordinator.raft.errors import ConfigRefused, NotLeader
from coordinator.raft.messages import TimeoutNow
from coordinator.raft.state import State


def begin(state: State, to: int) -> None:
    """From now on nothing is proposed here, until ``to`` leads or an election timeout has passed."""
    if not state.leads:
        raise NotLeader(state.leader)
    if to not in state.history.current.incoming:
        raise ConfigRefused(f"{to} is not a voter: leadership cannot go there")
    if to in (state.node, state.transferee):
        return
    state.transferee = to
    state.transfer_elapsed = 0
    state.transfer_sent = False


def tick(state: State) -> None:
    if state.transferee:
        state.transfer_elapsed += 1
        if state.transfer_elapsed >= state.settings.election_ticks:
            state.transferee = 0


def settle(state: State) -> None:
    """Let the chosen one stand as soon as it has everything; give up if it is no voter any more."""
    if not state.transferee or state.transfer_sent:
        return
    progress = state.tracker.progress.get(state.transferee)
    if progress is None or state.transferee not in state.history.current.incoming:
        state.transferee = 0
    elif progress.match == state.log.last_index:
        state.transfer_sent = True
        state.send(TimeoutNow(state.transferee, state.node, state.term))
