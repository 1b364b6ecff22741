"""A SQLite ledger as a place of a move. No process may have its file open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from undoubt.coordinator.errors import LedgerUnusable
from undoubt.coordinator.ledger.anchor import START, Anchor
from undoubt.coordinator.ledger.commands import MovingCommand, SealLedger, SettleMove, encode
from undoubt.coordinator.ledger.durable import sync_folder
from undoubt.coordinator.ledger.machine import Machine
from undoubt.coordinator.ledger.move_mark import MoveMark, MovePhase, MoveStatus
from undoubt.coordinator.ledger.move_rules import occupied, status_of
from undoubt.coordinator.ledger.moving.image import LedgerImage
from undoubt.coordinator.ledger.sqlite import anchored, ledger_files
from undoubt.coordinator.ledger.sqlite.alone import alone
from undoubt.coordinator.ledger.sqlite.creation import make_beside
from undoubt.coordinator.ledger.sqlite.owner import rebuilt
from undoubt.coordinator.ledger.sqlite.store import Loaded, SqliteStore, revision
from undoubt.coordinator.ledger.urls import sqlite_file
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.redact import redact

T = TypeVar("T")

ROWS_MAX = 1 << 62
"""More than a table has: all rows in one page."""


class SqlitePlace:
    def __init__(self, settings: LedgerSettings) -> None:
        self.url = redact(settings.url)
        self._path = sqlite_file(settings.url)

    async def look(self) -> MoveStatus | None:
        return await self._alone(_look, must_exist=False)

    async def seal(self, mark: MoveMark) -> None:
        await self._alone(lambda path: _apply(path, SealLedger(mark)))

    async def settle(self, move: str, phase: MovePhase | None) -> None:
        await self._alone(lambda path: _apply(path, SettleMove(move, phase)))

    async def read(self) -> LedgerImage:
        return await self._alone(_read)

    def fitted(self, image: LedgerImage) -> LedgerImage:
        return image

    async def write(self, image: LedgerImage) -> None:
        await self._alone(lambda path: _write(path, image), must_exist=False)

    async def close(self) -> None:
        """Nothing is open between two calls."""

    async def _alone(self, work: Callable[[Path], T], *, must_exist: bool = True) -> T:
        return await asyncio.to_thread(alone, self._path, work, must_exist=must_exist)


def _look(path: Path) -> MoveStatus | None:
    if revision(path) is None:
        ledger_files.check_absent(path)
        return None
    store = SqliteStore(path)
    try:
        return status_of(rebuilt(store.load(), path).state)
    finally:
        store.close()


def _apply(path: Path, command: MovingCommand) -> None:
    """Add ``command`` to the log, durably, unless it is refused. Raises ``MoveRefused``."""
    store = SqliteStore(path)
    try:
        loaded = store.load()
        _hold(store, loaded)
        result = rebuilt(loaded, path).apply(command)
        if isinstance(result, Exception):
            raise result
        store.append(loaded.last_index + 1, [encode(command)])
    finally:
        store.close()


def _hold(store: SqliteStore, loaded: Loaded) -> None:
    """Make ``store`` move its anchor. Raises ``LedgerUnusable`` if the file was set back: what it lacks may
    have been decided."""
    anchor = anchored.open_anchor(store.path, loaded)
    if loaded.lacks(anchor.mark):
        anchor.close()
        raise LedgerUnusable(
            f"ledger {store.path} was set back: it lacks entry {anchor.mark.index}. Accept it first, with"
            " `undoubt ledger restore`, or put the newer file back"
        )
    store.hold(anchor, loaded.last, new=not loaded.anchored or not loaded.place)


def _read(path: Path) -> LedgerImage:
    store = SqliteStore(path)
    try:
        machine: Machine = rebuilt(store.load(), path)
        records = [*store.history(ROWS_MAX, None), *machine.drain_history()]
    finally:
        store.close()
    return LedgerImage(machine.state, {record.txid: record for record in records})


def _write(path: Path, image: LedgerImage) -> None:
    """Make the file beside the ledger's, then rename it. The anchor is made before, at entry 0, which shows
    no former ledger: a crash in between leaves either what was there, or nothing."""
    state = image.state
    found = _look(path)
    if found is not None and not found.takes(state.ledger_id):
        raise occupied(found.ledger_id)
    finished = [image.finished[txid] for txid in sorted(image.finished)]
    new = make_beside(
        path, ".moving", state.ledger_id, (START, state.encode()), finished, now_ms=state.time_ms
    )
    Anchor.create(anchored.path_of(path), state.ledger_id).close()
    for suffix in ledger_files.OF_SQLITE:
        ledger_files.part(path, suffix).unlink(missing_ok=True)
    new.rename(path)
    sync_folder(path.parent)
