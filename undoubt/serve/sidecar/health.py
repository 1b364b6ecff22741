"""Reports whether the sidecar lives, is ready, and leads, and holds its metrics."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from undoubt.coordinator.errors import LedgerError
from undoubt.metrics import Metrics
from undoubt.participants.contract import Participant
from undoubt.participants.errors import ParticipantError
from undoubt.serve.sidecar.book import Book
from undoubt.serve.sidecar.types import Check, Health

ASK_S = 1.0
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class SidecarHealth:
    """The metrics of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        self._open = Gauge(
            "undoubt_sidecar_open_transactions", "Transactions that have not ended.", registry=self.registry
        )

    def watch(self, book: Book) -> None:
        """Report the number of open transactions of ``book`` as a metric."""
        self._open.set_function(lambda: float(book.open))

    def text(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return generate_latest(self.registry)


async def ready(book: Book, *, verbose: bool) -> Health:
    """Whether the sidecar is ready: it begins transactions, and the ledger answers. ``verbose`` also checks
    every participant. A participant that does not answer leaves the sidecar ready: transactions without that
    participant can run."""
    checks = [Check("draining", not book.draining, "it is about to end" if book.draining else "")]
    needed = [*checks, await _ledger(book)]
    if verbose:
        registry = book.coordinator.participants
        asked = await asyncio.gather(*(_participant(participant) for participant in registry))
        return Health(all(check.ok for check in needed), (*needed, *asked))
    return Health(all(check.ok for check in needed), tuple(check for check in needed if not check.ok))


async def _ledger(book: Book) -> Check:
    try:
        async with asyncio.timeout(ASK_S):
            await book.coordinator.ledger.info()
    except (LedgerError, TimeoutError) as error:
        return Check("ledger", ok=False, why=type(error).__name__)
    return Check("ledger", ok=True)


async def _participant(participant: Participant) -> Check:
    name = f"participant {participant.name}"
    try:
        async with asyncio.timeout(ASK_S):
            await participant.in_doubt()
    except (ParticipantError, TimeoutError) as error:
        return Check(name, ok=False, why=type(error).__name__)
    return Check(name, ok=True)
