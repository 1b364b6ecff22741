"""The consensus core: takes every input, and returns every output from :meth:`Raft.ready`."""

from __future__ import annotations

from random import Random
from typing import NoReturn

import msgspec

from undoubt.coordinator.raft import (
    election,
    reconfigure,
    replication,
    snapshots,
)
from undoubt.coordinator.raft.errors import ConfigRefused, MessageRefused
from undoubt.coordinator.raft.log import Log
from undoubt.coordinator.raft.membership import after
from undoubt.coordinator.raft.messages import (
    Append,
    AppendReply,
    ConfigChange,
    Configuration,
    Entry,
    Heartbeat,
    HeartbeatReply,
    Kind,
    Message,
    PreVote,
    PreVoteReply,
    RequestVote,
    RequestVoteReply,
    SnapshotChunk,
    SnapshotMeta,
    SnapshotReply,
    TimeoutNow,
    decode_change,
)
from undoubt.coordinator.raft.settings import RaftSettings
from undoubt.coordinator.raft.state import ChunkWanted, RaftState, Ready, RestoredState, Role, Write
from undoubt.coordinator.raft.tracker import PeerProgress
from undoubt.participants.invariant import invariant

NOTHING = Ready(0)
TERM_JUMP_MAX = 2**32
"""The greatest difference by which a message's term may exceed this node's. Elections cannot cause a greater
difference: at one election a second, this one takes more than a hundred years. Such a term would bring the
terms of all nodes near the highest number that a message can carry."""


