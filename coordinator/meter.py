"""The methods that a coordinator calls for metrics, and the measurement of one commit. Without a meter,
nothing here runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping
from typing import Protocol

from undoubt.coordinator.errors import HeuristicOutcome, TransactionAborted
from undoubt.coordinator.protocols.context import CommitContext, Phase, known_heuristics
from undoubt.participants.contract import Decision, Settled
from undoubt.participants.ids import Gid
from undoubt.participants.ids import Protocol as GidProtocol

PHASES = {
    Phase.VOTING: "vote",
    Phase.DECIDING: "decide",
    Phase.ABORTED: "undo",
    Phase.COMMITTED: "apply",
}
"""The metric's name of each phase. The first phase of a transaction is ``work``, the application's own
work."""


class TransactionMeter(Protocol):
    """Receives durations and outcomes. Its methods are called in the event loop, return immediately and do
    not raise."""

    def phase(self, protocol: GidProtocol, phase: str, seconds: float) -> None:
        """A transaction has left ``phase``: ``work`` or one of :data:`PHASES`."""
        ...

    def ended(self, protocol: GidProtocol, outcome: str, heuristics: Mapping[Gid, Settled]) -> None:
        """The transaction has ended with ``outcome``, which may differ from what its caller has received:
        ``committed``, ``aborted``, ``rolled_back`` (by the application), ``unknown``, or a heuristic
        :class:`Settled`."""
        ...


class Stopwatch:
    """Measures one commit, from ``began_at`` in seconds of the event loop's clock."""

    def __init__(
        self, meter: TransactionMeter, context: CommitContext, protocol: GidProtocol, began_at: float
    ) -> None:
        self._meter = meter
        self._context = context
        self._protocol = protocol
        meter.phase(protocol, "work", asyncio.get_running_loop().time() - began_at)
        self._since = time.perf_counter()  # the loop's clock may be no finer than a millisecond
        context.on_phase = self._left

    async def measure(self, driving: Awaitable[None]) -> None:
        """Await ``driving``, which is the commit, and report its outcome; raises what ``driving`` raises."""
        outcome = "unknown"
        try:
            await driving
            otherwise = known_heuristics(self._context, Decision.COMMIT)
            outcome = "committed" if otherwise is None else str(otherwise.kind)
        except TransactionAborted:
            outcome = "aborted"
            raise
        except HeuristicOutcome as error:
            outcome = str(error.kind)
            raise
        finally:
            self._left(self._context.phase)
            self._meter.ended(self._protocol, outcome, self._context.heuristics)

    def _left(self, phase: Phase) -> None:
        if (name := PHASES.get(phase)) is not None:
            self._lap(name)

    def _lap(self, name: str) -> None:
        now = time.perf_counter()
        self._meter.phase(self._protocol, name, now - self._since)
        self._since = now
