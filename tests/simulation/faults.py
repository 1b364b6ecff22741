"""What goes wrong, drawn from the seed. Every fault has a limit; ``World.heal`` ends them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.simulation.scheduler import Process

if TYPE_CHECKING:
    from tests.simulation.world import World

PAUSE_S = (0.05, 12.0)
PARTITION_S = (0.1, 8.0)
OUTAGE_S = (0.05, 5.0)
FULL_S = (0.3, 4.0)


class Nemesis:
    """Wakes up at random moments and does one thing. A run uses a few kinds only, so that each has room."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = world.random
        kinds: list[Callable[[], None]] = [
            self.kill,
            self.kill_soon,
            self.kill_soon,
            self.pause,
            self.cut,
            self.cut_one_way,
            self.slow_link,
            self.drop_connections,
            self.crash_database,
            self.promote,
            self.disk,
            self.hand_over,
            self.cut_peers,
            self.cut_peers,
            self.cut_database,
            self.cut_database,
            self.strand,
            self.few_nodes,
        ]
        if world.databases_answer:
            kinds = [self.kill, self.kill_soon, self.kill_soon, self.disk, self.hand_over, self.cut_peers]
        if world.protocols == ["paxos"] and self.random.random() < 0.5:
            # About who has accepted what: many leaders, each of whom few have heard.
            kinds = [self.strand, self.strand, self.strand, self.few_nodes, self.few_nodes, self.kill_soon]
        self.kinds = self.random.sample(kinds, self.random.randint(2, len(kinds)))
        if world.tampers:
            self.kinds.append(self.meddle)
        self.every_s = self.random.choice([0.3, 0.8, 2.0])

    def begin(self) -> None:
        self._again()

    def _again(self) -> None:
        self.world.scheduler.after(self.random.expovariate(1 / self.every_s), self.strike)

    def strike(self) -> None:
        if self.world.peace:
            return
        if self.world.mortal() and len(self.world.hosts()) > 1:
            self.random.choice(self.kinds)()
        self._again()

    def _victim(self) -> Process:
        return self.random.choice(self.world.mortal())

    def _later(self, bounds: tuple[float, float], what: Callable[[], None]) -> None:
        self.world.scheduler.after(self.random.uniform(*bounds), what)

    def kill(self) -> None:
        """SIGKILL, or the whole machine loses its power: then nobody resets its connections."""
        victim = self._victim()
        self.world.kill(victim, power=self.random.random() < 0.3)

    def kill_soon(self) -> None:
        """At one of the next callbacks, whichever it is: every await is a place to die."""
        self._soon(self._victim())

    def _soon(self, victim: Process) -> None:
        victim.dies_at_step = victim.steps + self.random.randint(1, 400)

    def pause(self) -> None:
        victim = self._victim()
        if victim.paused:
            return
        self.world.trace("nemesis", f"stops {victim.name}")
        victim.pause(True)

        def goes_on() -> None:
            if victim.alive and victim.paused:
                self.world.trace("nemesis", f"lets {victim.name} go on")
                victim.pause(False)

        self._later(PAUSE_S, goes_on)

    def cut(self) -> None:
        """A host alone, or two halves."""
        hosts = self.world.hosts()
        alone = set(self.random.sample(hosts, self.random.randint(1, max(1, len(hosts) // 2))))
        pairs = [(one, other) for one in hosts for other in hosts if (one in alone) != (other in alone)]
        self._cut(pairs, f"cuts {sorted(alone)} off")

    def cut_peers(self) -> None:
        """Some nodes from the others, while clients still reach them all: an old leader goes on taking what
        it cannot commit."""
        if self.world.cluster is None:
            return
        members = self.world.cluster.nodes
        hosts = [f"node{number}" for number in sorted(members)]
        leading = [f"node{node.number}" for node in self.world.cluster.running if node.up.leads]
        alone = {self.random.choice(leading or hosts)}
        if len(hosts) > 3 and self.random.random() < 0.5:
            alone.add(self.random.choice(hosts))
        one_way = self.random.random() < 0.2
        pairs = [
            (one, other)
            for one in hosts
            for other in hosts
            if (one in alone and other not in alone) or (not one_way and one not in alone and other in alone)
        ]
        bounds_s = self.random.choice([(0.05, 1.0), PARTITION_S])
        self._cut(pairs, f"cuts {sorted(alone)} off from the other nodes", bounds_s)

    def cut_one_way(self) -> None:
        source, target = self.random.sample(self.world.hosts(), 2)
        self._cut([(source, target)], f"cuts {source} to {target}")

    def cut_database(self) -> None:
        """Some can reach it, and others cannot; requests are lost, or answers."""
        name = self.random.choice([host for host, _ in sorted(self.world.databases.values())])
        others = [host for host in self.world.hosts() if not host.startswith("db-")]
        some = self.random.sample(others, self.random.randint(1, len(others))) if others else []
        there, back = self.random.choice([(True, True), (True, False), (False, True)])
        pairs = [(host, name) for host in some if there] + [(name, host) for host in some if back]
        self._cut(pairs, f"cuts {sorted(some)} off from {name}" + " one way" * (there != back))

    def strand(self) -> None:
        """Somebody reaches few of the nodes, or hears of few, and may not be there for long: what it asked of
        all of them is with some only."""
        cluster = self.world.cluster
        if cluster is None:
            return
        victim = self._victim()
        hosts = [f"node{number}" for number in sorted(cluster.nodes) if victim.host != f"node{number}"]
        some = self.random.sample(hosts, min(len(hosts), self.random.randint(len(hosts) // 2, len(hosts))))
        there = self.random.random() < 0.7
        pairs = [(victim.host, host) if there else (host, victim.host) for host in some]
        self._cut(pairs, f"cuts {victim.name} off from {sorted(some)} one way")
        for connection in list(self.world.network.connections.values()):
            if connection.client.process is victim and connection.server.process.host in some:
                connection.reset()  # else what was sent would arrive when the link is whole again
        if self.random.random() < 0.5:
            self._soon(victim)

    def few_nodes(self) -> None:
        """A majority of the nodes has no room for a while: what is asked of all, few take. An application may
        die of it."""
        cluster = self.world.cluster
        if cluster is None:
            return
        numbers = sorted(cluster.nodes)
        full = [cluster.nodes[number].drive for number in self.random.sample(numbers, len(numbers) // 2 + 1)]
        self.world.trace("nemesis", f"fills the disks of {len(full)} nodes")
        for drive in full:
            drive.full = True

        def room() -> None:
            for drive in full:
                drive.full = False

        self._later(FULL_S, room)
        shops = [process for process in self.world.mortal() if process.name.startswith("shop")]
        if shops and self.random.random() < 0.6:
            self._soon(self.random.choice(shops))

    def _cut(
        self, pairs: list[tuple[str, str]], why: str, bounds_s: tuple[float, float] = PARTITION_S
    ) -> None:
        world = self.world
        world.trace("nemesis", why)
        world.network.cut.update(pairs)

        def whole() -> None:
            world.network.cut.difference_update(pairs)
            world.network.resume()
            world.trace("nemesis", f"mends: {why}")

        self._later(bounds_s, whole)

    def slow_link(self) -> None:
        source, target = self.random.sample(self.world.hosts(), 2)
        factor = self.random.choice([5.0, 50.0, 500.0])
        self.world.trace("nemesis", f"slows {source} to {target} by {factor}")
        self.world.network.slow[source, target] = factor

    def drop_connections(self) -> None:
        connections = list(self.world.network.connections.values())
        dropped = [each for each in connections if self.random.random() < 0.3]
        self.world.trace("nemesis", f"resets {len(dropped)} connections")
        for connection in dropped:
            connection.reset()

    def crash_database(self) -> None:
        name = self.random.choice(sorted(self.world.databases))
        self.world.crash_database(name, self.random.uniform(*OUTAGE_S))

    def promote(self) -> None:
        """A synchronous standby takes over: nothing is lost, and the timeline is another."""
        if self.random.random() < 0.5:
            name = self.random.choice(sorted(self.world.databases))
            promote = name != self.world.agent
            self.world.crash_database(name, self.random.uniform(*OUTAGE_S), promote=promote)

    def disk(self) -> None:
        self.world.trouble_disk()

    def hand_over(self) -> None:
        self.world.hand_over()

    def meddle(self) -> None:
        """A database administrator ends a prepared branch by hand."""
        self.world.meddle()
