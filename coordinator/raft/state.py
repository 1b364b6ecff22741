"""The state of one node, its restored state, its outputs for the driver, and the state changes that several
modules make."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

import msgspec

from undoubt.coordinator.raft.log import Log
from undoubt.coordinator.raft.membership import ConfigurationHistory
from undoubt.coordinator.raft.messages import (
    AppendReply,
    Configuration,
    Entry,
    HardState,
    Kind,
    Message,
    PreVote,
    PreVoteReply,
    RequestVote,
    RequestVoteReply,
    SnapshotChunk,
    SnapshotMeta,
    SnapshotReply,
)
from undoubt.coordinator.raft.settings import RaftSettings
from undoubt.coordinator.raft.tracker import Progress, Tracker
from undoubt.participants.invariant import invariant

FULL_DISK_ELECTIONS = 4
"""The number of additional election timeouts that a node with a full disk waits before it stands for
election."""


class RestoredState(msgspec.Struct, frozen=True):
    """The state that was found on disk. ``applied`` is the index that the state machine stored together with
    the effects.

    For an empty disk all fields have their defaults; such a node gets everything from a leader, and does not
    stand for election before it is in a configuration.
    """

    hard_state: HardState = HardState()
    snapshot: SnapshotMeta = SnapshotMeta()
    entries: tuple[Entry, ...] = ()
    applied: int = 0


def bootstrap(voters: Iterable[int], learners: Iterable[int] = ()) -> RestoredState:
    """Return the state from which each first node of a new cluster starts, and which it stores first; the
    same for all these nodes.

    The configuration has index 1, so that a node that joins later with an empty log receives it.
    """
    configuration = Configuration(incoming=frozenset(voters), learners=frozenset(learners))
    invariant(bool(configuration.incoming), "a cluster needs a voter")
    return RestoredState(HardState(term=1), SnapshotMeta(1, 1, configuration), (), 1)


class ReadState(msgspec.Struct, frozen=True):
    """A confirmed read: ``context`` may be answered from any state machine that has applied ``index``."""

    context: bytes
    index: int


class ChunkWanted(msgspec.Struct, frozen=True):
    """A request to the driver: give ``Raft.snapshot_chunk`` the bytes from ``offset`` on of the snapshot at
    ``index``, for ``peer``."""

    peer: int
    index: int
    offset: int


class Ready(msgspec.Struct, frozen=True):
    """The work that the driver has to do next; the package's docstring gives its order."""

    token: int
    """The argument for ``on_persisted``."""
    hard_state: HardState | None = None
    """Term and vote, to be stored together; None if they have not changed."""
    chunks: tuple[SnapshotChunk, ...] = ()
    """Chunks to store beside the log; a chunk with offset 0 begins a new snapshot."""
    snapshot: SnapshotMeta | None = None
    """A snapshot of which all chunks have been received: replace state machine, applied index and log by it,
    in one transaction."""
    entries: tuple[Entry, ...] = ()
    """Entries to store; they replace all stored entries from ``entries[0].index`` on."""
    messages_now: tuple[Message, ...] = ()
    messages_after_sync: tuple[Message, ...] = ()
    """Messages that depend on what this step stores: ``on_persisted`` returns them once they may be sent."""
    committed_entries: tuple[Entry, ...] = ()
    """Entries to apply in order, each with its index in one transaction; then call ``on_applied``."""
    read_states: tuple[ReadState, ...] = ()
    reads_lost: tuple[bytes, ...] = ()
    """Contexts of reads that will not be answered, because this node no longer leads."""
    chunks_wanted: tuple[ChunkWanted, ...] = ()

    @property
    def writes(self) -> bool:
        """Whether there is something to store before ``on_persisted(token)``."""
        return bool(self.hard_state is not None or self.chunks or self.snapshot is not None or self.entries)

    @property
    def empty(self) -> bool:
        return not (
            self.writes
            or self.messages_now
            or self.messages_after_sync
            or self.committed_entries
            or self.read_states
            or self.reads_lost
            or self.chunks_wanted
        )


@dataclass(slots=True)
class Write:
    """The write of one ``Ready`` that was not reported as stored yet."""

    token: int
    hard_state: HardState
    last: int
    """The index up to which the log is durable once this is stored; lowered when a later write replaces the
    tail."""
    messages: tuple[Message, ...]
    age_ticks: int = 0