class Raft:
    """The consensus core of one node. Only one thread at a time may use it."""

    def __init__(self, node: int, settings: RaftSettings, random: Random, restored: RestoredState) -> None:
        """``random`` decides only the election timeouts. Raises InvariantViolation if the restored entries
        have gaps or do not match their checksums."""
        invariant(node > 0, "a node's number is positive")
        log = Log(restored.snapshot, restored.entries, restored.applied)
        invariant(restored.hard_state.term >= log.last_term, "the stored term is older than the stored log")
        self._state = RaftState(node, settings, random, log=log, hard_state=restored.hard_state)

    # Properties for callers.

    @property
    def node(self) -> int:
        return self._state.node

    @property
    def role(self) -> Role:
        return self._state.role

    @property
    def leads(self) -> bool:
        return self._state.leads

    @property
    def caught_up(self) -> bool:
        """True if this node leads and has applied an entry of its own term, and so all entries that earlier
        leaders have committed."""
        state = self._state
        return state.leads and state.log.term(state.log.applied) == state.term

    @property
    def term(self) -> int:
        return self._state.term

    @property
    def leader(self) -> int:
        """The number of the leader, as far as this node knows; 0 if no leader is known."""
        return self._state.leader

    @property
    def commit_index(self) -> int:
        return self._state.log.commit

    @property
    def applied_index(self) -> int:
        return self._state.log.applied

    @property
    def first_index(self) -> int:
        """The index of the first entry in memory; the entries before it are compacted."""
        return self._state.log.first_index

    @property
    def last_index(self) -> int:
        return self._state.log.last_index

    @property
    def persisted_index(self) -> int:
        """The index up to which the log is known to be durable on this node."""
        return self._state.log.persisted

    @property
    def snapshot_index(self) -> int:
        """The index of the newest snapshot that is durable on this node."""
        return self._state.log.snapshot.index

    @property
    def configuration(self) -> Configuration:
        """The configuration in force, which may be uncommitted."""
        return self._state.history.current

    @property
    def committed_configuration(self) -> Configuration:
        """The last configuration that is known to be committed."""
        return self._state.history.at(self._state.log.commit)

    @property
    def changing(self) -> bool:
        """True if the configuration in force is joint, or not known to be committed."""
        history = self._state.history
        return history.current.joint or history.current_index > self._state.log.commit

    @property
    def heartbeat_round(self) -> int:
        """The round number in the heartbeats that a leader sends now, and in their answers."""
        return self._state.reads.round

    def answered(self, node: int, heartbeat_round: int) -> bool:
        """Whether ``node`` has answered a heartbeat of that round or a later round; always True for this node
        itself."""
        progress = self._state.tracker.progress.get(node)
        return node == self.node or (progress is not None and progress.round >= heartbeat_round)

    def match(self, node: int) -> int:
        """The index up to which the log on that node's disk is known to equal the log of this leader; 0 if
        nothing is known."""
        progress = self._state.tracker.progress.get(node)
        return 0 if progress is None else progress.match

    @property
    def progress(self) -> dict[int, PeerProgress]:
        """What a leader knows about each node of the configuration, including itself."""
        return {node: progress.view for node, progress in sorted(self._state.tracker.progress.items())}

    @property
    def untaken_chunks(self) -> tuple[SnapshotChunk, ...]:
        """Chunks of a snapshot that were received and are not in a ``Ready`` yet."""
        return tuple(self._state.chunks)

    @property
    def disk_full(self) -> bool:
        """The last value that was given to ``set_disk_full``."""
        return self._state.disk_full

    @property
    def disk_stalled(self) -> bool:
        """True if a write has taken ``disk_stall_ticks`` and is not done, or this node has stepped down until
        a write is done."""
        return self._state.stalled

    @property
    def holds_back(self) -> bool:
        """True if this node leads and has entries that are not committed and were not sent to every
        follower."""
        state = self._state
        log = state.log
        return (
            state.leads
            and log.commit < log.last_index
            and any(progress.next <= log.last_index for _, progress in state.peers())
        )

    @property
    def successor(self) -> int:
        """The voter to which a leader would best transfer leadership; 0 if there is none, or if this node
        does not lead."""
        return election.successor(self._state) if self._state.leads else 0

    @property
    def internals(self) -> RaftState:
        """The whole state, only for the tests of this package, which must not change it."""
        return self._state

    # Inputs. The output of each is in the next `ready`.

    def tick(self) -> None:
        """Count one tick of time."""
        state = self._state
        state.writes.tick()
        election.tick(state)
        if state.leads:
            election.tick_transfer(state)
            snapshots.tick(state)

    def wants(self, message: SnapshotChunk) -> bool:
        """Whether ``message`` is the next chunk of a snapshot that this node needs."""
        incoming = self._state.incoming
        offset = incoming.offset if incoming is not None and incoming.meta == message.meta else 0
        return message.offset == offset and message.meta.index > self.commit_index

    def step(self, message: Message) -> None:
        """Process a received message. Messages may be late, repeated, reordered or lost. Raises
        MessageRefused for a message that no correct member sends; then nothing has changed."""
        _judge(self._state, message)
        _receive(self._state, message)

    def propose(self, data: bytes) -> Entry:
        """Append ``data``. It is committed when an entry with this index *and this term* is handed out by
        ``Ready.committed_entries``; if that entry has another term, ``data`` is lost. Raises NotLeader,
        ProposalRefused."""
        return replication.propose(self._state, data)

    def propose_config(self, change: ConfigChange) -> Entry:
        """Change the configuration. Raises NotLeader, ProposalRefused; ConfigRefused while another change
        is uncommitted, or before this leader has committed an entry of its own term."""
        return reconfigure.propose(self._state, change)

    def read_index(self, context: bytes) -> None:
        """Ask for a linearizable read. ``context`` comes back in ``read_states`` or in ``reads_lost``.
        Raises NotLeader."""
        replication.ask_read(self._state, context)

    def hurry(self, index: int) -> None:
        """Send to every follower what a lazy leader holds back, since ``index`` is not committed in time.
        Others take the place of those followers that were sent it at once and have not acknowledged it."""
        replication.hurry(self._state, index)

    def transfer(self, to: int) -> None:
        """Transfer leadership to the voter ``to``. Raises NotLeader, ConfigRefused."""
        election.begin_transfer(self._state, to)

    def step_down(self) -> None:
        """Cease to be leader or candidate immediately, and do not stand for election before the present
        writes are stored. For a driver that finds its disk slow before ``disk_stall_ticks`` have passed."""
        election.step_down(self._state)

    def set_disk_full(self, full: bool) -> None:
        """Report whether the disk is full. While it is, this node takes no proposals and no data from a
        leader, but still reads and votes. It transfers leadership as soon as another voter is fit to lead,
        does not take leadership by a transfer, and stands for election only long after other voters would
        have."""
        self._state.disk_full = full

    def on_persisted(self, token: int) -> tuple[Message, ...]:
        """Report that the ``Ready`` of ``token``, and all earlier ones, are durable. Returns the messages
        that may be sent now."""
        state, messages = self._state, list[Message]()
        for write in state.writes.done(token):
            state.log.persisted = max(state.log.persisted, write.last)
            messages += write.messages
        if token >= state.stalled_token:
            state.stalled_token = 0
        if state.role is Role.CANDIDATE:
            election.own_vote_stored(state)
        return tuple(messages)

    def on_applied(self, index: int) -> None:
        """Report that the state machine has stored the effects of all entries up to ``index``, together with
        ``index``."""
        log = self._state.log
        invariant(index <= log.applying, f"{index} was never handed out for application")
        log.applied = max(log.applied, index)

    def snapshot_meta(self, index: int) -> SnapshotMeta:
        """Return the metadata for a snapshot of the state machine at ``index``, which must be applied."""
        state = self._state
        term = state.log.term(index)
        invariant(index <= state.log.applied and term is not None, f"{index} is not applied, or compacted")
        return SnapshotMeta(index, term or 0, state.history.at(index))

    def compact(self, meta: SnapshotMeta) -> int:
        """Report that the snapshot ``meta`` is durable. Returns the first index that storage has to keep."""
        state = self._state
        if meta.index > state.log.snapshot.index:
            settings = state.settings
            state.log.compact(meta, settings.trailing_entries, settings.trailing_bytes_max)
            state.history.compact(meta.index)
        return max(state.log.before_index, 1)

    def snapshot_chunk(self, wanted: ChunkWanted, data: bytes, *, done: bool) -> None:
        """Answer one of ``chunks_wanted``: with bytes from its offset on, at least one byte unless
        ``done``."""
        invariant(done or bool(data), "a chunk without bytes is the last")
        snapshots.send_chunk(self._state, wanted, data, done=done)

    def snapshot_failed(self, wanted: ChunkWanted) -> None:
        """Answer one of ``chunks_wanted`` if its snapshot no longer exists or cannot be read."""
        snapshots.give_up(self._state, wanted)

    # Output.

    def ready(self) -> Ready:
        """Return everything that has to be done since the last call. The package's docstring lists the
        driver's duties."""
        state = self._state
        self._settle()
        committed = self._to_apply()
        if not committed and self._nothing_else():
            return NOTHING
        log, writes, outbox = state.log, state.writes, state.outbox
        token = writes.next_token()
        entries = tuple(log.entries[log.handed - log.before_index :])
        now, after = tuple(outbox.now), tuple(outbox.after_sync)
        hard_state = state.hard_state if state.hard_state != state.handed_hard_state else None
        stored = hard_state is not None or entries or state.chunks or state.installing is not None
        if not stored and writes.idle:
            now, after = now + after, ()
        if stored or after:
            writes.begin(Write(token, state.hard_state, log.last_index, after))
        log.handed = log.last_index
        state.handed_hard_state = state.hard_state
        ready = Ready(
            token=token,
            hard_state=hard_state,
            chunks=tuple(state.chunks),
            snapshot=state.installing,
            entries=entries,
            messages_now=now,
            messages_after_sync=after,
            committed_entries=committed,
            read_states=tuple(state.reads.answered),
            reads_lost=tuple(state.reads.lost),
            chunks_wanted=tuple(state.chunks_wanted),
        )
        outbox.now, outbox.after_sync = [], []
        state.chunks, state.installing, state.chunks_wanted = [], None, []
        state.reads.answered, state.reads.lost = [], []
        log.check()
        return ready

    def _nothing_else(self) -> bool:
        """Whether there is no output besides entries to apply. That is the usual case, since a driver calls
        ``ready`` after every input."""
        state = self._state
        log, outbox, reads = state.log, state.outbox, state.reads
        return not (
            outbox.now
            or outbox.after_sync
            or log.handed != log.last_index
            or state.term != state.handed_hard_state.term
            or state.vote != state.handed_hard_state.vote
            or state.chunks
            or state.installing is not None
            or state.chunks_wanted
            or reads.answered
            or reads.lost
        )

    def _to_apply(self) -> tuple[Entry, ...]:
        """Return the next entries to apply: committed and stored on this node, since an applied entry must be
        in the log after a restart."""
        log = self._state.log
        last = min(log.commit, log.persisted)
        if last <= log.applying:
            return ()
        entries = log.slice(log.applying + 1, self._state.settings.apply_bytes_max, last)
        log.applying = entries[-1].index
        return entries

    def _settle(self) -> None:
        """Do a leader's duties, once for all inputs since the last call."""
        state = self._state
        if not state.leads:
            return
        replication.advance_commit(state)
        configuration = state.history.current
        unsettled = configuration.joint or state.node not in configuration.incoming
        if unsettled and not reconfigure.settle(state):
            return
        if state.reads.waiting or state.reads.asked:
            replication.settle_reads(state)
        if state.transferee or state.disk_full:
            election.settle_transfer(state)
        replication.flush(state)


