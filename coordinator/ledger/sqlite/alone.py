"""Runs an operator's work on the files of a ledger that no process has open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from undoubt.coordinator.errors import LedgerLocked
from undoubt.coordinator.ledger.disk import usable
from undoubt.coordinator.ledger.sqlite import ledger_files
from undoubt.coordinator.ledger.sqlite.lock import FileLock, check_not_open, holder

T = TypeVar("T")


def alone(path: Path, work: Callable[[Path], T], *, must_exist: bool = True) -> T:
    """Call ``work`` with the ledger's lock held. Raises ``LedgerLocked`` if a process has the ledger open,
    ``LedgerMissing`` if there is none and it must exist, and what ``work`` raises."""
    with usable(path):
        there = path.exists()
    if must_exist and not there:
        ledger_files.check_absent(path)
        raise ledger_files.missing(path)
    lock = FileLock.take(path)
    if lock is None:
        raise LedgerLocked(f"ledger {path} is in use by process {holder(path)}; stop it first")
    try:
        check_not_open(path)
        with usable(path):
            return work(path)
    finally:
        lock.release()
