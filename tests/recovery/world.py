"""Two databases and a ledger in memory, and transactions that were left behind in them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tests.coordinator.ledger.signing import TaggingLedger
from undoubt.coordinator.ledger.contract import BranchRecord, Heuristic, Session
from undoubt.participants.contract import Decision, Evidence
from undoubt.participants.ids import Gid, Protocol, SessionKey, TxId
from undoubt.participants.registry import Registry
from undoubt.participants.scripted import ScriptedParticipant
from undoubt.recovery.report import Report, ReportedBranch
from undoubt.recovery.service import RecoveryService
from undoubt.recovery.settings import RecoverySettings

FAST = RecoverySettings(interval_s=0.0, backoff_max_s=0.02, deadlock_interval_s=0.005)


class World:
    """``session`` is alive until ``end_session``; each transaction has one branch in every database."""

    def __init__(self, *names: str) -> None:
        self.ledger = TaggingLedger("abcdefghij")
        self.registry = Registry()
        self.databases = {name: ScriptedParticipant(name) for name in names or ("orders", "payments")}
        for number, database in enumerate(self.databases.values()):
            database.system += number  # each on a server of its own
            self.registry.add(database)
        self.session: Session
        self._seq = 0

    async def open(self) -> World:
        self.session = await self.ledger.open_session("shop", 10.0)
        return self

    @property
    def orders(self) -> ScriptedParticipant:
        return self.databases["orders"]

    @property
    def payments(self) -> ScriptedParticipant:
        return self.databases["payments"]

    async def end_session(self) -> None:
        await self.ledger.close_session(self.session)

    def gids(self, protocol: Protocol = Protocol.TWO_PHASE) -> list[Gid]:
        """The names of a new transaction's branches."""
        self._seq += 1
        txid = self.session.txid(self._seq)
        return [
            Gid(self.ledger.ledger_id, protocol, txid, number, name).tagged(SessionKey(self.session.key))
            for number, name in enumerate(self.databases, 1)
        ]

    async def prepare(self, gid: Gid, database: ScriptedParticipant | None = None) -> Evidence:
        branch = await (database or self.databases[gid.participant]).begin(gid, timeout_s=1)
        evidence = (await branch.prepare()).evidence
        assert evidence is not None
        return evidence

    async def left(
        self, decision: Decision | None = None, *, protocol: Protocol = Protocol.TWO_PHASE
    ) -> list[Gid]:
        """A transaction prepared everywhere, with that decision recorded."""
        gids = self.gids(protocol)
        evidence = {gid: await self.prepare(gid) for gid in gids}
        if decision is not None:
            await self.decide(decision, evidence)
        return gids

    async def decide(self, decision: Decision, branches: dict[Gid, Evidence]) -> None:
        records = [
            BranchRecord(gid.branch, gid.participant, seen.xid, seen.system, seen.timeline)
            for gid, seen in branches.items()
        ]
        first = next(iter(branches))
        assert await self.ledger.decide(first.txid, decision, records, protocol=first.protocol) is decision

    def service(self, settings: RecoverySettings = FAST, **more: object) -> RecoveryService:
        more.setdefault("hazard_grace_s", 0.001)
        return RecoveryService(self.ledger, self.registry, settings, **more)  # type: ignore[arg-type]

    async def recover(self, *, dry_run: bool = False) -> Report:
        """One pass of a recovery that has just started."""
        return await self.service().run_once(dry_run=dry_run)

    async def unfinished(self) -> set[TxId]:
        return {record.txid for record in await self.ledger.unfinished()}

    async def heuristics(self) -> dict[Gid, Heuristic]:
        return {one.gid: one for one in await self.ledger.heuristics()}


def told(report: Report, gid: object) -> tuple[str, str]:
    """Action and result of the line about ``gid``."""
    line: ReportedBranch | None = report.of(gid)
    assert line is not None, f"no line about {gid}"
    return line.action, line.result


async def until(condition: Callable[[], bool]) -> None:
    """Let everything else run until ``condition`` holds."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)
