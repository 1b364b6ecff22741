"""The settings of a node. ``undoubt.config`` loads them."""

from __future__ import annotations

import msgspec

from undoubt.coordinator.raft import RaftSettings
from undoubt.coordinator.wire import VERSIONS, Versions
from undoubt.participants.bounds import OutOfBounds, count, path, seconds, text, texts

UNCOMMITTED_BYTES_MAX = 8 * 1024 * 1024
"""The limit for uncommitted entries. A node has to store these entries before later votes. So they must fit
into the space that is released on a full disk (:mod:`.storage.reserve`), together with a new segment."""


class NodeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One member of the cluster that keeps the ledger. Times are in seconds."""

    number: int = 0
    """The number of this node. A number is used only once: a node that replaces a dead node gets a new
    number."""
    listen: str = ""
    """``host:port`` for peers and clients. Empty: the address that the ledger's URL gives this number."""
    peers: tuple[str, ...] = ()
    """The first nodes' addresses in the order of their numbers, for `undoubt cluster init`. Empty: those of
    the ledger's URL. The cluster itself keeps the addresses of later members."""
    data: str = "undoubt-node"
    """The folder in which the node stores its data."""
    heartbeat_s: float = 0.1
    election_timeout_s: float = 1.0
    """A leader is replaced if no message of it is received for this time (up to twice this time)."""
    snapshot_log_bytes: int = 8 * 1024 * 1024
    """A snapshot is stored once this many bytes of the log, and more than the size of the last snapshot, were
    applied after the last snapshot."""
    trailing_entries: int = 1_000
    """The number of entries that are kept before a snapshot's index, so that a node that is slightly behind
    needs no snapshot."""
    console: bool = False
    """Whether the process of this node serves the console, as the section ``console`` says."""
    health: str = ""
    """``host:port`` at which the process of this node serves its health and its metrics; empty: nowhere."""
    version_max: int = 0
    """The highest version that this node supports, so that a return to the previous release stays possible;
    0: the highest version of this release."""

    def __post_init__(self) -> None:
        count("number", self.number)
        text("listen", self.listen)
        texts("peers", self.peers)
        text("health", self.health)
        path("data", self.data)
        seconds("heartbeat_s", self.heartbeat_s, zero=False)
        seconds("election_timeout_s", self.election_timeout_s, zero=False)
        if not 0 < self.heartbeat_s * 2 <= self.election_timeout_s:
            raise OutOfBounds("election_timeout_s", "must be at least twice heartbeat_s, and both positive")
        count("snapshot_log_bytes", self.snapshot_log_bytes, least=1, most=2**40)
        count("trailing_entries", self.trailing_entries)
        count("version_max", self.version_max)
        if self.version_max and not VERSIONS.lowest <= self.version_max <= VERSIONS.highest:
            raise OutOfBounds(
                "version_max", f"must be a version that this release supports, {VERSIONS}; 0: the newest"
            )

    @property
    def supported(self) -> Versions:
        return Versions(VERSIONS.lowest, self.version_max or VERSIONS.highest)

    @property
    def raft(self) -> RaftSettings:
        ticks = max(round(self.election_timeout_s / self.heartbeat_s), 2)
        return RaftSettings(
            election_ticks=ticks,
            heartbeat_ticks=1,
            lazy=True,
            learners_first=True,
            disk_stall_ticks=ticks,
            snapshot_retry_ticks=ticks,
            trailing_entries=self.trailing_entries,
            apply_bytes_max=512 * 1024,
            uncommitted_bytes_max=UNCOMMITTED_BYTES_MAX,
        )
