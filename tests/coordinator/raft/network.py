"""A cluster in memory: a seeded network, disks that lose what was not synced, state machines.

What happens next is drawn from one ``Random``: a message is delivered (in any order), lost or repeated; a
node ticks; a disk finishes its oldest write; a state machine applies what it was given; a node crashes and
restarts from its disk; the network splits and heals. After each step ``invariants`` looks at everything.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from random import Random

from tests.coordinator.raft.invariants import Invariants
from undoubt.coordinator.raft import (
    ChunkWanted,
    Entry,
    HardState,
    Kind,
    Message,
    Raft,
    RaftSettings,
    ReadState,
    Ready,
    RestoredState,
    SnapshotMeta,
    bootstrap,
    decode,
    encode,
)

SETTINGS = RaftSettings(
    election_ticks=5,
    heartbeat_ticks=1,
    disk_stall_ticks=8,
    snapshot_retry_ticks=3,
    append_bytes_max=120,
    inflight_messages_max=4,
    inflight_bytes_max=600,
    apply_bytes_max=200,
    trailing_entries=3,
)
CHUNK = 7


@dataclass
class Disk:
    """What survives a crash. State machine and applied index change together."""

    hard_state: HardState = field(default_factory=HardState)
    snapshot: SnapshotMeta = field(default_factory=SnapshotMeta)
    entries: dict[int, Entry] = field(default_factory=dict)
    applied: int = 0
    machine: list[bytes] = field(default_factory=list)
    staged: bytes = b""
    images: dict[int, bytes] = field(default_factory=dict)
    """Snapshots that may be sent, by index."""
    installed: int = 0

    @property
    def last_index(self) -> int:
        return max(self.entries, default=self.snapshot.index)

    def store(self, ready: Ready) -> None:
        """One transaction."""
        if ready.hard_state is not None:
            self.hard_state = ready.hard_state
        for chunk in ready.chunks:
            self.staged = chunk.data if chunk.offset == 0 else self.staged + chunk.data
        if ready.snapshot is not None:
            self.installed += 1
            self.snapshot, self.applied = ready.snapshot, ready.snapshot.index
            self.machine = self.staged.split(b",") if self.staged else []
            self.images = {ready.snapshot.index: self.staged}
            self.entries = {}
        if ready.entries:
            first = ready.entries[0].index
            self.entries = {index: entry for index, entry in self.entries.items() if index < first}
            self.entries |= {entry.index: entry for entry in ready.entries}

    def restored(self) -> RestoredState:
        entries = tuple(self.entries[index] for index in sorted(self.entries))
        return RestoredState(self.hard_state, self.snapshot, entries, self.applied)


class Node:
    def __init__(self, number: int, cluster: Cluster, disk: Disk) -> None:
        self.number, self.cluster, self.disk = number, cluster, disk
        self.stalled = False
        self.start()

    def start(self) -> None:
        random = Random(self.cluster.random.getrandbits(32))
        self.raft: Raft | None = Raft(self.number, self.cluster.settings, random, self.disk.restored())
        self.writing: deque[Ready] = deque()
        self.applying: deque[tuple[Entry, ...] | SnapshotMeta] = deque()
        self.lost: list[bytes] = []

    @property
    def up(self) -> Raft:
        assert self.raft is not None
        return self.raft

    def crash(self) -> None:
        """Some of the writes under way may have reached the disk, in order; nobody will ever be told."""
        for ready in list(self.writing)[: self.cluster.random.randrange(len(self.writing) + 1)]:
            self.disk.store(ready)
        self.raft = None

    def pump(self) -> None:
        """The driver's loop up to the storing and the applying, which take their own time."""
        while not (ready := self.up.ready()).empty:
            self.writing.append(ready)
            self.cluster.post(self, ready.messages_now)
            if ready.committed_entries:
                self.applying.append(ready.committed_entries)
            self.cluster.reads += [(self.number, read) for read in ready.read_states]
            self.cluster.reads_lost += ready.reads_lost
            for wanted in ready.chunks_wanted:
                self.give(wanted)
            if not self.cluster.slow_disks:
                self.sync()
                self.apply()

    def give(self, wanted: ChunkWanted) -> None:
        image = self.disk.images.get(wanted.index)
        if image is None:
            self.up.snapshot_failed(wanted)
            return
        data = image[wanted.offset : wanted.offset + CHUNK]
        self.up.snapshot_chunk(wanted, data, done=wanted.offset + CHUNK >= len(image))

    def sync(self) -> None:
        """The disk finishes its oldest write. A snapshot waits until what was to be applied is applied."""
        if not self.writing or self.stalled:
            return
        if self.writing[0].snapshot is not None:
            while self.applying:
                self.apply()
        ready = self.writing.popleft()
        self.disk.store(ready)
        self.cluster.post(self, self.up.on_persisted(ready.token))

    def apply(self) -> None:
        if not self.applying:
            return
        for entry in self.applying.popleft():  # type: ignore[union-attr]
            if entry.index <= self.disk.applied:
                raise AssertionError(f"node {self.number} applies {entry.index} again")
            assert entry.index == self.disk.applied + 1, f"node {self.number} skips to {entry.index}"
            self.disk.applied = entry.index
            if entry.kind is Kind.DATA:
                self.disk.machine.append(entry.data)
        self.up.on_applied(self.disk.applied)

    def snapshot(self) -> None:
        """Store an image of the state machine, and forget the entries that it covers."""
        if self.disk.applied <= self.disk.snapshot.index or self.writing:
            return
        meta = self.up.snapshot_meta(self.disk.applied)
        self.disk.images = {meta.index: b",".join(self.disk.machine)}
        self.disk.snapshot = meta
        keep = self.up.compact(meta)
        self.disk.entries = {index: entry for index, entry in self.disk.entries.items() if index >= keep}


