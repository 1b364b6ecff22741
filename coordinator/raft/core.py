"""The consensus core: every input goes in here, every output comes out of :meth:`Raft.ready`."""

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
"""A term that is further ahead was never reached by elections: one a second would take a hundred years. It
would bring the terms of all nodes near the highest number that a message can carry."""


class Raft:
    """One node. Not for use by several threads at once."""

    def __init__(self, node: int, settings: RaftSettings, random: Random, restored: RestoredState) -> None:
        """``random`` decides the election timeouts and nothing else. Raises InvariantViolation for a disk
        whose entries have gaps or do not match their checksums."""
        invariant(node > 0, "0 is nobody")
        log = Log(restored.snapshot, restored.entries, restored.applied)
        invariant(restored.hard_state.term >= log.last_term, "the stored term is older than the stored log")
        self._state = RaftState(node, settings, random, log=log, hard_state=restored.hard_state)

    # What one may look at.

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
        """It leads and has applied an entry of its own term: all that any leader before it had committed."""
        state = self._state
        return state.leads and state.log.term(state.log.applied) == state.term

    @property
    def term(self) -> int:
        return self._state.term

    @property
    def leader(self) -> int:
        """Who leads, as far as this node knows; 0: nobody."""
        return self._state.leader

    @property
    def commit_index(self) -> int:
        return self._state.log.commit

    @property
    def applied_index(self) -> int:
        return self._state.log.applied

    @property
    def first_index(self) -> int:
        """Of the log as it is in memory; what is before it is compacted."""
        return self._state.log.first_index

    @property
    def last_index(self) -> int:
        return self._state.log.last_index

    @property
    def persisted_index(self) -> int:
        """Up to which the log is known to be durable here."""
        return self._state.log.persisted

    @property
    def snapshot_index(self) -> int:
        """Of the newest snapshot that is durable here."""
        return self._state.log.snapshot.index

    @property
    def configuration(self) -> Configuration:
        """The one in force, which may be uncommitted."""
        return self._state.history.current

    @property
    def committed_configuration(self) -> Configuration:
        """The last one that is known to be committed."""
        return self._state.history.at(self._state.log.commit)

    @property
    def changing(self) -> bool:
        """The configuration in force is joint, or not known to be committed."""
        history = self._state.history
        return history.current.joint or history.current_index > self._state.log.commit

    @property
    def heartbeat_round(self) -> int:
        """What the heartbeats that a leader sends now carry, and their answers carry back."""
        return self._state.reads.round

    def answered(self, node: int, heartbeat_round: int) -> bool:
        """Whether that node, or this one itself, has answered a heartbeat of that round or a later one."""
        progress = self._state.tracker.progress.get(node)
        return node == self.node or (progress is not None and progress.round >= heartbeat_round)

    def match(self, node: int) -> int:
        """The index up to which that node's disk is known to equal a leader's log; 0 if nothing is known."""
        progress = self._state.tracker.progress.get(node)
        return 0 if progress is None else progress.match

    @property
    def progress(self) -> dict[int, PeerProgress]:
        """What a leader knows of each node of the configuration, itself included."""
        return {node: progress.view for node, progress in sorted(self._state.tracker.progress.items())}

    @property
    def untaken_chunks(self) -> tuple[SnapshotChunk, ...]:
        """Chunks of a snapshot that have arrived, and that no ``Ready`` has handed out yet."""
        return tuple(self._state.chunks)

    @property
    def disk_full(self) -> bool:
        """What ``set_disk_full`` was told."""
        return self._state.disk_full

    @property
    def disk_stalled(self) -> bool:
        """A write has taken for ``disk_stall_ticks``, and is not done."""
        return self._state.stalled

    @property
    def successor(self) -> int:
        """The voter that a leader would best hand over to; 0 if there is none, or if this is no leader."""
        return election.successor(self._state) if self._state.leads else 0

    @property
    def internals(self) -> RaftState:
        """Everything, for the tests of this room only; to change it is to break it."""
        return self._state

    # What goes in. The output of each waits in the next `ready`.

    def tick(self) -> None:
        """A tick of time has passed."""
        state = self._state
        state.writes.tick()
        election.tick(state)
        if state.leads:
            election.tick_transfer(state)
            snapshots.tick(state)

    def wants(self, message: SnapshotChunk) -> bool:
        """Whether that chunk comes right behind those that were taken, of a snapshot that is needed."""
        incoming = self._state.incoming
        offset = incoming.offset if incoming is not None and incoming.meta == message.meta else 0
        return message.offset == offset and message.meta.index > self.commit_index

    def step(self, message: Message) -> None:
        """A message has arrived. Late, repeated and reordered ones are expected; so are lost ones. Raises
        MessageRefused for what no sound member sends, before anything has changed."""
        _judge(self._state, message)
        _receive(self._state, message)

    def propose(self, data: bytes) -> Entry:
        """Append ``data``. It is committed when an entry with this index *and this term* is handed out by
        ``Ready.committed_entries``; another term there: it is lost. Raises NotLeader, ProposalRefused."""
        return replication.propose(self._state, data)

    def propose_config(self, change: ConfigChange) -> Entry:
        """Change the configuration. Raises NotLeader, ProposalRefused; ConfigRefused while another change
        is uncommitted, or before this leader has committed an entry of its own term."""
        return reconfigure.propose(self._state, change)

    def read_index(self, context: bytes) -> None:
        """Ask for a linearizable read. ``context`` comes back in ``read_states`` or in ``reads_lost``.
        Raises NotLeader."""
        replication.ask_read(self._state, context)

    def transfer(self, to: int) -> None:
        """Hand leadership to the voter ``to``. Raises NotLeader, ConfigRefused."""
        election.begin_transfer(self._state, to)

    def step_down(self) -> None:
        """Stop leading or standing, now, and do not stand again before what is being written now is
        stored. For a driver whose disk is slow, before ``disk_stall_ticks`` have found out."""
        election.step_down(self._state)

    def set_disk_full(self, full: bool) -> None:
        """While full: no proposals, no data from a leader; reads and votes go on. It hands over as soon as
        another voter is fit to lead, is not handed leadership, and stands only long after the others would
        have."""
        self._state.disk_full = full

    def on_persisted(self, token: int) -> tuple[Message, ...]:
        """All of the ``Ready`` of ``token``, and of those before it, is durable. What may be sent now."""
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
        """The state machine has stored the effects of everything up to ``index``, and ``index`` with them."""
        log = self._state.log
        invariant(index <= log.applying, f"{index} was never handed out for application")
        log.applied = max(log.applied, index)

    def snapshot_meta(self, index: int) -> SnapshotMeta:
        """What a snapshot of the state machine at ``index`` stands for; ``index`` is applied."""
        state = self._state
        term = state.log.term(index)
        invariant(index <= state.log.applied and term is not None, f"{index} is not applied, or compacted")
        return SnapshotMeta(index, term or 0, state.history.at(index))

    def compact(self, meta: SnapshotMeta) -> int:
        """The snapshot ``meta`` is durable. Returns the first index that storage has to keep."""
        state = self._state
        if meta.index > state.log.snapshot.index:
            settings = state.settings
            state.log.compact(meta, settings.trailing_entries, settings.trailing_bytes_max)
            state.history.compact(meta.index)
        return max(state.log.before_index, 1)

    def snapshot_chunk(self, wanted: ChunkWanted, data: bytes, *, done: bool) -> None:
        """The answer to a ``chunks_wanted``: bytes from its offset on, at least one unless ``done``."""
        invariant(done or bool(data), "a chunk without bytes is the last")
        snapshots.send_chunk(self._state, wanted, data, done=done)

    def snapshot_failed(self, wanted: ChunkWanted) -> None:
        """The other answer: that snapshot is gone, or unreadable."""
        snapshots.give_up(self._state, wanted)

    # What comes out.

    def ready(self) -> Ready:
        """Everything to be done since the last call. The driver's duties: see the package."""
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
        """Most of the time: whatever comes in makes a driver ask."""
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
        """Committed, and stored here: what is applied must be in the log after a restart."""
        log = self._state.log
        last = min(log.commit, log.persisted)
        if last <= log.applying:
            return ()
        entries = log.slice(log.applying + 1, self._state.settings.apply_bytes_max, last)
        log.applying = entries[-1].index
        return entries

    def _settle(self) -> None:
        """A leader's duties, once for everything that has come in since the last time."""
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


# A message arrives.


def _judge(state: RaftState, message: Message) -> None:
    """Changes nothing. Raises :class:`MessageRefused` for what no sound member would ever say.

    That is a bug, or damage, at the peer that sent it: it costs that peer its connection, and this node
    nothing. A peer that lies in sound words is outside of what Raft survives: whoever may send as a member
    (TLS's certificates say who) is believed.
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
            _refuse(message, "that snapshot stands for no log of this cluster")


def _judge_entries(state: RaftState, message: Append) -> None:
    """What is damaged on its way is none of this: the entry's checksum tells, and it is asked for again."""
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
    """Of the configuration; as far as they would be taken into the log."""
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
                _refuse(message, f"its entry {entry.index} is no change of the members: {error}")


def _refuse(message: Message, why: str) -> NoReturn:
    raise MessageRefused(f"node {message.sender} sent {type(message).__name__}: {why}")


def _receive(state: RaftState, message: Message) -> None:
    """What the message's term means (extended paper §5.1), and where the message goes."""
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
