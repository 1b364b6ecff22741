"""A node's images of its state machine: when one is made and stored, what of it a peer is sent, how a
leader's is taken over.

The newest image stays in memory beside the machine that it was made from, so that a peer's chunks cost no
read of the disk. What arrives is collected in memory too: after a restart the sender begins again. Finished
transactions are stored together with an image, since the entries that could tell them again are dropped after
it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from undoubt.coordinator.errors import LedgerUnavailable
from undoubt.coordinator.ledger.history import RecentHistory
from undoubt.coordinator.node.errors import NodeStopped
from undoubt.coordinator.node.fsm import NodeStateMachine
from undoubt.coordinator.node.storage.contract import Disk, DiskWrite, Finished, Snapshot
from undoubt.coordinator.raft import ChunkWanted, Raft, SnapshotChunk, SnapshotMeta

CHUNK_BYTES = 64 * 1024
"""Small enough that a heartbeat behind one is not late on a slow line."""


class Snapshots:
    """``wake`` has the disk flushed at the end of the next turn of the event loop. ``guarded`` calls its
    argument; an error stops the node."""

    def __init__(
        self,
        raft: Raft,
        replicated: NodeStateMachine,
        history: RecentHistory,
        disk: Disk,
        stored: Snapshot,
        *,
        log_bytes: int,
        history_ms: int,
        wake: Callable[[], None],
        guarded: Callable[[Callable[[], None]], None],
    ) -> None:
        """An image is due once ``log_bytes`` of the log, and more than the last image has, were applied."""
        self.log_bytes = 0
        """Applied since the last image: the driver adds to it."""
        self.arrived: list[bytes] = []
        """Pieces of a leader's image."""
        self._raft = raft
        self._replicated = replicated
        self._history = history
        self._disk = disk
        self._newest = stored
        self._making: Snapshot | None = None
        """An own image that is being stored."""
        self._arriving: Snapshot | None = None
        """A leader's that is being stored: its index is the applied one, and the machine still the former."""
        self._log_bytes_min = log_bytes
        self._history_ms = history_ms
        self._wake = wake
        self._guarded = guarded
        self._waiting: list[asyncio.Future[int]] = []
        """Who waits for the next image to be stored."""
        self._size()

    def _size(self) -> None:
        self.log_bytes_max = max(self._log_bytes_min, len(self._newest.image))
        """The next image is due once :attr:`log_bytes` is as much."""

    # Own images.

    def ask(self) -> asyncio.Future[int]:
        """Store an image of what is applied now, or wait for the one that is being stored; the index up to
        which it goes."""
        stored: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if self._newest.meta.index == self._raft.applied_index:
            stored.set_result(self._newest.meta.index)
        else:
            self._waiting.append(stored)
            self.store()
            self._wake()
        return stored

    def image(self) -> Snapshot:
        """What is applied now, for a backup; it is not stored."""
        return Snapshot(self._raft.snapshot_meta(self._raft.applied_index), self._replicated.image())

    def store(self) -> None:
        """Make an image and store it; nothing while one is being stored, a leader's too."""
        if self._making is not None or self._arriving is not None:
            return
        self.log_bytes = 0
        image = self._making = self.image()
        finished = self._finished()

        def stored() -> None:
            self._history.stored(finished.records)
            self._guarded(lambda: self._stored(image))

        def no_room(_: BaseException) -> None:
            self._history.not_stored(finished.records)
            self._making = None  # the next one is made when it is due again
            self._tell(LedgerUnavailable(f"node {self._raft.node} has no room on its disk for a snapshot"))

        self._disk.give(DiskWrite(finished=finished, snapshot=image), stored, refused=no_room)

    def store_history(self) -> None:
        """Store finished transactions without an image."""
        finished = self._finished()
        self._disk.give(
            DiskWrite(finished=finished),
            lambda: self._history.stored(finished.records),
            refused=lambda _: self._history.not_stored(finished.records),
        )

    def _finished(self) -> Finished:
        return Finished(self._history.begin(), self._replicated.machine.state.time_ms, self._history_ms)

    def _stored(self, made: Snapshot) -> None:
        """It is durable: the entries before it can go."""
        self._making = None
        if made.meta.index > self._newest.meta.index:
            self._newest = made
            self._size()
        keep_from = self._raft.compact(made.meta)
        self._tell(made.meta.index)
        self._disk.give(DiskWrite(keep_from=keep_from), self._wake)
        self._wake()

    def _tell(self, result: int | LedgerUnavailable) -> None:
        waiting, self._waiting = self._waiting, []
        for stored in waiting:
            if stored.done():  # whoever asked was cancelled
                continue
            if isinstance(result, int):
                stored.set_result(result)
            else:
                stored.set_exception(result)

    def stop(self, error: NodeStopped) -> None:
        """No image is stored any more."""
        self._tell(error)

    # A peer needs one.

    def give(self, wanted: ChunkWanted) -> None:
        """A peer needs a piece of an image."""
        if wanted.index != self._newest.meta.index:
            self._raft.snapshot_failed(wanted)
            return
        image = self._newest.image
        end = wanted.offset + CHUNK_BYTES
        self._raft.snapshot_chunk(wanted, image[wanted.offset : end], done=end >= len(image))

    # A leader's.

    def collect(self, chunks: Iterable[SnapshotChunk]) -> None:
        """Pieces of a leader's image have arrived."""
        for chunk in chunks:
            if chunk.offset == 0:
                self.arrived = []
            self.arrived.append(chunk.data)

    def with_chunks(self, chunks: Iterable[SnapshotChunk]) -> bytes:
        """What :meth:`collect` would have collected then."""
        pieces = list(self.arrived)
        for chunk in chunks:
            pieces = [*(pieces if chunk.offset else ()), chunk.data]
        return b"".join(pieces)

    def received(self, meta: SnapshotMeta) -> Snapshot:
        """All pieces are there."""
        image, self.arrived = b"".join(self.arrived), []
        self._arriving = Snapshot(meta, image)
        return self._arriving

    def install(self, snapshot: Snapshot) -> None:
        """A leader's image is durable here, in place of everything that was: the machine becomes it."""
        self._replicated.restore(snapshot.image)
        self._newest = snapshot
        self._size()
        self.log_bytes = 0
        if self._arriving is snapshot:
            self._arriving = None
        self._tell(snapshot.meta.index)
