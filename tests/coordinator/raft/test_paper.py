"""Ongaro and Ousterhout, extended version of the Raft paper, §5.1 to §5.4."""

from __future__ import annotations

from random import Random

import pytest

from tests.coordinator.raft.bench import SETTINGS, Bench, log, one, only
from tests.coordinator.raft.network import Cluster
from undoubt.coordinator.raft import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    NotLeader,
    PreVote,
    PreVoteReply,
    Raft,
    RaftSettings,
    RequestVote,
    RequestVoteReply,
    Role,
    TimeoutNow,
)

# §5.1 Raft basics


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.PRE_CANDIDATE, Role.CANDIDATE, Role.LEADER])
def test_5_1_a_higher_term_makes_a_follower(role: Role) -> None:
    """Broken if a node goes on in its role although a later term has begun."""
    bench = Bench()
    if role is Role.LEADER:
        bench.lead()
    elif role is not Role.FOLLOWER:
        bench.time_out()
        if role is Role.CANDIDATE:
            bench.step(PreVoteReply(1, 2, 2, True))
    assert bench.raft.role is role
    bench.step(Append(1, 3, 9, 1, 1, (), 1))
    assert (bench.raft.role, bench.raft.term, bench.raft.leader) == (Role.FOLLOWER, 9, 3)
    assert bench.disk.hard_state.term == 9


def test_5_1_a_stale_term_changes_nothing() -> None:
    """Broken if an old leader or candidate could still have an effect."""
    bench = Bench(terms=(1,), term=5)
    for message in (
        Append(1, 2, 4, 2, 1, log(4, first=3), 3),
        Heartbeat(1, 2, 4, 2),
        RequestVote(1, 2, 4, 9, 4),
        AppendReply(1, 2, 4, 2),
        TimeoutNow(1, 2, 4),
    ):
        bench.step(message)
        assert (bench.raft.term, bench.raft.leader, bench.raft.commit_index) == (5, 0, 1)
        assert bench.raft.last_index == 2


# §5.2 Leader election


def test_5_2_a_node_begins_as_a_follower_whatever_it_was() -> None:
    """Broken if a restarted leader believes that it still leads."""
    bench = Bench()
    bench.lead()
    bench.restart()
    assert (bench.raft.role, bench.raft.leader, bench.raft.term) == (Role.FOLLOWER, 0, 2)


def test_5_2_a_leader_sends_heartbeats_to_all() -> None:
    """Broken if followers of a healthy leader run into their timeouts."""
    bench = Bench(learners=(4,))
    bench.lead()
    for _ in range(3):
        assert {beat.to for beat in only(Heartbeat, bench.ticks(1))} == {2, 3, 4}


def test_5_2_silence_starts_an_election_in_a_new_term() -> None:
    """Broken if a dead leader is never replaced."""
    bench = Bench()
    assert {(each.to, each.term) for each in only(PreVote, bench.time_out())} == {(2, 2), (3, 2)}
    assert bench.raft.term == 1
    sent = bench.step(PreVoteReply(1, 3, 2, True))
    assert {(each.to, each.term) for each in only(RequestVote, sent)} == {(2, 2), (3, 2)}
    assert (bench.disk.hard_state.term, bench.disk.hard_state.vote) == (2, 1)


@pytest.mark.parametrize(
    ("size", "votes", "role"),
    [
        (3, {2: True}, Role.LEADER),
        (3, {2: False}, Role.CANDIDATE),
        (3, {2: False, 3: False}, Role.FOLLOWER),
        (5, {2: True}, Role.CANDIDATE),
        (5, {2: True, 3: True}, Role.LEADER),
        (5, {2: True, 3: False, 4: False}, Role.CANDIDATE),
        (5, {2: True, 3: False, 4: False, 5: False}, Role.FOLLOWER),
        (3, {8: True, 9: True}, Role.CANDIDATE),
    ],
)
def test_5_2_a_majority_elects(size: int, votes: dict[int, bool], role: Role) -> None:
    """Broken if less than a majority of the voters, or anybody else, makes a leader."""
    bench = Bench(range(1, size + 1))
    bench.time_out()
    for peer in range(2, size + 1):
        bench.step(PreVoteReply(1, peer, 2, True))
    for peer, granted in votes.items():
        bench.step(RequestVoteReply(1, peer, 2, granted))
    assert bench.raft.role is role


