"""Sends entries from the leader to every log, commits them, and confirms a leader's reads.

Extended paper §5.3 and §5.4.2; thesis §10.2.1 (the leader writes to its disk in parallel with the followers),
§10.2.2 (batching and pipelining), §6.4 (reads).
"""

from __future__ import annotations

from undoubt.coordinator.raft.errors import LogSetBack, NotLeader, ProposalRefused, Refusal
from undoubt.coordinator.raft.messages import (
    Append,
    AppendReply,
    Entry,
    Heartbeat,
    HeartbeatReply,
    Kind,
)
from undoubt.coordinator.raft.snapshots import want_chunk
from undoubt.coordinator.raft.state import RaftState, ReadState
from undoubt.coordinator.raft.tracker import Pace, Progress
from undoubt.participants.invariant import InvariantViolation


def propose(state: RaftState, data: bytes, kind: Kind = Kind.DATA) -> Entry:
    """Append an entry to the leader's log. Raises NotLeader, ProposalRefused."""
    if not state.leads:
        raise NotLeader(state.leader)
    if state.disk_full:
        raise ProposalRefused(Refusal.DISK_FULL)
    if state.transferee:
        raise ProposalRefused(Refusal.TRANSFERRING)
    if state.uncommitted_bytes >= state.settings.uncommitted_bytes_max:
        raise ProposalRefused(Refusal.BUSY)
    entry = Entry.make(state.log.last_index + 1, state.term, data, kind)
    state.append(entry)
    return entry


def on_append(state: RaftState, message: Append) -> None:
    """Process a leader's append as a follower. The acknowledgement is sent after the sync, so that only
    stored entries are acknowledged."""
    entries = message.entries
    # A full disk still takes the entries that a new leader needs; otherwise no node could answer reads.
    too_much = state.disk_full and any(entry.kind is Kind.DATA for entry in entries)
    if too_much or not all(entry.intact for entry in entries):
        # No answer: the leader sends again after the next heartbeats; by then the bytes may be intact, or the
        # disk may have room.
        return
    log = state.log
    prev_index, prev_term = message.prev_index, message.prev_term
    if prev_index < log.commit:
        # Every leader has all committed entries, so these entries agree, compacted or not.
        entries = tuple(entry for entry in entries if entry.index > log.commit)
        prev_index, prev_term = log.commit, log.term(log.commit) or 0
    accepted = log.accept(prev_index, prev_term, entries)
    if accepted is None:
        hint_index = log.hint(prev_index, prev_term)
        hint_term = log.term(hint_index) or 0
        state.send(
            AppendReply(message.sender, state.node, state.term, prev_index, True, hint_index, hint_term)
        )
        return
    state.follow_log(accepted.appended, accepted.replaced_from)
    # Not min(commit, last): after `accepted.last` there may be entries that the leader never had.
    state.commit_to(min(message.commit, accepted.last))
    state.send(AppendReply(message.sender, state.node, state.term, accepted.last))


def on_append_reply(state: RaftState, message: AppendReply) -> None:
    progress = state.tracker.progress.get(message.sender)
    if progress is None or not state.leads:
        return
    progress.active = True
    if message.rejected:
        progress.reject(message.index, state.log.hint(message.hint_index, message.hint_term))
        return
    if message.index > state.log.last_index:
        raise InvariantViolation(f"node {message.sender} acknowledges entries that were never sent")
    news = progress.acknowledge(message.index)
    found = progress.pace is Pace.PROBE and (news or message.index == progress.match)
    caught_up = progress.pace is Pace.SNAPSHOT and progress.match >= state.log.before_index
    if found or caught_up:
        progress.replicate()


def on_heartbeat(state: RaftState, message: Heartbeat) -> None:
    if message.commit > state.log.last_index:
        # The commit index in a heartbeat never exceeds what its receiver has acknowledged.
        raise LogSetBack(
            f"node {message.sender} has its acknowledgement of entry {message.commit}, and its log ends at"
            f" {state.log.last_index}"
        )
    state.commit_to(message.commit)
    state.gets_entries_late = bool(message.fed) and state.node not in message.fed
    state.send(HeartbeatReply(message.sender, state.node, state.term, message.round, state.fit))


def on_heartbeat_reply(state: RaftState, message: HeartbeatReply) -> None:
    progress = state.tracker.progress.get(message.sender)
    if progress is None or not state.leads:
        return
    progress.active = True
    progress.round = max(progress.round, message.round)
    progress.fit = message.fit
    progress.waiting = False
    # The peer answers, but has not acknowledged all entries that were sent: some may be lost.
    progress.nudge = progress.pace is Pace.REPLICATE and progress.match < progress.next - 1


def advance_commit(state: RaftState) -> bool:
    """Commit the entries that a quorum has stored. Returns whether there were any.

    Only entries of the leader's own term are committed by counting replicas; earlier entries are committed
    with them (extended paper §5.4.2, figure 8).
    """
    own = state.own
    if own is not None:
        own.match = state.log.persisted
        own.next = state.log.last_index + 1
    if state.log.commit == state.log.last_index:
        return False
    index = state.tracker.committed_index()
    if index <= state.log.commit or state.log.term(index) != state.term:
        return False
    state.commit_to(index)
    return True


