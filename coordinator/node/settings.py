"""What can be set about a node. ``undoubt.config`` loads it."""

from __future__ import annotations

import msgspec

from undoubt.coordinator.raft import RaftSettings
from undoubt.coordinator.wire import VERSIONS, Versions
from undoubt.participants.bounds import OutOfBounds, count, path, seconds, text, texts

UNCOMMITTED_BYTES_MAX = 8 * 1024 * 1024
"""A node has to store what is under way before the votes behind it. So it must fit into what is given up on a
full disk (:mod:`.storage.reserve`), with a segment that is begun for it."""


class NodeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One member of the cluster that keeps the ledger. Times are in seconds."""

    number: int = 0
    """Which one this is. A number is used once: whoever replaces a dead node gets a new one."""
    listen: str = ""
    """``host:port`` for peers and clients. Empty: the address that the ledger's URL gives this number."""
    peers: tuple[str, ...] = ()
    """The first nodes' addresses in the order of their numbers, for `undoubt cluster init`. Empty: those of
    the ledger's URL. Later members are known to the cluster itself."""
    data: str = "undoubt-node"
    """The folder of its disk."""
    heartbeat_s: float = 0.1
    election_timeout_s: float = 1.0
    """A leader that is not heard from for so long (to twice as long) is replaced."""
    snapshot_log_bytes: int = 8 * 1024 * 1024
    """A snapshot is stored once so much of the log, and more than the last snapshot has, lies behind it."""
    trailing_entries: int = 1_000
    """Entries kept in front of a snapshot, so that a node that is a little late needs no snapshot."""
    version_max: int = 0
    """The highest version that it speaks, so that the release before this one may still come back; 0: all
    that this release does."""

    def __post_init__(self) -> None:
        count("number", self.number)
        text("listen", self.listen)
        texts("peers", self.peers)
        path("data", self.data)
        seconds("heartbeat_s", self.heartbeat_s, zero=False)
        seconds("election_timeout_s", self.election_timeout_s, zero=False)
        if not 0 < self.heartbeat_s * 2 <= self.election_timeout_s:
            raise OutOfBounds("election_timeout_s", "must be at least twice heartbeat_s, and both positive")
        count("snapshot_log_bytes", self.snapshot_log_bytes, least=1, most=2**40)
        count("trailing_entries", self.trailing_entries)
        count("version_max", self.version_max)
        if self.version_max and not VERSIONS.lowest <= self.version_max <= VERSIONS.highest:
            raise OutOfBounds("version_max", f"must be of what this release speaks, {VERSIONS}; 0: all of it")

    @property
    def speaks(self) -> Versions:
        return Versions(VERSIONS.lowest, self.version_max or VERSIONS.highest)

    @property
    def raft(self) -> RaftSettings:
        ticks = max(round(self.election_timeout_s / self.heartbeat_s), 2)
        return RaftSettings(
            election_ticks=ticks,
            heartbeat_ticks=1,
            learners_first=True,
            disk_stall_ticks=ticks,
            snapshot_retry_ticks=ticks,
            trailing_entries=self.trailing_entries,
            apply_bytes_max=512 * 1024,
            uncommitted_bytes_max=UNCOMMITTED_BYTES_MAX,
        )
