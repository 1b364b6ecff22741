"""The errors of connections: an error of the peer, an error of this side, a refused handshake."""

from __future__ import annotations

import enum


class RemoteProtocolError(Exception):
    """The peer sent bytes that are not a frame, or not a valid message of this protocol."""


class LocalProtocolError(Exception):
    """This side was about to send a frame that the peer would refuse: a bug, or a batch that grew too
    large."""


class TlsUnusable(Exception):
    """A certificate or key of this side cannot be used; the message names the file."""


class HandshakeRefusal(enum.StrEnum):
    """Why a handshake was refused. A peer of a newer version may send other values."""

    CLUSTER = "cluster"  # the peer belongs to another cluster
    ROLE = "role"  # peers of this role are not served here
    NUMBER = "number"  # not the expected node, or not a valid number of a node
    VERSION = "version"  # no version that both support
    SET_BACK = "set_back"  # the node has acknowledged more than its log holds
    REMOVED = "removed"  # the node was a member, and no longer is
    CERTIFICATE = "certificate"  # the certificate does not belong to the peer
    BUSY = "busy"  # too many connections
    OTHER = "other"  # only the reason text says it


class HandshakeRefused(Exception):
    """One side refused the handshake. ``reason`` is a text for operators; both sides have it."""

    def __init__(self, refusal: HandshakeRefusal, reason: str) -> None:
        super().__init__(reason)
        self.refusal = refusal
        self.reason = reason