class Cluster:
    def __init__(
        self,
        count: int = 3,
        *,
        seed: int = 0,
        settings: RaftSettings = SETTINGS,
        slow_disks: bool = False,
        learners: int = 0,
    ) -> None:
        self.random = Random(seed)
        self.settings = settings
        self.slow_disks = slow_disks
        self.wire: list[bytes] = []
        self.cut: set[tuple[int, int]] = set()
        """One-way: from, to."""
        self.reads: list[tuple[int, ReadState]] = []
        self.reads_lost: list[bytes] = []
        self.restarts = 0
        self.invariants = Invariants(self)
        first = bootstrap(range(1, count + 1), range(count + 1, count + learners + 1))
        self.nodes: dict[int, Node] = {}
        for number in range(1, count + learners + 1):
            disk = Disk(first.hard_state, first.snapshot, {}, first.applied, [], b"", {1: b""})
            self.nodes[number] = Node(number, self, disk)

    # What tests look at.

    def raft(self, number: int) -> Raft:
        return self.nodes[number].up

    @property
    def running(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.raft is not None]

    @property
    def leaders(self) -> list[int]:
        return [node.number for node in self.running if node.up.leads]

    @property
    def installed(self) -> int:
        """Snapshots that were received."""
        return sum(node.disk.installed for node in self.nodes.values())

    @property
    def leader(self) -> int:
        """The one of the highest term."""
        return max(self.leaders, key=lambda number: self.raft(number).term, default=0)

    def machine(self, number: int) -> list[bytes]:
        return self.nodes[number].disk.machine

    # What happens.

    def join(self, number: int) -> None:
        """A node with an empty disk, that nobody knows yet."""
        self.nodes[number] = Node(number, self, Disk())

    def post(self, node: Node, messages: tuple[Message, ...]) -> None:
        for message in messages:
            self.invariants.sent(node, message)
            if (message.sender, message.to) not in self.cut:
                self.wire.append(encode(message))

    def isolate(self, *numbers: int) -> None:
        """Cut the network between ``numbers`` and everybody else."""
        for one in numbers:
            for other in set(self.nodes) - set(numbers):
                self.cut |= {(one, other), (other, one)}

    def heal(self) -> None:
        self.cut.clear()

    def deliver(self, position: int = 0) -> None:
        message = decode(self.wire.pop(position))
        node = self.nodes.get(message.to)
        if node is None or node.raft is None or (message.sender, message.to) in self.cut:
            return
        node.up.step(message)
        node.pump()
        self.invariants.check()

    def pump(self, number: int) -> None:
        self.nodes[number].pump()
        self.invariants.check()

    def settle(self, messages_max: int = 20_000) -> None:
        """Deliver, store and apply until nothing is left to do; time stands still."""
        for node in self.running:
            node.pump()
        for _ in range(messages_max):
            busy = False
            for node in self.running:
                while node.writing and not node.stalled:
                    busy = True
                    node.sync()
                    node.pump()
                while node.applying:
                    busy = True
                    node.apply()
            if self.wire:
                busy = True
                self.deliver()
            if not busy:
                self.invariants.check()
                return
        raise AssertionError("the cluster talks without end")

    def tick(self, *numbers: int, count: int = 1) -> None:
        """Let time pass at ``numbers`` (else everywhere), then settle."""
        for _ in range(count):
            for node in self.running:
                if not numbers or node.number in numbers:
                    node.up.tick()
                    node.pump()
            self.settle()

    def elect(self, number: int) -> None:
        """Make ``number`` the leader, by letting time pass there alone."""
        for _ in range(12 * self.settings.election_ticks):
            if self.leader == number:
                return
            for node in self.running:
                if node.number != number and node.up.leads:
                    node.up.step_down()
                    self.wire = [frame for frame in self.wire if decode(frame).sender != node.number]
                    node.up.ready()
                if node.number != number:
                    # Nobody holds on to a leader that is gone.
                    node.up.internals.election_elapsed = self.settings.election_ticks
            self.tick(number)
        raise AssertionError(f"{number} was not elected")

    def propose(self, data: bytes) -> Entry:
        number = self.leader
        entry = self.raft(number).propose(data)
        self.pump(number)
        return entry

    def crash(self, number: int) -> None:
        self.nodes[number].crash()

    def restart(self, number: int) -> None:
        self.restarts += 1
        self.nodes[number].start()
        self.invariants.restarted(self.nodes[number])
        self.pump(number)
