"""A SQLite ledger: its file, the WAL beside it, its anchor."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import undoubt.coordinator.ledger.sqlite.owner as owned_module
from tests.coordinator.ledger.signing import Signing
from tests.prove.damaging import Change, Heard, copied
from undoubt.coordinator.errors import LedgerError
from undoubt.coordinator.ledger.contract import (
    BranchRecord,
    RecordedDecision,
    TransactionInfo,
)
from undoubt.coordinator.ledger.sqlite import anchored
from undoubt.coordinator.ledger.sqlite.owner import OwnedLedger
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.contract import Decision
from undoubt.participants.ids import TxId

NAME = "undoubt.db"
WAL = f"{NAME}-wal"
BRANCHES = (BranchRecord(1, "orders", 77, 2**62, "00000001"), BranchRecord(2, "payments"))
DECISIONS = 30
"""In the file itself, and as many again in the WAL."""
FINISHED = 20
TORN_STEP = 61


class LedgerFiles:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._place = folder.with_name("ledger-at-work")
        """Where it is always opened: a copy at another place is refused."""
        self._before = folder.with_name("ledger-before")
        """One decision earlier."""
        self._acknowledged: list[TxId] = []
        self._finished: list[TransactionInfo] = []
        self._incarnation = 0

    async def make(self) -> None:
        self._place.mkdir(mode=0o700)
        log_bytes, owned_module.LOG_BYTES_MIN = owned_module.LOG_BYTES_MIN, 1_500
        try:
            await self._decide(1, DECISIONS)
        finally:
            owned_module.LOG_BYTES_MIN = log_bytes
        await self._decide(DECISIONS + 1, 2 * DECISIONS, kill=True)
        copied(self.folder, self._place)
        ledger = await _open(self._place)
        self._incarnation = ledger.machine.state.incarnation
        await ledger.close()

    async def _decide(self, first: int, last: int, *, kill: bool = False) -> None:
        ledger = await _open(self._place)
        signing = Signing(ledger)
        session = await signing.open_session("damage", 3600.0)
        txids = [session.txid(number) for number in range(first, last + 1)]
        for txid in txids:
            if kill and txid == txids[-1]:
                copied(self._place, self._before)
            if await signing.decide(txid, Decision.COMMIT, BRANCHES) is not Decision.COMMIT:
                raise RuntimeError(f"{txid} was not committed")
            self._acknowledged.append(txid)
            if not kill and txid == txids[FINISHED - 1]:
                await ledger.finish(txids[:FINISHED])
                history = await ledger.transactions(limit=1_000)
                self._finished = [each for each in history if each.txid in txids[:FINISHED]]
        if kill:
            copied(self._place, self.folder)  # as a process that was killed leaves it
        await ledger.close()

    def kind_of(self, name: str) -> str:
        return name

    def acknowledged(self, change: Change) -> bool:
        return change.kind != "crash" and change.name in {NAME, WAL, anchored.path_of(Path(NAME)).name}

    def crashes(self) -> int:
        return len(self._torn())

    def _torn(self) -> list[int]:
        """Where the write of the last transaction may have been cut."""
        return list(range((self._before / WAL).stat().st_size, (self.folder / WAL).stat().st_size, TORN_STEP))

    async def open(self, change: Change) -> Heard:
        copied(self.folder, self._place)
        if change.kind == "crash":
            name = anchored.path_of(Path(NAME)).name
            shutil.copyfile(self._before / name, self._place / name)
            at = self._torn()[change.at]
            Change("cut" if change.at % 2 else "zeros", WAL, at).apply(self._place)
            acknowledged = self._acknowledged[:-1]
        else:
            change.apply(self._place)
            acknowledged = self._acknowledged
        try:
            ledger = await _open(self._place)
        except LedgerError as error:
            return Heard(str(error), "")
        try:
            return await self._heard(ledger, acknowledged)
        finally:
            await ledger.close()

    async def _heard(self, ledger: OwnedLedger, acknowledged: list[TxId]) -> Heard:
        alarm = ""
        if ledger.machine.state.incarnation != self._incarnation:
            alarm = "a new incarnation"
        records = await ledger.records(acknowledged)
        lost = [txid for txid in acknowledged if records[txid] is not RecordedDecision.COMMIT]
        words = f"{len(lost)} of {len(acknowledged)} decisions" if lost else ""
        try:
            found = {each.txid: each for each in await ledger.transactions(limit=1_000)}
        except LedgerError as error:
            return Heard(alarm or str(error), words)
        if any(found.get(each.txid) != each for each in self._finished):
            words = words or "history"
            alarm = alarm or await _checked(ledger)
        return Heard(alarm, words)


async def _checked(ledger: OwnedLedger) -> str:
    """What `undoubt ledger check` says."""
    return "; ".join(await ledger.in_thread(ledger.store.problems))


async def _open(folder: Path) -> OwnedLedger:
    settings = LedgerSettings(url=f"sqlite:///{folder / NAME}")
    return await OwnedLedger.open(folder / NAME, settings, asyncio.get_running_loop().time)


__all__ = ["LedgerFiles"]
