"""Sends snapshots in chunks to peers that need compacted entries; the core does not read the bytes.

Extended paper §7; thesis §5.1. Only one chunk to a peer is unanswered at a time. The receiver's answers
contain the offset that it has reached, from which the transfer continues after a lost chunk, a lost answer or
a restart of either side.
"""

from __future__ import annotations

from undoubt.coordinator.raft.messages import AppendReply, SnapshotChunk, SnapshotMeta, SnapshotReply
from undoubt.coordinator.raft.state import ChunkWanted, Incoming, RaftState
from undoubt.coordinator.raft.tracker import Pace, Progress


def want_chunk(state: RaftState, node: int, progress: Progress) -> None:
    """Ask the driver for the next chunk, unless it was asked already."""
    stream = progress.stream
    if stream is not None and not stream.asked:
        stream.asked = True
        state.chunks_wanted.append(ChunkWanted(node, stream.meta.index, stream.offset))


def send_chunk(state: RaftState, wanted: ChunkWanted, data: bytes, *, done: bool) -> None:
    """Send the chunk that the driver has read. Drops an answer to an outdated question."""
    progress = state.tracker.progress.get(wanted.peer)
    stream = progress.stream if progress is not None and state.leads else None
    if stream is None or not stream.asked or stream.sent:
        return
    if (stream.meta.index, stream.offset) != (wanted.index, wanted.offset):
        return
    stream.sent, stream.age_ticks = True, 0
    state.send(SnapshotChunk(wanted.peer, state.node, state.term, stream.meta, stream.offset, data, done))


def give_up(state: RaftState, wanted: ChunkWanted) -> None:
    """Stop sending a snapshot that the driver no longer has. The transfer begins again, with the newest
    snapshot, when a message of the peer is received next."""
    progress = state.tracker.progress.get(wanted.peer)
    if progress is not None and progress.stream is not None and progress.stream.meta.index == wanted.index:
        progress.probe(progress.match + 1)
        progress.waiting = True


def tick(state: RaftState) -> None:
    """Send again the chunks that were not acknowledged in time."""
    for _, progress in state.peers():
        stream = progress.stream
        if stream is not None and stream.sent:
            stream.age_ticks += 1
            if stream.age_ticks >= state.settings.snapshot_retry_ticks:
                stream.again(stream.offset)


def on_reply(state: RaftState, message: SnapshotReply) -> None:
    progress = state.tracker.progress.get(message.sender)
    if progress is None or not state.leads:
        return
    progress.active = True
    stream = progress.stream
    if progress.pace is not Pace.SNAPSHOT or stream is None or stream.meta.index != message.index:
        return
    if message.offset != stream.offset:
        stream.again(message.offset)


def on_chunk(state: RaftState, message: SnapshotChunk) -> None:
    if state.disk_full or state.installing is not None:
        return
    meta, log = message.meta, state.log
    if meta.index <= log.commit or log.matches(meta.index, meta.term):
        # The log has the entries that the snapshot replaces, so no entry is removed for it (§7).
        state.commit_to(meta.index)
        state.incoming = None
        state.send(AppendReply(message.sender, state.node, state.term, log.commit))
        return
    incoming = state.incoming
    if incoming is None or (incoming.term, incoming.meta) != (message.term, meta):
        incoming = state.incoming = Incoming(message.term, meta)
    if message.offset != incoming.offset:
        state.send(SnapshotReply(message.sender, state.node, state.term, meta.index, incoming.offset))
        return
    state.chunks.append(message)
    incoming.offset += len(message.data)
    if not message.done:
        state.send(SnapshotReply(message.sender, state.node, state.term, meta.index, incoming.offset))
        return
    _install(state, meta)
    state.send(AppendReply(message.sender, state.node, state.term, meta.index))


def _install(state: RaftState, meta: SnapshotMeta) -> None:
    state.incoming = None
    state.installing = meta
    # The unfinished writes do not make the new log durable.
    state.writes.replaced_from(1)
    state.log.restore(meta)
    state.restore_history(meta)
