"""Everything that enters, leaves or is kept: entries, configurations, snapshots' metadata, messages.

Frozen values that msgpack can carry (``encode``, ``decode``). A node is a positive integer; 0 is nobody.
Fields may be added at the end with a default: an older node skips them, a newer one fills them in.
"""

from __future__ import annotations

import enum
import struct
import zlib
from typing import Annotated

import msgspec

from undoubt.coordinator.quorum import Joint

NATURAL_MAX = 2**63 - 1
Natural = Annotated[int, msgspec.Meta(ge=0, le=NATURAL_MAX)]
Checksum = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]


class Kind(enum.IntEnum):
    """What an entry is for: the state machine's data, a new leader's first entry, or a configuration."""

    DATA = 0
    EMPTY = 1
    CONFIG = 2


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One entry of the log. ``crc`` is CRC-32 over everything else, computed once, by the leader."""

    index: Natural
    term: Natural
    kind: Kind
    data: bytes
    crc: Checksum

    @classmethod
    def make(cls, index: int, term: int, data: bytes = b"", kind: Kind = Kind.DATA) -> Entry:
        return cls(index, term, kind, data, checksum(index, term, kind, data))

    @property
    def intact(self) -> bool:
        return self.crc == checksum(self.index, self.term, self.kind, self.data)

    @property
    def size(self) -> int:
        """Bytes, roughly, on the wire and in memory."""
        return len(self.data) + 24


def checksum(index: int, term: int, kind: Kind, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(struct.pack(">QQB", index, term, kind)))


class HardState(msgspec.Struct, frozen=True, array_like=True):
    """What must survive together: the latest term seen, and who got this node's vote in it (0: nobody)."""

    term: Natural = 0
    vote: Natural = 0


class Configuration(msgspec.Struct, frozen=True, array_like=True):
    """Who takes part. ``outgoing`` is empty unless the configuration is joint.

    ``learners`` receive entries and count for nothing. ``learners_next`` are outgoing voters that become
    learners once the joint configuration is left. ``auto_leave``: the leader leaves it by itself.
    """

    incoming: frozenset[Natural] = frozenset()
    outgoing: frozenset[Natural] = frozenset()
    learners: frozenset[Natural] = frozenset()
    learners_next: frozenset[Natural] = frozenset()
    auto_leave: bool = False

    @property
    def joint(self) -> bool:
        return bool(self.outgoing)

    @property
    def quorum(self) -> Joint:
        return Joint(self.incoming, self.outgoing)

    @property
    def voters(self) -> frozenset[int]:
        return self.incoming | self.outgoing

    @property
    def nodes(self) -> frozenset[int]:
        return self.incoming | self.outgoing | self.learners


class ChangeKind(enum.IntEnum):
    ADD_VOTER = 0
    ADD_LEARNER = 1
    REMOVE = 2
    UPDATE = 3


class Change(msgspec.Struct, frozen=True, array_like=True):
    """One node's change. ``context`` is the driver's own (an address, say); the core only carries it."""

    kind: ChangeKind
    node: Natural
    context: bytes = b""


class ConfigTransition(enum.IntEnum):
    """How to get there: one step where that is safe, else joint; or joint, left by itself or on request."""

    AUTO = 0
    JOINT = 1
    JOINT_EXPLICIT = 2


class ConfigChange(msgspec.Struct, frozen=True, array_like=True):
    """The data of a ``CONFIG`` entry. Without ``changes`` it leaves a joint configuration."""

    changes: tuple[Change, ...] = ()
    transition: ConfigTransition = ConfigTransition.AUTO


class SnapshotMeta(msgspec.Struct, frozen=True, array_like=True):
    """What a snapshot stands for: all entries up to ``index``, the last of them from ``term``."""

    index: Natural = 0
    term: Natural = 0
    configuration: Configuration = Configuration()


class Header(msgspec.Struct, frozen=True, array_like=True):
    """Of every message. ``term`` is the sender's, but the hoped-for one in a pre-vote and its grant."""

    to: Natural
    sender: Natural
    term: Natural


class PreVote(Header, frozen=True, array_like=True, tag=1):
    """Would you vote for me? (Ongaro's thesis §9.6) Promises nothing and changes nothing."""

    last_index: Natural
    last_term: Natural


class PreVoteReply(Header, frozen=True, array_like=True, tag=2):
    granted: bool


class RequestVote(Header, frozen=True, array_like=True, tag=3):
    """RequestVote. ``transfer``: the leader asked for this election, so no lease stands in its way."""

    last_index: Natural
    last_term: Natural
    transfer: bool = False


class RequestVoteReply(Header, frozen=True, array_like=True, tag=4):
    granted: bool


class Append(Header, frozen=True, array_like=True, tag=5):
    """AppendEntries: what follows the entry at ``prev_index``, and how far the leader has committed."""

    prev_index: Natural
    prev_term: Natural
    entries: tuple[Entry, ...]
    commit: Natural


class AppendReply(Header, frozen=True, array_like=True, tag=6):
    """Accepted: the sender's durable log equals the leader's up to ``index``.

    Rejected: there is no such entry at ``index`` (the ``prev_index`` asked for), but there may be one of
    ``hint_term`` or an earlier term at ``hint_index`` or before.
    """

    index: Natural
    rejected: bool = False
    hint_index: Natural = 0
    hint_term: Natural = 0


class Heartbeat(Header, frozen=True, array_like=True, tag=7):
    """``commit`` never exceeds what the receiver has acknowledged. ``round`` confirms reads."""

    commit: Natural
    round: Natural = 0


class HeartbeatReply(Header, frozen=True, array_like=True, tag=8):
    """``fit``: the sender's disk has room and is not stalled, so that leadership may be handed to it."""

    round: Natural = 0
    fit: bool = True


class SnapshotChunk(Header, frozen=True, array_like=True, tag=9):
    """Bytes of the snapshot ``meta`` from ``offset`` on; ``done`` with the last."""

    meta: SnapshotMeta
    offset: Natural
    data: bytes
    done: bool


class SnapshotReply(Header, frozen=True, array_like=True, tag=10):
    """The sender holds the first ``offset`` bytes of the snapshot at ``index``, durably."""

    index: Natural
    offset: Natural


class TimeoutNow(Header, frozen=True, array_like=True, tag=11):
    """Stand for election at once (thesis §3.10)."""


Message = (
    PreVote
    | PreVoteReply
    | RequestVote
    | RequestVoteReply
    | Append
    | AppendReply
    | Heartbeat
    | HeartbeatReply
    | SnapshotChunk
    | SnapshotReply
    | TimeoutNow
)

_encoder = msgspec.msgpack.Encoder(order="deterministic")
_messages = msgspec.msgpack.Decoder(Message)
_changes = msgspec.msgpack.Decoder(ConfigChange)


def encode(value: Message | ConfigChange | Entry | HardState | SnapshotMeta) -> bytes:
    return _encoder.encode(value)


def decode(frame: bytes) -> Message:
    """Raises ``msgspec.DecodeError`` (its subclass ``ValidationError`` included) for anything else."""
    message: Message = _messages.decode(frame)
    return message


def decode_change(data: bytes) -> ConfigChange:
    """Raises ``msgspec.DecodeError`` for what is not one."""
    return _changes.decode(data)
