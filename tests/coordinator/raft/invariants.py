"""What must hold after every step, whatever happened. Shares no code with what it checks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from undoubt.coordinator.raft import (
    AppendReply,
    Configuration,
    Entry,
    Message,
    PreVote,
    PreVoteReply,
    RequestVote,
    RequestVoteReply,
    SnapshotReply,
)

if TYPE_CHECKING:
    from tests.coordinator.raft.network import Cluster, Node


def majority(holders: set[int], voters: frozenset[int]) -> bool:
    return not voters or 2 * len(holders & voters) > len(voters)


class Invariants:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.leader_of: dict[int, int] = {}
        """One leader per term."""
        self.votes: dict[tuple[int, int], int] = {}
        """(voter, term): whom it told that it has its vote."""
        self.terms: dict[int, int] = {}
        self.commits: dict[int, int] = {}
        self.committed: dict[int, Entry] = {}
        """What is committed at an index never changes."""
        self.leading: dict[int, tuple[int, tuple[int, ...]]] = {}
        """A leader's term, and the terms of its log's entries: it only appends."""
        self.applied: dict[int, int] = {}
        self.checked = 0

    # Messages.

    def sent(self, node: Node, message: Message) -> None:
        """No message depends on what is not on disk."""
        disk = node.disk
        if isinstance(message, PreVote) or (isinstance(message, PreVoteReply) and message.granted):
            return
        assert message.term <= disk.hard_state.term, f"{message} from an unsynced term"
        if isinstance(message, RequestVoteReply) and message.granted:
            if disk.hard_state.term == message.term:
                assert disk.hard_state.vote == message.to, f"{message}: the vote is not on disk"
            self.voted(node.number, message.term, message.to)
        if isinstance(message, RequestVote):
            if disk.hard_state.term == message.term:
                assert disk.hard_state.vote == node.number, f"{message}: the vote is not on disk"
            self.voted(node.number, message.term, node.number)
        if isinstance(message, AppendReply) and not message.rejected and message.term == node.up.term:
            held = max([disk.snapshot.index, *disk.entries])
            assert message.index <= held, f"{message} acknowledges what is not on disk ({held})"
        if isinstance(message, SnapshotReply) and disk.snapshot.index < message.index:
            assert message.offset in (0, len(disk.staged)) or message.offset < len(disk.staged)

    def voted(self, voter: int, term: int, candidate: int) -> None:
        earlier = self.votes.setdefault((voter, term), candidate)
        assert earlier == candidate, f"{voter} votes for {candidate} and {earlier} in term {term}"

    # Nodes.

    def restarted(self, node: Node) -> None:
        """What only memory held is gone, and may be less than before."""
        self.terms[node.number] = node.disk.hard_state.term
        self.commits.pop(node.number, None)
        self.leading.pop(node.number, None)

    def check(self) -> None:
        self.checked += 1
        for node in self.cluster.running:
            self.check_node(node)
        self.log_matching()

    def check_node(self, node: Node) -> None:
        number, raft, log = node.number, node.up, node.up.internals.log
        assert raft.term >= self.terms.get(number, 0), f"the term of {number} falls"
        self.terms[number] = raft.term
        assert log.commit >= self.commits.get(number, 0), f"the commit index of {number} falls"
        assert log.snapshot.index <= log.applied <= log.applying <= log.commit <= log.last_index
        assert node.disk.applied <= max(log.commit, node.disk.snapshot.index)
        for index in range(max(self.commits.get(number, 0), log.before_index) + 1, log.commit + 1):
            self.commit(index, log.entries[index - log.before_index - 1])
        self.commits[number] = log.commit
        if raft.leads:
            self.check_leader(node)
        else:
            self.leading.pop(number, None)

    def check_leader(self, node: Node) -> None:
        number, raft, log = node.number, node.up, node.up.internals.log
        assert self.leader_of.setdefault(raft.term, number) == number, f"two leaders in term {raft.term}"
        assert node.disk.hard_state.term >= raft.term, "a leader whose own vote is not on disk"
        for index, entry in self.committed.items():
            if index > log.before_index and entry.term < raft.term:
                held = log.term(index)
                assert held == entry.term, f"leader {number} of term {raft.term} lacks committed {index}"
        terms = tuple(entry.term for entry in log.entries)
        term, earlier = self.leading.get(number, (0, ()))
        if term == raft.term and len(earlier) <= log.last_index:
            kept = earlier[log.before_index :]
            assert terms[: len(kept)] == kept, f"leader {number} rewrites its own log"
        padded = (0,) * log.before_index + terms
        self.leading[number] = (raft.term, padded)
        history = raft.internals.history
        uncommitted = [index for index, _ in history._known if index > 1 and index not in self.committed]
        assert len(uncommitted) <= 1, f"uncommitted configurations at {uncommitted}"

    def commit(self, index: int, entry: Entry) -> None:
        """Whoever says first that an entry is committed must be right: a quorum has it on disk."""
        earlier = self.committed.get(index)
        if earlier is not None:
            assert earlier == entry, f"committed {index} changes from {earlier} to {entry}"
            return
        self.committed[index] = entry
        holders = {
            node.number
            for node in self.cluster.nodes.values()
            if node.disk.snapshot.index >= index or node.disk.entries.get(index) == entry
        }
        assert any(
            majority(holders, each.incoming) and majority(holders, each.outgoing)
            for each in self.configurations()
        ), f"{index} is called committed, but only {sorted(holders)} have it"

    def configurations(self) -> set[Configuration]:
        return {node.up.configuration for node in self.cluster.running}

    def log_matching(self) -> None:
        """Same index and term: same entry, and the same entries before."""
        seen: dict[tuple[int, int], tuple[Entry, int | None]] = {}
        for node in self.cluster.running:
            log = node.up.internals.log
            before: int | None = log.before_term
            for position, entry in enumerate(log.entries):
                known = seen.setdefault((entry.index, entry.term), (entry, before))
                assert known[0] == entry, f"two entries {entry.index} of term {entry.term}"
                assert position == 0 or known[1] == before or known[1] is None
                before = entry.term
