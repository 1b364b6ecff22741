"""Makes a new SQLite ledger, so that a process that is killed at any point needs no operator.

The file is made complete under another name, and synced; then its anchor is made; then the file is renamed.
So a file at the ledger's path is complete, and has an anchor. What each crash leaves, and what the next start
does:

=====================================  ==================================================================
a part of the file, at its other name  removes it, and makes the ledger
the complete file, at its other name   the same
that, and an anchor at entry 0         the same: an anchor without an entry shows no former ledger
the file at the ledger's path          opens it
=====================================  ==================================================================

The other order, file and then anchor, would leave a file that looks as if its anchor was removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from undoubt.coordinator.ledger.anchor import Anchor, Mark
from undoubt.coordinator.ledger.contract import DecisionRecord
from undoubt.coordinator.ledger.durable import sync_folder
from undoubt.coordinator.ledger.sqlite import anchored, ledger_files, store
from undoubt.participants.ids import new_ledger_id


def make_beside(
    ledger: Path,
    suffix: str,
    ledger_id: str,
    snapshot: tuple[Mark, bytes] | None = None,
    finished: Sequence[DecisionRecord] = (),
    *,
    now_ms: int = 0,
) -> Path:
    """Make a complete, synced file beside ``ledger``; returns its path. ``snapshot``: what it begins with;
    ``finished``: its history, as of ledger time ``now_ms``. Raises ``LedgerUnusable``,
    ``LedgerUnavailable``."""
    new = ledger_files.part(ledger, suffix)
    ledger_files.remove(new)
    try:
        store.make(new, ledger_id, snapshot, finished, now_ms=now_ms)
    except BaseException:
        ledger_files.remove(new)  # on a full disk the unfinished file would use up the room
        raise
    return new


def make_new(ledger: Path) -> None:
    """Make a ledger at ``ledger``, in place of a file whose making was never finished. The caller must hold
    the ledger's lock, and has checked with :func:`.anchored.is_absent` that there was no ledger. Raises
    ``LedgerUnusable``, ``LedgerUnavailable``."""
    ledger_id = new_ledger_id()
    new = make_beside(ledger, ".making", ledger_id)
    Anchor.create(anchored.path_of(ledger), ledger_id).close()
    for suffix in ledger_files.OF_SQLITE:
        ledger_files.part(ledger, suffix).unlink(missing_ok=True)
    new.rename(ledger)
    sync_folder(ledger.parent)
