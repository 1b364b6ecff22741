"""Elections with pre-vote, the lease that rejects disruptive servers, stepping down, and leadership transfer.

Extended paper §5.2, §5.4.1 and §6; thesis §4.2.3 (disruptive servers), §6.2 (check-quorum), §9.6 (pre-vote),
§3.10 (transfer).
"""

from __future__ import annotations

from undoubt.coordinator.quorum import VoteResult
from undoubt.coordinator.raft.errors import ConfigRefused, NotLeader
from undoubt.coordinator.raft.messages import (
    Entry,
    HardState,
    Kind,
    PreVote,
    PreVoteReply,
    RequestVote,
    RequestVoteReply,
    TimeoutNow,
)
from undoubt.coordinator.raft.state import RaftState, Role
from undoubt.coordinator.raft.tracker import Pace


def tick(state: RaftState) -> None:
    state.election_elapsed += 1
    if state.leads:
        _tick_leader(state)
    elif state.election_elapsed >= state.patience_ticks and state.may_stand:
        campaign(state)


def _tick_leader(state: RaftState) -> None:
    settings = state.settings
    state.heartbeat_elapsed += 1
    if state.heartbeat_elapsed >= settings.heartbeat_ticks:
        state.heartbeat_due = True
    if state.writes.age_ticks >= settings.disk_stall_ticks:
        step_down(state)
        return
    if state.election_elapsed >= settings.election_ticks:
        state.election_elapsed = 0
        if not state.tracker.quorum_active(state.node):
            state.become_follower(state.term, 0)
            return
        state.tracker.forget_activity()


def campaign(state: RaftState) -> None:
    """Ask the voters whether an election could be won, before a new term begins: a node that is cut off must
    not raise the term."""
    state.become(Role.PRE_CANDIDATE, 0)
    state.votes[state.node] = True
    log = state.log
    for peer in sorted(state.history.current.voters - {state.node}):
        state.send(PreVote(peer, state.node, state.term + 1, log.last_index, log.last_term))
    tally(state)


def stand(state: RaftState, *, transfer: bool = False) -> None:
    """Stand for election in a new term. This node's own vote counts only once it is stored."""
    state.enter_term(state.term + 1, state.node)
    state.become(Role.CANDIDATE, 0)
    log = state.log
    for peer in sorted(state.history.current.voters - {state.node}):
        state.send(RequestVote(peer, state.node, state.term, log.last_index, log.last_term, transfer))


def own_vote_stored(state: RaftState) -> None:
    """Count this node's own vote, if it is stored. Called after a sync."""
    stored = HardState(state.term, state.node)
    if state.role is Role.CANDIDATE and state.writes.hard_state == stored:
        state.votes[state.node] = True
        tally(state)


def tally(state: RaftState) -> None:
    result = state.history.current.quorum.vote_result(state.votes)
    if result is VoteResult.LOST:
        state.become_follower(state.term, 0)
    elif result is VoteResult.WON and state.role is Role.PRE_CANDIDATE:
        stand(state)
    elif result is VoteResult.WON and state.role is Role.CANDIDATE:
        _become_leader(state)


def _become_leader(state: RaftState) -> None:
    state.become(Role.LEADER, state.node)
    log = state.log
    state.tracker.reset(log.last_index)
    state.uncommitted_bytes = sum(entry.size for entry in log.entries[log.commit - log.before_index :])
    state.reads.round = 0
    # Entries of earlier terms are committed only together with an entry of this term (§5.4.2), so append one.
    state.append(Entry.make(log.last_index + 1, state.term, kind=Kind.EMPTY))


