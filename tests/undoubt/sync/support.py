"""A synchronous coordinator over scripted participants, and gates that stop its engine where a test wants."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from undoubt.coordinator.coordinator import Coordinator as Engine
from undoubt.coordinator.ledger.memory import MemoryLedger
from undoubt.coordinator.settings import CoordinatorSettings
from undoubt.participants.contract import XactStatus
from undoubt.participants.ids import Gid, TxId
from undoubt.participants.registry import Registry
from undoubt.participants.scripted import Script, ScriptedParticipant
from undoubt.sync import Coordinator

WAIT_S = 30.0
"""Longer than anything takes: a test that waits so long has failed."""


class Gate:
    """Stops the engine's task that comes to it; ``arrived`` tells the test."""

    def __init__(self) -> None:
        self.arrived = threading.Event()
        self.open = threading.Event()

    async def stop(self) -> None:
        self.arrived.set()
        while not self.open.is_set():
            await asyncio.sleep(0.001)

    def wait(self) -> None:
        assert self.arrived.wait(WAIT_S)


class Stage:
    """``alpha`` and ``beta`` are scripted; ``gates`` by ``"<call> <participant>"``."""

    def __init__(self, **settings: Any) -> None:
        self.ledger = MemoryLedger()
        self.participants = {
            name: ScriptedParticipant(name, Script(), before=self._before) for name in ("alpha", "beta")
        }
        self.gates: dict[str, Gate] = {}
        self.engine: Engine | None = None
        self.txid: TxId | None = None
        """For a test to keep the transaction that it has begun."""
        self._settings = CoordinatorSettings(**settings)
        self.coordinator = Coordinator(self._opening)

    @contextlib.asynccontextmanager
    async def _opening(self) -> AsyncIterator[Engine]:
        registry = Registry()
        for participant in self.participants.values():
            registry.add(participant)
        async with Engine(self.ledger, registry, self._settings) as engine:
            self.engine = engine
            yield engine

    async def _before(self, call: str, gid: Gid) -> None:
        gate = self.gates.get(f"{call} {gid.participant}")
        if gate is not None:
            await gate.stop()

    def gate(self, event: str) -> Gate:
        gate = self.gates[event] = Gate()
        return gate

    def xact_statuses(self) -> set[XactStatus]:
        return {
            participant.xact_statuses[branch.xid]
            for participant in self.participants.values()
            for branch in participant.branches
        }

    def close(self) -> None:
        for gate in self.gates.values():
            gate.open.set()
        self.coordinator.close()


class Background(threading.Thread):
    """A thread whose result, or error, ``ended`` gives."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._function = function
        self._result: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:  # noqa: BLE001 - it is the test's to judge
            self._error = error

    def ended(self) -> Any:
        """The result; raises what the function raised."""
        self.join(WAIT_S)
        assert not self.is_alive(), "it hangs"
        if self._error is not None:
            raise self._error
        return self._result


def until(condition: Callable[[], bool]) -> None:
    """Return once it holds."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)
