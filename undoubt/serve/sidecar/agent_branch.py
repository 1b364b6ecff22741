"""Implements a branch that another sidecar, the agent, runs in a transaction that was begun here.

The agent's vote is not believed. As for a branch that a caller runs
(:mod:`undoubt.participants.postgres.announced`), this process reads from the database whether the branch is
prepared, and ends it there. An agent that answers wrongly, late or not at all can only abort the transaction.
:mod:`.agency` implements the agent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from undoubt.participants.contract import PrepareResult, PrepareUnanswered, Settled, Work
from undoubt.participants.errors import BranchFailed
from undoubt.participants.ids import NO_KEY, Gid, SessionKey
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.postgres.announced import AnnouncedBranch
from undoubt.serve.sidecar.peers import OtherSidecars, OwnerUnreachable
from undoubt.serve.sidecar.problems import RequestRefused
from undoubt.serve.sidecar.types import AgentOrder, Problem

log = logging.getLogger(__name__)

UNDO_S = 2.0
"""How long an agent may take to roll back; its own deadline and the database's timeouts follow."""


@dataclass(frozen=True, slots=True)
class Agent:
    """Where the other sidecar is reached, from the ledger; ``secret`` is what it believes an order by."""

    peers: OtherSidecars
    address: str
    secret: str = field(repr=False)

    async def order(self, gid: Gid, verb: str) -> BranchFailed | None:
        """``prepare`` or ``rollback``. None if the agent says that it is done."""
        url = f"{self.address}/v1/transactions/{gid.txid}/agents/{gid.branch}/{verb}"
        body = msgspec.json.encode(AgentOrder(self.secret))
        who = f"the sidecar that runs branch {gid.branch}:{gid.participant}"
        try:
            answer = await self.peers.order(url, body, str(gid.txid))
        except OwnerUnreachable as error:
            return BranchFailed(gid.participant, f"{who} does not answer: {error}")
        except RequestRefused as error:
            return BranchFailed(gid.participant, f"{who} refuses: {error}")
        if answer.status == 200:
            return None
        try:
            told = msgspec.json.decode(answer.body, type=Problem)
        except msgspec.MsgspecError:
            return BranchFailed(gid.participant, f"{who} answers {answer.status}")
        return BranchFailed(
            gid.participant, f"{who} says {told.name}: {told.detail}", sqlstate=told.sqlstate or None
        )


class AgentBranch:
    """:class:`undoubt.participants.contract.Branch`, without a connection."""

    def __init__(self, announced: AnnouncedBranch, agent: Agent) -> None:
        self._announced = announced
        self._agent = agent
        self._prepared = False

    @property
    def gid(self) -> Gid:
        return self._announced.gid

    @property
    def connection(self) -> Any:
        """Raises ``UsageError``."""
        return self._announced.connection

    @property
    def prepares(self) -> bool:
        return True

    @property
    def surely_writes(self) -> bool:
        return True

    def break_off(self, why: Callable[[], Exception]) -> None:
        """Does nothing: ``rollback`` follows."""

    async def poll(self) -> Work:
        return Work.WRITES

    async def prepare(self) -> PrepareResult:
        """Whatever the agent says, the database is asked: an answer of the agent may have been lost."""
        failure = await self._agent.order(self.gid, "prepare")
        try:
            result = await self._announced.prepare()
        except PrepareUnanswered as unanswered:
            raise PrepareUnanswered(failure or unanswered.cause) from unanswered
        self._prepared = True
        return result

    async def commit_one_phase(self) -> Settled:
        return await self._announced.commit_one_phase()

    async def commit(self) -> Settled:
        return await self._announced.commit()

    async def rollback(self) -> Settled:
        if not self._prepared:
            try:
                async with asyncio.timeout(UNDO_S):
                    failure = await self._agent.order(self.gid, "rollback")
            except TimeoutError:
                failure = BranchFailed(self.gid.participant, f"no answer within {UNDO_S:g} s")
            if failure is not None:
                log.info("%s is rolled back at its deadline: %s", self.gid, failure)
        return await self._announced.rollback()

    async def forget(self) -> None:
        """PostgreSQL keeps no record of heuristic outcomes: nothing to do."""

    async def release(self) -> None:
        """Does nothing: the connection is the agent's."""


@dataclass(frozen=True, slots=True)
class AgentOpener:
    """Adds a branch of ``participant`` that ``agent`` runs, as
    :class:`undoubt.coordinator.transaction.Opener`."""

    participant: PostgresParticipant
    agent: Agent

    @property
    def name(self) -> str:
        return self.participant.name

    async def begin(self, gid: Gid, *, timeout_s: float, key: SessionKey = NO_KEY) -> AgentBranch:
        announced = await self.participant.announce(gid, timeout_s=timeout_s, key=key)
        return AgentBranch(announced, self.agent)
