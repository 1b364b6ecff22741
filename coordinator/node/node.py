"""A node: its replica, its port for peers and clients, and its ledger. ``undoubt node`` runs it.

Everything runs in one event loop; all times are those of the loop, all randomness is that of ``random``, and
only the storage may use a thread. So the same code runs in a simulation.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from random import Random

from undoubt.coordinator.errors import LedgerUnavailable, LedgerUnusable
from undoubt.coordinator.ledger.cluster.acceptor_client import AcceptorClient
from undoubt.coordinator.ledger.machine import Machine
from undoubt.coordinator.node.acceptor_retirement import AcceptorRetirement
from undoubt.coordinator.node.admin import NodeAdmin
from undoubt.coordinator.node.clients import FromClient
from undoubt.coordinator.node.divergence import DivergenceCheck
from undoubt.coordinator.node.fsm import NodeStateMachine
from undoubt.coordinator.node.ledger import NodeLedger
from undoubt.coordinator.node.orphaned_votes import OrphanedVotes
from undoubt.coordinator.node.peers import FromPeer, Peers
from undoubt.coordinator.node.replica import Replica
from undoubt.coordinator.node.settings import NodeSettings
from undoubt.coordinator.node.status import status_of
from undoubt.coordinator.node.storage.contract import Storage, Stored
from undoubt.coordinator.paxos import AcceptorReply, AcceptorRequest
from undoubt.coordinator.raft import bootstrap
from undoubt.coordinator.settings import LedgerSettings
from undoubt.coordinator.wire import (
    Address,
    Connection,
    HandshakeRefusal,
    HandshakeRefused,
    Listener,
    PeerIdentity,
    PeerRole,
    Receiver,
    Versions,
    WireSettings,
    serve,
)

log = logging.getLogger(__name__)

HINTS_MAX = 64


class Node:
    """One node, which :meth:`start` makes a running member. ``failed`` is done, with the reason, if the node
    stops because of an error: then the caller has to call ``stop`` and end the process, since the node must
    no longer vote or answer."""

    def __init__(
        self,
        storage: Storage,
        stored: Stored,
        settings: NodeSettings,
        ledger_settings: LedgerSettings,
        wire: WireSettings,
        *,
        random: Random,
        clock: Callable[[], float] | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Sessions expire by ``clock``; by default the loop's. Raises ``LedgerUnusable``."""
        self.identity = identity = stored.identity
        self.settings = settings
        replicated = _replicated(stored, settings.supported)
        me = PeerIdentity(PeerRole.NODE, identity.cluster, identity.node, disk=identity.disk)
        self.peers = Peers(
            me,
            lambda: self._hints | replicated.addresses,
            wire,
            random,
            silence_s=2 * settings.election_timeout_s,
            versions=settings.supported,
            recognise=self._recognise,
            log_index=lambda: self.replica.raft.persisted_index,
            set_back=self._set_back,
        )
        self.replica = Replica(
            stored,
            storage,
            replicated,
            settings.raft,
            random,
            tick_s=settings.heartbeat_s,
            history_ms=round(ledger_settings.history_s * 1000),
            snapshot_log_bytes=settings.snapshot_log_bytes,
            send=self.peers.send,
            on_change=self._leadership,
        )
        self._links = AcceptorClient(PeerIdentity(PeerRole.CLIENT, name=str(me)), wire, self._address_of)
        self.ledger = NodeLedger(
            self.replica,
            storage,
            ledger_settings,
            ask=self._ask_acceptor,
            random=random,
            clock=clock or asyncio.get_running_loop().time,
            wall=wall,
        )
        self.failed = self.replica.failed
        self.orphaned_votes = OrphanedVotes(self.replica, self.ledger, wire)
        self.divergence_check = DivergenceCheck(self.replica, wire)
        self.operator = NodeAdmin(
            self.replica,
            lambda: status_of(identity, self.replica, wire),
            AcceptorRetirement(self.replica, self.ledger, self.orphaned_votes),
            lambda: self._disks | {me.number: me.disk},
        )
        self._me, self._wire = me, wire
        self._disks, self._met = dict(stored.disks), set(stored.disks)
        self._unmet, self._all_met = _to_meet(stored), asyncio.Event()
        self._listener: Listener | None = None
        self._upkeep = self.ledger.upkeep("node upkeep")
        self._meeting: asyncio.Task[None] | None = None
        self._role_changed = asyncio.Event()
        self._hints: dict[int, str] = {}
        """Addresses of peers whose change this node has not received yet: it joined, or was stopped."""
        self._stopped = False

    @property
    def leads(self) -> bool:
        return self.replica.leads

    @property
    def leader_address(self) -> str:
        """The address of the leader; empty if it is not known."""
        return self.replica.replicated.addresses.get(self.replica.raft.leader, "")

    async def start(self, listen: Address) -> None:
        """Listen on ``listen`` and take part in the cluster. Raises ``OSError`` if the node cannot listen
        there."""
        self._listener = await serve(
            listen, self._me, self._accept, self._wire, versions=self.settings.supported
        )
        if self._unmet:
            self.peers.meet(self._unmet)
            self._meeting = asyncio.create_task(self._begin_once_met(), name="undoubt-node-first-meeting")
        else:
            self._begin()

    async def _begin_once_met(self) -> None:
        """Wait until this node has connected to all other first nodes of the cluster and knows their disks;
        then begin. Before that no node has stored anything. So if a first node's disk is lost and the node is
        made again under its number, every node that may have what was lost recognizes the new disk as another
        one."""
        log.info(
            "node %d waits for a first connection to node %s",
            self._me.number,
            ", ".join(map(str, sorted(self._unmet))),
        )
        await self._all_met.wait()
        self._begin()

    def _begin(self) -> None:
        self.replica.start()
        self._upkeep.start("undoubt-node-upkeep")
        self.orphaned_votes.upkeep.start("undoubt-node-settling")

    async def stop(self) -> None:
        """Stop immediately. May be repeated."""
        if self._stopped:
            return
        self._stopped = True
        if self._meeting is not None:
            self._meeting.cancel()
            await asyncio.gather(self._meeting, return_exceptions=True)
        await self.orphaned_votes.upkeep.stop()
        await self._upkeep.stop()
        await self.divergence_check.close()
        if self._listener is not None:
            self._listener.close()
        await self._links.close()
        await self.replica.stop()
        await self.peers.close()

    async def hand_over(self, seconds: float) -> None:
        """Transfer leadership to another node, if this node leads and another can take over within
        ``seconds``."""
        raft = self.replica.raft
        end = asyncio.get_running_loop().time() + seconds
        while self.leads and (successor := raft.successor):
            log.info("node %d transfers leadership to node %d", raft.node, successor)
            raft.transfer(successor)
            self.replica.turns.wake()
            self._role_changed.clear()
            left_s = end - asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(min(left_s, 2 * self.settings.election_timeout_s)):
                    await self._role_changed.wait()
            except TimeoutError:
                if left_s <= 0:
                    return

    def _accept(self, connection: Connection) -> Receiver:
        if connection.peer.role is PeerRole.NODE:
            self._recognise(connection)
            return FromPeer(connection, self.replica.driver.step)
        return FromClient(connection, self.ledger, self.replica, lambda: self.leader_address, self.operator)

    def _set_back(self, why: str) -> None:
        self.replica.turns.set_back(why)

    def _ask_acceptor(
        self, node: int, request: AcceptorRequest, answer: Callable[[AcceptorReply | Exception], None]
    ) -> None:
        if node == self.identity.node:
            self.replica.acceptors.ask(request, answer)
        else:
            self._links.ask(node, request, answer)

    async def _address_of(self, node: int) -> str:
        address = self.replica.replicated.addresses.get(node)
        if address is None:
            raise LedgerUnavailable(f"node {node} is not a member")
        return address

    def _recognise(self, connection: Connection) -> None:
        """Check the identity of a connected node. A node that lost its disk has lost votes and entries that
        it promised to keep: under its old number it could help to elect a leader that lacks committed
        entries. So the connection is refused; it is also refused if the node was removed, or its version is
        too old. Raises :class:`HandshakeRefused`."""
        peer, replicated = connection.peer, self.replica.replicated
        if replicated.removed(peer.number):
            raise HandshakeRefused(
                HandshakeRefusal.REMOVED, f"node {peer.number} was removed from the cluster"
            )
        known = replicated.disks.get(peer.number) or self._disks.setdefault(peer.number, peer.disk)
        if known != peer.disk:
            raise HandshakeRefused(
                HandshakeRefusal.NUMBER,
                f"node {peer.number} came back with another disk, and may not take part under that number:"
                f" remove it (`undoubt cluster remove {peer.number}`) and add it with a new one",
            )
        if 0 <= peer.log_index < (acknowledged := self.replica.acknowledged(peer.number)):
            raise HandshakeRefused(
                HandshakeRefusal.SET_BACK,
                f"{self._me} has its acknowledgement of entry {acknowledged}, and its log ends at"
                f" {peer.log_index}",
            )
        self.replica.agreement.meet(connection)
        if peer.address and peer.number not in replicated.addresses and len(self._hints) < HINTS_MAX:
            self._hints[peer.number] = peer.address
        if peer.number not in self._met:
            self._met.add(peer.number)
            self.replica.remember({peer.number: peer.disk})
            self._unmet.discard(peer.number)
            if not self._unmet:
                self._all_met.set()

    def _leadership(self, leads: bool) -> None:
        if leads:
            self.ledger.begin_to_lead()
        self._role_changed.set()


def _to_meet(stored: Stored) -> set[int]:
    """Return the other first nodes of a cluster to which this node never had a connection. Empty once this
    node has stored anything besides its first contents."""
    meta, voters = stored.snapshot.meta, stored.snapshot.meta.configuration.incoming
    fresh = bootstrap(voters) if stored.identity.node in voters else None
    if fresh is None or stored.entries or (stored.hard_state, meta) != (fresh.hard_state, fresh.snapshot):
        return set()
    return set(voters) - {stored.identity.node} - set(stored.disks)


def _replicated(stored: Stored, supported: Versions) -> NodeStateMachine:
    replicated = NodeStateMachine(Machine(""), {}, supported=supported)
    try:
        replicated.restore(stored.snapshot.image)
    except ValueError as error:  # msgspec's are
        raise LedgerUnusable(
            f"the disk of node {stored.identity.node} cannot be read by this version of undoubt ({error});"
            " was it written by a newer version?"
        ) from error
    return replicated
