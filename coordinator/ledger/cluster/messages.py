"""The messages between clients and nodes: frames of many requests, frames of many answers.

A frame is a msgpack array: the calls of all callers of a process in one turn of its loop are sent together,
and so are the answers. The first message on a connection is the node's
:class:`~undoubt.coordinator.rpc.envelope.LeaderHint`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Generic, Literal, TypeVar

import msgspec

from undoubt.coordinator import paxos
from undoubt.coordinator.ledger.calls import ALL_CALLS
from undoubt.coordinator.ledger.commands import FIRST_VERSION, PAXOS_VERSION, TAGS_VERSION, MovingCommand
from undoubt.coordinator.ledger.contract import Act
from undoubt.coordinator.ledger.move_mark import MoveStatus
from undoubt.coordinator.rpc import envelope
from undoubt.coordinator.rpc.calls import AnyCall, Call, any_of, reply_decoders
from undoubt.coordinator.rpc.envelope import Request, requests_of
from undoubt.coordinator.wire.rights import Right
from undoubt.participants.ids import TxId

R_co = TypeVar("R_co", covariant=True)

NODE_NUMBER_MAX = 65_535
CHANGES_MAX = 1_000
SESSIONS_MAX = 100_000
"""Most sessions in one :class:`HeldCall`."""

_Node = Annotated[int, msgspec.Meta(ge=1, le=NODE_NUMBER_MAX)]
_Short = Annotated[str, msgspec.Meta(max_length=1_000)]


class NodeCall(Call[R_co], Generic[R_co], frozen=True):
    """Base of the calls that concern nodes rather than the ledger."""


class PeerStatus(msgspec.Struct, frozen=True):
    """A member as the leader sees it: ``match`` is the index up to which its log is known to equal the
    leader's, ``pace`` is how the leader sends to it, ``version`` is the version of its connection to the
    leader, 0 if it is not connected."""

    node: int
    match: int
    pace: str
    active: bool
    version: int = 0


class NodeStatus(msgspec.Struct, frozen=True):
    """The status of one node. ``nodes`` maps members to addresses. ``leader`` 0: unknown. ``peers`` is empty
    unless the node leads."""

    cluster: str
    ledger_id: str
    node: int
    disk: str
    role: str
    term: int
    leader: int
    last_index: int
    commit_index: int
    applied_index: int
    snapshot_index: int
    disk_full: bool
    voters: tuple[int, ...]
    outgoing_voters: tuple[int, ...]
    learners: tuple[int, ...]
    nodes: dict[int, str]
    peers: tuple[PeerStatus, ...]
    unfinished: int
    sessions: int
    version: str
    certificate_until: float = 0.0
    """When the node's certificate expires, in seconds since 1970; 0 without TLS."""
    agreed_version: int = FIRST_VERSION
    """The version that all members have agreed on, as far as this node has applied it."""
    highest_version: int = FIRST_VERSION
    """The highest version that this node supports."""
    disk_stalled: bool = False
    """Whether a write has been under way for longer than an election timeout."""
    state_hashes: dict[int, str] = {}
    """SHA-256 of the node's state, by index of the log, for the last indexes at which all nodes hash their
    states."""


class MemberChange(msgspec.Struct, frozen=True, array_like=True):
    """One node of :class:`ChangeMembersCall`. ``address``, ``disk`` and ``version`` (the highest
    supported) are set for a node that is added."""

    kind: Literal["add", "promote", "remove"]
    node: _Node
    address: _Short = ""
    disk: _Short = ""
    version: Annotated[int, msgspec.Meta(ge=1, le=255)] = FIRST_VERSION


class BackupPiece(msgspec.Struct, frozen=True, array_like=True):
    """One piece of an image. ``index`` and ``term`` are those of the last log entry in the image; ``size`` is
    the size of the whole image in bytes."""

    index: int
    term: int
    size: int
    data: bytes


class StatusCall(NodeCall[NodeStatus], frozen=True, tag="status"):
    """Returns the status of the node that receives it, whether or not it leads, as :class:`NodeStatus`."""


class AcceptorCall(NodeCall[paxos.AcceptorReply], frozen=True, tag="acceptor"):
    """A request to the receiving node as an acceptor of Paxos Commit. Answered with a
    ``coordinator.paxos.AcceptorReply``."""

    request: paxos.AcceptorRequest
    right: ClassVar[Right] = Right.TRANSACT
    version: ClassVar[int] = PAXOS_VERSION


