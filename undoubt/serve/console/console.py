"""Puts the console of one process together: of a sidecar, or of a node.

Both read the same ledger and the same participants by the same functions. A sidecar also knows its own
running transactions, their steps and their durations; a node knows none of these."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from undoubt import __version__
from undoubt.config import Settings
from undoubt.coordinator.ledger.contract import Ledger
from undoubt.participants.contract import Participant
from undoubt.participants.ids import TxId
from undoubt.participants.registry import Registry
from undoubt.recovery.service import RecoveryService
from undoubt.serve.console import readings
from undoubt.serve.console.feed import Feed
from undoubt.serve.console.hour import LastHour
from undoubt.serve.console.rows import ROWS_MAX, Row
from undoubt.serve.console.traces import Traces
from undoubt.serve.console.watch import SidecarWatch
from undoubt.serve.sidecar.book import Book

FAST_S = 0.25
SLOW_S = 1.0
CHECKUP_S = 60.0
UNWATCHED_S = 5.0
"""The pause between two readings of the decisions while no page is open: they fill the last hour."""


@dataclass
class Console:
    """``place``: which process this is, for people. ``traces``: the steps that this process saw."""

    settings: Settings
    ledger: Ledger
    participants: Registry
    place: str
    hour: LastHour
    traces: Traces = field(default_factory=Traces)
    running: Callable[[], dict[str, Any]] | None = None
    service: RecoveryService | None = None
    counts_rows: bool = False
    """Whether the last hour is that of the ledger's decisions."""

    def __post_init__(self) -> None:
        self.feed = Feed(self._about)
        self._checkup = asyncio.Lock()
        self._counted: dict[str, None] = {}
        self._heuristics: list[dict[str, Any]] = []
        self._answered: dict[str, dict[str, Any]] = {}

    def start(self) -> None:
        """Begin to read."""
        feed, ledger = self.feed, self.ledger
        feed.follow(
            "transactions", FAST_S, self._transactions, unwatched_s=UNWATCHED_S if self.counts_rows else None
        )
        feed.follow("running", FAST_S, self._running)
        feed.follow("heuristics", FAST_S, self._read_heuristics)
        feed.follow("audit", FAST_S, lambda: readings.audit_part(ledger))
        feed.follow("sessions", SLOW_S, lambda: readings.sessions_part(ledger))
        feed.follow("locks", FAST_S, lambda: readings.locks_part(ledger))
        feed.follow("ledger", SLOW_S, lambda: readings.ledger_part(ledger))
        feed.follow("hour", SLOW_S, self._hour)
        feed.follow("cluster", SLOW_S, lambda: readings.cluster_part(self.settings))
        feed.follow("recovery", SLOW_S, self._recovery)
        feed.follow("doctor", CHECKUP_S, self.checked)
        for participant in self.participants:
            name = f"participant {participant.name}"
            feed.follow(name, FAST_S, self._reads(participant), listed="branches")

    def _about(self) -> dict[str, Any]:
        return {
            "version": __version__,
            "place": self.place,
            "ledger_id": self.ledger.ledger_id,
            "participants": self.participants.names(),
        }

    def _reads(self, participant: Participant) -> Callable[[], Awaitable[dict[str, Any]]]:
        """Reads what is prepared in it. ``last``: what was prepared in a participant that is silent, when it
        last answered; null if it answers now, or has not answered since this process began to ask."""

        since = readings.Since()

        async def read() -> dict[str, Any]:
            at = time.time()
            document = await readings.participant_part(self.ledger, self.participants, participant, since)
            if document["error"] is not None:
                return document | {"last": self._answered.get(participant.name)}
            self._answered[participant.name] = {"at": at, "branches": document["branches"]}
            return document | {"last": None}

        return read

    async def _transactions(self) -> dict[str, Any]:
        await self.feed.rows.read(self.ledger)
        if self.counts_rows:
            for row in self.feed.rows:
                self._count(row)
            rows = self.feed.rows
            self.hour.missed_before = max(rows.missed_before, rows.left_out_before)
        return self.feed.rows.about()

    def _count(self, row: Row) -> None:
        if row["recorded"] and row["id"] not in self._counted and row["at"] >= self.hour.since:
            self._counted[row["id"]] = None
            self.hour.ended(row["outcome"], row["at"])
            while len(self._counted) > 4 * ROWS_MAX:
                del self._counted[next(iter(self._counted))]

    async def _read_heuristics(self) -> dict[str, Any]:
        document = await readings.heuristics_part(self.ledger)
        before, self._heuristics = self._heuristics, document["heuristics"]
        changed = [one for one in self._heuristics if one not in before]
        names = {readings.transaction_of(one["gid"]) for one in changed} - {None}
        await self.feed.rows.read_again(self.ledger, [name for name in names if isinstance(name, TxId)])
        return document

    async def _running(self) -> dict[str, Any]:
        return {"kept": False, "running": [], "count": 0} if self.running is None else self.running()

    async def _hour(self) -> dict[str, Any]:
        return self.hour.document()

    async def _recovery(self) -> dict[str, Any]:
        if self.service is None:
            return {"workers": []}
        return readings.workers_part(self.service.status().participants)

    async def checked(self) -> dict[str, Any]:
        """What ``doctor`` says now; one check runs at a time."""
        async with self._checkup:
            return await readings.doctor_part(self.settings)

    async def check_now(self) -> None:
        await self.feed.read_now("doctor", self.checked)

    async def close(self) -> None:
        await self.feed.close()


def of_sidecar(
    settings: Settings, ledger: Ledger, book: Book, service: RecoveryService, watch: SidecarWatch
) -> Console:
    """The console of a sidecar."""
    console = Console(
        settings,
        ledger,
        book.coordinator.participants,
        "sidecar",
        watch.hour,
        watch.traces,
        running=lambda: watch.running(book),
        service=service,
    )
    watch.rows = console.feed.rows
    return console


def of_node(settings: Settings, ledger: Ledger, participants: Registry) -> Console:
    """The console of a node."""
    hour = LastHour(
        "Decisions that the ledger has recorded, of all coordinators. A transaction that was rolled back"
        " before a decision leaves no record. How long commits take is known to sidecars only."
    )
    return Console(settings, ledger, participants, f"node {settings.node.number}", hour, counts_rows=True)
