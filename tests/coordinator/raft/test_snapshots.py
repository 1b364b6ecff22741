"""Log compaction and snapshots in chunks: extended paper §7."""

from __future__ import annotations

import pytest

from tests.coordinator.raft.bench import SETTINGS, Bench, log, one, only
from tests.coordinator.raft.network import Cluster
from undoubt.coordinator.raft import (
    Append,
    AppendReply,
    Change,
    ChangeKind,
    ChunkWanted,
    ConfigChange,
    Configuration,
    Entry,
    HeartbeatReply,
    RaftSettings,
    SnapshotChunk,
    SnapshotMeta,
    SnapshotReply,
)
from undoubt.participants.invariant import InvariantViolation

META = SnapshotMeta(10, 2, Configuration(frozenset({1, 2, 3})))


def compacted(trailing: int = 0) -> Bench:
    """A leader of term 2 whose entries up to 6 are in a snapshot; peer 3 has none of them."""
    bench = Bench(terms=(1,) * 5, settings=RaftSettings(trailing_entries=trailing, snapshot_retry_ticks=4))
    bench.lead()
    bench.step(AppendReply(1, 2, 2, 7))
    bench.raft.compact(bench.raft.snapshot_meta(6))
    return bench


def wanted(bench: Bench) -> list[ChunkWanted]:
    """What the leader asks the driver for, once peer 3 has said that it has nothing."""
    bench.raft.step(AppendReply(1, 3, 2, 6, True, 1, 1))
    return list(bench.ready().chunks_wanted)


def test_7_a_node_that_is_too_late_gets_a_snapshot_and_then_entries() -> None:
    """Broken if a node whose entries are compacted elsewhere never catches up, or with another state."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.settle()
    cluster.isolate(3)
    expected = [b"%d" % number for number in range(30)]
    for data in expected:
        cluster.propose(data)
    cluster.settle()
    cluster.nodes[1].snapshot()
    cluster.propose(b"after")
    cluster.settle()
    cluster.heal()
    cluster.tick(count=4 * cluster.settings.election_ticks)
    assert cluster.nodes[3].disk.installed == 1
    assert cluster.machine(3) == [*expected, b"after"]


def test_7_only_what_is_applied_may_be_compacted() -> None:
    """Broken if entries vanish that no state machine holds."""
    bench = Bench(terms=(1, 1))
    with pytest.raises(InvariantViolation):
        bench.raft.snapshot_meta(3)
    with pytest.raises(InvariantViolation):
        bench.raft.compact(SnapshotMeta(3, 1))


def test_7_the_snapshot_carries_the_configuration_of_its_index() -> None:
    """Broken if whoever restarts from it, or receives it, counts majorities of another cluster."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.propose(b"x")
    cluster.settle()
    before = cluster.raft(1).applied_index
    cluster.raft(1).propose_config(ConfigChange((Change(ChangeKind.ADD_LEARNER, 4),)))
    cluster.pump(1)
    cluster.settle()
    raft = cluster.raft(1)
    assert raft.snapshot_meta(before).configuration.learners == frozenset()
    assert raft.snapshot_meta(raft.applied_index).configuration.learners == {4}
    cluster.nodes[1].snapshot()
    cluster.crash(1)
    cluster.restart(1)
    assert cluster.raft(1).configuration.learners == {4}


def test_7_a_few_entries_stay_for_peers_that_are_a_little_late() -> None:
    """Broken if each snapshot forces snapshots on everybody else."""
    bench = compacted(trailing=4)
    bench.raft.step(AppendReply(1, 3, 2, 6, True, 3, 1))
    ready = bench.ready()
    assert ready.chunks_wanted == ()
    assert one(Append, ready.messages_now).prev_index == 3


def test_a_stream_goes_chunk_by_chunk_and_ends_in_replication() -> None:
    """Broken if a snapshot must fit into one message, or the peer gets nothing after it."""
    bench = compacted()
    (first,) = wanted(bench)
    assert first == ChunkWanted(3, 6, 0)
    bench.raft.snapshot_chunk(first, b"abc", done=False)
    bench.raft.snapshot_chunk(first, b"abc", done=False)
    ready = bench.ready()
    chunk = one(SnapshotChunk, ready.messages_now)
    assert (chunk.meta.index, chunk.offset, chunk.data, chunk.done) == (6, 0, b"abc", False)
    assert ready.chunks_wanted == ()
    bench.raft.step(SnapshotReply(1, 3, 2, 6, 3))
    (second,) = bench.ready().chunks_wanted
    assert second == ChunkWanted(3, 6, 3)
    bench.raft.snapshot_chunk(second, b"d", done=True)
    assert one(SnapshotChunk, bench.ready().messages_now).done
    bench.raft.step(AppendReply(1, 3, 2, 6))
    append = one(Append, bench.ready().messages_now)
    assert (append.prev_index, [entry.index for entry in append.entries]) == (6, [7])


