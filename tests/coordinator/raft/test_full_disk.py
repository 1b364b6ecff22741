"""Who leads while disks are full or stalled: a voter whose disk is neither, wherever there is one."""

from __future__ import annotations

import pytest

from tests.coordinator.raft.bench import SETTINGS, Bench, only
from tests.coordinator.raft.network import Cluster
from undoubt.coordinator.raft import (
    ConfigRefused,
    HeartbeatReply,
    PreVote,
    PreVoteReply,
    ProposalRefused,
    Role,
    TimeoutNow,
    decode,
)
from undoubt.coordinator.raft.state import FULL_DISK_ELECTIONS


def beaten(cluster: Cluster, count: int = 3) -> None:
    """Let heartbeats go round, by which the leader hears how its peers are."""
    cluster.tick(count=count)


def test_a_leader_whose_disk_becomes_full_hands_over_to_one_that_is_up_to_date() -> None:
    """Broken if it keeps the leadership with two healthy voters beside it: nothing could be recorded."""
    cluster = Cluster()
    cluster.elect(1)
    beaten(cluster)
    cluster.isolate(3)
    for number in range(5):
        cluster.propose(b"%d" % number)
    cluster.settle()
    cluster.heal()
    cluster.raft(1).set_disk_full(True)
    cluster.pump(1)
    cluster.settle()
    assert cluster.leader == 2
    assert cluster.raft(2).last_index == cluster.raft(1).last_index  # nobody had to wait for an election
    cluster.propose(b"goes on")
    cluster.settle()
    assert cluster.machine(2)[-1] == b"goes on"


def test_leadership_is_not_transferred_to_a_full_disk() -> None:
    """Broken if an operator, or a node that is stopped, hands over to a node that can record nothing."""
    cluster = Cluster()
    cluster.elect(1)
    cluster.raft(2).set_disk_full(True)
    beaten(cluster)
    with pytest.raises(ConfigRefused, match="disk of node 2 is full"):
        cluster.raft(1).transfer(2)
    assert cluster.raft(1).successor == 3
    cluster.raft(2).set_disk_full(False)
    beaten(cluster)
    cluster.raft(1).transfer(2)
    cluster.pump(1)
    cluster.settle()
    assert cluster.leader == 2


def test_a_full_disk_does_not_follow_a_transfer_of_a_leader_that_has_not_heard_of_it() -> None:
    """Broken if the disk that filled up a moment ago is led by all the same."""
    bench = Bench()
    bench.raft.set_disk_full(True)
    bench.step(TimeoutNow(1, 2, 1))
    assert bench.role() is Role.FOLLOWER
    bench.raft.set_disk_full(False)
    bench.step(TimeoutNow(1, 2, 1))
    assert bench.role() is Role.CANDIDATE


def test_a_transfer_ends_when_its_disk_becomes_full() -> None:
    """Broken if a leader refuses proposals for the sake of a successor that cannot lead."""
    cluster = Cluster()
    cluster.elect(1)
    beaten(cluster)
    cluster.isolate(2)
    cluster.propose(b"x")
    cluster.raft(1).transfer(2)
    cluster.pump(1)
    with pytest.raises(ProposalRefused):
        cluster.raft(1).propose(b"y")
    cluster.raft(1).step(HeartbeatReply(1, 2, cluster.raft(1).term, 0, fit=False))
    cluster.pump(1)
    assert cluster.raft(1).propose(b"y").data == b"y"


@pytest.mark.parametrize("dead", [1, 2, 3])
def test_a_full_disk_does_not_stand_while_others_can_be_elected(dead: int) -> None:
    """Broken if the node whose disk is full wins an election that a healthy node could win. Whichever the
    leader was, and even if the full one draws the least timeout and the healthy one the longest."""
    cluster = Cluster(seed=dead)
    cluster.elect(dead)
    beaten(cluster)
    full, healthy = sorted(set(cluster.nodes) - {dead})
    cluster.raft(full).set_disk_full(True)
    beaten(cluster)
    cluster.crash(dead)
    ticks = cluster.settings.election_ticks
    for _ in range(FULL_DISK_ELECTIONS * ticks):
        cluster.raft(full).internals.timeout_ticks = ticks
        cluster.raft(healthy).internals.timeout_ticks = 2 * ticks - 1
        cluster.tick()
        assert cluster.leader != full
    assert cluster.leader == healthy


