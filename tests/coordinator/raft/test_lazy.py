"""A lazy leader: entries go at once to as many followers as a quorum needs, and to the others a heartbeat
later, or in a hurry; the others stand for election later. Safety does not depend on it: what counts is what a
quorum has stored."""

from __future__ import annotations

import msgspec
import pytest

from tests.coordinator.raft.bench import SETTINGS, Bench, only
from undoubt.coordinator.raft import (
    Append,
    AppendReply,
    Change,
    ChangeKind,
    ConfigChange,
    ConfigTransition,
    Heartbeat,
    HeartbeatReply,
    Message,
    PreVote,
    PreVoteReply,
)

LAZY = msgspec.structs.replace(SETTINGS, lazy=True)


def leading(voters: tuple[int, ...] = (1, 2, 3), *, learners: tuple[int, ...] = ()) -> Bench:
    """A leader whose followers have everything so far."""
    bench = Bench(voters, learners=learners, settings=LAZY)
    bench.lead()
    for node in sorted(bench.raft.configuration.nodes - {1}):
        bench.step(AppendReply(1, node, bench.raft.term, bench.raft.last_index))
    bench.flow()
    return bench


def propose(bench: Bench, data: bytes = b"x") -> list[Message]:
    bench.raft.propose(data)
    return bench.flow()


def fed(messages: list[Message]) -> dict[int, list[int]]:
    """The indexes of the entries that were sent, by receiver."""
    sent: dict[int, list[int]] = {}
    for append in only(Append, messages):
        sent.setdefault(append.to, []).extend(entry.index for entry in append.entries)
    return {node: indexes for node, indexes in sent.items() if indexes}


def acknowledge(bench: Bench, node: int) -> list[Message]:
    return bench.step(AppendReply(1, node, bench.raft.term, bench.raft.last_index))


@pytest.mark.parametrize(
    ("voters", "learners", "count"),
    [((1, 2, 3), (), 1), ((1, 2, 3, 4), (), 2), ((1, 2, 3, 4, 5), (), 2), ((1, 2, 3), (4,), 1)],
)
def test_entries_go_at_once_to_as_many_as_a_quorum_needs(
    voters: tuple[int, ...], learners: tuple[int, ...], count: int
) -> None:
    """Broken if every follower pays for every entry, or if too few get it for it to be committed."""
    bench = leading(voters, learners=learners)
    first = fed(propose(bench))
    assert len(first) == count
    assert set(first) <= set(voters)
    before = bench.raft.commit_index
    for node in first:
        acknowledge(bench, node)
    assert bench.raft.commit_index == before + 1
    assert set(fed(propose(bench))) == set(first), "the same ones: the others lack the entry before"
    assert bench.raft.holds_back
    sent = bench.ticks(1)
    everybody = {*voters, *learners} - {1}
    assert {each.to for each in only(Heartbeat, sent)} == everybody
    assert fed(sent) == {node: [3, 4] for node in everybody - set(first)}
    assert not bench.raft.holds_back


def test_a_leader_alone_does_not_commit() -> None:
    """Broken if an entry counts as committed because its follower was chosen."""
    bench = leading()
    propose(bench)
    assert bench.raft.commit_index < bench.raft.last_index
    bench.ticks(1)
    assert bench.raft.commit_index < bench.raft.last_index


def test_a_late_follower_is_replaced_in_a_hurry() -> None:
    """Broken if a commit waits for a follower that is slow, paused or dead while another one is there."""
    bench = leading()
    [first] = fed(propose(bench))
    other = 5 - first
    late = bench.raft.last_index
    bench.raft.hurry(late)
    assert fed(bench.flow()) == {other: [late]}
    acknowledge(bench, other)
    assert bench.raft.commit_index == late
    assert set(fed(propose(bench))) == {other}
    acknowledge(bench, first)
    acknowledge(bench, other)
    bench.raft.hurry(bench.raft.last_index)
    bench.flow()
    assert set(fed(propose(bench))) == {other}, "who is not late stays"


def test_a_hurry_of_five_keeps_the_one_that_is_in_time() -> None:
    """Broken if a follower that has the entries loses its place because another one is late."""
    bench = leading((1, 2, 3, 4, 5))
    in_time, late = sorted(fed(propose(bench)))
    index = bench.raft.last_index
    acknowledge(bench, in_time)
    bench.raft.hurry(index)
    assert set(fed(bench.flow())) == {2, 3, 4, 5} - {in_time, late}
    now = set(fed(propose(bench)))
    assert in_time in now
    assert late not in now


def test_one_that_does_not_answer_is_not_chosen() -> None:
    """Broken if entries wait for a follower that has not been heard of, or whose disk is full."""
    bench = leading()
    [first] = fed(propose(bench))
    bench.step(HeartbeatReply(1, first, bench.raft.term, 0, False))
    assert set(fed(propose(bench))) == {5 - first}


