"""What the driver relies on: the order of storing, sending and applying; bytes on the wire and on disk."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.coordinator.raft.bench import SETTINGS, Bench, log, one, only
from undoubt.coordinator.raft import (
    Append,
    AppendReply,
    Configuration,
    Entry,
    HardState,
    Heartbeat,
    Kind,
    Message,
    PreVoteReply,
    Raft,
    RequestVote,
    RequestVoteReply,
    RestoredState,
    SnapshotChunk,
    SnapshotMeta,
    bootstrap,
    decode,
    encode,
)
from undoubt.participants.invariant import InvariantViolation


def test_an_acknowledgement_waits_for_the_sync() -> None:
    """Broken if a leader counts what a crash of the follower takes back."""
    bench = Bench()
    bench.raft.step(Append(1, 2, 1, 1, 1, log(1), 1))
    ready = bench.ready()
    assert only(AppendReply, ready.messages_now) == []
    assert one(AppendReply, ready.messages_after_sync).index == 2
    assert one(AppendReply, bench.store()).index == 2


def test_a_repeated_append_is_not_acknowledged_before_the_first_is_stored() -> None:
    """Broken if the answer to a repetition, for which nothing is stored, overtakes the storing."""
    bench = Bench()
    bench.raft.step(Append(1, 2, 1, 1, 1, log(1), 1))
    first = bench.ready()
    bench.raft.step(Append(1, 2, 1, 1, 1, log(1), 1))
    second = bench.ready()
    assert not second.writes
    assert only(AppendReply, second.messages_now) == []
    assert one(AppendReply, bench.raft.on_persisted(first.token)).index == 2
    assert one(AppendReply, bench.raft.on_persisted(second.token)).index == 2


def test_nothing_is_sent_from_a_term_that_is_not_stored() -> None:
    """Broken if others hear of a term that this node may know nothing of after a crash."""
    bench = Bench()
    bench.raft.step(Heartbeat(1, 2, 4, 1))
    ready = bench.ready()
    assert ready.messages_now == ()
    assert ready.hard_state == HardState(4, 0)
    assert len(bench.store()) == 1


def test_a_candidates_request_waits_for_its_own_vote() -> None:
    """Broken if a candidate that crashes could vote for another in the same term."""
    bench = Bench()
    bench.time_out()
    bench.raft.step(PreVoteReply(1, 2, 2, True))
    ready = bench.ready()
    assert ready.hard_state == HardState(2, 1)
    assert only(RequestVote, ready.messages_now) == []
    assert len(only(RequestVote, bench.store())) == 2


def test_term_and_vote_are_one_value() -> None:
    """Broken if a driver could store one without the other."""
    bench = Bench(term=3, vote=2)
    bench.raft.step(RequestVote(1, 3, 4, 1, 1))
    assert bench.ready().hard_state == HardState(4, 3)


def test_a_replaced_tail_is_not_made_durable_by_the_write_of_the_old_one() -> None:
    """Broken if index and term alone are compared: a tail may be replaced and come back."""
    bench = Bench()
    bench.raft.step(Append(1, 2, 2, 1, 1, log(2, 2), 1))
    first = bench.ready()
    bench.raft.step(Append(1, 3, 3, 1, 1, log(3), 1))
    second = bench.ready()
    bench.raft.step(Append(1, 2, 4, 1, 1, log(2, 2), 3))
    third = bench.ready()
    assert [entry.term for entry in third.entries] == [2, 2]
    bench.raft.on_persisted(first.token)
    assert bench.ready().committed_entries == ()
    bench.raft.on_persisted(second.token)
    assert bench.ready().committed_entries == ()
    bench.raft.on_persisted(third.token)
    assert [entry.index for entry in bench.ready().committed_entries] == [2, 3]


def test_committed_entries_are_applied_only_when_stored_here() -> None:
    """Broken if a state machine is ahead of its own log after a crash."""
    bench = Bench()
    bench.raft.step(Append(1, 2, 1, 1, 1, log(1), 2))
    assert bench.ready().committed_entries == ()
    assert bench.raft.commit_index == 2
    bench.store()
    assert [entry.index for entry in bench.ready().committed_entries] == [2]


def test_a_token_that_was_never_given_is_refused() -> None:
    """Broken if a driver's mistake is taken for a sync."""
    bench = Bench()
    with pytest.raises(InvariantViolation):
        bench.raft.on_persisted(bench.ready().token + 1)


def test_an_idle_node_has_nothing_to_do() -> None:
    """Broken if a driver that works until there is nothing to do never sleeps."""
    bench = Bench()
    bench.lead()
    assert bench.ready().empty
    assert bench.ready().empty


def test_a_message_for_somebody_else_is_not_taken() -> None:
    """Broken if a node answers under a number that is not its own."""
    bench = Bench()
    assert bench.step(RequestVote(2, 3, 9, 9, 9)) == []
    assert bench.raft.term == 1


