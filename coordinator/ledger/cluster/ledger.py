"""The ledger's contract on a cluster of nodes, for a process outside of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from random import Random, SystemRandom
from typing import TypeVar

from undoubt.coordinator.errors import LedgerUnavailable, LedgerUnusable, WrongProcess
from undoubt.coordinator.ledger import calls
from undoubt.coordinator.ledger.calling import CallingLedger
from undoubt.coordinator.ledger.cluster.acceptor_client import AcceptorClient, first_of
from undoubt.coordinator.ledger.cluster.acceptors import ClusterAcceptors, among
from undoubt.coordinator.ledger.cluster.leader_client import LeaderClient
from undoubt.coordinator.ledger.cluster.status import status
from undoubt.coordinator.ledger.cluster.url import addresses_of, wire_of
from undoubt.coordinator.ledger.contract import RecordedDecision, Session, SessionInfo
from undoubt.coordinator.settings import LedgerSettings
from undoubt.coordinator.wire import PeerIdentity, PeerRole, WireSettings
from undoubt.participants.ids import TxId
from undoubt.participants.redact import redact

R = TypeVar("R")


class ClusterLedger(CallingLedger):
    """Made by :meth:`open`. Belongs to the event loop and the process in which it was opened."""

    acceptors: ClusterAcceptors

    def __init__(
        self,
        route: LeaderClient,
        settings: LedgerSettings,
        me: PeerIdentity,
        wire: WireSettings,
        random: Random,
    ) -> None:
        self.settings = settings
        self._route = route
        self._wire = wire
        self._links = AcceptorClient(me, wire, self._address_of)
        self._pid = os.getpid()
        self._ledger_id = ""
        self._random = random
        self.acceptors = ClusterAcceptors(
            self._links.ask,
            self._open_bound,
            self._session_of,
            self._record,
            random,
            voters=self._voters,
            timeout_s=settings.request_timeout_s,
        )

    @classmethod
    async def open(
        cls,
        settings: LedgerSettings,
        wire: WireSettings | None = None,
        *,
        random: Random | None = None,
        name: str = "",
    ) -> ClusterLedger:
        """Find the cluster's leader. ``random`` draws nonces and pauses. Raises ``LedgerUnusable`` for a URL
        that is none and for TLS files of no use, ``LedgerUnavailable`` if nobody leads within
        ``request_timeout_s``."""
        random = random or SystemRandom()
        me = PeerIdentity(PeerRole.CLIENT, name=name or f"process {os.getpid()}")
        wire = wire or wire_of(settings)
        route = LeaderClient(addresses_of(settings.url), me, wire, random)
        ledger = cls(route, settings, me, wire, random)
        try:
            await ledger.info()
        except BaseException:
            await route.close()
            raise
        return ledger

    @property
    def ledger_id(self) -> str:
        return self._ledger_id

    @property
    def leads(self) -> bool:
        """Recovery runs where a node leads, not in its clients."""
        return False

    async def close(self) -> None:
        if os.getpid() == self._pid:
            await self._links.close()
            await self._route.close()

    async def _open_bound(self, name: str, ttl_s: float) -> Session:
        return await self._open_session(name, ttl_s, bind=True)

    async def _session_of(self, txid: TxId) -> SessionInfo | None:
        return among(await self.sessions(), txid)

    async def _record(self, txid: TxId) -> RecordedDecision:
        return (await self.records([txid]))[txid]

    async def _voters(self) -> Sequence[int]:
        voters: Sequence[int] = await self._call(calls.VotersCall())
        return voters

    async def _address_of(self, node: int) -> str:
        """Asked of any node, since the leader may be the one that is gone; of all, since one may have slept,
        or been removed, while others joined."""

        async def told_by(address: str) -> str:
            members = await self._members(address)
            if node not in members:
                raise LedgerUnavailable(f"node at {address} has not heard of node {node}")
            return members[node]

        return await first_of([told_by(str(one)) for one in addresses_of(self.settings.url)])

    async def _members(self, address: str) -> Mapping[int, str]:
        seen = await status(address, self.settings.request_timeout_s, self._wire)
        if seen.status is None:
            raise LedgerUnavailable(f"node at {address}: {seen.error}")
        if not seen.status.nodes:
            raise LedgerUnavailable(f"node at {address} has joined, and has nothing yet")
        return seen.status.nodes

    def _request(self) -> str:
        return f"{self._random.getrandbits(128):032x}"

    def _nonce(self) -> str:
        return f"{self._random.getrandbits(64):016x}"

    async def _call(self, call: calls.LedgerCall[R]) -> R:
        if os.getpid() != self._pid:
            raise WrongProcess(
                f"this ledger was opened by process {self._pid}; open one of your own after a fork"
            )
        result: R = await self._route.ask(call, self.settings.request_timeout_s)
        if self._route.ledger_id != self._ledger_id:
            self._identify()
        return result

    def _identify(self) -> None:
        found = self._route.ledger_id
        if self._ledger_id not in {"", found}:
            raise LedgerUnusable(
                f"at {redact(self.settings.url)} there is another ledger now ({found}; it was"
                f" {self._ledger_id})"
            )
        self._ledger_id = found
