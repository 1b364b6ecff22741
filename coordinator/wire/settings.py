"""What can be set about connections. ``undoubt.config`` loads it."""

from __future__ import annotations

import msgspec

from undoubt.coordinator.wire.tls import TlsSettings
from undoubt.participants.bounds import count, seconds

FRAME_BYTES_MAX = 64 * 1024 * 1024


class WireSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds on what a peer can make this process keep, and for how long. Times are in seconds."""

    handshake_s: float = 5.0
    """A peer that has not said who it is by then is cut off."""
    frame_bytes_max: int = FRAME_BYTES_MAX
    unsent_bytes_max: int = 2 * FRAME_BYTES_MAX
    """A peer that leaves more than that unread is cut off."""
    clients_max: int = 4096
    """Connections of clients to one port; the others are refused."""
    tls: TlsSettings | None = None
    """Without it everybody who reaches the port is believed."""
    strangers_max: int = 256
    """Connections to one port that have not said who they are; the oldest makes room for the newest."""

    def __post_init__(self) -> None:
        seconds("handshake_s", self.handshake_s, zero=False)
        count("frame_bytes_max", self.frame_bytes_max, least=1024)
        count("clients_max", self.clients_max, least=1)
        count("strangers_max", self.strangers_max, least=1)
        if self.unsent_bytes_max < self.frame_bytes_max:
            raise ValueError("unsent_bytes_max must not be less than frame_bytes_max")
