"""The files that belong to a SQLite ledger, and the renaming of those of a former ledger.

A file of a former ledger must not stay beside a new one: SQLite replays a ``-wal``, and rolls back a
``-journal``, into any file of that name (https://www.sqlite.org/howtocorrupt.html, §1.4).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from pathlib import Path

from undoubt.coordinator.errors import LedgerMissing, LedgerUnusable
from undoubt.coordinator.ledger import disk
from undoubt.coordinator.ledger.anchor import Anchor
from undoubt.coordinator.ledger.durable import sync_folder

ANCHOR = ".anchor"
OF_SQLITE = ("-wal", "-shm", "-journal")
"""The suffixes of the files that SQLite keeps beside the ledger's."""
PARTS = (*OF_SQLITE, ANCHOR, "")
"""The suffixes of the files. The ledger's own file comes last: as long as it exists, its place does not look
unused."""

_COPY_BYTES = 1024 * 1024


def part(ledger: Path, suffix: str) -> Path:
    return ledger.with_name(ledger.name + suffix)


def is_empty(ledger: Path) -> bool:
    """Whether there is no file at ``ledger``, or one of 0 bytes. SQLite deletes the ``-wal`` of such a file
    when it opens the file, so this is checked first."""
    try:
        return ledger.stat().st_size == 0
    except FileNotFoundError:
        return True


def traces(ledger: Path) -> list[str]:
    """The names of files that show that there was a ledger at ``ledger``, if its file is missing or empty."""
    found = []
    if Anchor.used(part(ledger, ANCHOR)):
        found.append(part(ledger, ANCHOR).name)
    wal = part(ledger, "-wal")
    if not is_empty(wal):
        found.append(wal.name)
    return found


def check_absent(ledger: Path) -> None:
    """Check, if there is no file at ``ledger``, or one whose making was never finished, that there was no
    ledger before. Raises ``LedgerMissing`` if there was."""
    if found := traces(ledger):
        what = "has no tables" if ledger.exists() else "is missing"
        show = "show" if len(found) > 1 else "shows"
        raise LedgerMissing(
            f"ledger {ledger} {what}, and {' and '.join(found)} beside it {show} that there was one."
            f" Nothing was made. {ways_out(ledger)}"
        )


def missing(ledger: Path) -> LedgerMissing:
    """The error to raise if there is no ledger and none may be made."""
    return LedgerMissing(
        f"no ledger at {ledger}. If there was one, find its file, or restore it from a backup:"
        " `undoubt ledger restore BACKUP`. To make a new one: `undoubt ledger init`"
    )


def id_of(ledger: Path) -> str:
    """The id of the ledger whose anchor, or else whose file, is there; empty if it cannot be told. Changes
    nothing: ``immutable`` reads the file alone, without its ``-wal``."""
    if found := Anchor.owner_of(part(ledger, ANCHOR)):
        return found
    try:
        there = f"{ledger.as_uri()}?mode=ro&immutable=1"
        with contextlib.closing(sqlite3.connect(there, uri=True)) as connection:
            row = connection.execute("select value from meta where key = 'ledger_id'").fetchone()
    except sqlite3.Error:
        return ""
    return "" if row is None else str(row[0])


def ways_out(ledger: Path) -> str:
    """What an operator can do if the ledger's file is missing or empty."""
    lost = Anchor.owner_of(part(ledger, ANCHOR)) or "LEDGER-ID"
    return (
        "Put the file back if you find it, with the files that belong to it; or `undoubt ledger restore"
        " BACKUP` makes it again from a backup. If there is no backup, `undoubt ledger init --former-lost`"
        f" renames the remaining files and makes a new ledger; `undoubt recover --adopt {lost}` then ends the"
        " prepared branches of the lost one. Until then do not end prepared transactions of its participants"
    )


def move_aside(ledger: Path) -> str | None:
    """Rename the remaining files of a former ledger. Returns the new name of its file, or of another of its
    files if that is missing; None if there were no files."""
    there = _there(ledger)
    if not there:
        return None
    kept = _free_name(ledger, "replaced")
    for suffix in there:
        old, new = part(ledger, suffix), part(kept, suffix)
        if suffix == ANCHOR and old.is_file():
            # The old anchor stays until the new one replaces it: a crash in between must not leave a folder
            # that looks as if it never had a ledger.
            new.hardlink_to(old)
        else:
            old.rename(new)
    sync_folder(ledger.parent)
    return part(kept, there[-1]).name


def copy_aside(ledger: Path) -> str | None:
    """As :func:`move_aside`, but copies the files: SQLite will cut from them what it cannot read. Raises
    ``LedgerUnusable``, ``StoreFull`` if there is no room for the copies."""
    there = [suffix for suffix in _there(ledger) if suffix != "-shm"]  # an index, which SQLite makes again
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
        what = f"a copy of ledger {ledger}, which is needed before the file is cut"
        if disk.no_room(error, ledger.parent):
            raise disk.failed(error, ledger.parent, what) from error
        raise LedgerUnusable(f"cannot make {what}: {error}. Nothing was changed") from error
    return part(kept, there[-1]).name


def remove(unfinished: Path) -> None:
    """Remove the files of a ledger whose making was not finished."""
    for suffix in PARTS:
        part(unfinished, suffix).unlink(missing_ok=True)


def _there(ledger: Path) -> list[str]:
    return [suffix for suffix in PARTS if os.path.lexists(part(ledger, suffix))]


def _free_name(ledger: Path, why: str) -> Path:
    """A name under which all files can be kept without overwriting any."""
    stem = ledger.name + time.strftime(f".{why}-%Y%m%dT%H%M%SZ", time.gmtime())
    number, name = 1, ledger.with_name(stem)
    while _there(name):
        number += 1
        name = ledger.with_name(f"{stem}-{number}")
    return name


def _copy(old: Path, new: Path) -> None:
    """Copy and sync a file, with mode 0600, since it contains the ledger's secret. Raises ``OSError``."""
    with old.open("rb") as source, new.open("xb") as target:
        os.fchmod(target.fileno(), 0o600)
        while data := source.read(_COPY_BYTES):
            target.write(data)
        target.flush()
        os.fsync(target.fileno())