def test_a_lost_chunk_is_sent_again_and_a_restarted_receiver_starts_anew() -> None:
    """Broken if a stream hangs, or continues behind bytes that the receiver has lost."""
    bench = compacted()
    (first,) = wanted(bench)
    bench.raft.snapshot_chunk(first, b"abc", done=False)
    bench.ready()
    for _ in range(3):
        bench.raft.tick()
        assert bench.ready().chunks_wanted == ()
    bench.raft.tick()
    assert bench.ready().chunks_wanted == (ChunkWanted(3, 6, 0),)
    bench.raft.step(SnapshotReply(1, 3, 2, 6, 3))
    assert bench.ready().chunks_wanted == (ChunkWanted(3, 6, 3),)
    bench.raft.step(SnapshotReply(1, 3, 2, 6, 0))
    assert bench.ready().chunks_wanted == (ChunkWanted(3, 6, 0),)


def test_a_snapshot_that_is_gone_is_replaced_by_the_newest() -> None:
    """Broken if a leader insists on a snapshot that its driver has deleted, or asks without end."""
    bench = compacted()
    (first,) = wanted(bench)
    bench.raft.compact(bench.raft.snapshot_meta(7))
    bench.raft.snapshot_failed(first)
    assert bench.ready().chunks_wanted == ()
    bench.raft.step(HeartbeatReply(1, 3, 2))
    assert bench.ready().chunks_wanted == (ChunkWanted(3, 7, 0),)


def test_entries_behind_a_snapshot_are_bounded_by_bytes_too() -> None:
    """Broken if large entries, batches of many commands, fill a node's memory behind its snapshots."""
    size = log(1)[0].size
    for keep_bytes, before in ((10 * size, 1), (3 * size, 3), (size - 1, 6)):
        settings = RaftSettings(trailing_entries=100, trailing_bytes_max=keep_bytes)
        bench = Bench(terms=(1,) * 5, settings=settings)
        bench.lead()
        bench.step(AppendReply(1, 2, 2, 7))
        assert bench.raft.compact(bench.raft.snapshot_meta(6)) == before
        assert bench.raft.last_index == 7


def test_the_receiver_acknowledges_what_is_stored_and_installs_the_whole() -> None:
    """Broken if a chunk is acknowledged before the sync, or a part of a snapshot is taken for all."""
    bench = Bench(terms=(1, 1))
    bench.raft.step(SnapshotChunk(1, 2, 2, META, 0, b"abc", False))
    ready = bench.ready()
    assert ([chunk.data for chunk in ready.chunks], ready.snapshot) == ([b"abc"], None)
    assert only(SnapshotReply, ready.messages_now) == []
    assert one(SnapshotReply, bench.store()).offset == 3
    reply = one(SnapshotReply, bench.step(SnapshotChunk(1, 2, 2, META, 7, b"zzz", True)))
    assert reply.offset == 3
    bench.raft.step(SnapshotChunk(1, 2, 2, META, 3, b"d", True))
    ready = bench.ready()
    assert (ready.snapshot, [chunk.offset for chunk in ready.chunks]) == (META, [3])
    assert only(AppendReply, ready.messages_now) == []
    assert one(AppendReply, bench.store()).index == 10
    assert (bench.raft.last_index, bench.raft.commit_index, bench.raft.applied_index) == (10, 10, 10)


def test_chunks_of_another_leaders_snapshot_begin_anew() -> None:
    """Broken if bytes of two images, which need not be equal, are put together."""
    bench = Bench()
    bench.step(SnapshotChunk(1, 2, 2, META, 0, b"abc", False))
    reply = one(SnapshotReply, bench.step(SnapshotChunk(1, 3, 3, META, 3, b"d", True)))
    assert reply.offset == 0
    assert bench.raft.last_index == 1


def test_a_snapshot_of_what_is_in_the_log_throws_nothing_away() -> None:
    """Broken if entries behind the snapshot, which are acknowledged, are lost (§7, end)."""
    bench = Bench(terms=(1,) * 9)
    meta = SnapshotMeta(6, 1, META.configuration)
    assert one(AppendReply, bench.step(SnapshotChunk(1, 2, 1, meta, 0, b"abc", True))).index == 6
    assert (bench.raft.last_index, bench.raft.commit_index) == (10, 6)


def test_an_old_snapshot_takes_nothing_back() -> None:
    """Broken if a late chunk undoes what is committed."""
    bench = Bench(terms=(1,) * 12)
    bench.step(Append(1, 2, 1, 13, 1, (), 12))
    old = SnapshotMeta(10, 1, META.configuration)
    reply = one(AppendReply, bench.step(SnapshotChunk(1, 2, 1, old, 0, b"abc", True)))
    assert (reply.index, bench.raft.commit_index) == (12, 12)


def test_a_write_from_before_a_snapshot_says_nothing_about_the_log_after_it() -> None:
    """Broken if the report of an old write makes entries count as stored that are not."""
    bench = Bench()
    bench.raft.step(Append(1, 2, 2, 1, 1, log(*[1] * 14), 1))
    before = bench.ready()
    newer = SnapshotMeta(10, 2, META.configuration)
    bench.raft.step(SnapshotChunk(1, 3, 3, newer, 0, b"abc", True))
    bench.raft.step(Append(1, 3, 3, 10, 2, (Entry.make(11, 3),), 11))
    bench.ready()
    bench.raft.on_persisted(before.token)
    assert bench.ready().committed_entries == ()


def test_settings_of_the_bench() -> None:
    """Broken if the tests above ran with entries kept that they believe compacted."""
    assert SETTINGS.trailing_entries == 0