def test_5_2_a_vote_counts_once() -> None:
    """Broken if a repeated message elects a leader."""
    bench = Bench(range(1, 6))
    bench.time_out()
    for _ in range(3):
        bench.step(PreVoteReply(1, 2, 2, True))
    assert bench.role() is Role.PRE_CANDIDATE
    bench.step(PreVoteReply(1, 3, 2, True))
    for _ in range(3):
        bench.step(RequestVoteReply(1, 2, 2, True))
    assert bench.role() is Role.CANDIDATE


def test_5_2_one_vote_per_term_first_come_first_served() -> None:
    """Broken if two candidates of a term could both win."""
    bench = Bench()
    assert one(RequestVoteReply, bench.step(RequestVote(1, 3, 2, 1, 1))).granted
    assert not one(RequestVoteReply, bench.step(RequestVote(1, 2, 2, 1, 1))).granted
    assert one(RequestVoteReply, bench.step(RequestVote(1, 3, 2, 1, 1))).granted


def test_5_2_a_candidate_follows_the_leader_of_its_term() -> None:
    """Broken if a candidate that lost goes on disturbing the winner."""
    bench = Bench()
    bench.time_out()
    bench.step(PreVoteReply(1, 2, 2, True))
    bench.step(Append(1, 3, 2, 1, 1, (), 1))
    assert (bench.raft.role, bench.raft.leader, bench.raft.term) == (Role.FOLLOWER, 3, 2)


def test_5_2_timeouts_are_drawn_anew_from_their_range() -> None:
    """Broken if nodes time out together for ever, or before a leader must have been heard."""
    bench = Bench()
    drawn = set()
    for seed in range(200):
        raft = Raft(1, SETTINGS, Random(seed), bench.disk)
        ticks = 0
        while raft.role is Role.FOLLOWER:
            raft.tick()
            ticks += 1
        drawn.add(ticks)
    assert drawn == set(range(SETTINGS.election_ticks, 2 * SETTINGS.election_ticks))


def test_5_2_a_split_vote_is_followed_by_another_election() -> None:
    """Broken if a term without a leader is the end."""
    bench = Bench()
    bench.time_out()
    bench.step(PreVoteReply(1, 2, 2, True))
    bench.step(RequestVoteReply(1, 2, 2, False))
    assert bench.raft.role is Role.CANDIDATE
    assert {each.term for each in only(PreVote, bench.time_out())} == {3}


# §5.3 Log replication


def test_5_3_an_entry_is_committed_by_a_majority_and_applied_everywhere() -> None:
    """Broken if proposals do not reach the state machines, in order."""
    cluster = Cluster(5)
    cluster.elect(1)
    expected = [b"%d" % number for number in range(20)]
    for data in expected:
        cluster.propose(data)
    cluster.settle()
    cluster.tick(count=2)
    assert [cluster.machine(number) for number in cluster.nodes] == [expected] * 5


def test_5_3_no_majority_no_commit() -> None:
    """Broken if a minority commits."""
    cluster = Cluster(5)
    cluster.elect(1)
    cluster.settle()
    cluster.isolate(1, 2)
    entry = cluster.propose(b"x")
    cluster.settle()
    assert cluster.raft(1).commit_index < entry.index


def test_5_3_only_a_leader_takes_proposals() -> None:
    """Broken if an entry of two origins had the same index and term."""
    bench = Bench()
    bench.step(Heartbeat(1, 2, 2, 1))
    with pytest.raises(NotLeader) as refused:
        bench.raft.propose(b"x")
    assert refused.value.leader == 2


def test_5_3_the_consistency_check() -> None:
    """Broken if entries are appended behind a gap, or behind an entry of another term."""
    bench = Bench(terms=(1, 2), term=3)
    for prev_index, prev_term in ((9, 3), (3, 1), (2, 2)):
        reply = one(AppendReply, bench.step(Append(1, 2, 3, prev_index, prev_term, (), 1)))
        assert (reply.rejected, reply.index) == (True, prev_index)
    reply = one(AppendReply, bench.step(Append(1, 2, 3, 3, 2, log(3, first=4), 1)))
    assert (reply.rejected, reply.index) == (False, 4)


FIGURE_7 = {
    "a": (1, 1, 4, 4, 5, 5, 6, 6),
    "b": (1, 1, 4),
    "c": (1, 1, 4, 4, 5, 5, 6, 6, 6, 6),
    "d": (1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7),
    "e": (1, 1, 4, 4, 4, 4),
    "f": (1, 1, 2, 2, 2, 3, 3, 3, 3, 3),
}


