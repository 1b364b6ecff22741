"""What an operator does with a ledger while nobody uses it: create, upgrade, check."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from coordinator.errors import LedgerLocked, LedgerUnusable
from coordinator.ledger import schema
from coordinator.ledger.contract import LedgerInfo
from coordinator.ledger.sqlite import store
from coordinator.ledger.sqlite.lock import FileLock, holder
from coordinator.ledger.sqlite.owned import rebuilt
from coordinator.ledger.urls import open_ledger, sqlite_path
from coordinator.settings import LedgerSettings

T = TypeVar("T")


async def init(settings: LedgerSettings) -> LedgerInfo:
    """Create the ledger, or find it created; what it is. Raises ``LedgerError``."""
    ledger = await open_ledger(settings)
    try:
        return await ledger.info()
    finally:
        await ledger.close()


async def migrate(settings: LedgerSettings) -> list[str]:
    """Bring the tables to this version; the revisions that were applied, oldest first. Raises
    ``LedgerLocked`` while any process has the ledger open, and ``LedgerUnusable``."""
    return await asyncio.to_thread(_alone, sqlite_path(settings.url).resolve(), _migrate)


async def check(settings: LedgerSettings) -> list[str]:
    """Read the whole file and verify every checksum: what is wrong, empty if nothing is. Changes nothing.
    Raises ``LedgerLocked`` while any process has the ledger open."""
    return await asyncio.to_thread(_alone, sqlite_path(settings.url).resolve(), _check)


def _alone(path: Path, work: Callable[[Path], T]) -> T:
    if not path.exists():
        raise LedgerUnusable(f"no ledger at {path}; create it with: undoubt ledger init")
    lock = FileLock.take(path)
    if lock is None:
        raise LedgerLocked(f"ledger {path} is in use by process {holder(path)}; stop it first")
    try:
        return work(path)
    finally:
        lock.release()


def _migrate(path: Path) -> list[str]:
    before = store.revision(path)
    if before is not None and before not in schema.REVISIONS:
        schema.check_revision(before, f"ledger {path}")
    known = schema.REVISIONS.index(before) + 1 if before is not None else 0
    if missing := list(schema.REVISIONS[known:]):
        store.upgrade(path)
    return missing


def _check(path: Path) -> list[str]:
    try:
        opened = store.SqliteStore(path)
    except LedgerUnusable as error:
        return [str(error)]
    try:
        problems = opened.problems()
        rebuilt(opened.load(), path)
    except LedgerUnusable as error:
        return [str(error)]
    finally:
        opened.close()
    return problems
