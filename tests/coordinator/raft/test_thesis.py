"""Ongaro's thesis: §3.10 transfer, §6.2 check-quorum, §6.4 reads, §9.6 pre-vote, §10.2 performance."""

from __future__ import annotations

import pytest

from tests.coordinator.raft.bench import SETTINGS, Bench, log, one, only
from tests.coordinator.raft.network import Cluster
from undoubt.coordinator.raft import (
    Append,
    AppendReply,
    ConfigRefused,
    Heartbeat,
    HeartbeatReply,
    NotLeader,
    PreVote,
    PreVoteReply,
    ProposalRefused,
    RaftSettings,
    ReadState,
    Refusal,
    RequestVote,
    RequestVoteReply,
    Role,
    TimeoutNow,
)


def leading(voters: tuple[int, ...] = (1, 2, 3), settings: RaftSettings = SETTINGS) -> Bench:
    """A leader of term 2 that has committed its first entry, 2."""
    bench = Bench(voters, settings=settings)
    bench.lead()
    for peer in voters[1:]:
        bench.step(AppendReply(1, peer, 2, 2))
    return bench


# §3.10 Leadership transfer


def test_3_10_leadership_goes_where_it_was_asked_to() -> None:
    """Broken if a node could not be stopped without waiting for an election timeout."""
    for to in (2, 3):
        cluster = Cluster(3)
        cluster.elect(1)
        cluster.settle()
        cluster.raft(1).transfer(to)
        cluster.pump(1)
        cluster.settle()
        assert cluster.leaders == [to]


def test_3_10_the_target_is_brought_up_to_date_first() -> None:
    """Broken if leadership is given to a log that cannot win, or proposals keep it from catching up."""
    bench = leading()
    bench.raft.propose(b"x")
    bench.flow()
    bench.raft.transfer(3)
    assert only(TimeoutNow, bench.flow()) == []
    with pytest.raises(ProposalRefused) as refused:
        bench.raft.propose(b"y")
    assert refused.value.reason is Refusal.TRANSFERRING
    assert one(TimeoutNow, bench.step(AppendReply(1, 3, 2, 3))).to == 3
    assert only(TimeoutNow, bench.step(AppendReply(1, 3, 2, 3))) == []


def test_3_10_a_transfer_that_does_not_happen_ends() -> None:
    """Broken if a target that is down keeps the leader from working."""
    bench = leading()
    bench.raft.transfer(3)
    for _ in range(SETTINGS.election_ticks):
        bench.ticks(1)
        bench.step(HeartbeatReply(1, 2, 2))
    assert bench.raft.role is Role.LEADER
    assert bench.raft.propose(b"x").index == 3


@pytest.mark.parametrize("to", [4, 9])
def test_3_10_leadership_goes_to_voters_only(to: int) -> None:
    """Broken if a learner or a stranger is asked to lead, and everybody waits for it."""
    bench = Bench(learners=(4,))
    bench.lead()
    with pytest.raises(ConfigRefused):
        bench.raft.transfer(to)
    with pytest.raises(NotLeader):
        Bench().raft.transfer(2)


def test_3_10_the_lease_does_not_stand_in_the_way() -> None:
    """Broken if the others refuse the candidate whom their own leader has chosen."""
    bench = Bench()
    bench.step(Heartbeat(1, 2, 2, 1))
    assert one(RequestVoteReply, bench.step(RequestVote(1, 3, 3, 1, 1, transfer=True))).granted
    chosen = Bench()
    sent = chosen.step(TimeoutNow(1, 2, 1))
    assert [vote.transfer for vote in only(RequestVote, sent)] == [True, True]


# §6.2 A leader without a majority


def test_6_2_a_leader_cut_off_steps_down() -> None:
    """Broken if clients of a leader that can commit nothing wait there for ever."""
    bench = leading()
    bench.ticks(2 * SETTINGS.election_ticks)
    assert (bench.raft.role, bench.raft.leader) == (Role.FOLLOWER, 0)


def test_6_2_a_leader_with_a_majority_stays() -> None:
    """Broken if a healthy leader gives up because a minority is silent."""
    bench = leading()
    for _ in range(5 * SETTINGS.election_ticks):
        bench.ticks(1)
        bench.step(HeartbeatReply(1, 3, 2))
    assert bench.raft.role is Role.LEADER