@pytest.mark.parametrize("follower", sorted(FIGURE_7))
def test_5_3_figure_7_every_log_becomes_the_leaders(follower: str) -> None:
    """Broken if a follower with missing or extraneous entries, or both, never agrees with the leader."""
    leader_terms = (1, 1, 4, 4, 5, 5, 6, 6, 6)
    leader = Bench((1, 2, 3), terms=leader_terms, term=7)
    other = Bench((1, 2, 3), terms=FIGURE_7[follower], term=7)
    other.raft.internals.node = 2
    to_follower = [each for each in leader.lead() if each.to == 2]
    rounds = 0
    while to_follower:
        rounds += 1
        answers = [answer for message in to_follower for answer in other.step(message)]
        sent = [message for answer in answers for message in leader.step(answer)]
        to_follower = [message for message in sent if message.to == 2]
    leader.ticks(1)
    assert [entry.term for entry in other.disk.entries] == [*leader_terms, 8]
    assert rounds <= 6, "one round for each term that differs, not for each entry (§5.3, end)"


def test_5_3_the_leader_learns_of_each_followers_place_by_probing() -> None:
    """Broken if a leader floods a peer whose log it does not know."""
    bench = Bench(terms=(1,) * 5)
    sent = bench.lead()
    assert [(each.to, each.prev_index) for each in only(Append, sent)] == [(2, 6), (3, 6)]
    bench.raft.propose(b"x")
    assert bench.flow() == []
    sent = bench.step(AppendReply(1, 2, 2, 6, True, 3, 1))
    (probe,) = only(Append, sent)
    assert (probe.to, probe.prev_index, len(probe.entries)) == (2, 3, 5)


def test_5_3_a_leader_tries_again_until_it_is_answered() -> None:
    """Broken if one lost message leaves a follower behind for ever."""
    bench = Bench()
    bench.lead()
    assert only(Append, bench.ticks(3)) == []
    sent = bench.step(HeartbeatReply(1, 2, 2))
    assert [(each.to, each.prev_index) for each in only(Append, sent)] == [(2, 1)]
    bench.step(AppendReply(1, 2, 2, 2))
    bench.raft.propose(b"lost")
    assert len(only(Append, bench.flow())) == 1
    (empty,) = only(Append, bench.step(HeartbeatReply(1, 2, 2)))
    assert (empty.prev_index, empty.entries) == (3, ())
    (again,) = only(Append, bench.step(AppendReply(1, 2, 2, 3, True, 2, 2)))
    assert [entry.data for entry in again.entries] == [b"lost"]


# §5.4 Safety


@pytest.mark.parametrize(
    ("candidate", "granted"),
    [((3, 2), True), ((4, 2), True), ((2, 3), True), ((2, 2), False), ((9, 1), False)],
)
def test_5_4_1_no_vote_for_a_log_that_misses_something(candidate: tuple[int, int], granted: bool) -> None:
    """Broken if a leader could be elected that lacks committed entries: by term first, then by length."""
    index, term = candidate
    bench = Bench(terms=(1, 2), term=3)
    assert one(PreVoteReply, bench.step(PreVote(1, 2, 4, index, term))).granted is granted
    assert one(RequestVoteReply, bench.step(RequestVote(1, 2, 4, index, term))).granted is granted


def test_5_4_2_a_new_leader_commits_what_it_found_through_an_entry_of_its_own() -> None:
    """Broken if what an earlier leader left behind waits for the next proposal."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.settle()
    cluster.isolate(1)
    cluster.propose(b"left behind")
    cluster.crash(1)
    cluster.heal()
    cluster.restart(1)
    cluster.nodes[2].up.internals.election_elapsed = cluster.nodes[3].up.internals.election_elapsed = 99
    cluster.elect(1)
    cluster.settle()
    cluster.tick(count=2)
    assert [cluster.machine(number) for number in (1, 2, 3)] == [[b"left behind"]] * 3


def test_5_4_3_a_leader_has_everything_that_was_committed() -> None:
    """Broken if whoever is elected next can lack a committed entry."""
    for first in (1, 2, 3):
        cluster = Cluster(3)
        cluster.elect(first)
        behind = first % 3 + 1
        cluster.settle()
        cluster.isolate(behind)
        cluster.propose(b"x")
        cluster.settle()
        cluster.crash(first)
        cluster.heal()
        cluster.tick(count=6 * cluster.settings.election_ticks)
        assert cluster.leader not in (0, behind)


def test_settings_that_cannot_work_are_refused() -> None:
    """Broken if heartbeats slower than the election timeout are accepted (§5.6)."""
    with pytest.raises(ValueError, match="election_ticks"):
        RaftSettings(election_ticks=3, heartbeat_ticks=3)
    with pytest.raises(ValueError, match="positive"):
        RaftSettings(append_bytes_max=0)
