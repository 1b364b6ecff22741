"""The handshake: the identities of both sides, and the version that they use. Without IO.

::

    dialer                              listener
      │  Hello: cluster, role, number,     │
      │  name, versions, for whom,         │
      │  address, disk, end of its log     │   check_hello()
      ├───────────────────────────────────►│
      │  Welcome: cluster, number, name,   │
      │  the version from now on, disk     │
      │◄───────────────────────────────────┤   or Refused: kind, reason; then the connection closes
      │  frames of that version …          │

Frames of the handshake have version 0, which changes only by fields that are added at the end, so both sides
can decode it, however different their releases are. The version of all later frames is the lower one of the
two highest supported versions."""

from __future__ import annotations

import enum

import msgspec

from undoubt.coordinator.wire.errors import HandshakeRefusal, HandshakeRefused, RemoteProtocolError

HANDSHAKE_VERSION = 0
HANDSHAKE_BYTES_MAX = 4096
TEXT_MAX = 128


class PeerRole(enum.StrEnum):
    """The role of a process on a connection. Each side has one."""

    NODE = "node"
    CLIENT = "client"


class Versions(msgspec.Struct, frozen=True, array_like=True):
    """The versions that one side supports, from ``lowest`` to ``highest``; each from 1 to 255."""

    lowest: int
    highest: int

    def __str__(self) -> str:
        return f"{self.lowest}" if self.lowest == self.highest else f"{self.lowest} to {self.highest}"


VERSIONS = Versions(1, 3)
"""The versions that this release supports. A new version N may add fields at the end of messages, and kinds
of messages, which are sent only on connections whose version is N or higher. A release also supports the
version before its own.

Version 2 adds Paxos Commit: sessions that are bound to acceptors, and the calls to acceptors."""


class PeerIdentity(msgspec.Struct, frozen=True):
    """The identity that a side declares in the handshake."""

    role: PeerRole
    cluster_id: str = ""
    """A ledger's id; empty for a client that does not know the id yet."""
    number: int = 0
    """The number of a node, from 1; 0 for a client."""
    name: str = ""
    """A name for operators and logs."""
    address: str = ""
    """The address of a node, for peers that do not know it yet."""
    disk: str = ""
    """The id of a node's disk; the same number with another disk is another node."""
    log_index: int = -1
    """The index of the last log entry on a node's disk when it connects; -1 if the node does not send it."""

    def __str__(self) -> str:
        if self.role is PeerRole.NODE:
            return f"node {self.number}"
        return f"client {self.name}" if self.name else "a client"


class Hello(msgspec.Struct, frozen=True, array_like=True, tag="undoubt"):
    """The first frame of the side that connects. ``role`` is text, so that the refusal of an unknown role can
    name the role. ``for_number`` is the node that the dialer expects to have reached, 0 for any node."""

    cluster_id: str
    role: str
    number: int
    name: str
    versions: Versions
    for_number: int = 0
    address: str = ""
    disk: str = ""
    log_index: int = -1


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag="welcome"):
    cluster_id: str
    number: int
    name: str
    version: int
    address: str = ""
    disk: str = ""


class RefusedReply(msgspec.Struct, frozen=True, array_like=True, tag="refused"):
    refusal: str
    reason: str


encode = msgspec.msgpack.Encoder().encode
_decode_hello = msgspec.msgpack.Decoder(Hello).decode
_decode_answer = msgspec.msgpack.Decoder(Welcome | RefusedReply).decode


def hello(me: PeerIdentity, versions: Versions, for_number: int) -> bytes:
    return encode(
        Hello(
            me.cluster_id,
            me.role,
            me.number,
            me.name,
            versions,
            for_number,
            me.address,
            me.disk,
            me.log_index,
        )
    )


def welcome(me: PeerIdentity, version: int) -> bytes:
    return encode(Welcome(me.cluster_id, me.number, me.name, version, me.address, me.disk))


def refused(error: HandshakeRefused) -> bytes:
    return encode(RefusedReply(error.refusal, error.reason[:512]))


