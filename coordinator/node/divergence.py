"""Compares the states that the nodes have computed from the same log.

All nodes hash their state at the same indexes of the log, and ask each other for these hashes. A node whose
hash differs from that of a majority has applied an entry differently (because of damaged memory, or of a bug
that did not occur on all nodes): it stops before it answers more calls. If no hash has a majority, it is not
known which state is right, and an error is logged."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

from undoubt.coordinator.errors import LedgerError, LedgerUnusable
from undoubt.coordinator.ledger.cluster.messages import NodeStatus, StatusCall
from undoubt.coordinator.ledger.cluster.status import ask
from undoubt.coordinator.node.replica import Replica
from undoubt.coordinator.node.status import RELEASE
from undoubt.coordinator.quorum import majority_size
from undoubt.coordinator.supervision import Upkeep
from undoubt.coordinator.wire import WireSettings

log = logging.getLogger(__name__)

COMPARE_S = 10.0
ASK_S = 2.0
"""The timeout for one answer; a node that does not answer in time is asked again in the next round."""


class DivergenceCheck:
    """Compares the hashes of one node with those of the others, from its first hash on."""

    def __init__(self, replica: Replica, wire: WireSettings) -> None:
        self._replica = replica
        self._wire = wire
        self._upkeep = Upkeep(
            "node comparing", self._keep_up, COMPARE_S, undone="hashes cannot be compared now"
        )
        self._logged: set[int] = set()
        replica.replicated.hashes.noted = self._begin

    async def close(self) -> None:
        await self._upkeep.stop()

    def _begin(self) -> None:
        self._upkeep.start("undoubt-node-comparing")

    async def _keep_up(self) -> None:
        if not self._replica.failed.done():
            await self.look()

    async def look(self) -> None:
        """Ask the other nodes once, and compare."""
        replica = self._replica
        voters, addresses = replica.raft.configuration.incoming, replica.replicated.addresses
        asked = [addresses[node] for node in sorted(voters - {replica.raft.node}) if node in addresses]
        answers = await asyncio.gather(*map(self._ask, asked))
        # Another release may encode the same state differently.
        hashes = [each.state_hashes for each in answers if each is not None and each.version == RELEASE]
        for index, mine in list(replica.replicated.hashes.known.items()):
            others = Counter(each[index] for each in hashes if index in each)
            self.judge(index, mine, others, majority_size(voters))

    async def _ask(self, address: str) -> NodeStatus | None:
        try:
            status: NodeStatus = await ask(address, StatusCall(), ASK_S, self._wire)
        except LedgerError:
            return None
        return status

    def judge(self, index: int, mine: str, others: Counter[str], majority: int) -> None:
        most = max(others, key=lambda one: others[one], default=mine)
        if most != mine and others[most] >= majority:
            self._replica.fail(
                LedgerUnusable(
                    f"node {self._replica.raft.node} has another state than the other nodes after entry"
                    f" {index}: hash {mine[:12]}, theirs {most[:12]}. Do not start it again; add another node"
                    " on an empty folder, under a new number"
                )
            )
        elif set(others) - {mine} and index not in self._logged:
            self._logged.add(index)
            log.error(
                "nodes have different states after entry %d, no majority has the same: %s here, others %s",
                index,
                mine,
                ", ".join(f"{one} ({count})" for one, count in sorted(others.items())),
            )