def test_damaged_entries_are_not_appended() -> None:
    """Broken if bytes that changed on the way, or in the leader's memory, spread."""
    bench = Bench()
    (entry,) = log(1)
    for damaged in (
        msgspec.structs.replace(entry, data=b"other"),
        msgspec.structs.replace(entry, term=2),
        msgspec.structs.replace(entry, kind=Kind.EMPTY),
    ):
        assert bench.step(Append(1, 2, 2, 1, 1, (damaged,), 2)) == []
        assert (bench.raft.last_index, bench.raft.commit_index) == (1, 1)


@pytest.mark.parametrize(
    "disk",
    [
        RestoredState(HardState(1), SnapshotMeta(1, 1), (log(1)[0], log(1, first=4)[0]), 1),
        RestoredState(HardState(1), SnapshotMeta(1, 1), (msgspec.structs.replace(log(1)[0], data=b"?"),), 1),
        RestoredState(HardState(1), SnapshotMeta(1, 1), log(1), 9),
        RestoredState(HardState(1), SnapshotMeta(1, 1), log(1, 2), 1),
        RestoredState(HardState(3), SnapshotMeta(5, 2), log(1, 1, 1, 1), 5),
        RestoredState(HardState(3), SnapshotMeta(5, 1), log(1, 1), 5),
    ],
    ids=[
        "gap",
        "checksum",
        "applied beyond the log",
        "term older than log",
        "not its snapshot",
        "ends before it",
    ],
)
def test_a_damaged_disk_stops_the_node(disk: RestoredState) -> None:
    """Broken if a node votes and acknowledges on the strength of a log that is not what it stored."""
    with pytest.raises(InvariantViolation):
        Raft(1, SETTINGS, Random(1), disk)


def test_entries_before_the_snapshot_are_welcome() -> None:
    """Broken if a restart forgets the entries that were kept for peers that are a little late."""
    disk = RestoredState(HardState(1), SnapshotMeta(5, 1), log(1, 1, 1, 1, 1), 5)
    raft = Raft(1, SETTINGS, Random(1), disk)
    assert (raft.internals.log.first_index, raft.last_index) == (3, 6)


def test_a_new_cluster_begins_equal_everywhere() -> None:
    """Broken if its first nodes disagree about who they are."""
    first = bootstrap([1, 2, 3], [4])
    assert first.snapshot.configuration == Configuration(frozenset({1, 2, 3}), learners=frozenset({4}))
    with pytest.raises(InvariantViolation):
        bootstrap([])
    with pytest.raises(InvariantViolation):
        Raft(0, SETTINGS, Random(1), first)


MESSAGES: list[Message] = [
    Append(2, 1, 3, 4, 2, log(2, 3), 5),
    SnapshotChunk(2, 1, 3, SnapshotMeta(9, 2, Configuration(frozenset({3, 1, 2}))), 0, b"x", True),
    RequestVoteReply(1, 2, 3, True),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_travel_unchanged(message: Message) -> None:
    """Broken if what arrives is not what was sent."""
    assert decode(encode(message)) == message


@given(st.binary(max_size=60))
def test_random_bytes_are_refused_or_a_message(frame: bytes) -> None:
    """Broken if a malformed frame raises something that a transport does not expect."""
    try:
        message = decode(frame)
    except msgspec.DecodeError:
        return
    assert decode(encode(message)) == message


@given(st.integers(0, len(MESSAGES) - 1), st.data())
def test_a_truncated_or_damaged_frame_is_refused_or_a_message(which: int, data: st.DataObject) -> None:
    """Broken if a damaged frame of the right shape raises something else, or negative numbers get in."""
    frame = bytearray(encode(MESSAGES[which]))
    position = data.draw(st.integers(0, len(frame) - 1))
    frame[position] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(frame)))
    for candidate in (bytes(frame), bytes(frame[:cut])):
        try:
            message = decode(candidate)
        except msgspec.DecodeError:
            continue
        assert min(message.to, message.sender, message.term) >= 0


def test_an_older_node_skips_new_fields_and_a_newer_one_fills_them_in() -> None:
    """Broken if nodes of two versions cannot work together while one after the other is replaced."""
    fields = msgspec.msgpack.decode(encode(Heartbeat(2, 1, 3, 4, 5, frozenset({6}))))
    assert decode(msgspec.msgpack.encode([*fields, "new"])) == Heartbeat(2, 1, 3, 4, 5, frozenset({6}))
    assert decode(msgspec.msgpack.encode(fields[:-1])) == Heartbeat(2, 1, 3, 4, 5)
    assert decode(msgspec.msgpack.encode(fields[:-2])) == Heartbeat(2, 1, 3, 4)


def test_the_checksum_covers_everything() -> None:
    """Broken if an entry could be taken for another that was damaged into it."""
    entry = Entry.make(5, 3, b"data")
    changed: list[dict[str, Any]] = [
        {"index": 6},
        {"term": 4},
        {"kind": Kind.CONFIG},
        {"data": b"datb"},
        {"crc": entry.crc ^ 1},
    ]
    assert entry.intact
    assert not any(msgspec.structs.replace(entry, **each).intact for each in changed)
