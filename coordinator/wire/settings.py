"""The settings of connections. ``undoubt.config`` loads them."""

from __future__ import annotations

import msgspec

from undoubt.coordinator.wire.tls import TlsSettings
from undoubt.participants.bounds import count, seconds

FRAME_BYTES_MAX = 64 * 1024 * 1024


class WireSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds on the memory and time that a peer can use in this process. Times are in seconds."""

    handshake_s: float = 5.0
    """A connection whose handshake takes longer is closed."""
    frame_bytes_max: int = FRAME_BYTES_MAX
    unsent_bytes_max: int = 2 * FRAME_BYTES_MAX
    """A connection whose peer leaves more bytes unread is closed."""
    clients_max: int = 4096
    """Most connections of clients to one port; further ones are refused."""
    tls: TlsSettings | None = None
    """Without TLS any process that reaches the port is believed."""
    review_s: float = 5.0
    """How often the certificate of a connected peer is looked up in the list of revoked ones, if there is a
    list."""
    strangers_max: int = 256
    """Most connections to one port before their handshake; a further one closes the oldest."""

    def __post_init__(self) -> None:
        seconds("handshake_s", self.handshake_s, zero=False)
        seconds("review_s", self.review_s, zero=False)
        count("frame_bytes_max", self.frame_bytes_max, least=1024)
        count("clients_max", self.clients_max, least=1)
        count("strangers_max", self.strangers_max, least=1)
        if self.unsent_bytes_max < self.frame_bytes_max:
            raise ValueError("unsent_bytes_max must not be less than frame_bytes_max")
