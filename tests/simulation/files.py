"""The disk of the machine on which a ledger's file lies, and the one thread that writes to it.

Stands in for :mod:`coordinator.ledger.sqlite`'s store, lock and door, beneath the shipped ledger. A job
takes its time; a process that is killed before its job is done has changed nothing; done is durable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from random import Random
from typing import Any

import coordinator.ledger.sqlite.ledger as ledger_module
import coordinator.ledger.sqlite.owned as owned_module
from coordinator.ledger.contract import DecisionRecord
from coordinator.ledger.local import newest
from coordinator.ledger.sqlite.store import Loaded, StoreBroken, StoreFull
from participants.ids import TxId, new_ledger_id
from tests.simulation.network import FakeSocket
from tests.simulation.scheduler import Process, Scheduler


class LedgerFile:
    """What is durable of one ledger."""

    def __init__(self) -> None:
        self.ledger_id = new_ledger_id()
        self.snapshot: bytes | None = None
        self.index = 0
        self.entries: list[bytes] = []
        self.history: dict[TxId, DecisionRecord] = {}
        self.owner: Process | None = None


class Machine:
    """All files of one machine, and its faults: ``full``, ``broken`` (the next write fails), ``slow``."""

    def __init__(self, scheduler: Scheduler, random: Random) -> None:
        self.scheduler = scheduler
        self.random = random
        self.files: dict[Path, LedgerFile] = {}
        self.full = False
        self.broken = False
        self.slowness = 1.0
        self.on_broken: Callable[[Process], None] = lambda _: None

    def running(self) -> Process:
        process = self.scheduler.running
        assert process is not None, "files are used outside of any process"
        return process

    def duration_s(self) -> float:
        return self.random.uniform(0.000_1, 0.003) * self.slowness

    def install(self) -> None:
        """Put this in place of the real disk, for the whole of this (real) process."""
        machine = self

        class Lock(SimulatedLock):
            @classmethod
            def take(cls, ledger: Path) -> SimulatedLock | None:
                file = machine.files.setdefault(ledger, LedgerFile())
                if file.owner is not None and file.owner.alive:
                    return None
                file.owner = machine.running()
                return cls(file)

        class Store(SimulatedStore):
            @classmethod
            def create(cls, path: Path) -> SimulatedStore:
                return cls(machine, path)

        ledger_module.FileLock = Lock  # type: ignore[misc, assignment]
        ledger_module.holder = lambda ledger: _name(machine.files[ledger].owner)
        ledger_module.door = Door  # type: ignore[misc, assignment]
        owned_module.SqliteStore = Store  # type: ignore[misc, assignment]
        owned_module.ThreadPoolExecutor = lambda *_, **__: Thread(machine)  # type: ignore[misc, assignment]


def _name(process: Process | None) -> str:
    return "nobody" if process is None else process.name


class SimulatedLock:
    def __init__(self, file: LedgerFile) -> None:
        self._file = file

    def release(self) -> None:
        self._file.owner = None


class Door:
    """In place of :mod:`coordinator.ledger.sqlite.door`."""

    @staticmethod
    def listen(ledger: Path) -> FakeSocket:
        return FakeSocket(str(ledger))

    @staticmethod
    def connect(ledger: Path) -> FakeSocket:
        return FakeSocket(str(ledger))


class Thread(Executor):
    """One after the other, each after a time of its own, outside of the process's event loop."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._process = machine.running()
        self._free_at = 0.0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        scheduler = self._machine.scheduler
        self._free_at = max(self._free_at, scheduler.now) + self._machine.duration_s()

        def done() -> None:
            before, scheduler.running = scheduler.running, self._process
            try:
                result = fn(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - whatever it is, the loop is told
                future.set_exception(error)
            else:
                future.set_result(result)
            finally:
                scheduler.running = before

        scheduler.at(self._free_at, done, self._process)
        return future


class SimulatedStore:
    """In place of :class:`coordinator.ledger.sqlite.store.SqliteStore`."""

    def __init__(self, machine: Machine, path: Path) -> None:
        self.path = path
        self._machine = machine
        self._file = machine.files[path]

    def load(self) -> Loaded:
        file = self._file
        return Loaded(file.ledger_id, file.snapshot, file.index, list(file.entries))

    def _write(self) -> None:
        if self._machine.broken:
            self._machine.broken = False
            self._machine.on_broken(self._machine.running())
            raise StoreBroken("the disk has failed")
        if self._machine.full:
            raise StoreFull("no room")

    def append(self, first_index: int, commands: Sequence[bytes]) -> None:
        self._write()
        assert first_index == self._file.index + len(self._file.entries) + 1, "a gap in the log"
        self._file.entries += commands

    def replace_log(
        self, index: int, state: bytes, history: Sequence[DecisionRecord], *, now_ms: int, history_ms: int
    ) -> None:
        self._write()
        file = self._file
        file.entries = file.entries[index - file.index :]
        file.snapshot, file.index = state, index
        file.history |= {record.txid: record for record in history}

    def history_of(self, txid: TxId) -> DecisionRecord | None:
        return self._file.history.get(txid)

    def history(self, limit: int, before: DecisionRecord | None) -> list[DecisionRecord]:
        found = sorted(self._file.history.values(), key=newest)
        if before is not None:
            found = [record for record in found if newest(before) < newest(record)]
        return found[:limit]

    def close(self) -> None:
        """Nothing is left open."""
