"""Membership: extended paper §6; Ongaro's thesis §4."""

from __future__ import annotations

import pytest

from tests.coordinator.raft.bench import SETTINGS, Bench, one, only
from tests.coordinator.raft.network import Cluster
from undoubt.coordinator.raft import (
    Append,
    AppendReply,
    Change,
    ChangeKind,
    ConfigChange,
    ConfigRefused,
    ConfigTransition,
    Configuration,
    Entry,
    Heartbeat,
    Kind,
    NotLeader,
    PreVote,
    RequestVote,
    Role,
    TimeoutNow,
    encode,
)


def change(
    *changes: tuple[ChangeKind, int], transition: ConfigTransition = ConfigTransition.AUTO
) -> ConfigChange:
    return ConfigChange(tuple(Change(kind, node) for kind, node in changes), transition)


ADD_4 = change((ChangeKind.ADD_VOTER, 4))
SWAP = change((ChangeKind.ADD_VOTER, 4), (ChangeKind.REMOVE, 3))


def leading(voters: tuple[int, ...] = (1, 2, 3)) -> Bench:
    """A leader of term 2 that has committed its first entry, 2."""
    bench = Bench(voters)
    bench.lead()
    for peer in voters[1:]:
        bench.step(AppendReply(1, peer, 2, 2))
    assert bench.raft.commit_index == 2
    return bench


def reconfigure(cluster: Cluster, wanted: ConfigChange) -> None:
    cluster.raft(cluster.leader).propose_config(wanted)
    cluster.pump(cluster.leader)
    cluster.settle()
    cluster.tick(count=6)


def test_6_a_configuration_is_in_force_as_soon_as_it_is_in_the_log() -> None:
    """Broken if a follower counts by a configuration that its leader has left behind."""
    bench = leading()
    bench.raft.propose_config(ADD_4)
    assert bench.raft.configuration.incoming == {1, 2, 3, 4}
    follower = Bench()
    follower.step(Append(1, 2, 2, 1, 1, (Entry.make(2, 2, encode(ADD_4), Kind.CONFIG),), 1))
    assert follower.raft.configuration.incoming == {1, 2, 3, 4}
    follower.restart()
    assert follower.raft.configuration.incoming == {1, 2, 3, 4}


def test_6_a_configuration_goes_with_its_entry() -> None:
    """Broken if a replaced tail leaves its configuration behind."""
    bench = Bench()
    bench.step(Append(1, 2, 2, 1, 1, (Entry.make(2, 2, encode(ADD_4), Kind.CONFIG),), 1))
    bench.step(Append(1, 3, 3, 1, 1, (Entry.make(2, 3),), 1))
    assert bench.raft.configuration.incoming == {1, 2, 3}


def test_6_a_joint_configuration_needs_both_majorities() -> None:
    """Broken if the old or the new voters alone could commit while the other elects."""
    bench = leading((1, 2, 3))
    bench.raft.propose_config(
        change(
            (ChangeKind.ADD_VOTER, 4),
            (ChangeKind.ADD_VOTER, 5),
            (ChangeKind.REMOVE, 2),
            (ChangeKind.REMOVE, 3),
        )
    )
    assert bench.raft.configuration == Configuration(
        frozenset({1, 4, 5}), frozenset({1, 2, 3}), frozenset(), frozenset(), True
    )
    bench.flow()
    bench.step(AppendReply(1, 2, 2, 3))
    bench.step(AppendReply(1, 3, 2, 3))
    assert bench.raft.commit_index == 2
    bench.step(AppendReply(1, 4, 2, 3))
    assert bench.raft.commit_index == 3