# §6.4 Reads


def test_6_4_a_read_waits_for_a_round_of_heartbeats_begun_after_it() -> None:
    """Broken if a leader that was replaced without knowing it answers from the past."""
    bench = leading()
    bench.ticks(1)
    bench.raft.read_index(b"r")
    ready = bench.ready()
    assert ready.read_states == ()
    (beat, _) = only(Heartbeat, ready.messages_now)
    bench.raft.step(HeartbeatReply(1, 2, 2, beat.round - 1))
    assert bench.ready().read_states == ()
    bench.raft.step(HeartbeatReply(1, 2, 2, beat.round))
    assert bench.ready().read_states == (ReadState(b"r", 2),)


def test_6_4_a_new_leader_reads_only_after_committing_an_entry_of_its_term() -> None:
    """Broken if a new leader, who may not know the commit index yet, answers too low."""
    bench = Bench(terms=(1, 1, 1))
    bench.lead()
    bench.raft.read_index(b"r")
    for peer in (2, 3):
        bench.raft.step(HeartbeatReply(1, peer, 2, 0))
    assert bench.ready().read_states == ()
    bench.step(AppendReply(1, 2, 2, 5))
    bench.raft.step(HeartbeatReply(1, 2, 2, 1))
    assert bench.ready().read_states == (ReadState(b"r", 5),)


def test_6_4_reads_of_a_leader_that_steps_down_are_lost_not_answered() -> None:
    """Broken if a caller waits for ever, or is answered by one who no longer leads."""
    bench = leading()
    bench.raft.read_index(b"asked")
    bench.flow()
    bench.raft.read_index(b"waiting")
    bench.raft.step(Heartbeat(1, 3, 5, 1))
    ready = bench.ready()
    assert (set(ready.reads_lost), ready.read_states) == ({b"asked", b"waiting"}, ())
    with pytest.raises(NotLeader):
        bench.raft.read_index(b"r")


def test_6_4_one_round_serves_all_reads_that_wait() -> None:
    """Broken if each read costs a round of its own."""
    bench = leading((1,))
    contexts = [b"%d" % number for number in range(50)]
    for context in contexts:
        bench.raft.read_index(context)
    assert [read.context for read in bench.ready().read_states] == contexts
    bench = leading()
    for context in contexts:
        bench.raft.read_index(context)
    sent = bench.flow()
    assert len(only(Heartbeat, sent)) == 2
    bench.raft.step(HeartbeatReply(1, 3, 2, 1))
    assert [read.context for read in bench.ready().read_states] == contexts


# §9.6 Pre-vote


