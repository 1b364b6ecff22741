"""The machine on which a SQLite ledger's file lies.

Stands in for the store, lock and door of :mod:`undoubt.coordinator.ledger.sqlite`, beneath the shipped ledger
with its owner, its server and its clients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import undoubt.coordinator.ledger.sqlite.ledger as ledger_module
import undoubt.coordinator.ledger.sqlite.owner as owned_module
from tests.simulation.drive import Drive, Writer
from tests.simulation.network import FakeSocket
from tests.simulation.scheduler import Process
from tests.stand_in import put
from undoubt.coordinator.ledger.anchor import START, Mark, chained
from undoubt.coordinator.ledger.contract import DecisionRecord
from undoubt.coordinator.ledger.history import newest
from undoubt.coordinator.ledger.sqlite.store import Loaded
from undoubt.participants.ids import TxId, new_ledger_id


class LedgerFile:
    """What is durable of one ledger."""

    def __init__(self) -> None:
        self.ledger_id = new_ledger_id()
        self.snapshot: bytes | None = None
        self.index = 0
        self.entries: list[bytes] = []
        self.base = START
        """Of the snapshot."""
        self.anchor = START
        self.history: dict[TxId, DecisionRecord] = {}
        self.owner: Process | None = None


class FileMachine:
    """The files of one machine, on one drive."""

    def __init__(self, drive: Drive) -> None:
        self.drive = drive
        self.files: dict[Path, LedgerFile] = {}

    def install(self) -> None:
        """Put this in place of the real disk, for the whole of this (real) process."""
        machine = self

        class Lock(SimulatedLock):
            @classmethod
            def take(cls, ledger: Path) -> SimulatedLock | None:
                file = machine.files.setdefault(ledger, LedgerFile())
                if file.owner is not None and file.owner.alive:
                    return None
                file.owner = machine.drive.running()
                return cls(file)

        class Store(SimulatedStore):
            def __init__(self, path: Path) -> None:
                super().__init__(machine, path)

        put(ledger_module, "FileLock", Lock)
        put(ledger_module, "holder", lambda ledger: _name(machine.files[ledger].owner))
        put(ledger_module, "unix_socket", Door)

        class Anchored:
            @staticmethod
            def is_absent(ledger: Path) -> bool:
                """Every file of this machine is there."""
                return ledger not in machine.files

            @staticmethod
            def open_anchor(ledger: Path, _loaded: Loaded) -> SimulatedAnchor:
                return SimulatedAnchor(machine.files[ledger])

        put(owned_module, "SqliteStore", Store)
        put(owned_module, "anchored", Anchored)
        put(owned_module, "WriterThread", lambda _: Writer(machine.drive))


def _name(process: Process | None) -> str:
    return "nobody" if process is None else process.name


class SimulatedLock:
    def __init__(self, file: LedgerFile) -> None:
        self._file = file

    def release(self) -> None:
        self._file.owner = None


class Door:
    """In place of :mod:`undoubt.coordinator.ledger.sqlite.unix_socket`."""

    @staticmethod
    def listen(ledger: Path) -> FakeSocket:
        return FakeSocket(str(ledger))

    @staticmethod
    def connect(ledger: Path) -> FakeSocket:
        return FakeSocket(str(ledger))


class SimulatedAnchor:
    """In place of :class:`undoubt.coordinator.ledger.anchor.Anchor`."""

    def __init__(self, file: LedgerFile) -> None:
        self._file = file

    @property
    def mark(self) -> Mark:
        return self._file.anchor

    def move(self, mark: Mark) -> None:
        self._file.anchor = mark


class SimulatedStore:
    """In place of :class:`undoubt.coordinator.ledger.sqlite.store.SqliteStore`."""

    def __init__(self, machine: FileMachine, path: Path) -> None:
        self.path = path
        self._drive = machine.drive
        self._file = machine.files[path]
        self._anchor: SimulatedAnchor | None = None

    def load(self) -> Loaded:
        file = self._file
        return Loaded(
            file.ledger_id, file.snapshot, file.index, list(file.entries), self._marks(), True, "here"
        )

    def _marks(self) -> list[Mark]:
        marks = [self._file.base]
        for entry in self._file.entries:
            marks.append(Mark(marks[-1].index + 1, chained(marks[-1].chain, entry)))
        return marks

    def hold(self, anchor: SimulatedAnchor, last: Mark, *, new: bool) -> None:
        assert not new
        self._anchor = anchor
        anchor.move(last)

    def append(self, first_index: int, commands: Sequence[bytes]) -> None:
        def change() -> None:
            assert first_index == self._file.index + len(self._file.entries) + 1, "a gap in the log"
            self._file.entries += commands

        self._drive.before_write(change)
        change()
        if self._anchor is not None:
            self._anchor.move(self._marks()[-1])

    def replace_log(
        self, index: int, state: bytes, history: Sequence[DecisionRecord], *, now_ms: int, history_ms: int
    ) -> None:
        def change() -> None:
            file = self._file
            file.base = self._marks()[index - file.index]
            file.entries = file.entries[index - file.index :]
            file.snapshot, file.index = state, index
            file.history |= {record.txid: record for record in history}

        self._drive.before_write(change)
        change()

    def check_in_place(self) -> None:
        """No file of this machine is taken away."""

    def history_of(self, txid: TxId) -> DecisionRecord | None:
        return self._file.history.get(txid)

    def history(self, limit: int, before: DecisionRecord | None) -> list[DecisionRecord]:
        found = sorted(self._file.history.values(), key=newest)
        if before is not None:
            found = [record for record in found if newest(before) < newest(record)]
        return found[:limit]

    def close(self) -> None:
        """Nothing is left open."""
