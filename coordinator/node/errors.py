"""What a node answers when it cannot carry out a call.

::

    LedgerUnavailable
    ├── NotLeading     ask the node ``leader`` (0: nobody is known to lead); asking again is safe
    └── NodeStopped    it has ended, or was ended by what the message says
"""

from __future__ import annotations

from undoubt.coordinator.errors import LedgerUnavailable


class NotLeading(LedgerUnavailable):
    """This node does not lead, or no more, or takes nothing at present. What was asked may have been recorded
    nevertheless, or may yet be: all calls may be repeated, at the leader."""

    def __init__(self, leader: int, why: str = "this node does not lead") -> None:
        super().__init__(f"{why}; the leader is {f'node {leader}' if leader else 'unknown'}")
        self.leader = leader


class NodeStopped(LedgerUnavailable):
    """Nothing is answered here any more."""
