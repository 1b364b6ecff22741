"""Bugs that other implementations had, one test each (some with more): here they must be impossible."""

from __future__ import annotations

import msgspec
import pytest

from tests.coordinator.raft.bench import SETTINGS, Bench, log, one, only
from tests.coordinator.raft.network import Cluster
from undoubt.coordinator.raft import (
    Append,
    AppendReply,
    Change,
    ChangeKind,
    ConfigChange,
    Configuration,
    Entry,
    HardState,
    Heartbeat,
    HeartbeatReply,
    Kind,
    Message,
    MessageRefused,
    PreVote,
    PreVoteReply,
    RequestVote,
    RequestVoteReply,
    RestoredState,
    Role,
    SnapshotMeta,
    TimeoutNow,
    decode_change,
    encode,
)
from undoubt.participants.invariant import InvariantViolation


def test_prior_term_commit() -> None:
    """Broken if an entry of an earlier term counts as committed because a majority holds it (figure 8)."""
    bench = Bench((1, 2, 3, 4, 5), terms=(2,), term=3)
    bench.lead()
    assert bench.raft.term == 4
    for peer in (2, 3, 4, 5):
        bench.step(AppendReply(1, peer, 4, 2))
    assert bench.raft.commit_index == 1
    for peer in (2, 3):
        bench.step(AppendReply(1, peer, 4, 3))
    assert bench.raft.commit_index == 3


def test_vote_lost_over_a_restart() -> None:
    """Broken if a node that restarts can vote again in a term, or tells its vote before it is stored."""
    bench = Bench()
    bench.raft.step(RequestVote(1, 2, 5, 1, 1))
    ready = bench.ready()
    assert ready.hard_state == HardState(5, 2)
    assert only(RequestVoteReply, ready.messages_now) == []
    assert one(RequestVoteReply, bench.store()).granted
    bench.restart()
    assert not one(RequestVoteReply, bench.step(RequestVote(1, 3, 5, 9, 4))).granted
    assert one(RequestVoteReply, bench.step(RequestVote(1, 2, 5, 1, 1))).granted


def test_a_node_that_lost_everything_does_not_vote() -> None:
    """Broken if a node that was started again without its disk, under its old number, can vote a second time
    in a term, or elect a leader that lacks what it had acknowledged itself."""
    bench = Bench(settings=msgspec.structs.replace(SETTINGS, learners_first=True))
    bench.disk = RestoredState(HardState(), SnapshotMeta(), (), 0)
    bench.restart()
    assert not one(PreVoteReply, bench.step(PreVote(1, 2, 5, 9, 4))).granted
    assert not one(RequestVoteReply, bench.step(RequestVote(1, 2, 5, 9, 4))).granted


def test_a_vote_that_was_not_stored_was_not_told() -> None:
    """Broken if a crash before the sync could take back a vote that somebody counts."""
    bench = Bench()
    bench.raft.step(RequestVote(1, 2, 5, 1, 1))
    told = bench.ready().messages_now
    bench.restart()
    assert only(RequestVoteReply, told) == []
    assert one(RequestVoteReply, bench.step(RequestVote(1, 3, 5, 1, 1))).granted


@pytest.mark.parametrize("how", ["quorum lost", "asked", "disk", "candidate outvoted"])
def test_vote_cleared_on_same_term_step_down(how: str) -> None:
    """Broken if a leader or candidate that steps down forgets that it voted for itself in this term."""
    bench = Bench()
    if how == "candidate outvoted":
        bench.time_out()
        bench.step(PreVoteReply(1, 2, 2, True))
        assert bench.raft.role is Role.CANDIDATE
        for peer in (2, 3):
            bench.step(RequestVoteReply(1, peer, 2, False))
    else:
        bench.lead()
        if how == "quorum lost":
            bench.ticks(2 * SETTINGS.election_ticks)
        elif how == "asked":
            bench.raft.step_down()
        else:
            bench.raft.propose(b"x")
            bench.ready()
            for _ in range(SETTINGS.disk_stall_ticks):
                bench.raft.tick()
            bench.store()
    assert bench.raft.term == 2
    assert bench.raft.role is not Role.LEADER
    assert not one(RequestVoteReply, bench.step(RequestVote(1, 2, 2, 99, 2))).granted


def test_follower_committing_past_its_matched_prefix() -> None:
    """Broken if a follower calls its own divergent entries committed because the leader's index is higher."""
    bench = Bench(terms=(1, 1, 1, 1))
    bench.step(Append(1, 2, 2, 2, 1, (), commit=5))
    assert bench.raft.commit_index == 2
    assert [entry.index for entry in bench.applied] == [2]
    bench.step(Append(1, 2, 2, 2, 1, log(2, first=3), commit=5))
    assert bench.raft.commit_index == 3


