"""A node's images of its state machine: when one is made, what of it a peer is sent, how one is taken over.

The newest image stays in memory beside the machine that it was made from, so that a peer's chunks cost no
read of the disk. What arrives is collected in memory too: after a restart the sender begins again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from undoubt.coordinator.node.fsm import NodeStateMachine
from undoubt.coordinator.node.storage.contract import Snapshot
from undoubt.coordinator.raft import ChunkWanted, Entry, Raft, SnapshotChunk, SnapshotMeta

CHUNK_BYTES = 64 * 1024
"""Small enough that a heartbeat behind one is not late on a slow line."""


class Snapshots:
    def __init__(self, raft: Raft, replicated: NodeStateMachine, stored: Snapshot, *, log_bytes: int) -> None:
        """One is made once ``log_bytes`` of the log, and more than the last image has, have been applied."""
        self._raft = raft
        self._replicated = replicated
        self._newest = stored
        self._making: Snapshot | None = None
        self._arriving: Snapshot | None = None
        """A leader's that is being stored: its index is the applied one, and the machine still the former."""
        self._log_bytes_min = log_bytes
        self._log_bytes = 0
        self._arrived: list[bytes] = []

    def due(self, applied: Sequence[Entry]) -> Snapshot | None:
        """A new image, if it is time for one; to be stored, and then reported to :meth:`stored`."""
        self._log_bytes += sum(entry.size for entry in applied)
        if self._log_bytes < max(self._log_bytes_min, len(self._newest.image)):
            return None
        return self.make()

    @property
    def newest_index(self) -> int:
        return self._newest.meta.index

    def make(self) -> Snapshot | None:
        """As :meth:`due`, without looking at the time; None while one is being stored, a leader's too."""
        if self._making is not None or self._arriving is not None:
            return None
        self._log_bytes = 0
        meta = self._raft.snapshot_meta(self._raft.applied_index)
        self._making = Snapshot(meta, self._replicated.image())
        return self._making

    def stored(self, made: Snapshot) -> int:
        """It is durable. The first index that the storage has to keep."""
        self._making = None
        if made.meta.index > self._newest.meta.index:
            self._newest = made
        return self._raft.compact(made.meta)

    def not_stored(self) -> None:
        """There was no room for the image that was made; the next one is made when it is time again."""
        self._making = None

    def give(self, wanted: ChunkWanted) -> None:
        """A peer needs a piece of an image."""
        if wanted.index != self._newest.meta.index:
            self._raft.snapshot_failed(wanted)
            return
        image = self._newest.image
        end = wanted.offset + CHUNK_BYTES
        self._raft.snapshot_chunk(wanted, image[wanted.offset : end], done=end >= len(image))

    def collect(self, chunks: Iterable[SnapshotChunk]) -> None:
        """Pieces of a leader's image."""
        for chunk in chunks:
            if chunk.offset == 0:
                self._arrived = []
            self._arrived.append(chunk.data)

    def with_chunks(self, chunks: Iterable[SnapshotChunk]) -> bytes:
        """What :meth:`collect` would have collected then."""
        pieces = list(self._arrived)
        for chunk in chunks:
            pieces = [*(pieces if chunk.offset else ()), chunk.data]
        return b"".join(pieces)

    def received(self, meta: SnapshotMeta) -> Snapshot:
        """All pieces are there."""
        image, self._arrived = b"".join(self._arrived), []
        self._arriving = Snapshot(meta, image)
        return self._arriving

    def install(self, snapshot: Snapshot) -> None:
        """A leader's image is durable here, in place of everything that was: the machine becomes it."""
        self._replicated.restore(snapshot.image)
        self._newest = snapshot
        self._log_bytes = 0
        if self._arriving is snapshot:
            self._arriving = None