def test_6_a_joint_election_needs_both_majorities() -> None:
    """Broken if a candidate of the old voters alone could win beside one of the new."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.settle()
    cluster.join(4)
    cluster.join(5)
    for number in (4, 5):
        reconfigure(cluster, change((ChangeKind.ADD_LEARNER, number)))
    moved = change(
        (ChangeKind.ADD_VOTER, 4),
        (ChangeKind.ADD_VOTER, 5),
        (ChangeKind.REMOVE, 1),
        (ChangeKind.REMOVE, 2),
        transition=ConfigTransition.JOINT_EXPLICIT,
    )
    reconfigure(cluster, moved)
    assert cluster.raft(3).configuration.joint
    cluster.crash(4)
    cluster.crash(5)
    cluster.tick(count=8 * cluster.settings.election_ticks)
    assert cluster.leaders == []
    cluster.restart(5)
    cluster.tick(count=8 * cluster.settings.election_ticks)
    assert cluster.leader != 0


def test_6_nodes_are_replaced_while_work_goes_on() -> None:
    """Broken if growing, shrinking or replacing loses what was committed, or stops it."""
    cluster = Cluster(3)
    cluster.elect(1)
    expected = []
    steps = [
        change((ChangeKind.ADD_LEARNER, 4)),
        change((ChangeKind.ADD_LEARNER, 5)),
        change((ChangeKind.ADD_VOTER, 4), (ChangeKind.ADD_VOTER, 5)),
        change((ChangeKind.REMOVE, 1), (ChangeKind.REMOVE, 2)),
    ]
    cluster.join(4)
    cluster.join(5)
    for number, step in enumerate(steps):
        for each in range(5):
            expected.append(b"%d.%d" % (number, each))
            cluster.propose(expected[-1])
        reconfigure(cluster, step)
        cluster.tick(count=4 * cluster.settings.election_ticks)
    cluster.propose(b"last")
    cluster.settle()
    cluster.tick(count=2)
    assert cluster.raft(cluster.leader).configuration == Configuration(incoming=frozenset({3, 4, 5}))
    assert [cluster.machine(number) for number in (3, 4, 5)] == [[*expected, b"last"]] * 3


def test_4_1_one_uncommitted_configuration_at_most() -> None:
    """Broken if two changes under way could leave two disjoint majorities."""
    bench = leading()
    bench.raft.propose_config(ADD_4)
    with pytest.raises(ConfigRefused, match="not committed"):
        bench.raft.propose_config(change((ChangeKind.ADD_VOTER, 5)))
    bench.flow()
    for peer in (2, 3):
        bench.step(AppendReply(1, peer, 2, 3))
    bench.raft.propose_config(change((ChangeKind.ADD_VOTER, 5)))
    assert bench.raft.configuration.incoming == {1, 2, 3, 4, 5}


def test_4_1_no_change_before_an_entry_of_the_leaders_own_term_is_committed() -> None:
    """Broken if the changes of two leaders, each unknown to the other, both become committed.

    Ongaro, "bug in single-server membership changes", raft-dev, 10 July 2015.
    """
    bench = Bench()
    bench.lead()
    with pytest.raises(ConfigRefused, match="own term"):
        bench.raft.propose_config(ADD_4)
    bench.step(AppendReply(1, 2, 2, 2))
    bench.raft.propose_config(ADD_4)


def test_4_1_only_a_leader_changes_the_configuration() -> None:
    """Broken if a follower appends."""
    with pytest.raises(NotLeader):
        Bench().raft.propose_config(ADD_4)


@pytest.mark.parametrize(
    "wanted",
    [
        ConfigChange(),
        change((ChangeKind.REMOVE, 1), (ChangeKind.REMOVE, 2), (ChangeKind.REMOVE, 3)),
    ],
)
def test_4_1_an_impossible_change_is_refused_and_not_appended(wanted: ConfigChange) -> None:
    """Broken if an entry could enter the log that no node can apply."""
    bench = leading()
    with pytest.raises(ConfigRefused):
        bench.raft.propose_config(wanted)
    assert bench.raft.last_index == 2
    assert bench.raft.configuration.incoming == {1, 2, 3}


def test_4_2_1_a_learner_catches_up_without_counting() -> None:
    """Broken if a new server delays commits, votes for a quorum, or stands for election."""
    cluster = Cluster(2, learners=1)
    cluster.elect(1)
    cluster.settle()
    cluster.isolate(2)
    entry = cluster.propose(b"x")
    cluster.settle()
    assert cluster.raft(3).last_index == entry.index
    assert cluster.raft(1).commit_index < entry.index
    cluster.crash(1)
    cluster.heal()
    cluster.isolate(3)
    cluster.tick(3, count=8 * cluster.settings.election_ticks)
    assert cluster.raft(3).role is Role.FOLLOWER


def test_4_2_2_a_leader_that_removes_itself_leads_until_that_is_committed() -> None:
    """Broken if it goes too early (nobody commits the change), too late, or counts itself meanwhile."""
    bench = leading((1, 2, 3))
    bench.raft.propose_config(change((ChangeKind.REMOVE, 1)))
    bench.flow()
    bench.step(AppendReply(1, 2, 2, 3))
    assert (bench.raft.role, bench.raft.commit_index) == (Role.LEADER, 2)
    sent = bench.step(AppendReply(1, 3, 2, 3))
    assert (bench.raft.role, bench.raft.commit_index) == (Role.FOLLOWER, 3)
    assert {beat.to: beat.commit for beat in only(Heartbeat, sent)} == {2: 3, 3: 3}
    assert one(TimeoutNow, sent).to in (2, 3)
    assert only(PreVote, bench.ticks(5 * SETTINGS.election_ticks)) == []


def test_4_2_2_who_is_removed_by_an_uncommitted_change_may_still_be_elected() -> None:
    """Broken if the only node whose log can win is barred by an entry that nobody else has.

    2 knows only the joint configuration, in which it needs the vote of 1; and 1, whose log is longer, does
    not give it.
    """
    cluster = Cluster(2)
    cluster.elect(1)
    cluster.settle()
    demote = change((ChangeKind.ADD_LEARNER, 1), transition=ConfigTransition.JOINT_EXPLICIT)
    reconfigure(cluster, demote)
    assert cluster.raft(2).configuration.joint
    cluster.isolate(1)
    cluster.raft(1).propose_config(ConfigChange())
    cluster.pump(1)
    for number in (1, 2):
        cluster.crash(number)
    cluster.heal()
    for number in (1, 2):
        cluster.restart(number)
    cluster.tick(count=12 * cluster.settings.election_ticks)
    assert cluster.leader == 2
    assert not cluster.raft(2).configuration.joint


def test_4_2_3_a_removed_server_is_heard_once_there_is_no_leader() -> None:
    """Broken if the lease never ends: then nobody could replace a dead leader."""
    bench = Bench()
    bench.step(Heartbeat(1, 2, 2, 1))
    bench.ticks(SETTINGS.election_ticks)
    assert bench.step(RequestVote(1, 3, 3, 1, 1))
    assert bench.raft.term == 3


def test_4_3_a_demoted_voter_is_a_learner_only_after_the_joint_configuration() -> None:
    """Broken if an outgoing voter stops counting while its vote is still needed."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.settle()
    reconfigure(
        cluster,
        change(
            (ChangeKind.ADD_LEARNER, 3), (ChangeKind.REMOVE, 2), transition=ConfigTransition.JOINT_EXPLICIT
        ),
    )
    held = cluster.raft(1).configuration
    assert (held.outgoing, held.learners, held.learners_next) == (
        frozenset({1, 2, 3}),
        frozenset[int](),
        frozenset({3}),
    )
    reconfigure(cluster, ConfigChange())
    assert cluster.raft(1).configuration == Configuration(frozenset({1}), learners=frozenset({3}))


def test_4_4_a_node_that_joins_is_given_the_first_configuration_too() -> None:
    """Broken if a node that starts empty knows only the changes since, and not what they changed."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.settle()
    cluster.join(4)
    reconfigure(cluster, change((ChangeKind.ADD_LEARNER, 4)))
    assert cluster.raft(4).configuration == cluster.raft(1).configuration
    assert cluster.raft(4).configuration.incoming == {1, 2, 3}


def test_4_the_context_of_a_change_reaches_the_driver() -> None:
    """Broken if a node's address, which travels with its change, gets lost."""
    bench = leading()
    wanted = ConfigChange((Change(ChangeKind.ADD_LEARNER, 4, b"10.0.0.4:7400"),))
    entry = bench.raft.propose_config(wanted)
    assert (entry.kind, entry.data) == (Kind.CONFIG, encode(wanted))
    bench.flow()
    bench.step(AppendReply(1, 2, 2, 3))
    assert bench.applied[-1] == entry
