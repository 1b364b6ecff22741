"""What clients and nodes say to each other: frames of many requests, frames of many answers.

A frame is a msgpack array: what all callers of a process ask for within one turn of its loop travels
together, and so do the answers. The node speaks first, with its
:class:`~undoubt.coordinator.rpc.envelope.LeaderHint`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Generic, Literal, TypeVar

import msgspec

from undoubt.coordinator import paxos
from undoubt.coordinator.ledger import calls
from undoubt.coordinator.ledger.commands import FIRST_VERSION, PAXOS_VERSION, TAGS_VERSION
from undoubt.coordinator.ledger.contract import Act
from undoubt.coordinator.rpc import envelope
from undoubt.coordinator.rpc.calls import AnyCall, Call, any_of, reply_decoders
from undoubt.coordinator.rpc.envelope import Request, requests_of
from undoubt.coordinator.wire.rights import Right
from undoubt.participants.ids import TxId

R_co = TypeVar("R_co", covariant=True)

NODE_NUMBER_MAX = 65_535
CHANGES_MAX = 1_000
SESSIONS_MAX = 100_000
"""In one :class:`HeldCall`."""

_Node = Annotated[int, msgspec.Meta(ge=1, le=NODE_NUMBER_MAX)]
_Short = Annotated[str, msgspec.Meta(max_length=1_000)]


class NodeCall(Call[R_co], Generic[R_co], frozen=True):
    """Base of the calls about the nodes rather than the ledger."""


class PeerStatus(msgspec.Struct, frozen=True):
    """A member as the leader sees it: ``match`` is the index up to which its disk is known to equal the
    leader's, ``pace`` how it is being fed, ``version`` what it speaks with the leader, 0 while it is not
    connected."""

    node: int
    match: int
    pace: str
    active: bool
    version: int = 0


class NodeStatus(msgspec.Struct, frozen=True):
    """``nodes`` maps members to addresses. ``leader`` 0: unknown. ``peers`` is empty unless it leads."""

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
    """When the certificate that it shows ends, in seconds since 1970; 0 without TLS."""
    agreed_version: int = FIRST_VERSION
    """What all members have agreed to know, as far as this node has applied it."""
    highest_version: int = FIRST_VERSION
    """What this node speaks at most."""
    disk_stalled: bool = False
    """A write takes longer than an election timeout, and is not done."""
    state_hashes: dict[int, str] = {}
    """SHA-256 of its state, by index of the log: the last places at which all nodes hash theirs."""


class MemberChange(msgspec.Struct, frozen=True, array_like=True):
    """One node of :class:`ChangeMembersCall`. ``address``, ``disk`` and ``version``, the highest that it
    speaks, are of one that is added."""

    kind: Literal["add", "promote", "remove"]
    node: _Node
    address: _Short = ""
    disk: _Short = ""
    version: Annotated[int, msgspec.Meta(ge=1, le=255)] = FIRST_VERSION


class BackupPiece(msgspec.Struct, frozen=True, array_like=True):
    """``index`` and ``term`` are the log's up to which the image goes; ``size`` is that of all of it."""

    index: int
    term: int
    size: int
    data: bytes


class StatusCall(NodeCall[NodeStatus], frozen=True, tag="status"):
    """How is this very node? Answered by whoever is asked, with :class:`NodeStatus`."""


class AcceptorCall(NodeCall[paxos.AcceptorReply], frozen=True, tag="acceptor"):
    """To this very node as an acceptor of Paxos Commit. Answered with a
    ``coordinator.paxos.AcceptorReply``."""

    request: paxos.AcceptorRequest
    right: ClassVar[Right] = Right.TRANSACT
    version: ClassVar[int] = PAXOS_VERSION


class ChangeMembersCall(NodeCall[NodeStatus], frozen=True, tag="members"):
    """For the leader; may be repeated. All changes become one. Answered with :class:`NodeStatus` once the new
    configuration is in force alone, and refused with ``ClusterNotReady`` while who is promoted is behind."""

    changes: Annotated[tuple[MemberChange, ...], msgspec.Meta(max_length=CHANGES_MAX)]
    act: Act | None = None
    """Whose doing it is, for the record; the node adds the certificate."""
    right: ClassVar[Right] = Right.OPERATE

    def since(self) -> int:
        return FIRST_VERSION if self.act is None else TAGS_VERSION


class TransferCall(NodeCall[NodeStatus], frozen=True, tag="transfer"):
    """For the leader: let ``to`` lead, or whoever is best if that is 0. Answered with :class:`NodeStatus`.
    ``leaves`` leads when this is first asked: asked again, another one does not leave as well."""

    to: int
    leaves: int
    act: Act | None = None
    """As of :class:`ChangeMembersCall`."""
    right: ClassVar[Right] = Right.OPERATE

    def since(self) -> int:
        return FIRST_VERSION if self.act is None else TAGS_VERSION


class SnapshotCall(NodeCall[int], frozen=True, tag="snapshot"):
    """Store a snapshot now. For whoever is asked, whether or not it leads; answered with the index."""

    right: ClassVar[Right] = Right.OPERATE


class BackupCall(NodeCall[BackupPiece], frozen=True, tag="backup"):
    """A piece of the state, all of which everybody was told is in, from the leader: at offset 0 an image is
    made, which this connection keeps until the last piece or its end. Answered with :class:`BackupPiece`."""

    offset: int
    act: Act | None = None
    """As of :class:`ChangeMembersCall`; at offset 0."""
    right: ClassVar[Right] = Right.OPERATE

    def since(self) -> int:
        return FIRST_VERSION if self.act is None else TAGS_VERSION


class HeldCall(NodeCall[list[TxId]], frozen=True, tag="held"):
    """To this very node as an acceptor: what it keeps of ``sessions``, which have ended, and the ledger does
    not hold, as far as it is applied here. Answered with transaction ids in ascending order, the first of
    them if there are many: ask again for those ``after`` the last, until there is none."""

    sessions: Annotated[tuple[int, ...], msgspec.Meta(max_length=SESSIONS_MAX)]
    after: TxId | None = None
    right: ClassVar[Right] = Right.OPERATE
    version: ClassVar[int] = PAXOS_VERSION


OperatorCall = StatusCall | ChangeMembersCall | TransferCall | SnapshotCall | BackupCall | HeldCall

_ANY = any_of(calls.LedgerCall, NodeCall)

decode_requests: Callable[[bytes], list[Request[AnyCall]]] = msgspec.msgpack.Decoder(
    requests_of(_ANY, many=True)
).decode
"""Of a frame whose :func:`~undoubt.coordinator.rpc.envelope.size` was looked at first."""
decode_call: Callable[[bytes], AnyCall] = msgspec.msgpack.Decoder(_ANY).decode


def decode_each(payload: bytes) -> tuple[list[Request[AnyCall]], list[envelope.Failed]]:
    """As ``decode_requests``, which did not take all of it: what can be read, and a refusal for each request
    that cannot. Raises ``ValueError`` for what is no frame of requests."""
    read: list[Request[AnyCall]] = []
    refused: list[envelope.Failed] = []
    for request in envelope.decode_all_unread(payload):
        try:
            read.append(Request(request.number, decode_call(request.call)))
        except (ValueError, RecursionError) as error:
            refused.append(envelope.unreadable(request.number, error))
    return read, refused


DECODE_REPLY = reply_decoders(calls.LedgerCall, NodeCall)
"""By the type of the call."""
decode_reply: Callable[[msgspec.Raw], paxos.AcceptorReply] = DECODE_REPLY[AcceptorCall]
