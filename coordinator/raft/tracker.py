"""Holds the configuration, and what a leader knows about each peer, which decides how much may be sent.

::

    PROBE      one append at a time, until the index is found at which the logs agree REPLICATE  appends are
    sent without waiting, inside a window of messages and of bytes SNAPSHOT   the entries that the peer needs
    are compacted: chunks of a snapshot, one at a time

A rejection, or a snapshot that cannot be sent, leads back to PROBE; an acknowledgement leads to REPLICATE.
"""

from __future__ import annotations

import enum
from collections import deque

import msgspec

from undoubt.coordinator.quorum import VoteResult
from undoubt.coordinator.raft.messages import Configuration, SnapshotMeta
from undoubt.participants.invariant import invariant


class Pace(enum.Enum):
    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


class PeerProgress(msgspec.Struct, frozen=True):
    """What a leader reports about one peer: see the fields of :class:`Progress`."""

    match: int
    pace: Pace
    active: bool
    fit: bool


class Stream:
    """The transfer of a snapshot to one peer: the next chunk begins at ``offset``."""

    def __init__(self, meta: SnapshotMeta) -> None:
        self.meta = meta
        self.offset = 0
        self.asked = False
        """Whether the driver was asked for the next chunk."""
        self.sent = False
        """Whether the next chunk was sent to the peer."""
        self.age_ticks = 0

    def again(self, offset: int) -> None:
        """Continue from ``offset``."""
        self.offset = offset
        self.asked = self.sent = False
        self.age_ticks = 0


class Progress:
    def __init__(self, next_index: int) -> None:
        self.match = 0
        """The index up to which the peer's log is known to be durable and equal to the leader's. match <
        next"""
        self.next = max(next_index, 1)
        self.pace = Pace.PROBE
        self.waiting = False
        """In PROBE: an append was sent; the next is sent only after its answer, or the answer to a
        heartbeat."""
        self.nudge = False
        """In REPLICATE: an append may be lost; an empty append has to be sent, to which the peer answers how
        far its log agrees."""
        self.active = False
        """Whether a message of the peer was received since the last check of the quorum."""
        self.round = 0
        """The last round of heartbeats that the peer has answered."""
        self.fit = True
        """Whether the peer may lead, as it reported last: its disk has room and is not stalled."""
        self.inflight: deque[tuple[int, int]] = deque()
        """The unacknowledged appends in order: the last index of each, and its bytes."""
        self.inflight_bytes = 0
        self.stream: Stream | None = None

    @property
    def view(self) -> PeerProgress:
        return PeerProgress(self.match, self.pace, self.active, self.fit)

    def probe(self, next_index: int) -> None:
        self.pace = Pace.PROBE
        self.next = max(next_index, self.match + 1)
        self._reset()

    def replicate(self) -> None:
        self.pace = Pace.REPLICATE
        self.next = self.match + 1
        self._reset()

    def send_snapshot(self, meta: SnapshotMeta) -> None:
        self.pace = Pace.SNAPSHOT
        self._reset()
        self.stream = Stream(meta)

    def _reset(self) -> None:
        self.waiting = self.nudge = False
        self.inflight.clear()
        self.inflight_bytes = 0
        self.stream = None

    def sent(self, last: int, size: int) -> None:
        """Note that entries up to ``last`` were sent in one message of ``size`` bytes."""
        invariant(self.pace is Pace.REPLICATE, "only a peer whose log is known is sent to without waiting")
        self.next = last + 1
        self.inflight.append((last, size))
        self.inflight_bytes += size

    def full(self, messages_max: int, bytes_max: int) -> bool:
        return len(self.inflight) >= messages_max or self.inflight_bytes >= bytes_max

    def acknowledge(self, index: int) -> bool:
        """Note that the peer's durable log equals the leader's up to ``index``. Returns whether ``match`` has
        increased."""
        news = index > self.match
        self.match = max(self.match, index)
        self.next = max(self.next, index + 1)
        while self.inflight and self.inflight[0][0] <= index:
            self.inflight_bytes -= self.inflight.popleft()[1]
        return news

    def reject(self, index: int, hint: int) -> bool:
        """Note that the peer does not have the leader's entry at ``index``. Returns False if the answer is
        outdated.

        ``hint`` is the highest index at which the logs may agree.
        """
        if self.pace is Pace.REPLICATE:
            if index <= self.match:
                return False
            self.probe(self.match + 1)
            return True
        if self.pace is Pace.SNAPSHOT or index != self.next - 1:
            return False
        self.probe(min(index, hint + 1))
        return True


class Tracker:
    def __init__(self, configuration: Configuration = Configuration()) -> None:  # noqa: B008 (frozen)
        self.configuration = configuration
        self.progress: dict[int, Progress] = {}

    def configure(self, configuration: Configuration, last_index: int) -> None:
        """Use ``configuration``. New nodes are probed from ``last_index``; removed nodes are forgotten."""
        self.configuration = configuration
        for node in sorted(configuration.nodes - set(self.progress)):
            self.progress[node] = Progress(last_index)
            # Otherwise a node that has just joined could cost the leader its quorum before it can answer.
            self.progress[node].active = True
        for node in set(self.progress) - configuration.nodes:
            del self.progress[node]

    def reset(self, last_index: int) -> None:
        """Forget everything about the peers, as a new leader does (extended paper §5.3: nextIndex is after
        its last)."""
        self.progress = {node: Progress(last_index + 1) for node in sorted(self.configuration.nodes)}
        for progress in self.progress.values():
            progress.active = True

    def committed_index(self) -> int:
        """The index up to which a quorum has stored the log; this node's own disk counts like any other."""
        return self.configuration.quorum.committed_index(
            {node: progress.match for node, progress in self.progress.items()}
        )

    def confirmed_round(self, own: int, own_round: int) -> int:
        """The last round of heartbeats that a quorum has answered."""
        rounds = {node: progress.round for node, progress in self.progress.items()}
        return self.configuration.quorum.committed_index(rounds | {own: own_round})

    def quorum_active(self, own: int) -> bool:
        """Whether messages of a quorum were received since :meth:`forget_activity`."""
        heard = {node: node == own or progress.active for node, progress in self.progress.items()}
        return self.configuration.quorum.vote_result(heard) is VoteResult.WON

    def forget_activity(self) -> None:
        for progress in self.progress.values():
            progress.active = False
