"""Consensus: a log that a majority of nodes agrees on (Raft), without IO, clock, threads or randomness.

What enters: messages (:meth:`Raft.step`), ticks of time, proposals, reads, and the driver's reports that
something is stored or applied. What leaves: :class:`Ready`, which contains everything that has to be done
next. The same class runs in production, in simulation and in tests. Its output depends only on its inputs and
on the ``Random`` that it was given.

The driver's duties, in this order, for every ``ready = raft.ready()`` that is not ``empty``:

1. Send ``messages_now``. They do not depend on anything that is not stored yet.
2. Store, in one transaction, in the order of the calls to ``ready``: ``hard_state``; ``chunks``; the
   ``snapshot``, which replaces log, state machine and applied index, after all entries that were handed out
   earlier have been applied; ``entries``, which replace everything from the index of the first entry on. Then
   sync. Several ``Ready`` may share a sync, and ``ready`` may be called again before it is done.
3. After the sync call ``on_persisted(token)`` and send what it returns. Votes and acknowledgements must
   not be sent before: never send ``messages_after_sync`` directly.
4. Apply ``committed_entries`` in order; store the effects of each entry and its index in one transaction;
   then call ``on_applied(index)``. After a restart give that index to :class:`RestoredState`, so that no
   entry is applied twice.
5. Answer each of ``read_states`` once its index is applied, and ``reads_lost`` with "not the leader".
6. For each of ``chunks_wanted`` call ``snapshot_chunk`` or ``snapshot_failed``.

Other duties: call ``tick`` at a steady pace; call ``set_disk_full`` when the disk becomes full, and when it
has room again; call ``step_down`` if the disk is known to be slow, before the core detects that; store a
snapshot of the state machine with ``snapshot_meta`` regularly and report it to ``compact``; never start a
node whose disk was lost under its old number; on each node of a new cluster, store :func:`bootstrap` first; a
node that joins starts with an empty disk.

In the order in which an input passes them:

===================  =========================================================================================
:mod:`.settings`     holds the timeouts, in ticks, and the bounds.
:mod:`.core`         ``Raft``: takes every input, refuses a message that no correct member would send,
                     compares its term with this node's, and gives every output in a ``Ready``.
:mod:`.election`     elects a leader: pre-vote, votes, check-quorum, stepping down, and the transfer of
                     leadership to a chosen voter.
:mod:`.replication`  appends proposals, sends them to the peers, receives acknowledgements, advances the
                     commit index, and confirms reads by a round of heartbeats.
:mod:`.reconfigure`  changes the configuration as the leader.
:mod:`.membership`   computes the configuration after a change, and which configuration is in force.
:mod:`.snapshots`    sends and receives snapshots in chunks.
:mod:`.log`          holds the log in memory, and its indexes: snapshot, applied, commit, persisted, last.
:mod:`.tracker`      holds the configuration, and what the leader knows about each peer; computes how much
                     may be sent to each peer.
:mod:`.state`        holds the state of one node: the state that was restored, the changes that several
                     modules make, the unfinished writes, and the fields of a ``Ready``.
:mod:`.messages`     defines and encodes everything that is sent or stored.
:mod:`.errors`       defines the errors: not the leader, proposal refused, message refused, log set back.
===================  =========================================================================================

Sources: Ongaro and Ousterhout, "In Search of an Understandable Consensus Algorithm (Extended Version)", 2014;
Ongaro, "Consensus: Bridging Theory and Practice", 2014 ("thesis"). As in the papers, and unlike in etcd, a
configuration is in force as soon as it is in the log. A lease only rejects disruptive candidates; reads are
never answered from a lease.
"""

from __future__ import annotations

from undoubt.coordinator.raft.core import Raft
from undoubt.coordinator.raft.errors import (
    ConfigRefused,
    LogSetBack,
    MessageRefused,
    NotLeader,
    ProposalRefused,
    RaftRefusal,
    Refusal,
)
from undoubt.coordinator.raft.messages import (
    Append,
    AppendReply,
    Change,
    ChangeKind,
    ConfigChange,
    ConfigTransition,
    Configuration,
    Entry,
    HardState,
    Heartbeat,
    HeartbeatReply,
    Kind,
    Message,
    PreVote,
    PreVoteReply,
    RequestVote,
    RequestVoteReply,
    SnapshotChunk,
    SnapshotMeta,
    SnapshotReply,
    TimeoutNow,
    decode,
    decode_change,
    encode,
)
from undoubt.coordinator.raft.settings import RaftSettings
from undoubt.coordinator.raft.state import ChunkWanted, ReadState, Ready, RestoredState, Role, bootstrap
from undoubt.coordinator.raft.tracker import Pace, PeerProgress

__all__ = [
    "Append",
    "AppendReply",
    "Change",
    "ChangeKind",
    "ChunkWanted",
    "ConfigChange",
    "ConfigRefused",
    "Configuration",
    "Entry",
    "HardState",
    "Heartbeat",
    "HeartbeatReply",
    "Kind",
    "LogSetBack",
    "Message",
    "MessageRefused",
    "NotLeader",
    "Pace",
    "PeerProgress",
    "PreVote",
    "PreVoteReply",
    "ProposalRefused",
    "Raft",
    "RaftRefusal",
    "RaftSettings",
    "ReadState",
    "Ready",
    "Refusal",
    "RestoredState",
    "Role",
    "SnapshotChunk",
    "SnapshotMeta",
    "SnapshotReply",
    "TimeoutNow",
    "ConfigTransition",
    "RequestVote",
    "RequestVoteReply",
    "bootstrap",
    "decode",
    "decode_change",
    "encode",
]
