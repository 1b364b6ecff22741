"""One node's state, and the few moves that every part of the algorithm makes with it."""

from __future__ import annotations

import enum
from random import Random

from undoubt.coordinator.raft.log import Log
from undoubt.coordinator.raft.membership import ConfigurationHistory
from undoubt.coordinator.raft.messages import (
    AppendReply,
    Entry,
    HardState,
    Message,
    PreVote,
    PreVoteReply,
    RequestVote,
    RequestVoteReply,
    SnapshotChunk,
    SnapshotMeta,
    SnapshotReply,
)
from undoubt.coordinator.raft.progress import Progress
from undoubt.coordinator.raft.ready import ChunkWanted, Outbox, ReadState, Writes
from undoubt.coordinator.raft.settings import RaftSettings
from undoubt.coordinator.raft.tracker import Tracker
from undoubt.participants.invariant import invariant

FULL_DISK_ELECTIONS = 4
"""Election timeouts that a node whose disk is full waits for longer than it would otherwise."""


class Role(enum.Enum):
    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class PendingReads:
    """Reads that a leader has been asked for. ``waiting`` have no round of heartbeats yet."""

    def __init__(self) -> None:
        self.waiting: list[bytes] = []
        self.round = 0
        """Of the last heartbeats sent for reads. Never falls while this node leads."""
        self.asked: list[tuple[int, ReadState]] = []
        """With the round that must be confirmed, in order."""
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
        """Who got this node's vote in ``term``; only a newer term clears it."""
        self.role = Role.FOLLOWER
        self.leader = 0
        self.votes: dict[int, bool] = {}
        self.election_elapsed = 0
        self.heartbeat_elapsed = 0
        self.timeout_ticks = 0
        self.heartbeat_due = False
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
        """Nothing is proposed here, and no data taken from a leader; it votes, and leads only where no other
        voter can: see ``patience_ticks`` and ``transfer.settle``."""
        self.stalled_token = 0
        """Until that write is done this node does not stand for election. 0: it may."""
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
        """A leader's record of its own disk; None while it is not part of the configuration."""
        return self.tracker.progress.get(self.node)

    def peers(self) -> list[tuple[int, Progress]]:
        return [(node, progress) for node, progress in self.tracker.progress.items() if node != self.node]

    @property
    def may_stand(self) -> bool:
        """Whether this node may stand for election at all.

        Also if a change that is not committed yet takes its vote away: it may be the only one whose log
        holds that change (thesis §4.2.2), and then nobody else could ever be elected.
        """
        return self.node in self.history.voters_since(self.log.commit) and not self.stalled

    @property
    def stalled(self) -> bool:
        """A write takes longer than a leader's may, or the one for which this node stepped down is not done.
        Its vote for itself would wait behind that write."""
        return bool(self.stalled_token) or self.writes.age_ticks >= self.settings.disk_stall_ticks

    @property
    def fit(self) -> bool:
        """Whether leadership may be handed to this node."""
        return not self.disk_full and not self.stalled

    @property
    def patience_ticks(self) -> int:
        """After how long without a leader this node stands.

        A node whose disk is full leaves the other voters the time of several elections. It stands all the
        same after that: it may be the only one that holds everything that is committed, and without a leader
        nobody could read.
        """
        extra = FULL_DISK_ELECTIONS * self.settings.election_ticks if self.disk_full else 0
        return self.timeout_ticks + extra

    def draw_timeout(self) -> None:
        base = self.settings.election_ticks
        self.timeout_ticks = base + self._random.randrange(base)

    def in_lease(self) -> bool:
        """Whether a leader was heard from within the least election timeout (extended paper §6, end)."""
        return self.leader != 0 and self.election_elapsed < self.settings.election_ticks

    def send(self, message: Message) -> None:
        """Now, if nothing in it depends on what is not stored yet; else after the next sync."""
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
        """The one place where term and vote change."""
        invariant(term >= self.term, f"the term fell from {self.term} to {term}")
        invariant(term > self.term or self.vote in (0, vote), f"a second vote in term {term}")
        self.term, self.vote = term, vote

    def become(self, role: Role, leader: int) -> None:
        """Begin anew in ``role``: timers, votes, and whatever only a leader has."""
        if self.role is Role.LEADER and role is not Role.LEADER:
            self._abandon_leadership()
        self.role = role
        self.leader = leader
        self.votes = {}
        self.election_elapsed = 0
        self.draw_timeout()

    def become_follower(self, term: int, leader: int) -> None:
        """Within the same term the vote stays: who forgot it could vote twice."""
        if term > self.term:
            self.enter_term(term, 0)
        self.become(Role.FOLLOWER, leader)

    def _abandon_leadership(self) -> None:
        self.reads.lost += [*self.reads.waiting, *(read.context for _, read in self.reads.asked)]
        self.reads.waiting, self.reads.asked = [], []
        self.transferee = 0
        self.heartbeat_due = False
        self.uncommitted_bytes = 0
        self.chunks_wanted = []

    def append(self, entry: Entry) -> None:
        """A leader's new entry."""
        self.log.append([entry])
        self.uncommitted_bytes += entry.size
        if self.history.append([entry]):
            self.tracker.configure(self.history.current, self.log.last_index)

    def follow_log(self, appended: tuple[Entry, ...], replaced_from: int | None) -> None:
        """After a follower's log changed: writes under way and the configuration follow it."""
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
