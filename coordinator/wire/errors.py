"""What can go wrong between two processes: their fault, ours, or a disagreement that both are told of."""

from __future__ import annotations

import enum


class RemoteProtocolError(Exception):
    """The peer sent what cannot be a frame, or not one of this protocol."""


class LocalProtocolError(Exception):
    """This side was about to send what the peer would not take: a bug, or a batch that grew too large."""


class TlsUnusable(Exception):
    """Certificates or keys of this side are of no use; the message names the file."""


class HandshakeRefusal(enum.StrEnum):
    """Why a handshake was refused. A peer of another version may know more of them."""

    CLUSTER = "cluster"  # another cluster's
    ROLE = "role"  # such peers are not served here
    NUMBER = "number"  # not the node that was meant, or no node's number
    VERSION = "version"  # no version that both speak
    SET_BACK = "set_back"  # it has acknowledged more than its log holds
    REMOVED = "removed"  # it was a member, and is none any more
    CERTIFICATE = "certificate"  # it names somebody else
    BUSY = "busy"  # too many connections
    OTHER = "other"  # the reason says it


class HandshakeRefused(Exception):
    """One side does not want to speak with the other. ``reason`` is for people, and was sent across."""

    def __init__(self, refusal: HandshakeRefusal, reason: str) -> None:
        super().__init__(reason)
        self.refusal = refusal
        self.reason = reason