class Writes:
    """The unfinished writes, in the order in which they were handed out; they must be made in this order."""

    def __init__(self, hard_state: HardState) -> None:
        self.hard_state = hard_state
        """The hard state that is known to be stored."""
        self._under_way: deque[Write] = deque()
        self._token = 0

    @property
    def idle(self) -> bool:
        return not self._under_way

    @property
    def age_ticks(self) -> int:
        """How long the oldest unfinished write has taken, in ticks."""
        return self._under_way[0].age_ticks if self._under_way else 0

    def tick(self) -> None:
        if self._under_way:
            self._under_way[0].age_ticks += 1

    @property
    def last_token(self) -> int:
        """The token of the newest unfinished write; 0 if there is none."""
        return self._under_way[-1].token if self._under_way else 0

    def next_token(self) -> int:
        self._token += 1
        return self._token

    def begin(self, write: Write) -> None:
        self._under_way.append(write)

    def replaced_from(self, index: int) -> None:
        """Note that the tail from ``index`` on is being replaced: earlier writes no longer make it
        durable."""
        for write in self._under_way:
            write.last = min(write.last, index - 1)

    def done(self, token: int) -> list[Write]:
        """Remove and return the writes up to ``token``, which are durable. Raises InvariantViolation for a
        token that was never handed out."""
        invariant(token <= self._token, f"{token} was never handed out")
        finished = []
        while self._under_way and self._under_way[0].token <= token:
            write = self._under_way.popleft()
            self.hard_state = write.hard_state
            # The age of a write counts from the moment when it is the oldest.
            finished.append(write)
        return finished


class Outbox:
    """The messages since the last ``Ready``."""

    def __init__(self) -> None:
        self.now: list[Message] = []
        self.after_sync: list[Message] = []

    def hold(self, message: Message) -> None:
        """Send ``message`` after the next sync; an acknowledgement replaces the one before it for the same
        leader and term."""
        if self.after_sync and isinstance(message, AppendReply) and not message.rejected:
            last = self.after_sync[-1]
            if (
                isinstance(last, AppendReply)
                and not last.rejected
                and (last.to, last.term) == (message.to, message.term)
            ):
                message = message if message.index > last.index else last
                self.after_sync.pop()
        self.after_sync.append(message)


class Role(enum.Enum):
    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class PendingReads:
    """The reads that a leader has to answer. Those in ``waiting`` have no round of heartbeats yet."""

    def __init__(self) -> None:
        self.waiting: list[bytes] = []
        self.round = 0
        """The round of the last heartbeats that were sent for reads. Never decreases while this node
        leads."""
        self.asked: list[tuple[int, ReadState]] = []
        """Reads with the round that must be confirmed for each, in order."""
        self.answered: list[ReadState] = []
        self.lost: list[bytes] = []


class Incoming:
    """The part of a leader's snapshot that has arrived."""

    def __init__(self, term: int, meta: SnapshotMeta) -> None:
        self.term = term
        self.meta = meta
        self.offset = 0