def check_hello(
    payload: bytes, me: PeerIdentity, versions: Versions, roles: frozenset[PeerRole]
) -> tuple[PeerIdentity, int]:
    """The identity of the dialer, and the version of the connection. Raises :class:`HandshakeRefused` with a
    reason that is sent to the dialer, :class:`RemoteProtocolError` or ``ValueError`` for an invalid Hello."""
    said = _decode_hello(payload)
    _check_text(said.cluster_id, said.name, said.address, said.disk)
    if said.role not in roles:
        served = " and ".join(f"{role}s" for role in sorted(roles))
        raise HandshakeRefused(
            HandshakeRefusal.ROLE, f"{me} serves {served} here, not the role {said.role[:20]!r}"
        )
    peer = PeerIdentity(
        PeerRole(said.role), said.cluster_id, said.number, said.name, said.address, said.disk, said.log_index
    )
    if peer.cluster_id != me.cluster_id and not (peer.role is PeerRole.CLIENT and peer.cluster_id == ""):
        raise HandshakeRefused(
            HandshakeRefusal.CLUSTER,
            f"{me} belongs to cluster {me.cluster_id}, {peer} asks for {peer.cluster_id or 'none'}",
        )
    if said.for_number not in {0, me.number}:
        raise HandshakeRefused(
            HandshakeRefusal.NUMBER, f"this is {me}, {peer} asks for node {said.for_number}"
        )
    if peer.role is PeerRole.NODE and (peer.number < 1 or peer.number == me.number):
        raise HandshakeRefused(
            HandshakeRefusal.NUMBER, f"this is {me}; the peer cannot be node {peer.number}"
        )
    version = min(versions.highest, said.versions.highest)
    if version < max(versions.lowest, said.versions.lowest):
        raise HandshakeRefused(
            HandshakeRefusal.VERSION,
            f"{me} supports wire version {versions}, {peer} {said.versions}; upgrade one of them step by"
            " step",
        )
    return peer, version


def check_answer(
    payload: bytes, me: PeerIdentity, versions: Versions, for_number: int
) -> tuple[PeerIdentity, int]:
    """The identity of the node that answered, and the version of the connection. Raises
    :class:`HandshakeRefused`, with the peer's reason if the peer refused, and :class:`RemoteProtocolError` or
    ``ValueError`` for an invalid answer."""
    answer = _decode_answer(payload)
    if isinstance(answer, RefusedReply):
        known = (
            HandshakeRefusal(answer.refusal)
            if answer.refusal in set(HandshakeRefusal)
            else HandshakeRefusal.OTHER
        )
        raise HandshakeRefused(known, _printable(answer.reason))
    _check_text(answer.cluster_id, answer.name, answer.address, answer.disk)
    peer = PeerIdentity(
        PeerRole.NODE, answer.cluster_id, answer.number, answer.name, answer.address, answer.disk
    )
    if me.cluster_id not in {"", peer.cluster_id}:
        raise HandshakeRefused(
            HandshakeRefusal.CLUSTER, f"{peer} belongs to cluster {peer.cluster_id}, {me} to {me.cluster_id}"
        )
    if for_number not in {0, peer.number}:
        raise HandshakeRefused(
            HandshakeRefusal.NUMBER, f"reached {peer} where node {for_number} was expected"
        )
    if not versions.lowest <= answer.version <= versions.highest:
        raise RemoteProtocolError(
            f"{peer} chose wire version {answer.version}; version {versions} was offered"
        )
    return peer, answer.version


def _check_text(*texts: str) -> None:
    """Raises ``RemoteProtocolError`` for texts that are too long or not printable: they are logged, and must
    not forge log lines."""
    for text in texts:
        if len(text) > TEXT_MAX or not text.isprintable():
            raise RemoteProtocolError(f"a name is not printable or too long: {text[:20]!r}")


def _printable(text: str) -> str:
    return text if text.isprintable() else repr(text)
