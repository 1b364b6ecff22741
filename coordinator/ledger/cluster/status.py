"""How the cluster is: every node asked for itself, whether or not anybody leads."""

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
    """One node. ``error`` says why there is no ``status``."""

    address: str
    status: NodeStatus | None
    error: str = ""


class ClusterStatus(msgspec.Struct, frozen=True):
    """``leader`` is the node that leads in the highest term, 0 if nobody says so of itself."""

    cluster: str
    leader: int
    nodes: tuple[Seen, ...]

    @property
    def leading(self) -> NodeStatus | None:
        """What the leader says."""
        told = [seen.status for seen in self.nodes if seen.status is not None]
        return next((one for one in told if one.node == self.leader), None)

    @property
    def highest_version(self) -> int:
        """That any node speaks; 0 if none answers."""
        return max((seen.status.highest_version for seen in self.nodes if seen.status), default=0)

    @property
    def held_up_by(self) -> tuple[int, ...]:
        """Members without which that version would be agreed on: they are older, or do not answer. None if it
        is, and while nobody leads."""
        leading, highest = self.leading, self.highest_version
        if leading is None or leading.agreed_version == highest:
            return ()
        speak = {seen.status.node: seen.status.highest_version for seen in self.nodes if seen.status}
        return tuple(node for node in sorted(leading.nodes) if speak.get(node, 0) < highest)


async def survey(settings: LedgerSettings, wire: WireSettings | None = None) -> ClusterStatus:
    """Ask the nodes of the URL, then the members that they name. Raises ``LedgerUnusable`` for a URL that
    names no cluster and for TLS files of no use."""
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
    told = [one.status for one in seen.values() if one.status is not None]
    leading = [one for one in told if one.leader == one.node]
    order = sorted(seen.values(), key=lambda one: (one.status.node if one.status else 2**31, one.address))
    return ClusterStatus(
        told[0].cluster if told else "",
        max(leading, key=lambda one: one.term).node if leading else 0,
        tuple(order),
    )


async def status(address: str, timeout_s: float, wire: WireSettings) -> Seen:
    """One node's own words."""
    try:
        told: NodeStatus = await ask(address, StatusCall(), timeout_s, wire)
    except LedgerError as error:
        return Seen(address, None, str(error))
    return Seen(address, told)


async def ask(address: str, call: AnyCall, timeout_s: float, wire: WireSettings) -> Any:
    """One node's own answer. Raises ``LedgerUnavailable`` and what the node refuses with."""
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
    """A Receiver that asks one thing."""

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
            self.answer.exception()  # whoever waited may have been cancelled
