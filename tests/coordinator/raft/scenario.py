"""Raft in the order that its papers worry about, as a scenario: every message is delivered by hand.

::

    cluster COUNT [slow]        that many voters with empty logs; slow: a disk stores when it is told to
    elect NODE VOTER…           NODE, which hears of no leader, gets the votes of these; what it sends then is
                                on its way
    campaign NODE VOTER…        NODE asks for votes, and these hear of no leader either; nothing is delivered
    tick NODE… [xCOUNT]         time passes at these
    propose NODE DATA…          clients of NODE propose that; ``x*200`` is padded to 200 bytes
    read NODE NAME              a client of NODE asks for a linearizable read
    change NODE [joint] ±N…     NODE proposes a change of members: +4 a voter, ~4 a learner, -4 removed
    transfer NODE TO            NODE is asked to hand leadership to TO
    deliver A B [A]…            what is on its way from A to B; then what is on its way from B to A; and so on
    lose FROM                   what FROM has sent, and is on its way, is lost
    repeat FROM TO              the network keeps a copy of what is on its way from FROM to TO
    late                        the copies arrive
    settle                      deliver, store and apply until nothing is left to do
    cut FROM TO                 from now on nothing that FROM sends reaches TO
    split N… | N…               from now on nobody reaches the other side
    heal                        everybody reaches everybody again
    store NODE                  a slow disk stores all that it was given
    crash NODE                  what its disk has not stored is gone
    restart NODE                from its disk
    snapshot NODE               NODE stores an image of its state machine, and forgets the entries before it
    join NODE                   a node with an empty disk

The trace is a line for each node in which something has changed: role, the leader that it knows, term; its
log as ``term:data``, ``-`` for the first entry of a leader, and a change of members in parentheses; up to
where that is known to be committed, and what was applied. Then the reads that were answered or lost, and what
was refused. The invariants of :mod:`tests.coordinator.raft.invariants` are checked after every command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

from tests.coordinator.raft.network import SETTINGS, Cluster, Node
from undoubt.coordinator.raft import (
    Change,
    ChangeKind,
    ConfigChange,
    ConfigTransition,
    Configuration,
    Entry,
    Kind,
    RaftRefusal,
    ReadState,
    Role,
    decode,
    decode_change,
)

KINDS = {"+": ChangeKind.ADD_VOTER, "~": ChangeKind.ADD_LEARNER, "-": ChangeKind.REMOVE}
SIGNS = {kind: sign for sign, kind in KINDS.items()}
ROUNDS_MAX = 20
FILL = "."
"""What brings a proposal to its size; not shown."""


class RaftScenario:
    """One story. ``cluster`` begins it."""

    def __init__(self) -> None:
        self._cluster = Cluster(1)
        self._shown: dict[int, str] = {}
        self._reads = 0
        self._copies: list[bytes] = []

    async def play(self, command: str, words: list[str]) -> list[str]:
        commands: dict[str, Callable[[list[str]], object]] = {
            "cluster": self._begin,
            "elect": self._elect,
            "campaign": self._campaign,
            "tick": self._tick,
            "propose": self._propose,
            "read": lambda words: self._node(words[0]).up.read_index(words[1].encode()),
            "change": self._change,
            "transfer": lambda words: self._node(words[0]).up.transfer(int(words[1])),
            "deliver": self._deliver,
            "lose": lambda words: self._take(words[0]),
            "repeat": self._repeat,
            "late": lambda _: self._late(),
            "settle": lambda _: self._cluster.settle(),
            "cut": lambda words: self._cluster.cut.add((int(words[0]), int(words[1]))),
            "split": self._split,
            "heal": lambda _: self._cluster.heal(),
            "store": lambda words: self._store(self._node(words[0])),
            "crash": lambda words: self._crash(self._node(words[0])),
            "restart": lambda words: self._cluster.restart(int(words[0])),
            "snapshot": lambda words: self._node(words[0]).snapshot(),
            "join": lambda words: self._cluster.join(int(words[0])),
        }
        refused = []
        try:
            commands[command](words)
        except RaftRefusal as error:
            refused = [f"refused: {error}"]
        for node in self._cluster.running:
            node.pump()
        self._cluster.invariants.check()
        return [*self._changed(), *self._answers(), *refused]

    def _node(self, word: str) -> Node:
        return self._cluster.nodes[int(word)]

    # What happens.

    def _begin(self, words: list[str]) -> None:
        self._cluster = Cluster(int(words[0]), settings=SETTINGS, slow_disks="slow" in words)

    def _elect(self, words: list[str]) -> None:
        node, voters = self._node(words[0]), words[1:]
        for _ in range(ROUNDS_MAX):
            if node.up.role is Role.FOLLOWER:
                self._campaign(words)
            for voter in voters:
                for sender, to in ((node, self._node(voter)), (self._node(voter), node)):
                    if node.up.leads:
                        return
                    self._deliver([str(sender.number), str(to.number)])
                    self._store(to)
        raise AssertionError(f"{node.number} is not elected by {voters}")

    def _campaign(self, words: list[str]) -> None:
        node = self._node(words[0])
        for voter in words[1:]:
            self._node(voter).up.internals.election_elapsed = SETTINGS.election_ticks
        while node.up.role is Role.FOLLOWER:
            self._tick(words[:1])

    def _tick(self, words: list[str]) -> None:
        times = [int(word[1:]) for word in words if word.startswith("x")]
        for _ in range(times[0] if times else 1):
            for word in words:
                if not word.startswith("x"):
                    self._node(word).up.tick()
                    self._node(word).pump()

    def _propose(self, words: list[str]) -> None:
        for word in words[1:]:
            data, _, size = word.partition("*")
            self._node(words[0]).up.propose(data.ljust(int(size or 0), FILL).encode())

    def _change(self, words: list[str]) -> None:
        changes = tuple(Change(KINDS[word[0]], int(word[1:])) for word in words[1:] if word != "joint")
        transition = ConfigTransition.JOINT if "joint" in words else ConfigTransition.AUTO
        self._node(words[0]).up.propose_config(ConfigChange(changes, transition))

    def _take(self, sender: str, to: str = "") -> list[bytes]:
        """What is on its way from ``sender`` (to ``to``), and is not any more."""
        cluster, taken, left = self._cluster, list[bytes](), list[bytes]()
        for frame in cluster.wire:
            message = decode(frame)
            mine = message.sender == int(sender) and (not to or message.to == int(to))
            (taken if mine else left).append(frame)
        cluster.wire = left
        return taken

    def _deliver(self, words: list[str]) -> None:
        for sender, to in pairwise(words):
            for frame in self._take(sender, to):
                self._cluster.wire.insert(0, frame)
                self._cluster.deliver()

    def _repeat(self, words: list[str]) -> None:
        self._copies = self._take(*words)
        self._cluster.wire += self._copies

    def _late(self) -> None:
        for frame in self._copies:
            self._cluster.wire.insert(0, frame)
            self._cluster.deliver()

    def _split(self, words: list[str]) -> None:
        for side in " ".join(words).split("|"):
            self._cluster.isolate(*map(int, side.split()))

    def _store(self, node: Node) -> None:
        while node.writing or node.applying:
            node.sync()
            node.pump()
            node.apply()

    def _crash(self, node: Node) -> None:
        node.writing.clear()
        node.crash()
        self._shown.pop(node.number)

    # What is seen.

    def _changed(self) -> Iterator[str]:
        for node in self._cluster.running:
            seen = _seen(node)
            if self._shown.get(node.number) != seen:
                self._shown[node.number] = seen
                yield f"{node.number}: {seen}"

    def _answers(self) -> Iterator[str]:
        cluster = self._cluster
        for number, read in cluster.reads[self._reads :]:
            assert isinstance(read, ReadState)
            yield f"read {read.context.decode()}: answered by {number}, as of {read.index}"
        self._reads = len(cluster.reads)
        for context in cluster.reads_lost:
            yield f"read {context.decode()}: lost"
        cluster.reads_lost.clear()


def _seen(node: Node) -> str:
    raft = node.up
    leader = f" of {raft.leader}" if raft.role is Role.FOLLOWER and raft.leader else ""
    parts = [f"{raft.role.value}{leader}, term {raft.term}"]
    if raft.snapshot_index > 1:
        parts.append(f"snapshot {raft.snapshot_index}")
    entries = " ".join(_entry(entry) for entry in raft.internals.log.entries)
    parts += [f"log [{entries}]", f"committed {raft.commit_index}"]
    if applied := " ".join(_shown(data) for data in node.disk.machine):
        parts.append(f"applied {applied}")
    if raft.changing or raft.configuration.joint:
        parts.append(f"members {_members(raft.configuration)}")
    return ", ".join(parts)


def _entry(entry: Entry) -> str:
    match entry.kind:
        case Kind.DATA:
            return f"{entry.term}:{_shown(entry.data)}"
        case Kind.EMPTY:
            return f"{entry.term}:-"
        case Kind.CONFIG:
            changes = decode_change(entry.data).changes
            return f"{entry.term}:({' '.join(f'{SIGNS[each.kind]}{each.node}' for each in changes)})"


def _shown(data: bytes) -> str:
    return data.decode().rstrip(FILL)


def _members(configuration: Configuration) -> str:
    new = " ".join(map(str, sorted(configuration.incoming)))
    return f"{new} and {' '.join(map(str, sorted(configuration.outgoing)))}" if configuration.joint else new
