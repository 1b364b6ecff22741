"""A coordinator over scripted participants and a ledger in memory, for tests of the commit protocols."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.coordinator.ledger.signing import TaggingLedger
from undoubt.coordinator.coordinator import Coordinator
from undoubt.coordinator.ledger.memory import MemoryLedger
from undoubt.coordinator.settings import CoordinatorSettings
from undoubt.participants.contract import XactStatus
from undoubt.participants.ids import Gid
from undoubt.participants.registry import Registry
from undoubt.participants.scripted import Script, ScriptedParticipant

NAMES = ("alpha", "beta", "gamma")


class Stage:
    """A coordinator over scripted participants and a ledger in memory that notes the order of calls."""

    def __init__(
        self, scripts: dict[str, Script], ledger: MemoryLedger | None = None, **settings: Any
    ) -> None:
        self.events: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.arrived: dict[str, asyncio.Event] = {}
        self.ledger = ledger or TaggingLedger()
        self.registry = Registry()
        self.participants: dict[str, ScriptedParticipant] = {}
        for name, script in scripts.items():
            participant = ScriptedParticipant(name, script, before=self._before)
            self.participants[name] = participant
            self.registry.add(participant)
        self.coordinator = Coordinator(
            self.ledger, self.registry, CoordinatorSettings(**settings), observe=self._observe
        )

    async def _before(self, call: str, gid: Gid) -> None:
        await self._pass(f"{call} {gid.participant}")

    async def _observe(self, step: Any, subject: str) -> None:
        parsed = Gid.parse(subject)
        await self._pass(f"{step} {parsed.participant}" if isinstance(parsed, Gid) else str(step))

    async def _pass(self, event: str) -> None:
        self.events.append(event)
        if event in self.gates:
            self.arrived[event].set()
            await self.gates[event].wait()

    def hold(self, event: str) -> asyncio.Event:
        """Stop whoever comes to ``event``; returns what is set when somebody has."""
        self.gates[event] = asyncio.Event()
        self.arrived[event] = asyncio.Event()
        return self.arrived[event]

    async def transfer(self, *names: str, timeout: float | None = None) -> Any:
        async with self.coordinator.transaction(timeout=timeout) as tx:
            self.txid = tx.id
            for name in names or self.participants:
                await tx.branch(name)
            return await tx.commit()

    def xact_statuses(self) -> set[XactStatus]:
        return {
            participant.xact_statuses[branch.xid]
            for participant in self.participants.values()
            for branch in participant.branches
        }

    def in_doubt(self) -> int:
        return sum(len(participant.prepared) for participant in self.participants.values())
