"""Everything that is sent or stored: entries, configurations, metadata of snapshots, messages.

Frozen values that msgpack can carry (``encode``, ``decode``). A node is a positive integer; 0 means no node.
Fields may be added at the end with a default: an older node ignores them, and a newer node uses the default
if they are missing.
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
    """The purpose of an entry: data of the state machine, a new leader's first entry, or a configuration."""

    DATA = 0
    EMPTY = 1
    CONFIG = 2


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One entry of the log. ``crc`` is the CRC-32 of all other fields, computed once, by the leader."""

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
        """The approximate size on the wire and in memory, in bytes."""
        return len(self.data) + 24


def checksum(index: int, term: int, kind: Kind, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(struct.pack(">QQB", index, term, kind)))


class HardState(msgspec.Struct, frozen=True, array_like=True):
    """The values that must be stored together: the latest term seen, and the node that got this node's vote
    in it (0: none)."""

    term: Natural = 0
    vote: Natural = 0


class Configuration(msgspec.Struct, frozen=True, array_like=True):
    """The members of a cluster. ``outgoing`` is empty unless the configuration is joint.

    ``learners`` receive entries and do not count for majorities. ``learners_next`` are outgoing voters that
    become learners once the joint configuration is left. ``auto_leave``: the leader leaves the joint
    configuration without a request.
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
    """The change of one node. ``context`` belongs to the driver (for example an address); the core does not
    read it."""

    kind: ChangeKind
    node: Natural
    context: bytes = b""


class ConfigTransition(enum.IntEnum):
    """How a change is made. AUTO: one step if that is safe, otherwise joint. JOINT: joint, and left without a
    request. JOINT_EXPLICIT: joint, and left on request."""

    AUTO = 0
    JOINT = 1
    JOINT_EXPLICIT = 2


class ConfigChange(msgspec.Struct, frozen=True, array_like=True):
    """The data of a ``CONFIG`` entry. Without ``changes``, the entry leaves a joint configuration."""

    changes: tuple[Change, ...] = ()
    transition: ConfigTransition = ConfigTransition.AUTO


class SnapshotMeta(msgspec.Struct, frozen=True, array_like=True):
    """Which entries a snapshot replaces: all up to ``index``, the last of them from ``term``."""

    index: Natural = 0
    term: Natural = 0
    configuration: Configuration = Configuration()


class Header(msgspec.Struct, frozen=True, array_like=True):
    """The fields of every message. ``term`` is the sender's term; in a pre-vote and its grant, the term of
    the intended election."""

    to: Natural
    sender: Natural
    term: Natural


class PreVote(Header, frozen=True, array_like=True, tag=1):
    """Asks whether the receiver would vote for the sender (Ongaro's thesis §9.6). It changes no state of the
    receiver, and a grant does not bind."""

    last_index: Natural
    last_term: Natural


class PreVoteReply(Header, frozen=True, array_like=True, tag=2):
    granted: bool


class RequestVote(Header, frozen=True, array_like=True, tag=3):
    """Asks for a vote. ``transfer``: the leader asked for this election, so it is not rejected because of a
    lease."""

    last_index: Natural
    last_term: Natural
    transfer: bool = False


class RequestVoteReply(Header, frozen=True, array_like=True, tag=4):
    granted: bool


class Append(Header, frozen=True, array_like=True, tag=5):
    """AppendEntries: the entries after ``prev_index``, and the leader's commit index."""

    prev_index: Natural
    prev_term: Natural
    entries: tuple[Entry, ...]
    commit: Natural


class AppendReply(Header, frozen=True, array_like=True, tag=6):
    """The answer to an append. Accepted: the sender's durable log equals the leader's up to ``index``.

    Rejected: the sender's log has no such entry at ``index`` (the ``prev_index`` of the append). The logs may
    agree at ``hint_index`` or before, on an entry of ``hint_term`` or an earlier term.
    """

    index: Natural
    rejected: bool = False
    hint_index: Natural = 0
    hint_term: Natural = 0


class Heartbeat(Header, frozen=True, array_like=True, tag=7):
    """A leader's heartbeat. ``commit`` never exceeds the index that the receiver has acknowledged. ``round``
    confirms reads. ``fed``: the followers that get new entries at once, while the others get them later;
    empty if every follower gets them at once."""

    commit: Natural
    round: Natural = 0
    fed: frozenset[Natural] = frozenset()


class HeartbeatReply(Header, frozen=True, array_like=True, tag=8):
    """The answer to a heartbeat. ``fit``: the sender's disk has room and is not stalled, so leadership may be
    transferred to it."""

    round: Natural = 0
    fit: bool = True


class SnapshotChunk(Header, frozen=True, array_like=True, tag=9):
    """Bytes of the snapshot ``meta`` from ``offset`` on; ``done`` is true in the last chunk."""

    meta: SnapshotMeta
    offset: Natural
    data: bytes
    done: bool


class SnapshotReply(Header, frozen=True, array_like=True, tag=10):
    """The sender holds the first ``offset`` bytes of the snapshot at ``index``, durably."""

    index: Natural
    offset: Natural


class TimeoutNow(Header, frozen=True, array_like=True, tag=11):
    """Asks the receiver to stand for election immediately (thesis §3.10)."""


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
    """Decode a message. Raises ``msgspec.DecodeError`` (including its subclass ``ValidationError``) if
    ``frame`` is not a message."""
    message: Message = _messages.decode(frame)
    return message


def decode_change(data: bytes) -> ConfigChange:
    """Decode a change of the configuration. Raises ``msgspec.DecodeError`` if ``data`` is not one."""
    return _changes.decode(data)
