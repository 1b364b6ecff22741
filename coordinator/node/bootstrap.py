"""The first nodes of a new cluster: each stores the same beginning, and nothing else makes a node out of
nothing.

A node whose disk is lost must not come here again: with an empty log and its old number it would vote for
what it has forgotten. It is removed from the cluster, and another number joins.
"""

from __future__ import annotations

from collections.abc import Mapping

from coordinator.ledger.machine import Machine
from coordinator.node.replicated import Replicated
from coordinator.node.storage import Snapshot
from coordinator.raft import HardState, bootstrap


def beginning(cluster: str, addresses: Mapping[int, str]) -> tuple[HardState, Snapshot]:
    """What every first node stores. ``cluster`` becomes the ledger's id as well; ``addresses`` names the
    first members, all of them voters."""
    first = bootstrap(addresses)
    replicated = Replicated(Machine(cluster), dict(sorted(addresses.items())))
    return first.hard_state, Snapshot(first.snapshot, replicated.image())
