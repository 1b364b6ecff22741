"""The anchor of a SQLite ledger: its path, and what happens if it is missing or does not match.

If the anchor names an entry that the file does not contain, the file was set back, or has lost the end of its
WAL: the owner begins a new incarnation. A file whose anchor was lost, or belongs to another ledger, is not
opened: what it lacks is not known. A file of version 0.1.0 gets its anchor when it is first opened.

If there is no file, no anchor and no WAL, a ledger is made only if the caller allows it: a folder that was
lost looks like one that was never used."""

from __future__ import annotations

import os
from pathlib import Path

from undoubt.coordinator.errors import LedgerUnusable
from undoubt.coordinator.ledger.anchor import Anchor, AnchorUnusable, Mark
from undoubt.coordinator.ledger.contract import Create
from undoubt.coordinator.ledger.sqlite import ledger_files
from undoubt.coordinator.ledger.sqlite.store import WAYS_OUT, Loaded, revision


def path_of(ledger: Path) -> Path:
    return ledger_files.part(ledger, ledger_files.ANCHOR)


def is_absent(ledger: Path) -> bool:
    """Whether there is no ledger at ``ledger``, nor was one before: no file, or one whose making was never
    finished, and no anchor or WAL of a former ledger. Raises ``LedgerMissing`` if there was a ledger, and
    ``LedgerUnusable``."""
    if revision(ledger) is not None:
        return False
    ledger_files.check_absent(ledger)
    return True


async def allow(ledger: Path, create: Create) -> None:
    """Check, before a ledger is made at ``ledger``, that ``create`` allows it. Raises ``LedgerMissing`` if
    not."""
    if create is False:
        raise ledger_files.missing(ledger)
    if create is not True:
        await create()


def _check_place(ledger: Path, loaded: Loaded) -> None:
    """Raises ``LedgerUnusable`` if the ledger was last opened at another path. A folder that was copied as a
    whole is consistent, and a process that opens the copy would abort the running transactions of the
    original."""
    if loaded.place and loaded.place != str(ledger):
        raise LedgerUnusable(
            f"ledger {ledger} was last opened at {loaded.place}: it is a copy, or it was moved. A copy must"
            " never be used beside the original: both would decide the same transactions. Nothing was"
            " changed. If it was moved, `undoubt ledger restore` accepts it as it is; or move it back"
        )


def open_anchor(ledger: Path, loaded: Loaded) -> Anchor:
    """The anchor of the file that holds ``loaded``. Raises ``LedgerUnusable``."""
    try:
        anchor = Anchor.open(path_of(ledger), loaded.ledger_id)
    except AnchorUnusable as error:
        if error.missing and not loaded.anchored:
            return Anchor.create(path_of(ledger), loaded.ledger_id, loaded.last)
        if error.denied:
            raise not_allowed(ledger, error) from error
        raise LedgerUnusable(
            f"ledger {ledger} cannot be trusted: {error}, and without its anchor it is unknown whether the"
            f" file was set back, or copied from elsewhere. Nothing was changed. {WAYS_OUT}"
        ) from error
    try:
        _check_place(ledger, loaded)
    except LedgerUnusable:
        anchor.close()
        raise
    return anchor


def not_allowed(ledger: Path, error: AnchorUnusable) -> LedgerUnusable:
    """The error to raise if this process may not read and write the anchor. Nothing shows that the ledger
    lacks records, so it must not be accepted without its anchor: that would begin a new incarnation, in which
    undecided transactions are forgotten."""
    anchor = path_of(ledger)
    return LedgerUnusable(
        f"ledger {ledger} is not opened: {error}. Nothing was changed, and nothing is known to be lost. The"
        f" user of this process (uid {os.geteuid()}) must be able to read and write it, as the ledger's file:"
        f" chown --reference={ledger} {anchor} && chmod u+rw {anchor}"
    )


def check_allowed(ledger: Path) -> None:
    """Raises ``LedgerUnusable`` if there is an anchor that this process may not use."""
    try:
        Anchor.open(path_of(ledger), "").close()
    except AnchorUnusable as error:
        if error.denied:
            raise not_allowed(ledger, error) from error


def lacking(ledger: Path, loaded: Loaded) -> int:
    """The index of an entry that was durable and is missing; 0 if none is known."""
    try:
        return _lacking(_marked(ledger, loaded), loaded)
    except AnchorUnusable:
        return 0


def problems(ledger: Path, loaded: Loaded) -> list[str]:
    """The differences between the file and its anchor; empty if there are none."""
    try:
        index = _lacking(_marked(ledger, loaded), loaded)
    except AnchorUnusable as error:
        if error.denied:
            return [str(not_allowed(ledger, error))]
        return [] if error.missing and not loaded.anchored else [str(error)]
    return [_set_back(index, loaded)] if index else []


def check_may_accept(ledger: Path, index: int, loaded: Loaded, *, serves: bool) -> None:
    """Raises ``LedgerUnusable`` if the process that opens a file that lacks entry ``index`` does not serve:
    it only looks, or was started for something else. The anchor must stay as it is: it is the only proof."""
    if not serves:
        raise LedgerUnusable(f"ledger {ledger} is not opened: {_set_back(index, loaded)}")


def _set_back(index: int, loaded: Loaded) -> str:
    return (
        f"it lacks entry {index}, which was durable (the last is {loaded.last_index}): it was set back, or"
        " the end of its WAL is damaged. Put the newer file back, with its -wal, before anything opens it. If"
        " that is lost, `undoubt ledger restore BACKUP` makes it again from a newer backup, and `undoubt"
        " ledger restore` accepts the file as it is. An application, a sidecar and `undoubt recover` accept"
        " it when they open it. Then a new incarnation begins: an operator has to decide the undecided"
        " transactions"
    )


def _marked(ledger: Path, loaded: Loaded) -> Mark:
    """The mark in the anchor. Raises ``AnchorUnusable``."""
    anchor = Anchor.open(path_of(ledger), loaded.ledger_id)
    anchor.close()
    return anchor.mark


def _lacking(mark: Mark, loaded: Loaded) -> int:
    return mark.index if loaded.lacks(mark) else 0