# Processing of a received message.


def _judge(state: RaftState, message: Message) -> None:
    """Check a message without changing anything. Raises :class:`MessageRefused` for a message that no correct
    member sends.

    Such a message comes from a bug or damage at the sending peer: its connection is closed, and this node is
    not affected. Raft does not tolerate a peer that sends well-formed but false messages: every sender that
    is authenticated as a member (by its TLS certificate) is trusted.
    """
    if message.term > state.term + TERM_JUMP_MAX:
        _refuse(message, f"its term {message.term} is out of reach from {state.term}")
    if message.term < state.term or message.to != state.node:
        return
    match message:
        case Append() | Heartbeat() | SnapshotChunk() | TimeoutNow():
            _judge_leader(state, message)
        case AppendReply() if state.leads and message.term == state.term and not message.rejected:
            if message.index > state.log.last_index:
                _refuse(message, f"it acknowledges entry {message.index}, which was never sent")
        case HeartbeatReply() if state.leads and message.term == state.term:
            if message.round > state.reads.round:
                _refuse(message, f"it answers heartbeats of round {message.round}, which were never sent")
        case _:
            pass


def _judge_leader(state: RaftState, message: Append | Heartbeat | SnapshotChunk | TimeoutNow) -> None:
    known = state.node if state.leads else state.leader
    if message.sender == state.node or (message.term == state.term and known not in (0, message.sender)):
        _refuse(message, f"node {known} leads in term {state.term}")
    if isinstance(message, Append):
        _judge_entries(state, message)
    elif isinstance(message, SnapshotChunk):
        meta = message.meta
        if meta.term > message.term or not meta.configuration.incoming:
            _refuse(message, "that snapshot cannot be of a log of this cluster")


