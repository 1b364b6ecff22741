"""Restores a SQLite ledger from a backup, or accepts its file as it is. No process may have the ledger open.

In both cases a new incarnation begins (:class:`~undoubt.coordinator.ledger.commands.Restore`): the decisions
after the backup, or after the file was copied, are unknown. So no undecided transaction may be presumed
aborted, and no session number may be issued twice. The former files are kept beside the ledger under other
names: they are renamed, or copied before SQLite cuts from them what it cannot read."""

from __future__ import annotations

from pathlib import Path

import msgspec

from undoubt.coordinator.errors import LedgerUnusable
from undoubt.coordinator.ledger import backup
from undoubt.coordinator.ledger.anchor import START, Anchor, Mark, chained
from undoubt.coordinator.ledger.commands import RecordAct, Restore, encode
from undoubt.coordinator.ledger.contract import ACTS_MAX, Act, SessionState
from undoubt.coordinator.ledger.durable import sync_folder
from undoubt.coordinator.ledger.machine import Machine
from undoubt.coordinator.ledger.move_mark import check_lives
from undoubt.coordinator.ledger.sqlite import anchored, ledger_files
from undoubt.coordinator.ledger.sqlite.creation import make_beside
from undoubt.coordinator.ledger.sqlite.owner import rebuilt
from undoubt.coordinator.ledger.sqlite.store import SqliteStore, check_tables
from undoubt.coordinator.ledger.state_machine_ledger import SESSION_SKIP
from undoubt.participants.errors import UsageError


class RestoredLedger(msgspec.Struct, frozen=True):
    """The result of a restore. ``backup_at``: the time of the backup in seconds since 1970, None if the file
    was accepted as it is. ``kept_as``: the name of the former file or of its copy, None if there was none.
    ``lacks_entry``: the index of an entry that is known to be missing, 0 for none. ``instead_of``: the id of
    the other ledger that was there, None if there was none."""

    ledger_id: str
    incarnation: int
    sessions_closed: int
    backup_at: float | None
    kept_as: str | None
    lacks_entry: int
    instead_of: str | None = None


def as_it_is(path: Path, act: Act) -> RestoredLedger:
    """Accept the file as far as it can be read. Raises ``LedgerUnusable``."""
    check_tables(path, None if ledger_files.is_empty(path) else "")
    anchored.check_allowed(path)
    kept = ledger_files.copy_aside(path)
    store = SqliteStore(path, cut=True)
    try:
        loaded = store.load()
        machine = rebuilt(loaded, path)
        check_lives(machine.state.move)
        lacking = anchored.lacking(path, loaded)
        open_sessions = _open_sessions(machine)
        commands = (Restore(SESSION_SKIP), RecordAct(act.clipped(), ACTS_MAX))
        for command in commands:
            machine.apply(command)
        # Before the anchor: a crash in between leaves a file that is still refused.
        store.append(loaded.last_index + 1, [encode(command) for command in commands])
        loaded = store.load()
        store.hold(
            Anchor.create(anchored.path_of(path), loaded.ledger_id, loaded.last), loaded.last, new=True
        )
    finally:
        store.close()
    return RestoredLedger(loaded.ledger_id, machine.state.incarnation, open_sessions, None, kept, lacking)


class Restoring(msgspec.Struct, frozen=True):
    """What a restore from a backup would do: the id of the ledger that is there, empty if there is none or it
    cannot be told, and the id of the one in the backup."""

    present: str
    kept: str

    @property
    def other(self) -> bool:
        """Whether the backup is that of another ledger."""
        return self.present not in {"", self.kept}

    def refusal(self, path: object, file: Path) -> str:
        """Why it is not done unasked."""
        return (
            f"{file} is a backup of ledger {self.kept}, and {path} is ledger {self.present}. Nothing was"
            f" changed. Look for a backup of {self.present}; or pass --other-ledger to give it up: its files,"
            " with what is recorded of its operators, are then kept elsewhere"
        )


def before_restore(path: Path, file: Path) -> Restoring:
    """What :func:`from_backup` would do. Changes nothing. Raises ``LedgerUnusable``."""
    return Restoring(ledger_files.id_of(path), _read(file).about.ledger_id)


def _read(file: Path) -> backup.Backup:
    kept = backup.read(file)
    if kept.about.cluster:
        raise LedgerUnusable(f"{file} is the backup of a cluster: `undoubt cluster restore`")
    return kept


def from_backup(path: Path, file: Path, act: Act, *, other_ledger: bool = False) -> RestoredLedger:
    """Make the ledger again from the backup ``file``, and record ``act``. ``other_ledger``: the backup may be
    that of another ledger than the one that is there. Raises ``LedgerUnusable``, and ``UsageError`` if it is
    and may not be."""
    kept = _read(file)
    instead_of = None
    if (looked := before_restore(path, file)).other:
        if not other_ledger:
            raise UsageError(looked.refusal(path, file))
        instead_of = looked.present
        act = msgspec.structs.replace(act, subject=f"{act.subject}, instead of ledger {instead_of}")
    machine = Machine("")
    with backup.reading_image(file):
        machine.restore(kept.image)
    check_lives(machine.state.move)
    open_sessions = _open_sessions(machine)
    machine.cut_off_acts(backup.NOT_IN_BACKUP)
    machine.apply(Restore(SESSION_SKIP))
    machine.apply(RecordAct(act.clipped(), ACTS_MAX))
    index = kept.about.index + 1
    base = Mark(index, chained(START.chain, machine.snapshot()))
    new = make_beside(path, ".restored", kept.about.ledger_id, (base, machine.snapshot()))
    moved = ledger_files.move_aside(path)
    Anchor.create(anchored.path_of(path), kept.about.ledger_id, base).close()
    new.rename(path)
    sync_folder(path.parent)
    return RestoredLedger(
        kept.about.ledger_id, machine.state.incarnation, open_sessions, kept.about.at, moved, 0, instead_of
    )


def _open_sessions(machine: Machine) -> int:
    return sum(info.state is SessionState.OPEN for info in machine.session_infos())