def test_heartbeats_commit_no_more_than_is_acknowledged() -> None:
    """Broken if a heartbeat makes a follower commit what it may hold in another version."""
    bench = Bench(terms=(1, 1))
    sent = bench.lead() + bench.step(AppendReply(1, 2, 2, 4))
    assert bench.raft.commit_index == 4
    sent = bench.ticks(1)
    assert {beat.to: beat.commit for beat in only(Heartbeat, sent)} == {2: 4, 3: 0}


def test_pre_vote_against_check_quorum_livelock() -> None:
    """Broken if a node with a higher term neither follows the old leader nor gets a new one elected."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.isolate(3)
    raft = cluster.raft(3)
    for _ in range(3):
        raft.step(TimeoutNow(3, 1, raft.term))
        cluster.settle()
        raft.step(HeartbeatReply(3, 2, raft.term + 1))
        cluster.settle()
    assert raft.term > cluster.raft(1).term
    cluster.crash(2)
    cluster.heal()
    cluster.tick(1, 3, count=10 * cluster.settings.election_ticks)
    assert cluster.leader in (1, 3)
    cluster.propose(b"x")
    cluster.settle()
    cluster.tick(1, 3, count=2)
    assert cluster.machine(1) == cluster.machine(3) == [b"x"]


def test_a_stale_leader_learns_the_term_from_its_follower() -> None:
    """Broken if a leader keeps talking to a node that is ahead of it and drops what it says."""
    bench = Bench(term=7)
    for message in (Append(1, 2, 3, 1, 1, (), 1), Heartbeat(1, 2, 3, 1)):
        reply = one(AppendReply, bench.step(message))
        assert reply.rejected
        assert reply.term == 7
    assert one(PreVoteReply, bench.step(PreVote(1, 2, 4, 9, 3))) == PreVoteReply(2, 1, 7, False)


def test_disruptive_removed_server() -> None:
    """Broken if a server that was removed, and does not know it, can make the others elect anew."""
    cluster = Cluster(4)
    cluster.elect(1)
    cluster.isolate(4)
    cluster.raft(1).propose_config(ConfigChange((Change(ChangeKind.REMOVE, 4),)))
    cluster.pump(1)
    cluster.settle()
    assert cluster.raft(1).configuration.voters == {1, 2, 3}
    term = cluster.raft(1).term
    cluster.heal()
    cluster.tick(count=6 * cluster.settings.election_ticks)
    assert cluster.leaders == [1]
    assert cluster.raft(1).term == term


@pytest.mark.parametrize("kind", [RequestVote, PreVote])
def test_a_follower_with_a_leader_ignores_candidates(kind: type[RequestVote | PreVote]) -> None:
    """Broken if a higher term alone, without a missed heartbeat, unseats a leader (§6, end)."""
    bench = Bench()
    bench.step(Heartbeat(1, 2, 2, 1))
    assert bench.step(kind(1, 3, 9, 99, 8)) == []
    assert (bench.raft.term, bench.raft.leader) == (2, 2)
    bench.ticks(SETTINGS.election_ticks)
    assert bench.step(kind(1, 3, 9, 99, 8)) != []


def test_single_voter_ack_before_fsync() -> None:
    """Broken if a cluster of one leads, commits or applies before its own disk has stored it."""
    bench = Bench((1,))
    while bench.raft.role is Role.FOLLOWER:
        bench.raft.tick()
    bench.ready()
    assert bench.role() is Role.CANDIDATE
    bench.store()
    assert bench.role() is Role.LEADER
    entry = bench.raft.propose(b"x")
    assert bench.ready().committed_entries == ()
    assert bench.ready().committed_entries == ()
    assert bench.raft.commit_index == 1
    bench.store()
    assert bench.ready().committed_entries[-1] == entry


def test_the_leaders_own_disk_counts_like_a_followers() -> None:
    """Broken if a leader counts itself for entries that its own disk has not stored."""
    bench = Bench()
    bench.lead()
    bench.step(AppendReply(1, 2, 2, 2))
    entry = bench.raft.propose(b"x")
    bench.ready()
    bench.raft.step(AppendReply(1, 2, 2, entry.index))
    bench.ready()
    assert bench.raft.commit_index == 2
    bench.raft.step(AppendReply(1, 3, 2, entry.index))
    assert bench.ready().committed_entries == (), "committed by the two others, but not in this log yet"
    assert bench.raft.commit_index == entry.index
    bench.store()
    assert bench.ready().committed_entries == (entry,)


def test_apply_and_applied_index_not_atomic() -> None:
    """Broken if an entry is handed out twice, or again after a restart that knows it was applied."""
    bench = Bench(terms=(1, 1, 1))
    bench.raft.step(Append(1, 2, 1, 4, 1, (), commit=3))
    assert [entry.index for entry in bench.ready().committed_entries] == [2, 3]
    bench.store()
    assert bench.ready().committed_entries == ()
    with pytest.raises(InvariantViolation):
        bench.raft.on_applied(4)
    again = Bench(terms=(1, 1, 1), applied=3)
    assert again.raft.applied_index == 3
    again.raft.step(Append(1, 2, 1, 4, 1, (), commit=4))
    assert [entry.index for entry in again.ready().committed_entries] == [4]


def test_disk_stall_that_keeps_a_leader() -> None:
    """Broken if a leader whose disk hangs goes on leading, or stands again while it still hangs."""
    bench = Bench()
    bench.lead()
    bench.step(AppendReply(1, 2, 2, 2))
    bench.raft.propose(b"x")
    stalled = bench.ready()
    sent: list[Message] = []
    for _ in range(SETTINGS.disk_stall_ticks):
        bench.raft.tick()
        for peer in (2, 3):
            bench.raft.step(HeartbeatReply(1, peer, 2))
        sent += bench.ready().messages_now
    assert bench.raft.role is Role.FOLLOWER
    assert one(TimeoutNow, sent).to == 2
    for _ in range(5 * SETTINGS.election_ticks):
        bench.raft.tick()
        assert only(PreVote, bench.ready().messages_now) == []
    bench.raft.on_persisted(stalled.token)
    bench.pending = [each for each in bench.pending if each.token > stalled.token]
    bench.store()
    assert bench.time_out()


JOINT = ConfigChange((Change(ChangeKind.REMOVE, 3), Change(ChangeKind.ADD_VOTER, 4)))


@pytest.mark.parametrize("known_committed", [False, True])
def test_joint_state_never_left(known_committed: bool) -> None:
    """Broken if a joint configuration outlives the leader that entered it: nobody but it would leave."""
    bench = Bench()
    joint = Entry.make(2, 1, encode(JOINT), Kind.CONFIG)
    bench.step(Append(1, 3, 1, 1, 1, (joint,), commit=2 if known_committed else 1))
    assert bench.raft.configuration.joint
    bench.lead()
    sent = bench.step(AppendReply(1, 2, bench.raft.term, 3))
    (leave,) = one(Append, [message for message in sent if message.to == 2]).entries
    assert (leave.kind, decode_change(leave.data)) == (Kind.CONFIG, ConfigChange())
    for peer in (2, 4):
        bench.step(AppendReply(1, peer, bench.raft.term, 4))
    assert bench.raft.commit_index == 4
    assert bench.raft.configuration == Configuration(incoming=frozenset({1, 2, 4}))


def test_joint_state_is_left_when_the_disk_has_space_again() -> None:
    """Broken if the one attempt to leave is lost because nothing could be written at that moment."""
    bench = Bench()
    bench.lead()
    bench.step(AppendReply(1, 2, 2, 2))
    bench.raft.propose_config(JOINT)
    bench.flow()
    bench.raft.set_disk_full(True)
    for peer in (2, 4):
        bench.step(AppendReply(1, peer, 2, 3))
    assert bench.raft.commit_index == 3
    assert bench.raft.last_index == 3
    bench.raft.set_disk_full(False)
    bench.flow()
    assert bench.raft.last_index == 4
    assert not bench.raft.configuration.joint


def test_truncation_without_conflict() -> None:
    """Broken if a late or repeated append that ends earlier throws away what was acknowledged since."""
    bench = Bench(terms=(1, 1, 1, 1))
    reply = one(AppendReply, bench.step(Append(1, 2, 1, 1, 1, log(1, 1), 1)))
    assert (reply.index, reply.rejected) == (3, False)
    assert bench.raft.last_index == 5
    bench.step(Append(1, 2, 1, 1, 1, (), 1))
    assert bench.raft.last_index == 5
    bench.step(Append(1, 2, 2, 1, 1, log(1, 2), 1))
    assert bench.raft.last_index == 3


def test_a_committed_entry_is_never_replaced() -> None:
    """Broken if a leader that lost committed entries could make a follower forget them too."""
    bench = Bench(terms=(1, 1))
    bench.step(Append(1, 2, 1, 3, 1, (), 3))
    with pytest.raises(MessageRefused, match="entry 2 of term 9 cannot follow 1"):
        bench.step(Append(1, 3, 9, 1, 1, log(9, 9), 1))
    assert [entry.term for entry in bench.disk.entries] == [1, 1]
