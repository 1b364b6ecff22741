"""Implements the ledger's contract on a replicated log: a command is answered once a majority has stored it
and this node has applied it.

Reads confirm first that this node still leads (:meth:`Replica.read`). The leader expires sessions, by its own
monotonic clock; a new leader gives each session its full lifetime again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from random import Random
from typing import Any

from undoubt.coordinator.ledger.agents import AgentBinding
from undoubt.coordinator.ledger.cluster.acceptors import ClusterAcceptors, SendRequest, among
from undoubt.coordinator.ledger.commands import Command, Decide, MovingCommand
from undoubt.coordinator.ledger.contract import (
    BranchRecord,
    DecisionRecord,
    RecordedDecision,
    Session,
    SessionInfo,
    Settlement,
)
from undoubt.coordinator.ledger.leases import Leases
from undoubt.coordinator.ledger.move_mark import MoveStatus, check_lives
from undoubt.coordinator.ledger.move_rules import status_of
from undoubt.coordinator.ledger.state_machine_ledger import StateMachineLedger
from undoubt.coordinator.node.replica import Replica
from undoubt.coordinator.node.storage.contract import Storage
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.contract import Decision
from undoubt.participants.ids import Protocol, TxId

log = logging.getLogger(__name__)

LEAVING_S = 60.0
"""How long new sessions avoid nodes that are to leave. An operator's client repeats its call within this
time, or has given up."""


class NodeLedger(StateMachineLedger):
    """The ledger of a node, for callers in its process and for :mod:`.clients`. Calls raise ``NotLeading`` if
    this node does not lead."""

    backend = "raft"

    def __init__(
        self,
        replica: Replica,
        storage: Storage,
        settings: LedgerSettings,
        *,
        ask: SendRequest,
        random: Random,
        clock: Callable[[], float],
        wall: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(
            replica.replicated.machine, settings, clock=clock, wall=wall, agreed=replica.replicated
        )
        self.acceptors: ClusterAcceptors = ClusterAcceptors(
            ask,
            self._open_bound,
            self._session_of,
            self._record,
            random,
            voters=self.voters,
            timeout_s=settings.request_timeout_s,
        )
        self._replica = replica
        self._driver, self._proposals = replica.driver, replica.proposals
        self._storage = storage
        self.binding = asyncio.Lock()
        """Held while a session is opened that is bound to the members, and while the members are changed."""
        self._leaving: frozenset[int] = frozenset()
        self._leaving_until = 0.0

    @property
    def leads(self) -> bool:
        return self._driver.leads

    def begin_to_lead(self) -> None:
        """Begin to lead: the lifetime of each session begins again, and ledger time that another leader has
        recorded is not recorded again."""
        self._leases = Leases()
        self._time_advanced_at = self._clock()

    async def _look_after(self) -> None:
        self._replica.acceptors.forget()
        self._replica.keep_versions()
        if self.leads:
            await self.draw_secret()
            await self.agree_on_rules()
            await self.expire_due()

    async def close(self) -> None:
        """Do nothing: the node is closed, not its ledger."""

    def now(self) -> float:
        """The wall clock, for times that are shown to operators."""
        return self._wall()

    async def propose(self, command: Command) -> Any:
        answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()

        def set_result(result: object) -> None:
            if not answer.done():
                answer.set_result(result)

        self._proposals.propose(command, set_result)
        return await answer

    async def decide(
        self,
        txid: TxId,
        decision: Decision,
        branches: Sequence[BranchRecord],
        *,
        protocol: Protocol = Protocol.TWO_PHASE,
        cause: str = "",
    ) -> Decision:
        await self._caught_up()
        return await super().decide(txid, decision, branches, protocol=protocol, cause=cause)

    async def record_chosen(self, txid: TxId, chosen: Settlement) -> None:
        """Record an outcome that this node itself has learned from the acceptors. Only votes to commit carry
        tags: an aborted transaction may have none, and none is needed, since this node has asked the
        acceptors itself. Raises ``LedgerError``."""
        await self._caught_up()
        branches = self._known(chosen.branches)
        await self._run(Decide(txid, Protocol.PAXOS, chosen.decision, branches, self._wall()))

    async def precommit(
        self, txid: TxId, branches: Sequence[BranchRecord], *, protocol: Protocol = Protocol.THREE_PHASE
    ) -> None:
        await self._caught_up()
        await super().precommit(txid, branches, protocol=protocol)

    async def _caught_up(self) -> None:
        """Wait until this node has applied the whole log. A leader that has not may lack sessions, and would
        accept names that it cannot verify."""
        if not self.leads:
            await self._up_to_date()

    async def _up_to_date(self) -> None:
        await self._replica.read()
        check_lives(self.machine.state.move)

    async def moving(self, command: MovingCommand | None) -> MoveStatus:
        """Apply a command of a move, if there is one; returns what a move finds here. Raises ``MoveRefused``,
        ``LedgerError``."""
        await self._replica.read()
        if command is not None:
            await self._run(command)
        return status_of(self.machine.state)

    def _voters(self) -> tuple[int, ...]:
        voters = self._replica.voters
        if asyncio.get_running_loop().time() >= self._leaving_until:
            return voters
        return tuple(node for node in voters if node not in self._leaving) or voters

    def bind_without(self, leaving: Collection[int]) -> None:
        """Bind new sessions to voters other than ``leaving`` for ``LEAVING_S`` seconds, so that coordinators
        stop using the nodes that are to leave."""
        self._leaving = frozenset(leaving)
        self._leaving_until = asyncio.get_running_loop().time() + LEAVING_S

    async def open_session(
        self,
        name: str,
        ttl_s: float,
        *,
        remote: bool = False,
        request: str = "",
        nonce: str = "",
        bind: bool = False,
        agent: AgentBinding | None = None,
    ) -> Session:
        open_session = partial(
            super().open_session,
            name,
            ttl_s,
            remote=remote,
            request=request,
            nonce=nonce,
            bind=bind,
            agent=agent,
        )
        if not bind:
            return await open_session()
        async with self.binding:
            await self._proposals.settled()
            return await open_session()

    async def _open_bound(self, name: str, ttl_s: float) -> Session:
        return await self.open_session(name, ttl_s, bind=True)

    async def _session_of(self, txid: TxId) -> SessionInfo | None:
        """Return the session of ``txid``. If this node has the session, no leader is asked: the acceptors of
        a session never change."""
        found = among(self.machine.session_infos(), txid)
        return found or among(await self.sessions(), txid)

    async def _record(self, txid: TxId) -> RecordedDecision:
        return (await self.records([txid]))[txid]

    async def _history_of(self, txid: TxId) -> DecisionRecord | None:
        return self._replica.history.recent().get(txid) or await self._storage.history_of(txid)

    async def _history(self, limit: int, before: DecisionRecord | None) -> Sequence[DecisionRecord]:
        return await self._replica.history.page(limit, before, self._storage.history)
