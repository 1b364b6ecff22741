"""Sends a call to one given node, and asks all nodes for their status, whether or not one leads."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import msgspec

from undoubt.coordinator.errors import LedgerError, LedgerUnavailable
from undoubt.coordinator.ledger.cluster.messages import DECODE_REPLY, NodeStatus, StatusCall
from undoubt.coordinator.ledger.cluster.url import addresses_of, wire_of
from undoubt.coordinator.rpc.calls import AnyCall
from undoubt.coordinator.rpc.client import PendingCall, Replies, into
from undoubt.coordinator.rpc.envelope import Request, decode_answers, encode
from undoubt.coordinator.settings import LedgerSettings
from undoubt.coordinator.wire import (
    Address,
    Connection,
    HandshakeRefused,
    PeerIdentity,
    PeerRole,
    WireSettings,
    connect,
)


class Seen(msgspec.Struct, frozen=True):
    """The status of one node. ``error`` says why there is no ``status``."""

    address: str
    status: NodeStatus | None
    error: str = ""


class ClusterStatus(msgspec.Struct, frozen=True):
    """The status of all nodes. ``leader`` is the node that leads in the highest term, 0 if no node reports
    that it leads."""

    cluster: str
    leader: int
    nodes: tuple[Seen, ...]

    @property
    def leading(self) -> NodeStatus | None:
        """The status of the leader; None if there is none."""
        found = [seen.status for seen in self.nodes if seen.status is not None]
        return next((one for one in found if one.node == self.leader), None)

    @property
    def highest_version(self) -> int:
        """The highest version that any node supports; 0 if no node answers."""
        return max((seen.status.highest_version for seen in self.nodes if seen.status), default=0)

    @property
    def held_up_by(self) -> tuple[int, ...]:
        """The members because of which :attr:`highest_version` is not agreed on: they are older, or do not
        answer. Empty if it is agreed on, or if no node leads."""
        leading, highest = self.leading, self.highest_version
        if leading is None or leading.agreed_version == highest:
            return ()
        highest_of = {seen.status.node: seen.status.highest_version for seen in self.nodes if seen.status}
        return tuple(node for node in sorted(leading.nodes) if highest_of.get(node, 0) < highest)

    def lacking(self, index: int) -> list[str]:
        """Why not each member answers, can write its disk, and has applied the log up to ``index``; empty if
        each does."""
        if (leading := self.leading) is None:
            return ["no node leads"]
        answers = {seen.status.node: seen.status for seen in self.nodes if seen.status}
        reasons = (_lacks(number, answers.get(number), index) for number in sorted(leading.nodes))
        return [each for each in reasons if each]


def _lacks(number: int, node: NodeStatus | None, index: int) -> str:
    if node is None:
        return f"node {number} does not answer"
    if node.disk_full:
        return f"the disk of node {number} is full"
    if node.disk_stalled:
        return f"the disk of node {number} does not finish a write"
    if node.applied_index < index:
        return f"node {number} has applied {node.applied_index} of {index}"
    return ""


async def survey(settings: LedgerSettings, wire: WireSettings | None = None) -> ClusterStatus:
    """Ask the nodes of the URL for their status, then the members that they name. Raises
    ``LedgerMisconfigured`` for an invalid URL or TLS files."""
    seen: dict[str, Seen] = {}
    wire = wire or wire_of(settings)
    wanted = {str(address) for address in addresses_of(settings.url)}
    while missing := sorted(wanted - seen.keys()):
        asked = await asyncio.gather(
            *(status(address, settings.request_timeout_s, wire) for address in missing)
        )
        for one in asked:
            seen[one.address] = one
            if one.status is not None:
                wanted |= set(one.status.nodes.values())
    found = [one.status for one in seen.values() if one.status is not None]
    leading = [one for one in found if one.leader == one.node]
    order = sorted(seen.values(), key=lambda one: (one.status.node if one.status else 2**31, one.address))
    return ClusterStatus(
        found[0].cluster if found else "",
        max(leading, key=lambda one: one.term).node if leading else 0,
        tuple(order),
    )


async def status(address: str, timeout_s: float, wire: WireSettings) -> Seen:
    """The status of the node at ``address``, or why it is not known."""
    try:
        found: NodeStatus = await ask(address, StatusCall(), timeout_s, wire)
    except LedgerError as error:
        return Seen(address, None, str(error))
    return Seen(address, found)


async def ask(address: str, call: AnyCall, timeout_s: float, wire: WireSettings) -> Any:
    """Send ``call`` to the node at ``address``; returns its answer. Raises ``LedgerUnavailable``, and the
    error that the node answers."""
    asking = _Asking(call)
    me = PeerIdentity(PeerRole.CLIENT, name=f"process {os.getpid()}")
    try:
        async with asyncio.timeout(timeout_s):
            connection = await connect(Address.parse(address), me, asking.accept, wire, timeout_s=timeout_s)
            try:
                return await asking.answer
            finally:
                connection.abort()
    except TimeoutError:
        raise LedgerUnavailable(f"no answer from {address} within {timeout_s:g} s") from None
    except (OSError, HandshakeRefused) as error:
        raise LedgerUnavailable(str(error)) from error


class _Asking:
    """A Receiver for one call."""

    def __init__(self, call: AnyCall) -> None:
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._replies = Replies[PendingCall]()
        number = self._replies.add(PendingCall(DECODE_REPLY[type(call)], into(self.answer)))
        self._asked = encode([Request(number, call)])

    def accept(self, connection: Connection) -> _Asking:
        connection.send(self._asked)
        return self

    def received(self, payload: bytes) -> None:
        self._replies.received(decode_answers(payload))

    def lost(self, why: str) -> None:
        self._replies.fail(lambda: ConnectionError(why))
        if self.answer.done() and not self.answer.cancelled():
            self.answer.exception()  # marks it as retrieved: the waiting caller may have been cancelled