def flush(state: RaftState) -> None:
    """Send to each peer what may be sent; everything since the last ``Ready`` is sent together. A lazy leader
    sends to the followers that a quorum needs, and to the others only together with a heartbeat, or in a
    hurry."""
    chosen = _chosen(state)
    everybody = state.heartbeat_due or state.hurried or not chosen
    state.hurried = False
    if state.heartbeat_due:
        state.heartbeat_due = False
        state.heartbeat_elapsed = 0
        for node, progress in state.peers():
            commit = min(progress.match, state.log.commit)
            fed = state.fed if chosen else frozenset()
            state.send(Heartbeat(node, state.node, state.term, commit, state.reads.round, fed))
    for node, progress in state.peers():
        if everybody or node in state.fed or progress.pace is not Pace.REPLICATE or progress.nudge:
            _feed(state, node, progress)


def _chosen(state: RaftState) -> bool:
    """Whether only the followers in ``fed`` need new entries at once; chooses these followers.

    The same followers are fed as long as they answer, since each other one has to get first what it lacks. In
    a joint configuration, during a transfer of leadership, if the leader's own disk is late, and if too few
    followers answer, every follower is sent every entry."""
    configuration = state.history.current
    if not state.settings.lazy or configuration.joint or state.transferee:
        return False
    if state.node not in configuration.incoming or state.log.persisted < state.log.commit:
        return False  # this node's own disk does not count, or is behind: more followers are needed
    ready = {
        node: progress.match
        for node, progress in state.peers()
        if node in configuration.incoming
        and progress.pace is Pace.REPLICATE
        and progress.active
        and progress.fit
    }
    if not state.fed or not state.fed <= ready.keys():
        needed = len(configuration.incoming) // 2
        best = sorted(ready, key=lambda node: (-ready[node], node))[:needed]
        state.fed = frozenset(best) if len(best) == needed else frozenset()
    return bool(state.fed)


def hurry(state: RaftState, index: int) -> None:
    """Send everything to every follower. A fed follower that has not acknowledged ``index`` is replaced from
    now on."""
    if not state.leads:
        return
    state.hurried = True
    progress = state.tracker.progress
    late = {node for node in state.fed if node not in progress or progress[node].match < index}
    if not late:
        return
    incoming = state.history.current.incoming
    others = [node for node in incoming - late - {state.node} if node in progress]
    others.sort(key=lambda node: (node not in state.fed, -progress[node].match, node))
    needed = len(incoming) // 2
    state.fed = frozenset(others[:needed]) if len(others) >= needed else frozenset()


def _feed(state: RaftState, node: int, progress: Progress) -> None:
    settings, log = state.settings, state.log
    if progress.pace is not Pace.SNAPSHOT and progress.next < log.first_index:
        if progress.waiting or not progress.active:
            return
        progress.send_snapshot(log.snapshot)
    if progress.pace is Pace.SNAPSHOT:
        want_chunk(state, node, progress)
        return
    if progress.pace is Pace.PROBE:
        if not progress.waiting:
            progress.waiting = True
            _append(state, node, progress.next, _entries(state, progress))
        return
    if progress.nudge:
        progress.nudge = False
        _append(state, node, progress.next, ())
    while progress.next <= log.last_index and not progress.full(
        settings.inflight_messages_max, settings.inflight_bytes_max
    ):
        entries = _entries(state, progress)
        _append(state, node, progress.next, entries)
        progress.sent(entries[-1].index, sum(entry.size for entry in entries))


def _entries(state: RaftState, progress: Progress) -> tuple[Entry, ...]:
    if progress.next > state.log.last_index:
        return ()
    return state.log.slice(progress.next, state.settings.append_bytes_max)


def _append(state: RaftState, node: int, first: int, entries: tuple[Entry, ...]) -> None:
    """Send ``entries``, which begin at ``first``. The peer compares the entry before ``first`` to find
    whether the logs agree."""
    log = state.log
    prev_term = log.term(first - 1)
    if prev_term is None:
        raise InvariantViolation(f"the entry before {first} is compacted")
    state.send(Append(node, state.node, state.term, first - 1, prev_term, entries, log.commit))


def ask_read(state: RaftState, context: bytes) -> None:
    """Begin a linearizable read without writing to the log (thesis §6.4). Raises NotLeader.

    The leader notes its commit index; then one round of heartbeats shows that no other leader has replaced
    it. All reads since the last ``Ready`` share a round. No clock is used: with a lease (thesis §6.4.1), a
    paused process could return old data.
    """
    if not state.leads:
        raise NotLeader(state.leader)
    state.reads.waiting.append(context)


def settle_reads(state: RaftState) -> None:
    """Begin a round for the waiting reads; answer the reads whose round a quorum has confirmed."""
    reads, log = state.reads, state.log
    # Before a leader has committed an entry of its own term, it does not know which entries are committed.
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