def on_vote(state: RaftState, message: RequestVote | PreVote) -> None:
    """Answer a request for a vote. It is granted if this node has neither voted for another candidate nor a
    leader in this term, and the candidate's log is at least as complete as this node's."""
    free = state.vote == message.sender or (state.vote == 0 and state.leader == 0)
    if isinstance(message, PreVote):
        free = free or message.term > state.term
    # The log of a voter is empty only if it was lost, and then the votes that it gave were lost too.
    free = free and (state.log.last_index > 0 or not state.settings.learners_first)
    granted = free and state.log.up_to_date(message.last_index, message.last_term)
    if isinstance(message, PreVote):
        term = message.term if granted else state.term
        state.send(PreVoteReply(message.sender, state.node, term, granted))
        return
    if granted:
        state.enter_term(state.term, message.sender)
        state.election_elapsed = 0
    state.send(RequestVoteReply(message.sender, state.node, state.term, granted))


def on_vote_reply(state: RaftState, message: RequestVoteReply | PreVoteReply) -> None:
    if isinstance(message, PreVoteReply):
        # A grant carries the term for which the pre-vote asked; a grant for an earlier pre-vote does not
        # count.
        if state.role is not Role.PRE_CANDIDATE or (message.granted and message.term != state.term + 1):
            return
    elif state.role is not Role.CANDIDATE:
        return
    state.votes.setdefault(message.sender, message.granted)
    tally(state)


def on_timeout_now(state: RaftState) -> None:
    """Stand for election at the leader's request (thesis §3.10): without a pre-vote, and regardless of
    leases. A node whose disk is full or stalled ignores the request; the leader may not have received that
    report yet."""
    if state.fit and state.may_stand and state.role is Role.FOLLOWER:
        stand(state, transfer=True)


def step_down(state: RaftState) -> None:
    """Cease to lead; do not stand for election before the present writes are stored. The vote stays."""
    if not state.writes.idle:
        state.stalled_token = state.writes.last_token
    if state.leads:
        hand_over(state)
    if state.role is not Role.FOLLOWER:
        state.become_follower(state.term, 0)


def hand_over(state: RaftState) -> None:
    """Ask the best successor to stand for election immediately, and not only after a timeout."""
    if to := successor(state):
        state.send(TimeoutNow(to, state.node, state.term))


def successor(state: RaftState) -> int:
    """Return the other voter with the longest log, of those that are fit to lead and from which a message was
    received recently; 0 if there is none."""
    voters = state.history.current.incoming
    ready = [
        (progress.match, -node)
        for node, progress in state.peers()
        if node in voters and progress.active and progress.fit and progress.pace is not Pace.SNAPSHOT
    ]
    return -max(ready)[1] if ready else 0


def begin_transfer(state: RaftState, to: int) -> None:
    """Begin the transfer of leadership to ``to``. No proposal is taken until ``to`` leads or an election
    timeout has passed. Raises NotLeader, ConfigRefused."""
    if not state.leads:
        raise NotLeader(state.leader)
    if to not in state.history.current.incoming:
        raise ConfigRefused(f"node {to} is not a voter, so it cannot lead")
    if to in (state.node, state.transferee):
        return
    progress = state.tracker.progress.get(to)
    if progress is not None and not progress.fit:
        raise ConfigRefused(f"the disk of node {to} is full, or does not answer: it cannot lead now")
    state.transferee = to
    state.transfer_elapsed = 0
    state.transfer_sent = False


def tick_transfer(state: RaftState) -> None:
    if state.transferee:
        state.transfer_elapsed += 1
        if state.transfer_elapsed >= state.settings.election_ticks:
            state.transferee = 0


def settle_transfer(state: RaftState) -> None:
    """Ask the chosen node to stand for election as soon as it has the whole log; give up if it is no longer a
    voter or no longer fit.

    A leader whose disk is full chooses a successor itself, repeatedly: it takes no proposals, so the
    successor can catch up. Without a successor it goes on leading, so that reads are answered."""
    if state.disk_full and not state.transferee and (to := successor(state)):
        begin_transfer(state, to)
    if not state.transferee or state.transfer_sent:
        return
    progress = state.tracker.progress.get(state.transferee)
    voter = state.transferee in state.history.current.incoming
    if progress is None or not voter or not progress.fit:
        state.transferee = 0
    elif progress.match == state.log.last_index:
        state.transfer_sent = True
        state.send(TimeoutNow(state.transferee, state.node, state.term))