class RaftState:
    def __init__(
        self,
        node: int,
        settings: RaftSettings,
        random: Random,
        *,
        log: Log,
        hard_state: HardState,
    ) -> None:
        self.node = node
        self.settings = settings
        self._random = random
        self.log = log
        self.history = ConfigurationHistory(log.snapshot)
        self.history.append(log.entries[log.snapshot.index - log.before_index :])
        self.tracker = Tracker(self.history.current)
        self.term = hard_state.term
        self.vote = hard_state.vote
        """The node that got this node's vote in ``term`` (0: none); only a newer term clears it."""
        self.role = Role.FOLLOWER
        self.leader = 0
        self.votes: dict[int, bool] = {}
        self.election_elapsed = 0
        self.gets_entries_late = False
        """Whether the present leader sends new entries to other followers first, as its last heartbeat said.
        """
        self.heartbeat_elapsed = 0
        self.timeout_ticks = 0
        self.heartbeat_due = False
        self.fed: frozenset[int] = frozenset()
        """The followers to which a lazy leader sends new entries at once."""
        self.hurried = False
        """Whether everything has to be sent to every follower now."""
        self.uncommitted_bytes = 0
        self.transferee = 0
        self.transfer_elapsed = 0
        self.transfer_sent = False
        self.reads = PendingReads()
        self.incoming: Incoming | None = None
        self.chunks: list[SnapshotChunk] = []
        self.installing: SnapshotMeta | None = None
        self.chunks_wanted: list[ChunkWanted] = []
        self.disk_full = False
        """True while the disk is full: no proposal and no data from a leader is taken. The node votes, but
        leads only if no other voter can: see ``patience_ticks`` and ``election.settle_transfer``."""
        self.stalled_token = 0
        """The token of the write before whose end this node does not stand for election; 0 if there is
        none."""
        self.writes = Writes(hard_state)
        self.handed_hard_state = hard_state
        self.outbox = Outbox()
        self.draw_timeout()

    @property
    def hard_state(self) -> HardState:
        return HardState(self.term, self.vote)

    @property
    def leads(self) -> bool:
        return self.role is Role.LEADER

    @property
    def own(self) -> Progress | None:
        """A leader's progress of its own disk; None while this node is not in the configuration."""
        return self.tracker.progress.get(self.node)

    def peers(self) -> list[tuple[int, Progress]]:
        return [(node, progress) for node, progress in self.tracker.progress.items() if node != self.node]

    @property
    def may_stand(self) -> bool:
        """Whether this node may stand for election.

        It may also if an uncommitted change takes its vote away: this node may be the only one whose log has
        that change (thesis §4.2.2), and then no other node could be elected.
        """
        return self.node in self.history.voters_since(self.log.commit) and not self.stalled

    @property
    def stalled(self) -> bool:
        """True if a write takes as long as ``disk_stall_ticks``, or the write for which this node stepped
        down is not done. This node's vote for itself would wait for that write."""
        return bool(self.stalled_token) or self.writes.age_ticks >= self.settings.disk_stall_ticks

    @property
    def fit(self) -> bool:
        """Whether leadership may be transferred to this node."""
        return not self.disk_full and not self.stalled

    @property
    def patience_ticks(self) -> int:
        """After how many ticks without a leader this node stands for election.

        A node whose disk is full leaves the other voters the time of several elections. After that it stands
        nevertheless: it may be the only node that has all committed entries, and without a leader no read is
        answered. A node that gets new entries later than others leaves these the time of one election: its
        log probably lacks acknowledged entries, and then it gets no votes.
        """
        elections = (FULL_DISK_ELECTIONS if self.disk_full else 0) + (1 if self.gets_entries_late else 0)
        return self.timeout_ticks + elections * self.settings.election_ticks

    def draw_timeout(self) -> None:
        base = self.settings.election_ticks
        self.timeout_ticks = base + self._random.randrange(base)

    def in_lease(self) -> bool:
        """Whether a message of a leader was received within the minimum election timeout (extended paper §6,
        end)."""
        return self.leader != 0 and self.election_elapsed < self.settings.election_ticks

    def send(self, message: Message) -> None:
        """Send ``message`` now, if it does not depend on anything that is not stored yet; otherwise after the
        next sync."""
        if isinstance(message, PreVote) or (isinstance(message, PreVoteReply) and message.granted):
            self.outbox.now.append(message)
            return
        promise = isinstance(message, RequestVote | RequestVoteReply | SnapshotReply) or (
            isinstance(message, AppendReply) and not message.rejected
        )
        if promise or message.term > self.writes.hard_state.term:
            self.outbox.hold(message)
        else:
            self.outbox.now.append(message)

    def enter_term(self, term: int, vote: int) -> None:
        """Set term and vote; they change nowhere else."""
        invariant(term >= self.term, f"the term fell from {self.term} to {term}")
        invariant(term > self.term or self.vote in (0, vote), f"a second vote in term {term}")
        self.term, self.vote = term, vote

    def become(self, role: Role, leader: int) -> None:
        """Change the role, and reset timers, votes, and the state that only a leader has."""
        if self.role is Role.LEADER and role is not Role.LEADER:
            self._abandon_leadership()
        self.role = role
        self.leader = leader
        self.votes = {}
        self.election_elapsed = 0
        self.gets_entries_late = False
        self.draw_timeout()

    def become_follower(self, term: int, leader: int) -> None:
        """Become a follower in ``term``. Within the same term the vote stays; otherwise this node could vote
        twice."""
        if term > self.term:
            self.enter_term(term, 0)
        self.become(Role.FOLLOWER, leader)

    def _abandon_leadership(self) -> None:
        self.reads.lost += [*self.reads.waiting, *(read.context for _, read in self.reads.asked)]
        self.reads.waiting, self.reads.asked = [], []
        self.transferee = 0
        self.heartbeat_due = self.hurried = False
        self.fed = frozenset()
        self.uncommitted_bytes = 0
        self.chunks_wanted = []

    def append(self, entry: Entry) -> None:
        """Append a leader's new entry."""
        self.log.append([entry])
        self.uncommitted_bytes += entry.size
        if entry.kind is Kind.CONFIG and self.history.append([entry]):
            self.tracker.configure(self.history.current, self.log.last_index)

    def follow_log(self, appended: tuple[Entry, ...], replaced_from: int | None) -> None:
        """Adapt the unfinished writes and the configuration to a change of a follower's log."""
        changed = False
        if replaced_from is not None:
            self.writes.replaced_from(replaced_from)
            changed = self.history.truncate_from(replaced_from)
        if self.history.append(appended) or changed:
            self.tracker.configure(self.history.current, self.log.last_index)

    def restore_history(self, meta: SnapshotMeta) -> None:
        self.history = ConfigurationHistory(meta)
        self.tracker.configure(meta.configuration, meta.index)

    def commit_to(self, index: int) -> None:
        if index <= self.log.commit:
            return
        if self.leads:
            for position in range(self.log.commit + 1, index + 1):
                entry = self.log.entries[position - self.log.before_index - 1]
                self.uncommitted_bytes = max(0, self.uncommitted_bytes - entry.size)
        self.log.commit_to(index)
