"""What belongs to a SQLite ledger beside its file, and how a former ledger is put aside.

A part that stays beside a new file is worse than lost: SQLite replays a ``-wal``, and rolls back a
``-journal``, into whatever file of that name it finds (https://www.sqlite.org/howtocorrupt.html, §1.4).
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from undoubt.coordinator.errors import LedgerUnusable
from undoubt.coordinator.ledger import disk
from undoubt.coordinator.ledger.anchor import Anchor
from undoubt.coordinator.ledger.durable import sync_folder

ANCHOR = ".anchor"
PARTS = ("-wal", "-shm", "-journal", ANCHOR, "")
"""The file itself comes last: while it is there, nothing takes the place for one that was never used."""

_COPY_BYTES = 1024 * 1024


def part(ledger: Path, suffix: str) -> Path:
    return ledger.with_name(ledger.name + suffix)


def is_empty(ledger: Path) -> bool:
    """Whether there is no file at ``ledger``, or one of 0 bytes. SQLite deletes the ``-wal`` of such a file
    when it opens it, so that is looked for first."""
    try:
        return ledger.stat().st_size == 0
    except FileNotFoundError:
        return True


def traces(ledger: Path) -> list[str]:
    """The names of what says that a ledger was at ``ledger``, where no file is, or an empty one."""
    found = []
    if Anchor.used(part(ledger, ANCHOR)):
        found.append(part(ledger, ANCHOR).name)
    wal = part(ledger, "-wal")
    if not is_empty(wal):
        found.append(wal.name)
    return found


def ways_out(ledger: Path) -> str:
    """What an operator can do whose ledger's file is gone, or empty."""
    lost = Anchor.owner_of(part(ledger, ANCHOR)) or "LEDGER-ID"
    return (
        "Put the file back if it is somewhere, with what belongs to it; or `undoubt ledger restore BACKUP`"
        " makes it anew from a backup. If there is no backup, `undoubt ledger init --former-lost` puts aside"
        f" what is left, and makes a new ledger; `undoubt recover --adopt {lost}` then ends what the lost one"
        " has left prepared. Until then leave the prepared transactions of its participants alone"
    )


def move_aside(ledger: Path) -> str | None:
    """Rename all that is left of a former ledger; how its file is called now, or a part of it where there was
    no file. None if nothing was there."""
    there = _there(ledger)
    if not there:
        return None
    kept = _free_name(ledger, "replaced")
    for suffix in there:
        old, new = part(ledger, suffix), part(kept, suffix)
        if suffix == ANCHOR and old.is_file():
            # It stays until the new one takes its place: a crash in between must not leave a place that
            # looks as if no ledger had ever been there.
            new.hardlink_to(old)
        else:
            old.rename(new)
    sync_folder(ledger.parent)
    return part(kept, there[-1]).name


def copy_aside(ledger: Path) -> str | None:
    """As :func:`move_aside`, by copies: SQLite cuts what it cannot read. Raises ``LedgerUnusable``,
    ``StoreFull`` if there is no room for the copies."""
    there = [suffix for suffix in _there(ledger) if suffix != "-shm"]  # an index, which is made anew
    if not there:
        return None
    kept = _free_name(ledger, "before-restore")
    made: list[Path] = []
    try:
        for suffix in there:
            made.append(part(kept, suffix))
            _copy(part(ledger, suffix), made[-1])
        sync_folder(ledger.parent)
    except OSError as error:
        for each in made:
            each.unlink(missing_ok=True)
        what = f"a copy of ledger {ledger}, which is kept before it is cut"
        if disk.no_room(error, ledger.parent):
            raise disk.failed(error, ledger.parent, what) from error
        raise LedgerUnusable(f"cannot make {what}: {error}. Nothing was changed") from error
    return part(kept, there[-1]).name


def _there(ledger: Path) -> list[str]:
    return [suffix for suffix in PARTS if os.path.lexists(part(ledger, suffix))]


def _free_name(ledger: Path, why: str) -> Path:
    """For all parts: nothing that was kept before is overwritten."""
    stem = ledger.name + time.strftime(f".{why}-%Y%m%dT%H%M%SZ", time.gmtime())
    number, name = 1, ledger.with_name(stem)
    while _there(name):
        number += 1
        name = ledger.with_name(f"{stem}-{number}")
    return name


def _copy(old: Path, new: Path) -> None:
    """Mode 0600, since the ledger's secret is in it; synced. Raises ``OSError``."""
    with old.open("rb") as source, new.open("xb") as target:
        os.fchmod(target.fileno(), 0o600)
        while data := source.read(_COPY_BYTES):
            target.write(data)
        target.flush()
        os.fsync(target.fileno())
