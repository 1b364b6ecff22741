"""One node's state: what it begins with, what it has for its driver to do, and the few moves that every part
of the algorithm makes with it."""

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
"""Election timeouts that a node whose disk is full waits for longer than it would otherwise."""


class RestoredState(msgspec.Struct, frozen=True):
    """What was found on disk. ``applied`` is what the state machine stored together with its effects.

    Of an empty disk: everything as by default; such a node learns all from a leader, and stands for
    nothing before it is in a configuration.
    """

    hard_state: HardState = HardState()
    snapshot: SnapshotMeta = SnapshotMeta()
    entries: tuple[Entry, ...] = ()
    applied: int = 0


def bootstrap(voters: Iterable[int], learners: Iterable[int] = ()) -> RestoredState:
    """What each first node of a new cluster starts from (and stores first): the same for all of them.

    The configuration stands at index 1, so that whoever joins later with an empty log is given it.
    """
    configuration = Configuration(incoming=frozenset(voters), learners=frozenset(learners))
    invariant(bool(configuration.incoming), "a cluster needs a voter")
    return RestoredState(HardState(term=1), SnapshotMeta(1, 1, configuration), (), 1)


class ReadState(msgspec.Struct, frozen=True):
    """The read ``context`` may be answered by any state machine that has applied ``index``."""

    context: bytes
    index: int


class ChunkWanted(msgspec.Struct, frozen=True):
    """Give ``Raft.snapshot_chunk`` the bytes from ``offset`` on of the snapshot at ``index`` for ``peer``."""

    peer: int
    index: int
    offset: int


class Ready(msgspec.Struct, frozen=True):
    """One step's work. The package's docstring gives the order in which the driver does it."""

    token: int
    """For ``on_persisted``."""
    hard_state: HardState | None = None
    """Store term and vote together, if given."""
    chunks: tuple[SnapshotChunk, ...] = ()
    """Store beside the log; one with offset 0 begins anew."""
    snapshot: SnapshotMeta | None = None
    """All chunks of it are there: replace state machine, applied index and log by it, in one transaction."""
    entries: tuple[Entry, ...] = ()
    """Store; whatever is stored from ``entries[0].index`` on is replaced."""
    messages_now: tuple[Message, ...] = ()
    messages_after_sync: tuple[Message, ...] = ()
    """Depend on what this step stores: ``on_persisted`` returns them when they may be sent."""
    committed_entries: tuple[Entry, ...] = ()
    """Apply in order, each with its index in one transaction; then ``on_applied``."""
    read_states: tuple[ReadState, ...] = ()
    reads_lost: tuple[bytes, ...] = ()
    """Contexts of reads that will not be answered: this node leads no more."""
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
    """One ``Ready`` whose storing has not been reported yet."""

    token: int
    hard_state: HardState
    last: int
    """The log is durable up to here once this is stored; lowered when a later write replaces that tail."""
    messages: tuple[Message, ...]
    age_ticks: int = 0


class Writes:
    """Writes in the order in which they were handed out, which is the order in which they must be made."""

    def __init__(self, hard_state: HardState) -> None:
        self.hard_state = hard_state
        """What is known to be stored."""
        self._under_way: deque[Write] = deque()
        self._token = 0

    @property
    def idle(self) -> bool:
        return not self._under_way

    @property
    def age_ticks(self) -> int:
        """How long the oldest has taken."""
        return self._under_way[0].age_ticks if self._under_way else 0

    def tick(self) -> None:
        if self._under_way:
            self._under_way[0].age_ticks += 1

    @property
    def last_token(self) -> int:
        """Of the newest that is under way; 0 if none is."""
        return self._under_way[-1].token if self._under_way else 0

    def next_token(self) -> int:
        self._token += 1
        return self._token

    def begin(self, write: Write) -> None:
        self._under_way.append(write)

    def replaced_from(self, index: int) -> None:
        """The tail from ``index`` on is being replaced: no earlier write makes it durable any more."""
        for write in self._under_way:
            write.last = min(write.last, index - 1)

    def done(self, token: int) -> list[Write]:
        """Everything up to ``token`` is durable. Raises InvariantViolation for a token never handed out."""
        invariant(token <= self._token, f"{token} was never handed out")
        finished = []
        while self._under_way and self._under_way[0].token <= token:
            write = self._under_way.popleft()
            self.hard_state = write.hard_state
            # Each write's time counts from when it is the disk's turn.
            finished.append(write)
        return finished


class Outbox:
    """Messages since the last ``Ready``."""

    def __init__(self) -> None:
        self.now: list[Message] = []
        self.after_sync: list[Message] = []

    def hold(self, message: Message) -> None:
        """Send ``message`` after the next sync; one acknowledgement stands for all before it."""
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
        if entry.kind is Kind.CONFIG and self.history.append([entry]):
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