class ChangeMembersCall(NodeCall[NodeStatus], frozen=True, tag="members"):
    """Changes the members, in one step; for the leader; may be repeated. Answered with :class:`NodeStatus`
    once only the new configuration is in force. Refused with ``ClusterNotReady`` as long as a promoted node
    is behind."""

    changes: Annotated[tuple[MemberChange, ...], msgspec.Meta(max_length=CHANGES_MAX)]
    act: Act | None = None
    """The act to record; the node adds the name in the certificate."""
    right: ClassVar[Right] = Right.OPERATE

    def since(self) -> int:
        return FIRST_VERSION if self.act is None else TAGS_VERSION


class TransferCall(NodeCall[NodeStatus], frozen=True, tag="transfer"):
    """Transfers the leadership to ``to``, or to the most suitable node if ``to`` is 0; for the leader.
    Answered with :class:`NodeStatus`. ``leaves`` is the node that led when the call was first sent: if the
    call is repeated at another leader, that leader does not give up the leadership as well."""

    to: int
    leaves: int
    act: Act | None = None
    """As in :class:`ChangeMembersCall`."""
    right: ClassVar[Right] = Right.OPERATE

    def since(self) -> int:
        return FIRST_VERSION if self.act is None else TAGS_VERSION


class SnapshotCall(NodeCall[int], frozen=True, tag="snapshot"):
    """Has the receiving node, whether or not it leads, store a snapshot now. Answered with its index."""

    right: ClassVar[Right] = Right.OPERATE


class BackupCall(NodeCall[BackupPiece], frozen=True, tag="backup"):
    """Reads a piece of the state from the leader. At offset 0 the leader makes an image that contains all
    changes that were answered before; it is kept for this connection until the last piece is read or the
    connection ends. Answered with :class:`BackupPiece`."""

    offset: int
    act: Act | None = None
    """As in :class:`ChangeMembersCall`; only at offset 0."""
    right: ClassVar[Right] = Right.OPERATE

    def since(self) -> int:
        return FIRST_VERSION if self.act is None else TAGS_VERSION


class HeldCall(NodeCall[list[TxId]], frozen=True, tag="held"):
    """Lists the transactions of ``sessions``, which have ended, that the receiving node keeps as an acceptor
    and that are not in the ledger as far as that node has applied it. Answered with transaction ids in
    ascending order, only the first ones if there are many: the caller repeats the call with ``after`` set to
    the last id, until the answer is empty."""

    sessions: Annotated[tuple[int, ...], msgspec.Meta(max_length=SESSIONS_MAX)]
    after: TxId | None = None
    right: ClassVar[Right] = Right.OPERATE
    version: ClassVar[int] = PAXOS_VERSION


class MoveCall(NodeCall[MoveStatus], frozen=True, tag="move"):
    """Applies a command of a move of the ledger, if there is one; for the leader, whether or not the ledger
    lives there. Answered with :class:`~undoubt.coordinator.ledger.move_mark.MoveStatus`. May be repeated."""

    command: MovingCommand | None = None
    right: ClassVar[Right] = Right.OPERATE
    version: ClassVar[int] = TAGS_VERSION


OperatorCall = StatusCall | ChangeMembersCall | TransferCall | SnapshotCall | BackupCall | HeldCall

_ANY = any_of(ALL_CALLS, NodeCall)

decode_requests: Callable[[bytes], list[Request[AnyCall]]] = msgspec.msgpack.Decoder(
    requests_of(_ANY, many=True)
).decode
"""Decodes a frame whose :func:`~undoubt.coordinator.rpc.server.message_count` was checked before."""
decode_call: Callable[[bytes], AnyCall] = msgspec.msgpack.Decoder(_ANY).decode


def decode_each(payload: bytes) -> tuple[list[Request[AnyCall]], list[envelope.Failed]]:
    """Decode a frame that ``decode_requests`` refused: the requests that can be decoded, and an error for
    each of the others. Raises ``ValueError`` if the payload is not a frame of requests."""
    read: list[Request[AnyCall]] = []
    refused: list[envelope.Failed] = []
    for request in envelope.decode_all_unread(payload):
        try:
            read.append(Request(request.number, decode_call(request.call)))
        except (ValueError, RecursionError) as error:
            refused.append(envelope.unreadable(request.number, error))
    return read, refused


DECODE_REPLY = reply_decoders(ALL_CALLS, NodeCall)
"""The decoders of replies, by the class of the call."""
decode_reply: Callable[[msgspec.Raw], paxos.AcceptorReply] = DECODE_REPLY[AcceptorCall]
