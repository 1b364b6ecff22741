"""What the driver must do next, in one value; and the bookkeeping of writes that are under way."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import msgspec

from undoubt.coordinator.raft.messages import (
    AppendReply,
    Entry,
    HardState,
    Message,
    SnapshotChunk,
    SnapshotMeta,
)
from undoubt.participants.invariant import invariant


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
