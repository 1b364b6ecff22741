"""Computes the status that a node reports."""

from __future__ import annotations

from importlib import metadata

from undoubt.coordinator.ledger.cluster.messages import NodeStatus, PeerStatus
from undoubt.coordinator.ledger.contract import SessionState
from undoubt.coordinator.node.replica import Replica
from undoubt.coordinator.node.storage.contract import DiskIdentity
from undoubt.coordinator.wire import WireSettings, tls_of

RELEASE = metadata.version("undoubt")


def status_of(identity: DiskIdentity, replica: Replica, wire: WireSettings) -> NodeStatus:
    raft = replica.raft
    configuration = raft.configuration
    ledger = replica.replicated.machine.state
    peers = [
        PeerStatus(
            node,
            progress.match,
            progress.pace.value,
            node == raft.node or progress.active,
            replica.agreement.version_with(node),
        )
        for node, progress in raft.progress.items()
    ]
    return NodeStatus(
        cluster=identity.cluster,
        ledger_id=ledger.ledger_id,
        node=raft.node,
        disk=identity.disk,
        role=raft.role.value,
        term=raft.term,
        leader=raft.leader,
        last_index=raft.last_index,
        commit_index=raft.commit_index,
        applied_index=raft.applied_index,
        snapshot_index=raft.snapshot_index,
        disk_full=raft.disk_full,
        disk_stalled=raft.disk_stalled,
        voters=tuple(sorted(configuration.incoming)),
        outgoing_voters=tuple(sorted(configuration.outgoing)),
        learners=tuple(sorted(configuration.learners)),
        nodes=dict(sorted(replica.replicated.addresses.items())),
        peers=tuple(peers) if raft.leads else (),
        unfinished=len(ledger.unfinished),
        sessions=sum(book.state is SessionState.OPEN for book in ledger.sessions.values()),
        version=RELEASE,
        certificate_until=tls_of(wire.tls).own.not_after if wire.tls is not None else 0.0,
        agreed_version=replica.replicated.version,
        highest_version=replica.replicated.supported.highest,
        state_hashes=dict(replica.replicated.hashes.known),
    )
