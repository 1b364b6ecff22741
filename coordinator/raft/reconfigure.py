"""Changes the configuration of a running cluster, as its leader.

Extended paper §6; thesis §4.1 (one change at a time), §4.2.2 (a leader that is removed), §4.3.
"""

from __future__ import annotations

from undoubt.coordinator.raft import election, replication
from undoubt.coordinator.raft.errors import ConfigRefused, NotLeader
from undoubt.coordinator.raft.membership import after
from undoubt.coordinator.raft.messages import ConfigChange, Entry, Kind, encode
from undoubt.coordinator.raft.state import RaftState


def propose(state: RaftState, change: ConfigChange) -> Entry:
    if not state.leads:
        raise NotLeader(state.leader)
    log, history = state.log, state.history
    if history.current_index > log.commit:
        raise ConfigRefused("the last change of the configuration is not committed yet")
    if log.term(log.commit) != state.term:
        # Otherwise two leaders' changes, each committed by its own majority, could leave disjoint majorities.
        raise ConfigRefused("this leader has not committed an entry of its own term yet")
    after(history.current, change)
    return replication.propose(state, encode(change), Kind.CONFIG)


def settle(state: RaftState) -> bool:
    """Once the configuration in force is committed: leave it if it is joint; step down if this node is not an
    incoming voter of it. Returns whether this node still leads.

    Every leader checks this repeatedly, since the leader that entered the joint configuration may have
    failed.
    """
    configuration = state.history.current
    if state.history.current_index > state.log.commit:
        return True
    if configuration.joint:
        if configuration.auto_leave and not state.disk_full:
            last = state.log.last_index
            state.append(Entry.make(last + 1, state.term, encode(ConfigChange()), Kind.CONFIG))
    elif state.node not in configuration.incoming:
        state.heartbeat_due = True
        replication.flush(state)
        election.step_down(state)
        return False
    return True