def test_everybody_gets_everything_where_more_may_be_needed() -> None:
    """Broken if a joint configuration, a transfer, a leader whose own disk is late, or a leader that is no
    voter any more waits for a heartbeat."""
    bench = leading((1, 2, 3, 4))
    bench.raft.propose_config(
        ConfigChange(
            (Change(ChangeKind.REMOVE, 4), Change(ChangeKind.ADD_VOTER, 5)), ConfigTransition.JOINT_EXPLICIT
        )
    )
    bench.flow()
    assert bench.raft.configuration.joint
    assert set(fed(propose(bench))) >= {2, 3, 4}
    bench = leading()
    bench.raft.propose(b"x")
    bench.raft.transfer(3)
    assert set(fed(bench.flow())) == {2, 3}
    bench = leading()
    bench.raft.propose(b"x")
    sent = list(bench.ready().messages_now)  # not stored here
    assert len(fed(sent)) == 1
    bench.raft.hurry(bench.raft.last_index)
    bench.ready()
    for node in (2, 3):
        bench.raft.step(AppendReply(1, node, bench.raft.term, bench.raft.last_index))
    bench.ready()
    assert bench.raft.commit_index == bench.raft.last_index > bench.raft.persisted_index
    bench.raft.propose(b"y")
    assert set(fed(list(bench.ready().messages_now))) == {2, 3}
    bench.store()
    assert len(fed(propose(bench))) == 1


def test_a_read_goes_with_everything() -> None:
    """Broken if a read's round of heartbeats leaves followers behind that answer it."""
    bench = leading()
    [first] = fed(propose(bench))
    acknowledge(bench, first)
    bench.raft.read_index(b"r")
    sent = bench.flow()
    assert {each.to for each in only(Heartbeat, sent)} == {2, 3}
    assert set(fed(sent)) == {5 - first}


def test_a_node_that_does_not_lead_does_not_hurry() -> None:
    """Broken if a timer of a former leader changes a follower."""
    bench = Bench(settings=LAZY)
    bench.raft.hurry(1)
    assert not bench.flow()
    assert not bench.raft.holds_back


def named(messages: list[Message]) -> set[frozenset[int]]:
    """The followers that the heartbeats among ``messages`` name."""
    return {each.fed for each in only(Heartbeat, messages)}


def test_a_heartbeat_names_the_followers_that_get_entries_at_once() -> None:
    """Broken if the followers do not learn which of them is behind, or if one counts as behind although every
    follower gets every entry."""
    bench = leading((1, 2, 3, 4, 5))
    chosen = frozenset(fed(propose(bench)))
    assert len(chosen) == 2
    assert named(bench.ticks(1)) == {chosen}
    bench.raft.propose_config(ConfigChange((Change(ChangeKind.REMOVE, 5),), ConfigTransition.JOINT_EXPLICIT))
    bench.flow()
    assert bench.raft.configuration.joint
    assert named(bench.ticks(1)) == {frozenset()}
    bench = Bench()  # of a cluster that is not lazy
    bench.lead()
    assert named(bench.ticks(1)) == {frozenset()}


def waits(bench: Bench) -> int:
    """After how many ticks of silence the node asks for pre-votes."""
    for count in range(1, 5 * SETTINGS.election_ticks):
        if only(PreVote, bench.ticks(1)):
            return count
    raise AssertionError("it never stands")


def silence_after(*names: frozenset[int], voters: tuple[int, ...] = (1, 2, 3)) -> int:
    """How long node 1 waits after heartbeats of node 2 that name those followers, in this order."""
    bench = Bench(voters, settings=LAZY)
    for fed_now in names:
        bench.step(Heartbeat(1, 2, 1, 1, 0, fed_now))
    return waits(bench)


def test_who_gets_entries_later_stands_one_timeout_later() -> None:
    """Broken if the follower that lacks acknowledged entries stands first, and is refused, while the one that
    has them waits."""
    usual = silence_after(frozenset())
    assert silence_after(frozenset({1})) == usual
    assert silence_after(frozenset({3})) == usual + SETTINGS.election_ticks
    assert silence_after(frozenset({3}), frozenset({1})) == usual, "the last heartbeat counts"
    assert silence_after(frozenset({3}), frozenset()) == usual
    assert silence_after(frozenset({1}), frozenset({3})) == usual + SETTINGS.election_ticks


def test_the_extra_timeout_is_waited_for_once() -> None:
    """Broken if a node that stood without success waits for others again, or if it waits because of what a
    former leader said: without the fed follower nobody would lead for longer than necessary."""
    bench = Bench(settings=LAZY)
    bench.step(Heartbeat(1, 2, 1, 1, 0, frozenset({3})))
    waits(bench)
    for other in (2, 3):
        bench.step(PreVoteReply(1, other, 1, False))
    assert waits(bench) < 2 * SETTINGS.election_ticks
    bench = Bench(settings=LAZY)
    bench.step(Heartbeat(1, 2, 1, 1, 0, frozenset({3})))
    bench.step(Append(1, 3, 2, 1, 1, (), 1))  # another leader, which has said nothing yet
    assert waits(bench) < 2 * SETTINGS.election_ticks
