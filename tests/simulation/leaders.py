"""Who leads although the disk is full, while another voter could lead instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.judge import Violation
from undoubt.coordinator.raft import Pace

if TYPE_CHECKING:
    from tests.simulation.nodes import SimulatedNode
    from tests.simulation.world import World

LOOK_S = 0.05
PATIENCE_S = 0.3
"""Until both have noticed how full their disks are, besides a few election timeouts for the handing over."""
ELECTION_TIMEOUTS = 3.0


class StaleLeaders:
    """Looks at the nodes every :data:`LOOK_S`. Time counts only while nothing else is wrong: whoever is cut
    off, stopped, slow or dead cannot take over."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._since: dict[tuple[int, int], float] = {}
        """By node and term: since when it has led without need."""

    def begin(self) -> None:
        self._world.scheduler.after(LOOK_S, self._look)

    def _look(self) -> None:
        world = self._world
        cluster = world.cluster
        if cluster is None:
            return
        now = world.scheduler.now
        stale = [node for node in cluster.running if self._calm() and self._could_hand_over(node)]
        self._since = {
            (key := (node.number, node.up.term)): self._since.get(key, now)
            for node in stale
            if node.running is not None
        }
        patience_s = PATIENCE_S + ELECTION_TIMEOUTS * cluster.settings.election_timeout_s
        for (number, term), since in self._since.items():
            world.counts["leaders with a full disk"] += since == now
            if now - since > patience_s:
                raise Violation(
                    f"node {number} has led in term {term} for {now - since:.2f} s although its disk is full"
                    " and another voter could lead"
                )
        self.begin()

    def _calm(self) -> bool:
        world = self._world
        assert world.cluster is not None
        return (
            not world.network.cut
            and not world.network.slow
            and len(world.cluster.running) == len(world.cluster.nodes)
            and not any(process.paused for process in world.processes if process.alive)
            and all(node.drive.slowness == 1.0 for node in world.cluster.nodes.values())
        )

    def _could_hand_over(self, leader: SimulatedNode) -> bool:
        raft = leader.up
        if not raft.leads or not raft.disk_full or raft.changing:
            return False
        for number, progress in raft.progress.items():
            peer = self._world.cluster.nodes.get(number) if self._world.cluster is not None else None
            if (
                peer is not None
                and number != leader.number
                and peer.running is not None
                and number in raft.configuration.incoming
                and progress.pace is not Pace.SNAPSHOT
                and peer.up.leader == leader.number
                and not peer.up.disk_full
                and not peer.drive.full
            ):
                return True
        return False