def _judge_entries(state: RaftState, message: Append) -> None:
    """Check the entries of a leader's message. Entries that were damaged in transit are not refused here:
    their checksums show the damage, and the leader sends them again."""
    index, term, log = message.prev_index, message.prev_term, state.log
    changes = False
    for entry in message.entries:
        index += 1
        here = log.term(index) if index <= log.commit else None
        if entry.index != index or not term <= entry.term <= message.term or here not in (None, entry.term):
            if all(each.intact for each in message.entries):
                _refuse(message, f"its entry {entry.index} of term {entry.term} cannot follow {index - 1}")
            return
        term = entry.term
        changes = changes or entry.kind is Kind.CONFIG
    if changes and all(each.intact for each in message.entries):
        _judge_changes(state, message)


def _judge_changes(state: RaftState, message: Append) -> None:
    """Check the changes of the configuration in ``message``, as far as they would be appended to the log."""
    log = state.log
    if message.prev_index >= log.commit and not log.matches(message.prev_index, message.prev_term):
        return
    new = [
        entry
        for entry in message.entries
        if entry.index > log.commit and not log.matches(entry.index, entry.term)
    ]
    if not new:
        return
    configuration = state.history.at(new[0].index - 1)
    for entry in new:
        if entry.kind is Kind.CONFIG:
            try:
                configuration = after(configuration, decode_change(entry.data))
            except (msgspec.MsgspecError, UnicodeDecodeError, ConfigRefused) as error:
                _refuse(message, f"its entry {entry.index} is not a valid change of the members: {error}")


def _refuse(message: Message, why: str) -> NoReturn:
    raise MessageRefused(f"node {message.sender} sent {type(message).__name__}: {why}")


def _receive(state: RaftState, message: Message) -> None:
    """Compare the message's term with this node's (extended paper §5.1), then process the message."""
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
    """Process a term that is higher than this node's. Returns whether the message has to be processed
    further."""
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
    """Send this node's term to a stale leader or candidate. Without this answer a node that returns with a
    higher term would neither follow (the leader's term is lower) nor ever be elected (pre-votes are refused
    while the other nodes have a leader)."""
    if isinstance(message, Append | Heartbeat | SnapshotChunk):
        state.send(AppendReply(message.sender, state.node, state.term, 0, rejected=True))
    elif isinstance(message, PreVote):
        state.send(PreVoteReply(message.sender, state.node, state.term, granted=False))
    elif isinstance(message, RequestVote):
        state.send(RequestVoteReply(message.sender, state.node, state.term, granted=False))


def _follow(state: RaftState, leader: int) -> None:
    """Become a follower of ``leader``, from which a message of this term was received."""
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
