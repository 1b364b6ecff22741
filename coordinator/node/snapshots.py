"""Makes and stores images of a node's state machine, sends them to peers, and installs a leader's image.

The newest image stays in memory beside the state machine, so that sending chunks to a peer needs no read of
the disk. Received chunks are collected in memory too: after a restart the sender begins again. Finished
transactions are stored together with an image, since the log entries from which they could be computed again
are dropped afterwards.
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
"""Small enough that a heartbeat after a chunk is not late on a slow line."""


class Snapshots:
    """The images of one node. ``wake`` makes the driver flush the disk at the end of the next turn of the
    event loop. ``guarded`` calls its argument; an error in it stops the node."""

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
        """An image is due once ``log_bytes`` bytes of the log, and more than the size of the last image, were
        applied."""
        self.log_bytes = 0
        """The bytes of the log that were applied since the last image; the driver adds to it."""
        self.arrived: list[bytes] = []
        """The received pieces of a leader's image."""
        self._raft = raft
        self._replicated = replicated
        self._history = history
        self._disk = disk
        self._newest = stored
        self._making: Snapshot | None = None
        """The image of this node's state that is being stored."""
        self._arriving: Snapshot | None = None
        """A leader's image that is being stored: its index counts as applied, and the machine still has the
        former state."""
        self._log_bytes_min = log_bytes
        self._history_ms = history_ms
        self._wake = wake
        self._guarded = guarded
        self._waiting: list[asyncio.Future[int]] = []
        """Callers that wait until the next image is stored."""
        self._size()

    def _size(self) -> None:
        self.log_bytes_max = max(self._log_bytes_min, len(self._newest.image))
        """The next image is due once :attr:`log_bytes` reaches this."""

    # Images of this node.

    def ask(self) -> asyncio.Future[int]:
        """Store an image of the present state, or wait for the image that is being stored. The result is the
        index of the image."""
        stored: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if self._newest.meta.index == self._raft.applied_index:
            stored.set_result(self._newest.meta.index)
        else:
            self._waiting.append(stored)
            self.store()
            self._wake()
        return stored

    def image(self) -> Snapshot:
        """Return an image of the present state, for a backup, without storing it."""
        return Snapshot(self._raft.snapshot_meta(self._raft.applied_index), self._replicated.image())

    def store(self) -> None:
        """Make an image and store it; does nothing while an image is being stored, also a leader's."""
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
            self._making = None  # the next image is made when one is due again
            self._answer(LedgerUnavailable(f"node {self._raft.node} has no room on its disk for a snapshot"))

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
        """Use the image ``made``, which is durable, and drop the entries before it."""
        self._making = None
        if made.meta.index > self._newest.meta.index:
            self._newest = made
            self._size()
        keep_from = self._raft.compact(made.meta)
        self._answer(made.meta.index)
        self._disk.give(DiskWrite(keep_from=keep_from), self._wake)
        self._wake()

    def _answer(self, result: int | LedgerUnavailable) -> None:
        waiting, self._waiting = self._waiting, []
        for stored in waiting:
            if stored.done():  # the waiting caller was cancelled
                continue
            if isinstance(result, int):
                stored.set_result(result)
            else:
                stored.set_exception(result)

    def stop(self, error: NodeStopped) -> None:
        """Answer the waiting callers with ``error``: the node has stopped."""
        self._answer(error)

    # Images for peers.

    def give(self, wanted: ChunkWanted) -> None:
        """Give the core the chunk that a peer needs."""
        if wanted.index != self._newest.meta.index:
            self._raft.snapshot_failed(wanted)
            return
        image = self._newest.image
        end = wanted.offset + CHUNK_BYTES
        self._raft.snapshot_chunk(wanted, image[wanted.offset : end], done=end >= len(image))

    # Images of a leader.

    def collect(self, chunks: Iterable[SnapshotChunk]) -> None:
        """Collect received pieces of a leader's image."""
        for chunk in chunks:
            if chunk.offset == 0:
                self.arrived = []
            self.arrived.append(chunk.data)

    def with_chunks(self, chunks: Iterable[SnapshotChunk]) -> bytes:
        """Return the image as :meth:`collect` would have collected it after ``chunks``."""
        pieces = list(self.arrived)
        for chunk in chunks:
            pieces = [*(pieces if chunk.offset else ()), chunk.data]
        return b"".join(pieces)

    def received(self, meta: SnapshotMeta) -> Snapshot:
        """Return the leader's image, all pieces of which have been received."""
        image, self.arrived = b"".join(self.arrived), []
        self._arriving = Snapshot(meta, image)
        return self._arriving

    def install(self, snapshot: Snapshot) -> None:
        """Restore the state machine from a leader's image, which is durable on this node and has replaced its
        former data."""
        self._replicated.restore(snapshot.image)
        self._newest = snapshot
        self._size()
        self.log_bytes = 0
        if self._arriving is snapshot:
            self._arriving = None
        self._answer(snapshot.meta.index)
