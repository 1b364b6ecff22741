"""What a node begins with: the first nodes of a new cluster all store the same, from nothing or from a
backup; a node that joins later stores nothing but who it is.

A node whose disk is lost must not come here again under its old number: it has forgotten what it voted and
acknowledged. It is removed from the cluster, and another number joins. Peers refuse a disk that is not the
one that they have met, or were told of when they joined; and an empty node grants no vote.
"""

from __future__ import annotations

from collections.abc import Mapping

from undoubt.coordinator.ledger.backup import NOT_IN_BACKUP, reading_image
from undoubt.coordinator.ledger.commands import Restore
from undoubt.coordinator.ledger.machine import Machine
from undoubt.coordinator.ledger.state_machine_ledger import SESSION_SKIP
from undoubt.coordinator.node.fsm import NodeStateMachine
from undoubt.coordinator.node.storage.contract import Snapshot
from undoubt.coordinator.raft import HardState, SnapshotMeta, bootstrap
from undoubt.coordinator.wire import VERSIONS, Versions


def beginning(
    cluster: str, addresses: Mapping[int, str], version: int = VERSIONS.highest
) -> tuple[HardState, Snapshot]:
    """What every first node stores. ``cluster`` becomes the ledger's id as well; ``addresses`` names the
    first members, all of them voters, and all of which speak ``version``."""
    first = bootstrap(addresses)
    replicated = NodeStateMachine(Machine(cluster), dict(sorted(addresses.items())), version=version)
    return first.hard_state, Snapshot(first.snapshot, replicated.image())


def joining() -> tuple[HardState, Snapshot]:
    """What a node stores that is added to a cluster: it learns all from a leader, and stands for nothing
    before it is in a configuration."""
    return HardState(), Snapshot(SnapshotMeta(), NodeStateMachine(Machine(""), {}).image())


def restored(
    image: bytes, addresses: Mapping[int, str], speaks: Versions = VERSIONS
) -> tuple[str, HardState, Snapshot]:
    """What every first node of a cluster stores that is made of a backup; and the ledger's id, which stays.

    The incarnation is a new one: what was decided after the backup is not known here, so nothing that was
    undecided in it may be presumed to be aborted. Its version is the backup's. Raises ``LedgerUnusable`` for
    what is no image, and for a version that this node does not speak.
    """
    replicated = NodeStateMachine(Machine(""), {}, speaks=speaks)
    with reading_image("the backup's image"):
        replicated.restore(image)
    replicated.machine.cut_off_acts(NOT_IN_BACKUP)
    replicated.machine.apply(Restore(SESSION_SKIP))
    replicated.rename(dict(addresses))
    first = bootstrap(addresses)
    return replicated.machine.state.ledger_id, first.hard_state, Snapshot(first.snapshot, replicated.image())
