"""The sessions that are bound to agents of last-agent commit: one keeper for each agent that this coordinator
has used, since a session stays bound to one agent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from undoubt.coordinator.errors import CoordinatorClosed, LedgerUnavailable
from undoubt.coordinator.ledger.agents import AgentBinding
from undoubt.coordinator.ledger.contract import Lease
from undoubt.coordinator.session import OVER, KeeperState, SessionKeeper
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import TxId
from undoubt.participants.last_agent import LastAgent, agent_of
from undoubt.participants.registry import Registry

FindAgent = Callable[[], Awaitable[AgentBinding]]
"""Returns the agent in its present history. Raises ``ParticipantError``."""


@dataclass(slots=True)
class _Kept:
    keeper: SessionKeeper
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)


class AgentSessions:
    """``keeper`` makes the keeper of an agent's sessions."""

    def __init__(self, keeper: Callable[[FindAgent], SessionKeeper], participants: Registry) -> None:
        self._make = keeper
        self._participants = participants
        self._prepares: dict[str, bool] = {}
        """What participants have said about themselves; a server that can prepare later is only slower."""
        self._kept: dict[str, _Kept] = {}
        self._closed = False

    def agent(self, name: str) -> LastAgent:
        """Raises ``UnknownParticipant``, or ``UsageError`` if that participant cannot be an agent."""
        agent = agent_of(self._participants.get(name))
        if agent is None:
            raise UsageError(f"participant {name!r} cannot be the agent of last-agent commit")
        return agent

    async def begin(self, name: str, timeout_s: float) -> tuple[TxId, Lease]:
        """Return a new transaction id of a session that is bound to the agent ``name``, and its lease. If
        ``name`` is empty, the agent is the only participant that cannot prepare. Raises ``UsageError`` if
        that is not one, ``ParticipantError`` if the agent cannot be asked, and ``LedgerError``."""
        name = name or await self._only_one()
        kept = self._kept.get(name) or self._kept.setdefault(name, _Kept(self._make(self._finder(name))))
        if kept.keeper.state is KeeperState.NEW:
            await self._start(kept, timeout_s)
        return await kept.keeper.begin(timeout_s)

    async def _only_one(self) -> str:
        """The name of the only participant that cannot prepare."""
        for participant in self._participants:
            agent = agent_of(participant)
            if agent is not None and participant.name not in self._prepares:
                self._prepares[participant.name] = await agent.prepares()
        found = [one.name for one in self._participants if not self._prepares.get(one.name, True)]
        if len(found) == 1:
            return found[0]
        why = f"{', '.join(map(repr, found))} cannot prepare" if found else "every participant can prepare"
        raise UsageError(f"protocol 'last' needs agent='NAME' (or coordinator.agent): {why}")

    async def _start(self, kept: _Kept, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s), kept.opening:
                if self._closed:
                    raise CoordinatorClosed
                if kept.keeper.state is KeeperState.NEW:
                    await kept.keeper.start()
        except TimeoutError:
            raise LedgerUnavailable(
                f"no session with the ledger within {timeout_s:g} s: the agent or the ledger does not answer"
            ) from None

    def _finder(self, name: str) -> FindAgent:
        async def find() -> AgentBinding:
            place = await self.agent(name).place()
            return AgentBinding(name, place.system, place.history)

        return find

    def shut(self) -> None:
        """Let no further transaction begin."""
        self._closed = True
        for kept in self._kept.values():
            if kept.keeper.state not in OVER:
                kept.keeper.shut()

    async def close(self) -> None:
        """Close every session, as far as the ledger answers."""
        for kept in self._kept.values():
            async with kept.opening:
                await kept.keeper.close()
