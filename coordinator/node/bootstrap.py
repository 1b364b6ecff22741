"""Computes the first contents of a node's disk: the first nodes of a new cluster all store the same contents,
new or from a backup; a node that joins later stores only its identity.

A node whose disk is lost must not be made again under its old number, because its votes and acknowledgements
are lost: it is removed from the cluster, and a node with another number joins. Peers refuse a disk other than
the one that they know for a number, from an earlier connection or from the change with which a node joined;
and a node with an empty log grants no vote.
"""

from __future__ import annotations

from collections.abc import Mapping

from undoubt.coordinator.ledger.backup import NOT_IN_BACKUP, reading_image
from undoubt.coordinator.ledger.commands import Restore
from undoubt.coordinator.ledger.machine import Machine
from undoubt.coordinator.ledger.move_mark import check_lives
from undoubt.coordinator.ledger.state_machine_ledger import SESSION_SKIP
from undoubt.coordinator.node.fsm import NodeStateMachine
from undoubt.coordinator.node.storage.contract import Snapshot
from undoubt.coordinator.raft import HardState, SnapshotMeta, bootstrap
from undoubt.coordinator.wire import VERSIONS, Versions


def beginning(
    cluster: str, addresses: Mapping[int, str], version: int = VERSIONS.highest
) -> tuple[HardState, Snapshot]:
    """Return what every first node of a new cluster stores. ``cluster`` is also the ledger's id;
    ``addresses`` names the first members, which are all voters and all support ``version``."""
    first = bootstrap(addresses)
    replicated = NodeStateMachine(Machine(cluster), dict(sorted(addresses.items())), version=version)
    return first.hard_state, Snapshot(first.snapshot, replicated.image())


def joining() -> tuple[HardState, Snapshot]:
    """Return what a node stores that is added to a cluster: it gets everything from a leader, and does not
    stand for election before it is in a configuration."""
    return HardState(), Snapshot(SnapshotMeta(), NodeStateMachine(Machine(""), {}).image())


def restored(
    image: bytes, addresses: Mapping[int, str], supported: Versions = VERSIONS
) -> tuple[str, HardState, Snapshot]:
    """Return the ledger's id, which does not change, and what every first node stores of a cluster that is
    made from a backup.

    The ledger gets a new incarnation: decisions after the backup are not known, so no transaction that is
    undecided in the backup may be presumed aborted. The version is that of the backup. Raises
    ``LedgerUnusable`` if ``image`` is not an image, or has a version that this node does not support, and
    ``LedgerMoved`` if it is that of a ledger that was moved away.
    """
    replicated = NodeStateMachine(Machine(""), {}, supported=supported)
    with reading_image("the backup's image"):
        replicated.restore(image)
    check_lives(replicated.machine.state.move)
    replicated.machine.cut_off_acts(NOT_IN_BACKUP)
    replicated.machine.apply(Restore(SESSION_SKIP))
    replicated.rename(dict(addresses))
    first = bootstrap(addresses)
    return replicated.machine.state.ledger_id, first.hard_state, Snapshot(first.snapshot, replicated.image())