def test_a_full_disk_stands_where_nobody_else_can_be_elected() -> None:
    """Broken if what only full disks hold can be read by nobody. Once another voter has caught up, that one
    leads."""
    cluster = Cluster()
    cluster.elect(1)
    cluster.isolate(3)
    cluster.propose(b"on two disks only")
    cluster.settle()
    cluster.raft(2).set_disk_full(True)
    cluster.crash(1)
    cluster.heal()
    for _ in range(100):
        cluster.tick()
        if cluster.leader in {2, 3}:
            break
    # Node 2 led, and gave node 3 what it lacked.
    cluster.tick(count=5)
    assert cluster.leader == 3
    assert cluster.machine(3) == [b"on two disks only"]
    assert cluster.propose(b"more").index > 0


def test_where_all_disks_are_full_somebody_leads_until_one_has_room() -> None:
    """Broken if reads fail because nothing can be written, or if the leader does not notice that another
    disk was freed."""
    cluster = Cluster()
    cluster.elect(1)
    for number in cluster.nodes:
        cluster.raft(number).set_disk_full(True)
    cluster.tick(count=40)
    leader, term = cluster.leader, cluster.raft(cluster.leader).term
    cluster.tick(count=40)
    assert (cluster.leader, cluster.raft(leader).term) == (leader, term), "they do not take turns"
    cluster.raft(leader).read_index(b"r")
    cluster.pump(leader)
    cluster.settle()
    assert cluster.reads
    freed = next(number for number in cluster.nodes if number != leader)
    cluster.raft(freed).set_disk_full(False)
    beaten(cluster)
    assert cluster.leader == freed


def test_a_stalled_disk_is_not_handed_leadership_and_does_not_stand() -> None:
    """Broken if a follower whose disk hangs is chosen: its vote for itself is never stored, and proposals are
    refused for as long as the transfer lasts."""
    cluster = Cluster(slow_disks=True)
    cluster.elect(1)
    cluster.nodes[2].stalled = True
    cluster.propose(b"x")
    cluster.tick(count=cluster.settings.disk_stall_ticks + 3)
    assert cluster.raft(2).disk_stalled
    assert not cluster.raft(1).internals.tracker.progress[2].fit
    with pytest.raises(ConfigRefused, match="does not answer"):
        cluster.raft(1).transfer(2)
    assert cluster.raft(1).successor == 3
    cluster.isolate(2)
    term = cluster.raft(2).term
    cluster.tick(2, count=4 * cluster.settings.election_ticks)
    assert (cluster.raft(2).term, cluster.raft(2).role) == (term, Role.FOLLOWER)
    cluster.heal()
    cluster.nodes[2].stalled = False
    beaten(cluster)
    assert cluster.raft(1).internals.tracker.progress[2].fit


def test_a_leader_whose_disk_is_only_slow_goes_on_leading() -> None:
    """Broken if a slow disk makes leadership wander: each write takes its time, and none too long."""
    cluster = Cluster(slow_disks=True)
    cluster.elect(1)
    term = cluster.raft(1).term
    for number in range(12):
        cluster.nodes[1].stalled = True
        cluster.propose(b"%d" % number)
        cluster.tick(count=cluster.settings.disk_stall_ticks - 1)
        cluster.nodes[1].stalled = False
        cluster.settle()
    assert (cluster.leader, cluster.raft(1).term) == (1, term)
    assert len(cluster.machine(1)) == 12


def test_an_older_release_is_taken_for_fit() -> None:
    """Broken if the answer of a node that does not tell how its disk is cannot be read."""
    told = decode(b"\x95\x08\x01\x02\x01\x00")
    assert told == HeartbeatReply(1, 2, 1, 0, fit=True)


def test_the_wait_of_a_full_disk_ends() -> None:
    """Broken if it would never ask for votes again."""
    bench = Bench()
    bench.raft.set_disk_full(True)
    sent = bench.ticks((FULL_DISK_ELECTIONS + 2) * SETTINGS.election_ticks)
    assert only(PreVote, sent)
    for peer in (2, 3):
        bench.step(PreVoteReply(1, peer, bench.raft.term + 1, True))
    assert bench.raft.role is Role.CANDIDATE
