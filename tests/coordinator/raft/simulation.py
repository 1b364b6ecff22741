"""One seeded run: hundreds of random steps under faults, then peace, in which all must agree."""

from __future__ import annotations

from contextlib import suppress
from random import Random

import msgspec

from tests.coordinator.raft.network import SETTINGS, Cluster, Node
from undoubt.coordinator.raft import Change, ChangeKind, ConfigChange, ConfigTransition, Kind, RaftRefusal

CALM_TICKS = 150
"""Within how many ticks after healing there must be a leader and equal logs: some election timeouts."""


class Simulation:
    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.voters = self.random.choice([1, 2, 3, 3, 3, 4, 5])
        self.hurry = Random(f"lazy {seed}")
        """Apart, so that a seed's other faults do not depend on it."""
        self.lazy = self.hurry.random() < 0.5
        settings = msgspec.structs.replace(SETTINGS, lazy=self.lazy)
        self.cluster = Cluster(
            self.voters,
            seed=seed,
            slow_disks=True,
            learners=self.random.choice([0, 0, 1]),
            settings=settings,
        )
        self.proposed = 0
        self.accepted: dict[tuple[int, int], bytes] = {}
        self.reads: dict[bytes, int] = {}
        self.reads_seen = 0
        self.changes = self.random.random() < 0.5
        self.crashes = self.random.choice([0.0, 0.01, 0.03])
        self.loss = self.random.choice([0.0, 0.05, 0.3])
        self.repeats = self.random.choice([0.0, 0.1])
        self.ticks = self.random.choice([0.05, 0.1, 0.2])
        self.cuts = self.random.choice([0.0, 0.01, 0.03])

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()
            self.check_reads()
            self.cluster.invariants.check()
        self.calm()

    def step(self) -> None:
        random, cluster = self.random, self.cluster
        number = random.choice(sorted(cluster.nodes))
        node = cluster.nodes[number]
        if node.raft is None:
            if random.random() < 0.2:
                cluster.restart(number)
            return
        draw = random.random()
        if draw < self.crashes:
            cluster.crash(number)
        elif draw < 0.05 + self.crashes:
            self.rare(node)
        elif draw < 0.40:
            for _ in range(self.random.randrange(1, 8)):
                self.deliver()
        elif draw < 0.40 + self.ticks:
            node.up.tick()
            if self.hurry.random() < 0.2:
                node.up.hurry(node.up.commit_index + self.hurry.randrange(3))
        elif draw < 0.65:
            node.sync()
        elif draw < 0.75:
            node.apply()
        elif draw < 0.85:
            self.ask(node)
        else:
            for each in cluster.running:
                each.sync()
                each.pump()
        if node.raft is not None:
            node.pump()

    def deliver(self) -> None:
        cluster = self.cluster
        if not cluster.wire:
            return
        # Mostly in order, at times from anywhere.
        position = 0 if self.random.random() < 0.7 else self.random.randrange(len(cluster.wire))
        if self.random.random() < self.loss:
            cluster.wire.pop(position)
            return
        if self.random.random() < self.repeats:
            cluster.wire.append(cluster.wire[position])
        cluster.deliver(position)

    def ask(self, node: Node) -> None:
        """A client's wish; mostly of the leader."""
        leader = self.cluster.leader
        if leader and self.random.random() < 0.8:
            node = self.cluster.nodes[leader]
        try:
            if self.random.random() < 0.3:
                context = b"r%d" % len(self.reads)
                node.up.read_index(context)
                self.reads[context] = max(self.cluster.invariants.committed, default=0)
            else:
                for _ in range(self.random.randrange(1, 5)):
                    data = b"%d-%d" % (node.number, self.proposed)
                    self.proposed += 1
                    entry = node.up.propose(data)
                    self.accepted[entry.index, entry.term] = data
        except RaftRefusal:
            pass
        node.pump()

    def rare(self, node: Node) -> None:
        random, cluster = self.random, self.cluster
        what = random.choice(["cut", "heal", "stall", "snapshot", "snapshot", "change", "transfer", "full"])
        if what == "cut" and random.random() < self.cuts * 20:
            if random.random() < 0.5:
                cluster.isolate(node.number)
            else:
                cluster.cut.add((node.number, random.choice(sorted(cluster.nodes))))
        elif what == "heal":
            cluster.heal()
        elif what == "stall":
            node.stalled = not node.stalled and random.random() < 0.3
        elif what == "snapshot":
            node.snapshot()
        elif what == "full":
            node.up.set_disk_full(random.random() < 0.3)
        elif what == "transfer":
            self.try_transfer()
        elif self.changes:
            self.change()

    def try_transfer(self) -> None:
        leader = self.cluster.leader
        if leader:
            try:
                self.cluster.raft(leader).transfer(self.random.choice(sorted(self.cluster.nodes)))
            except RaftRefusal:
                return
            self.cluster.pump(leader)

    def change(self) -> None:
        random, cluster = self.random, self.cluster
        leader = cluster.leader
        if not leader:
            return
        if len(cluster.nodes) < 6 and random.random() < 0.3:
            cluster.join(max(cluster.nodes) + 1)
        nodes = sorted(cluster.nodes)
        changes = tuple(
            Change(
                random.choice([ChangeKind.ADD_VOTER, ChangeKind.ADD_VOTER, *ChangeKind]), random.choice(nodes)
            )
            for _ in range(random.randrange(1, 4))
        )
        if cluster.raft(leader).configuration.joint and random.random() < 0.8:
            changes = ()
        try:
            cluster.raft(leader).propose_config(ConfigChange(changes, random.choice(list(ConfigTransition))))
        except RaftRefusal:
            return
        cluster.pump(leader)

    def check_reads(self) -> None:
        """A read sees everything that was committed when it was asked for."""
        for number, read in self.cluster.reads[self.reads_seen :]:
            least = self.reads[read.context]
            assert read.index >= least, f"{number} answers a read at {read.index}, but {least} was committed"
        self.reads_seen = len(self.cluster.reads)

    def calm(self) -> None:
        """No more faults: in bounded time one leads, all agree, and nothing committed is lost."""
        cluster = self.cluster
        cluster.heal()
        for node in cluster.nodes.values():
            node.stalled = False
            if node.raft is None:
                cluster.restart(node.number)
            node.up.set_disk_full(False)
        cluster.settle()
        for _ in range(CALM_TICKS):
            cluster.tick()
            self.check_reads()
            if self.agreed():
                break
        else:
            raise AssertionError(f"no agreement after {CALM_TICKS} ticks")
        self.check_machines()

    def agreed(self) -> bool:
        cluster = self.cluster
        leader = cluster.leader
        if not leader:
            return False
        raft = cluster.raft(leader)
        configuration = raft.configuration
        if configuration.joint:
            self.leave(leader)
            return False
        if leader not in configuration.voters or raft.internals.log.term(raft.commit_index) != raft.term:
            return False
        members = [cluster.nodes[number] for number in sorted(configuration.nodes)]
        applied = {node.disk.applied for node in members}
        return applied == {raft.last_index} and all(node.up.leader == leader for node in members)

    def leave(self, leader: int) -> None:
        """An explicit joint configuration stays until somebody leaves it."""
        raft = self.cluster.raft(leader)
        if not raft.configuration.auto_leave:
            with suppress(RaftRefusal):
                raft.propose_config(ConfigChange())

    def check_machines(self) -> None:
        cluster = self.cluster
        members = sorted(cluster.raft(cluster.leader).configuration.nodes)
        machines = [cluster.machine(number) for number in members]
        committed = cluster.invariants.committed
        expected = [committed[i].data for i in sorted(committed) if committed[i].kind is Kind.DATA]
        assert all(machine == expected for machine in machines), "state machines differ"
        assert len(set(expected)) == len(expected), "a proposal is committed twice"
        for index, entry in committed.items():
            if entry.kind is Kind.DATA:
                assert self.accepted[index, entry.term] == entry.data, f"{index} is not what was proposed"
