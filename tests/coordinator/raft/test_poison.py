"""Messages that no sound member sends, generated from their types: each value at its bounds, beyond them, or
of another kind, to nodes in every role.

Broken if one of them could stop a node, or leave it half changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from random import Random
from typing import get_args

import pytest

from tests.prove.poison.frames import poisoned
from undoubt.coordinator.raft import (
    Append,
    AppendReply,
    Change,
    ChangeKind,
    ConfigChange,
    Configuration,
    Entry,
    Heartbeat,
    HeartbeatReply,
    Kind,
    LogSetBack,
    Message,
    MessageRefused,
    PreVote,
    PreVoteReply,
    Raft,
    RaftSettings,
    RequestVote,
    RequestVoteReply,
    RestoredState,
    Role,
    SnapshotChunk,
    SnapshotMeta,
    SnapshotReply,
    TimeoutNow,
    decode,
    encode,
)
from undoubt.coordinator.raft.messages import HardState

TERM, LAST, COMMIT = 5, 12, 8
NODES = frozenset({1, 2, 3})


def follower() -> Raft:
    """Of node 2, in term 5; it has entries 4 to 12, and knows that 8 are committed."""
    raft = unled()
    raft.step(Heartbeat(1, 2, TERM, COMMIT))
    return drained(raft)


def unled() -> Raft:
    meta = SnapshotMeta(3, 2, Configuration(NODES))
    entries = tuple(Entry.make(index, 4, b"data %d" % index) for index in range(4, LAST + 1))
    restored = RestoredState(HardState(TERM, 0), meta, entries, 3)
    return drained(Raft(1, RaftSettings(), Random(1), restored))


def standing() -> Raft:
    raft = unled()
    while raft.role is not Role.CANDIDATE:
        raft.tick()
        if raft.role is Role.PRE_CANDIDATE:
            raft.step(PreVoteReply(1, 2, raft.term + 1, True))
    return drained(raft)


def leading() -> Raft:
    raft = standing()
    raft.step(RequestVoteReply(1, 2, raft.term, True))
    assert raft.role is Role.LEADER
    raft.propose(b"one")
    return drained(raft)


def drained(raft: Raft) -> Raft:
    while not (ready := raft.ready()).empty:
        raft.on_persisted(ready.token)
        if ready.committed_entries:
            raft.on_applied(ready.committed_entries[-1].index)
        for wanted in ready.chunks_wanted:
            raft.snapshot_failed(wanted)
    return raft


def sound(term: int, sender: int) -> Iterator[Message]:
    """One of every kind that a member may send in ``term``, and more of those that carry a log."""
    header = (1, sender, term)
    learner = ConfigChange((Change(ChangeKind.ADD_LEARNER, 4, b""),))
    change = Entry.make(LAST + 1, term, encode(learner), Kind.CONFIG)
    yield PreVote(*header, LAST, 4)
    yield PreVoteReply(*header, granted=True)
    yield RequestVote(*header, LAST, 4)
    yield RequestVoteReply(*header, granted=True)
    yield Append(*header, LAST, 4, (change, Entry.make(LAST + 2, term, b"data")), COMMIT)
    yield Append(*header, COMMIT - 2, 4, tuple(Entry.make(i, 4, b"data %d" % i) for i in (7, 8, 9)), COMMIT)
    yield AppendReply(*header, LAST)
    yield AppendReply(*header, LAST, rejected=True, hint_index=LAST, hint_term=4)
    yield Heartbeat(*header, COMMIT, 0)
    yield HeartbeatReply(*header, 0)
    yield SnapshotChunk(*header, SnapshotMeta(40, 4, Configuration(NODES)), 0, b"image", done=True)
    yield SnapshotReply(*header, 3, 1)
    yield TimeoutNow(*header)


def seen(raft: Raft) -> object:
    state = raft.internals
    log = state.log
    return (
        *(raft.term, state.vote, raft.role, raft.leader, raft.configuration),
        *(log.commit, log.persisted, tuple(log.entries), state.incoming, tuple(state.chunks)),
        {node: progress.match for node, progress in state.tracker.progress.items()},
    )


@pytest.mark.parametrize("role", [follower, unled, standing, leading])
@pytest.mark.parametrize("sender", [2, 3])
def test_no_message_stops_a_node(role: Callable[[], Raft], sender: int) -> None:
    """Node 2 leads the follower; from node 3 the same words are refused."""
    term, counts = role().term, Counter[str]()
    assert {type(message) for message in sound(term, sender)} == set(get_args(Message))
    for message in sound(term, sender):
        for raw in poisoned(message, long=3):
            counts[_step(role(), raw)] += 1
    assert counts["taken"] > 300
    assert counts["refused"] > 20
    assert counts["unread"] > 1_000


def _step(raft: Raft, raw: bytes) -> str:
    try:
        message = decode(raw)
    except ValueError:
        return "unread"
    before = seen(raft)
    try:
        raft.step(message)
    except MessageRefused:
        assert seen(raft) == before, message
        return "refused"
    except LogSetBack:
        # Whoever leads has an acknowledgement of what this log does not hold: not to be survived.
        assert isinstance(message, Heartbeat)
        assert message.commit > raft.last_index
        return "set back"
    drained(raft)
    raft.tick()
    drained(raft)
    return "taken"


def test_what_can_be_told_to_be_wrong_is_refused() -> None:
    """By the words that an operator reads in the log."""
    damaged = Entry(LAST + 3, 4, Kind.DATA, b"", 0)
    for raft, message, why in (
        (follower(), Heartbeat(1, 3, TERM, 0), "node 2 leads in term 5"),
        (follower(), TimeoutNow(1, 3, TERM), "node 2 leads in term 5"),
        (follower(), Append(1, 2, TERM + 2**32 + 1, 0, 0, (), 0), "out of reach"),
        (follower(), Append(1, 2, TERM, LAST, 4, (Entry.make(LAST + 2, 5),), 0), "cannot follow 12"),
        (follower(), Append(1, 2, TERM, LAST, 4, (Entry.make(LAST + 1, 6),), 0), "cannot follow 12"),
        (follower(), Append(1, 2, TERM, 6, 4, (Entry.make(7, 5),), 0), "cannot follow 6"),
        (
            follower(),
            Append(1, 2, TERM, LAST, 4, (Entry.make(LAST + 1, 5, b"?", Kind.CONFIG),), 0),
            "not a valid change of the members",
        ),
        (leading(), AppendReply(1, 2, TERM + 1, 1_000), "acknowledges entry 1000"),
        (leading(), HeartbeatReply(1, 2, TERM + 1, 1_000), "round 1000"),
        (leading(), Append(1, 2, TERM + 1, 0, 0, (), 0), "node 1 leads in term 6"),
    ):
        with pytest.raises(MessageRefused, match=why):
            raft.step(message)
    raft = follower()
    raft.step(Append(1, 2, TERM, LAST, 4, (damaged,), 0))  # is asked for again
    assert raft.last_index == LAST
