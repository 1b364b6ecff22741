"""The errors of a node that cannot execute a call.

::

    LedgerUnavailable
    ├── NotLeading     ask the node ``leader`` (0: not known); the call may be repeated
    └── NodeStopped    the node has stopped; the message says why
"""

from __future__ import annotations

from undoubt.coordinator.errors import LedgerUnavailable


class NotLeading(LedgerUnavailable):
    """This node does not lead, or no longer, or takes no entries at present. The call may have been recorded
    nevertheless, or may be later: all calls may be repeated, at the leader."""

    def __init__(self, leader: int, why: str = "this node does not lead") -> None:
        super().__init__(f"{why}; the leader is {f'node {leader}' if leader else 'unknown'}")
        self.leader = leader


class NodeStopped(LedgerUnavailable):
    """This node has stopped and answers no calls."""
