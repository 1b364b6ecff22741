"""The settings of the consensus core. Times are in ticks; the driver decides how long a tick is."""

from __future__ import annotations

import msgspec


class RaftSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The settings of one node. The ``*_ticks`` must be the same on every node of a cluster.

    Each election timeout is drawn randomly from ``[election_ticks, 2 * election_ticks)``, so that split votes
    are rare (Ongaro and Ousterhout, extended version, §5.2).
    """

    election_ticks: int = 10
    heartbeat_ticks: int = 1
    lazy: bool = False
    """True if a leader sends new entries at once only to as many followers as a quorum needs, and to the
    others with the next heartbeat, or when the driver calls ``Raft.hurry``."""
    learners_first: bool = False
    """True if new members become voters only once they have entries. Then a voter with an empty log has lost
    its log, and with it its votes and acknowledgements, so it grants no vote."""
    disk_stall_ticks: int = 10
    """A leader steps down if one of its writes takes this long."""
    snapshot_retry_ticks: int = 10
    """A chunk of a snapshot is sent again if it is not acknowledged for this long."""
    append_bytes_max: int = 1024 * 1024
    """The limit for the entries in one message; a single entry is sent whatever its size."""
    inflight_messages_max: int = 64
    inflight_bytes_max: int = 8 * 1024 * 1024
    """The limits for unacknowledged appends to one peer: messages, and bytes."""
    apply_bytes_max: int = 4 * 1024 * 1024
    """The limit for the committed entries in one ``Ready``."""
    uncommitted_bytes_max: int = 64 * 1024 * 1024
    """A leader with this many uncommitted bytes or more refuses proposals, so that its memory is bounded."""
    trailing_entries: int = 10_000
    """The number of entries that are kept before a snapshot's index, so that a peer that is slightly behind
    needs no snapshot."""
    trailing_bytes_max: int = 16 * 1024 * 1024
    """The limit for the bytes of these entries, so that a node's memory is bounded."""

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
