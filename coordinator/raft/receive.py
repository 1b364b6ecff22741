"""What a message's term means, and where the message goes (extended paper §5.1)."""

from __future__ import annotations

from undoubt.coordinator.raft import election, replication, snapshots
from undoubt.coordinator.raft.messages import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    Message,
    PreVote,
    PreVoteReply,
    RequestVote,
    RequestVoteReply,
    SnapshotChunk,
    SnapshotReply,
    TimeoutNow,
)
from undoubt.coordinator.raft.state import RaftState, Role
from undoubt.participants.invariant import invariant


def step(state: RaftState, message: Message) -> None:
    if message.to != state.node:
        return
    if message.term > state.term:
        if not _enter_higher_term(state, message):
            return
    elif message.term < state.term:
        _answer_from_higher_term(state, message)
        return
    _dispatch(state, message)


def _enter_higher_term(state: RaftState, message: Message) -> bool:
    """Whether the message is to be looked at any further."""
    if isinstance(message, RequestVote | PreVote):
        transferred = isinstance(message, RequestVote) and message.transfer
        if state.in_lease() and not transferred:
            return False
        if isinstance(message, PreVote):
            return True
    if isinstance(message, PreVoteReply) and message.granted:
        return True
    leads = isinstance(message, Append | Heartbeat | SnapshotChunk)
    state.become_follower(message.term, message.sender if leads else 0)
    return True


def _answer_from_higher_term(state: RaftState, message: Message) -> None:
    """Let a stale leader or candidate learn of the term. Without this answer a node that came back
    with a higher term would neither follow (the leader's term is lower) nor ever be elected (pre-votes
    are refused as long as the others have a leader)."""
    if isinstance(message, Append | Heartbeat | SnapshotChunk):
        state.send(AppendReply(message.sender, state.node, state.term, 0, rejected=True))
    elif isinstance(message, PreVote):
        state.send(PreVoteReply(message.sender, state.node, state.term, granted=False))
    elif isinstance(message, RequestVote):
        state.send(RequestVoteReply(message.sender, state.node, state.term, granted=False))


def _follow(state: RaftState, leader: int) -> None:
    """A message of this term's leader."""
    invariant(not state.leads, f"{leader} and {state.node} both lead in term {state.term}")
    invariant(state.leader in (0, leader), f"{leader} and {state.leader} both lead in term {state.term}")
    if state.role is not Role.FOLLOWER or state.leader != leader:
        state.become_follower(state.term, leader)
    state.election_elapsed = 0


def _dispatch(state: RaftState, message: Message) -> None:
    match message:
        case Append():
            _follow(state, message.sender)
            replication.on_append(state, message)
        case AppendReply():
            replication.on_append_reply(state, message)
        case Heartbeat():
            _follow(state, message.sender)
            replication.on_heartbeat(state, message)
        case HeartbeatReply():
            replication.on_heartbeat_reply(state, message)
        case SnapshotChunk():
            _follow(state, message.sender)
            snapshots.on_chunk(state, message)
        case SnapshotReply():
            snapshots.on_reply(state, message)
        case RequestVote() | PreVote():
            election.on_vote(state, message)
        case RequestVoteReply() | PreVoteReply():
            election.on_vote_reply(state, message)
        case TimeoutNow():
            election.on_timeout_now(state)
