"""What the members of the cluster speak, and what they have agreed on.

A node of an older release stops at a command that it does not know, so the log must hold none that any
member does not. Every connection tells which version its two ends speak with each other. Once all members are
connected to the leader at a higher version than the agreed one, the leader has it agreed on, as a command in
the log; from then on commands that came with it may follow. It is never lowered: a node that comes back with
an older release is not spoken with.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from undoubt.coordinator.errors import VersionHeldBack
from undoubt.coordinator.node.fsm import NEWER, NodeStateMachine
from undoubt.coordinator.wire import Connection, HandshakeRefusal, HandshakeRefused

log = logging.getLogger(__name__)


class Agreement:
    """Of node ``me``. ``members`` are all of the newest configuration, learners among them."""

    def __init__(self, me: int, replicated: NodeStateMachine, members: Callable[[], Iterable[int]]) -> None:
        self._me = me
        self._replicated = replicated
        self._members = members
        self._connections: dict[int, list[Connection]] = {}
        self.proposed = 0
        """By this node since it began to lead: it may be in the log already."""

    def meet(self, connection: Connection) -> None:
        """A connection to or from another node. Raises :class:`HandshakeRefused` if it is too old for what
        was agreed on."""
        number, spoken = connection.peer.number, connection.version
        if spoken < self._replicated.version:
            raise HandshakeRefused(
                HandshakeRefusal.VERSION,
                f"node {number} and node {self._me} speak version {spoken} with each other, and the cluster"
                f" has agreed on {self._replicated.version}. The older one is too old: {NEWER}",
            )
        self._connections[number] = [*self._alive(number), connection]

    def spoken(self, node: int) -> int:
        """With that member, 0 while it is not connected: what it said last counts."""
        if node == self._me:
            return self._replicated.speaks.highest
        alive = self._alive(node)
        return alive[-1].version if alive else 0

    def due(self) -> int:
        """The version that the leader should have agreed on now; 0 if there is none."""
        lowest = min(map(self.spoken, self._members()), default=0)
        if lowest <= max(self._replicated.version, self.proposed):
            return 0
        self.proposed = lowest
        log.info("all members speak version %d: it is being agreed on", lowest)
        return lowest

    @property
    def floor(self) -> int:
        """What a node that joins has to speak."""
        return max(self._replicated.version, self.proposed)

    def held_back(self, needed: int) -> VersionHeldBack:
        """Why nothing may be recorded that came with version ``needed``."""
        told = ", ".join(
            f"node {node} {f'speaks {spoken}' if (spoken := self.spoken(node)) else 'is not connected'}"
            for node in sorted(self._members())
            if self.spoken(node) < needed
        )
        return VersionHeldBack(
            f"this needs version {needed}, and the cluster has agreed on {self._replicated.version}:"
            f" {told or 'in a moment it will have agreed on more'}"
        )

    def _alive(self, node: int) -> list[Connection]:
        alive = [each for each in self._connections.get(node, ()) if not each.closed]
        if alive:
            self._connections[node] = alive
        else:
            self._connections.pop(node, None)
        return alive
