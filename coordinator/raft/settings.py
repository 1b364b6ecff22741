"""What can be set about the consensus core. Times are in ticks: the driver decides how long a tick is."""

from __future__ import annotations

import msgspec


class RaftSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The same on every node of a cluster, as far as the ``*_ticks`` are concerned.

    An election timeout is drawn anew each time from ``[election_ticks, 2 * election_ticks)``, so that
    split votes are rare (Ongaro and Ousterhout, extended version, §5.2).
    """

    election_ticks: int = 10
    heartbeat_ticks: int = 1
    learners_first: bool = False
    """New members are made voters only once they hold something. Then a voter whose log is empty has lost it,
    and what it has voted and acknowledged besides: it gives its vote to nobody."""
    disk_stall_ticks: int = 10
    """A leader one of whose writes takes longer than this steps down."""
    snapshot_retry_ticks: int = 10
    """A chunk of a snapshot that is not acknowledged for so long is sent again."""
    append_bytes_max: int = 1024 * 1024
    """Entries in one message; one entry is sent however large it is."""
    inflight_messages_max: int = 64
    inflight_bytes_max: int = 8 * 1024 * 1024
    """How much may be under way to one peer without an acknowledgement: by messages, and by bytes."""
    apply_bytes_max: int = 4 * 1024 * 1024
    """Committed entries in one ``Ready``."""
    uncommitted_bytes_max: int = 64 * 1024 * 1024
    """A leader with more than this uncommitted refuses proposals, so that its memory is bounded."""
    trailing_entries: int = 10_000
    """Entries kept behind a snapshot, so that a peer that is a little late needs no snapshot."""
    trailing_bytes_max: int = 16 * 1024 * 1024
    """No more of them than this, so that a node's memory is bounded."""

    def __post_init__(self) -> None:
        if self.heartbeat_ticks < 1 or self.election_ticks <= self.heartbeat_ticks:
            raise ValueError("election_ticks must be greater than heartbeat_ticks, and both positive")
        positive = (
            self.disk_stall_ticks,
            self.snapshot_retry_ticks,
            self.append_bytes_max,
            self.inflight_messages_max,
            self.inflight_bytes_max,
            self.apply_bytes_max,
            self.uncommitted_bytes_max,
            self.trailing_bytes_max,
        )
        if min(positive) < 1 or self.trailing_entries < 0:
            raise ValueError("sizes and limits must be positive")
