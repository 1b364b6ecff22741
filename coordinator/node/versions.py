"""Decides the protocol version on which all members of the cluster agree.

A node of an older release stops at a command that it cannot decode, so the log must contain only commands
that all members support. Every connection has the version that its two ends use. Once all members are
connected to the leader at a higher version than the agreed one, the leader proposes this version, as a
command in the log; after it the log may contain the commands of that version. The agreed version never
decreases: connections with a node that returns with an older release are refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from undoubt.coordinator.errors import VersionHeldBack
from undoubt.coordinator.node.fsm import NEWER, NodeStateMachine
from undoubt.coordinator.wire import Connection, HandshakeRefusal, HandshakeRefused

log = logging.getLogger(__name__)


class Agreement:
    """The agreement as node ``me`` has it. ``members`` returns all nodes of the newest configuration,
    including learners."""

    def __init__(self, me: int, replicated: NodeStateMachine, members: Callable[[], Iterable[int]]) -> None:
        self._me = me
        self._replicated = replicated
        self._members = members
        self._connections: dict[int, list[Connection]] = {}
        self.proposed = 0
        """The version that this node has proposed since it began to lead; it may be in the log already."""

    def meet(self, connection: Connection) -> None:
        """Note a connection to or from another node. Raises :class:`HandshakeRefused` if its version is lower
        than the agreed one."""
        number, common = connection.peer.number, connection.version
        if common < self._replicated.version:
            raise HandshakeRefused(
                HandshakeRefusal.VERSION,
                f"version {common} is the newest that node {number} and node {self._me} both support, and the"
                f" cluster has agreed on {self._replicated.version}. The older one is too old: {NEWER}",
            )
        self._connections[number] = [*self._alive(number), connection]

    def version_with(self, node: int) -> int:
        """Return the version of the newest connection with ``node``; 0 while it is not connected."""
        if node == self._me:
            return self._replicated.supported.highest
        alive = self._alive(node)
        return alive[-1].version if alive else 0

    def due(self) -> int:
        """Return the version that the leader should propose now; 0 if there is none."""
        lowest = min(map(self.version_with, self._members()), default=0)
        if lowest <= max(self._replicated.version, self.proposed):
            return 0
        self.proposed = lowest
        log.info("all members support version %d, which is proposed now", lowest)
        return lowest

    @property
    def floor(self) -> int:
        """The version that a joining node has to support at least."""
        return max(self._replicated.version, self.proposed)

    def held_back(self, needed: int) -> VersionHeldBack:
        """Return the error for a command of version ``needed``, which may not be recorded yet."""
        lacking = ", ".join(
            f"node {node} {f'supports {most}' if (most := self.version_with(node)) else 'is not connected'}"
            for node in sorted(self._members())
            if self.version_with(node) < needed
        )
        return VersionHeldBack(
            f"this needs version {needed}, and the cluster has agreed on {self._replicated.version}:"
            f" {lacking or 'the cluster will agree on more in a moment'}"
        )

    def _alive(self, node: int) -> list[Connection]:
        alive = [each for each in self._connections.get(node, ()) if not each.closed]
        if alive:
            self._connections[node] = alive
        else:
            self._connections.pop(node, None)
        return alive