def test_9_6_a_node_cut_off_does_not_raise_the_term() -> None:
    """Broken if a node that comes back after a partition forces an election on the others."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.settle()
    term = cluster.raft(1).term
    cluster.isolate(3)
    cluster.tick(count=10 * cluster.settings.election_ticks)
    assert cluster.raft(3).term == term
    cluster.heal()
    cluster.tick(count=4 * cluster.settings.election_ticks)
    assert (cluster.leaders, cluster.raft(1).term) == ([1], term)


def test_9_6_a_pre_vote_promises_nothing() -> None:
    """Broken if asking in advance uses up the vote, raises the term, or resets the timeout."""
    bench = Bench()
    for candidate in (2, 3):
        reply = one(PreVoteReply, bench.step(PreVote(1, candidate, 2, 1, 1)))
        assert (reply.granted, reply.term) == (True, 2)
    assert (bench.disk.hard_state.term, bench.disk.hard_state.vote) == (1, 0)
    bench.ticks(5)
    bench.step(PreVote(1, 2, 2, 1, 1))
    assert bench.raft.internals.election_elapsed == 5


def test_9_6_a_grant_for_an_earlier_attempt_does_not_count() -> None:
    """Broken if a late answer starts an election that would lose."""
    bench = Bench((1, 2, 3), term=4)
    bench.time_out()
    bench.step(PreVoteReply(1, 2, 4, True))
    assert bench.role() is Role.PRE_CANDIDATE
    bench.step(PreVoteReply(1, 2, 5, True))
    assert bench.role() is Role.CANDIDATE


def test_9_6_a_pre_candidate_follows_a_leader_that_appears() -> None:
    """Broken if it went on asking while somebody leads."""
    bench = Bench()
    bench.time_out()
    bench.step(Heartbeat(1, 3, 1, 1))
    assert (bench.raft.role, bench.raft.leader) == (Role.FOLLOWER, 3)


# §10.2 Performance


def test_10_2_1_the_leader_sends_before_it_has_stored() -> None:
    """Broken if the followers' disks wait for the leader's."""
    bench = leading()
    bench.raft.propose(b"x")
    ready = bench.ready()
    assert [entry.data for entry in ready.entries] == [b"x"]
    assert {append.to for append in only(Append, ready.messages_now)} == {2, 3}


def test_10_2_2_all_proposals_since_the_last_step_travel_together() -> None:
    """Broken if each proposal costs a message, a write and a sync of its own."""
    bench = leading()
    for number in range(100):
        bench.raft.propose(b"%d" % number)
    ready = bench.ready()
    assert len(ready.entries) == 100
    assert [len(append.entries) for append in only(Append, ready.messages_now)] == [100, 100]


def test_10_2_2_appends_follow_each_other_without_waiting_inside_the_window() -> None:
    """Broken if a round trip limits throughput, or a slow peer is sent without limit."""
    settings = RaftSettings(inflight_messages_max=3, append_bytes_max=1)
    bench = leading(settings=settings)
    sent = []
    for number in range(10):
        bench.raft.propose(b"%d" % number)
        sent += [each for each in only(Append, bench.flow()) if each.to == 2]
    assert [entry.index for each in sent for entry in each.entries] == [3, 4, 5]
    more = only(Append, bench.step(AppendReply(1, 2, 2, 4)))
    assert [entry.index for each in more for entry in each.entries] == [6, 7]


def test_10_2_2_the_window_is_limited_by_bytes_too() -> None:
    """Broken if few large entries fill a slow peer's connection without limit."""
    bench = leading(settings=RaftSettings(inflight_bytes_max=1000, append_bytes_max=1))
    sent = []
    for _ in range(10):
        bench.raft.propose(b"x" * 400)
        sent += [each for each in only(Append, bench.flow()) if each.to == 2]
    assert len(sent) == 3


def test_10_2_2_a_follower_acknowledges_once_for_all_that_one_sync_stored() -> None:
    """Broken if acknowledgements are as many as messages."""
    bench = Bench()
    for index in (2, 3, 4):
        bench.raft.step(Append(1, 2, 1, index - 1, 1, log(1, first=index), 1))
    ready = bench.ready()
    assert len(ready.entries) == 3
    assert [reply.index for reply in only(AppendReply, bench.store())] == [4]


def test_proposals_are_refused_when_too_much_is_uncommitted() -> None:
    """Broken if a leader without a majority fills its memory."""
    bench = leading(settings=RaftSettings(uncommitted_bytes_max=200))
    with pytest.raises(ProposalRefused) as refused:
        for _ in range(100):
            bench.raft.propose(b"x" * 50)
    assert refused.value.reason is Refusal.BUSY
    bench.flow()
    bench.step(AppendReply(1, 2, 2, bench.raft.last_index))
    bench.raft.propose(b"x")


def test_a_full_disk_refuses_proposals_and_entries_and_serves_reads() -> None:
    """Broken if a full disk makes a node useless, or makes it acknowledge what it could not store. The other
    voters' disks are full as well, so it goes on leading."""
    bench = leading()
    for peer in (2, 3):
        bench.step(HeartbeatReply(1, peer, 2, 0, fit=False))
    bench.raft.set_disk_full(True)
    with pytest.raises(ProposalRefused) as refused:
        bench.raft.propose(b"x")
    assert refused.value.reason is Refusal.DISK_FULL
    bench.raft.read_index(b"r")
    bench.flow()
    bench.raft.step(HeartbeatReply(1, 2, 2, 1, fit=False))
    assert bench.ready().read_states == (ReadState(b"r", 2),)
    bench.raft.set_disk_full(False)
    assert bench.raft.propose(b"x").index == 3
    follower = Bench()
    follower.raft.set_disk_full(True)
    assert follower.step(Append(1, 2, 1, 1, 1, log(1), 1)) == []
    assert (follower.raft.last_index, follower.raft.leader) == (1, 2)
    follower.raft.set_disk_full(False)
    assert one(AppendReply, follower.step(Append(1, 2, 1, 1, 1, log(1), 1))).index == 2
