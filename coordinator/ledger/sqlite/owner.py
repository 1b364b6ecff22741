"""A SQLite ledger in the process that owns it: a command is logged first, then applied.

Commands that arrive while the disk is busy wait and are written together, with one transaction and one sync
(group commit). The file has one connection, in one thread; the event loop never waits for the disk.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from undoubt.coordinator.errors import LedgerError, LedgerUnavailable, LedgerUnusable
from undoubt.coordinator.ledger import backup, schema
from undoubt.coordinator.ledger.acting import DONE, NEW_INCARNATION, new_act
from undoubt.coordinator.ledger.backup import About, Backup
from undoubt.coordinator.ledger.commands import Command, ExpireSession, RecordAct, Restore, decode, encode
from undoubt.coordinator.ledger.contract import ACTS_MAX, Act, Create, DecisionRecord, SessionState
from undoubt.coordinator.ledger.disk import StoreBroken
from undoubt.coordinator.ledger.group_commit import GroupCommit, WriterThread
from undoubt.coordinator.ledger.history import RecentHistory
from undoubt.coordinator.ledger.machine import Machine
from undoubt.coordinator.ledger.move_mark import check_lives
from undoubt.coordinator.ledger.sqlite import anchored, creation
from undoubt.coordinator.ledger.sqlite.lock import check_not_open
from undoubt.coordinator.ledger.sqlite.store import Loaded, SqliteStore
from undoubt.coordinator.ledger.state_machine_ledger import (
    SESSION_SKIP,
    StateMachineLedger,
    log_new_incarnation,
)
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import TxId, new_nonce

log = logging.getLogger(__name__)

T = TypeVar("T")

LOG_BYTES_MIN = 4 * 1024 * 1024
"""A snapshot replaces the log once the log is this long and longer than the last snapshot."""


@dataclass(frozen=True, slots=True)
class _Replace:
    """A write that replaces the log up to ``index`` by a snapshot."""

    index: int
    state: bytes
    finished: Sequence[DecisionRecord]
    now_ms: int
    history_ms: int


class _Log:
    """The ledger's file as the store of the group commit. A call writes one snapshot alone, or commands."""

    def __init__(self, store: SqliteStore, thread: WriterThread, last_index: int) -> None:
        self.last_index = last_index
        """The index of the last entry that is durable and applied."""
        self._store = store
        self._thread = thread

    def write(self, writes: Sequence[bytes | _Replace]) -> asyncio.Future[bool]:
        first_index = self.last_index + 1
        return self._thread.do(lambda: self._carry_out(first_index, writes))

    def _carry_out(self, first_index: int, writes: Sequence[bytes | _Replace]) -> bool:
        """Write in the thread. Raises ``StoreFull`` or ``StoreBroken``."""
        commands = [write for write in writes if isinstance(write, bytes)]
        if commands:
            self._store.append(first_index, commands)
        for each in writes:
            if isinstance(each, _Replace):
                self._store.replace_log(
                    each.index, each.state, each.finished, now_ms=each.now_ms, history_ms=each.history_ms
                )
        return True


class OwnedLedger(StateMachineLedger):
    """The ledger in its owner. Made by :meth:`open`; the caller must hold the ledger's lock."""

    backend = "sqlite"
    schema = schema.SQLITE.newest

    def __init__(
        self,
        store: SqliteStore,
        thread: WriterThread,
        loaded: Loaded,
        settings: LedgerSettings,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(rebuilt(loaded, store.path), settings, clock=clock)
        self.owner = new_nonce()
        self.store = store
        self._thread = thread
        self._loop = asyncio.get_running_loop()
        self._log = _Log(store, thread, loaded.last_index)
        self._commit: GroupCommit[bytes | _Replace] = GroupCommit(
            self._log, lambda full: None, self._fail, self._write_next
        )
        self._log_bytes = sum(len(entry) for entry in loaded.entries)
        self._snapshot_bytes_min = max(LOG_BYTES_MIN, len(loaded.snapshot or b""))
        self._broken: LedgerError | None = None
        self._spoiled = False
        """Whether a command was applied only in part: then no command is applied to this state, and nothing
        is answered from it."""
        self._recent = RecentHistory(self.machine)
        """Finished transactions that are in the log and not yet in the table: the next snapshot stores
        them."""
        self.made = False
        """Whether the ledger was made when it was opened."""
        self._upkeep = self.upkeep("ledger upkeep")

    @classmethod
    async def open(
        cls,
        path: Path,
        settings: LedgerSettings,
        clock: Callable[[], float],
        *,
        create: Create = True,
        serves: bool = True,
    ) -> OwnedLedger:
        """Open the file, or make it if ``create`` allows that. ``serves``: whether a new incarnation may
        begin if the file was set back. Raises ``LedgerUnusable``, ``LedgerUnavailable``."""
        thread = WriterThread("undoubt-ledger")
        store: SqliteStore | None = None
        try:
            await thread.do(lambda: check_not_open(path))
            absent = await thread.do(lambda: anchored.is_absent(path))
            if absent:
                await anchored.allow(path, create)
                await thread.do(lambda: creation.make_new(path))
            store = await thread.do(lambda: SqliteStore(path))
            loaded = await thread.do(store.load)
            if absent:
                log.info("there was no ledger at %s: a new one was made, %s", path, loaded.ledger_id)
            loaded = await thread.do(partial(_held, store, loaded, serves=serves))
            ledger = cls(store, thread, loaded, settings, clock)
            check_lives(ledger.machine.state.move)
            ledger.made = absent
            await ledger._expire_former_owner()
            await ledger.draw_secret()
            await ledger.agree_on_rules()
        except BaseException:
            if store is not None:
                await thread.do(store.close)
            thread.end()
            raise
        ledger._upkeep.start("undoubt-ledger-upkeep")
        return ledger

    async def close(self) -> None:
        """Write the waiting commands, then close the file."""
        await self._upkeep.stop()
        if self._broken is None:
            await self.advance_time()
        await self._commit.drained()
        self._broken = LedgerUnavailable("the ledger is closed")
        self._commit.close()
        await self.in_thread(self.store.close)
        self._thread.end()

    async def propose(self, command: Command) -> Any:
        if self._broken is not None:
            raise self._broken
        answer: asyncio.Future[Any] = self._loop.create_future()
        data = encode(command)
        self._commit.give(
            data,
            lambda: self._written(command, len(data), answer),
            refused=lambda error: self._refuse(answer, error),
        )
        self._commit.flush()
        return await answer

    async def _up_to_date(self) -> None:
        if self._spoiled and self._broken is not None:
            raise self._broken

    def _write_next(self) -> None:
        """After a write: begin the waiting writes, with a snapshot first if the log is long enough."""
        if self._broken is None and self._log_bytes >= self._snapshot_bytes_min:
            self._snapshot()
        self._commit.flush()

    def _written(self, command: Command, size_bytes: int, answer: asyncio.Future[Any]) -> None:
        self._log.last_index += 1
        self._log_bytes += size_bytes
        if not self._spoiled:
            self._apply(command, answer)
        elif not answer.done():
            answer.set_exception(self._broken or LedgerUnavailable("the ledger has stopped"))

    def _apply(self, command: Command, answer: asyncio.Future[Any]) -> None:
        try:
            result = self.machine.apply(command)
        except Exception as error:  # a bug: nothing may be answered from this state
            log.exception("the ledger's state machine failed")
            self._spoiled = True
            self._broken = self._broken or LedgerUnavailable(f"the ledger has stopped: {error}")
        if answer.done():  # the waiting caller was cancelled
            return
        if self._broken is not None:
            answer.set_exception(self._broken)
        else:
            answer.set_result(result)

    def _refuse(self, answer: asyncio.Future[Any], error: BaseException) -> None:
        if not answer.done():
            answer.set_exception(self._broken or error)

    def _fail(self, error: BaseException) -> None:
        """Record nothing from now on, because of ``error``."""
        log.error("%s", error)
        failed = LedgerUnavailable(f"the ledger failed: {error}")
        self._broken = error if isinstance(error, LedgerError) else failed

    def _snapshot(self) -> None:
        state, index = self.machine.snapshot(), self._log.last_index
        finished = self._recent.begin()
        now_ms, history_ms = self.machine.state.time_ms, round(self.settings.history_s * 1000)

        def replaced() -> None:
            self._log_bytes = 0
            self._snapshot_bytes_min = max(LOG_BYTES_MIN, len(state))
            self._recent.stored(finished)

        def refused(error: BaseException) -> None:
            log.warning("the ledger's log could not be shortened: %s", error)
            self._recent.not_stored(finished)
            self._snapshot_bytes_min = self._log_bytes + LOG_BYTES_MIN

        write = _Replace(index, state, finished, now_ms, history_ms)
        self._commit.give(write, replaced, refused=refused, first=True)

    async def backup(self, path: Path) -> int:
        """Write a backup of all that is durable now, in a file of mode 0600: it contains the ledger's
        secret."""
        if self._broken is not None:
            raise self._broken
        if not path.is_absolute():
            raise UsageError(f"the path of a backup must be absolute: {str(path)[:200]!r}")
        about = About("", self.ledger_id, self._log.last_index, 0, self._wall(), metadata.version("undoubt"))
        return await self.in_thread(backup.write, path, Backup(about, self.machine.snapshot()))

    async def in_thread(self, function: Callable[..., T], *args: object) -> T:
        """Run ``function`` in the one thread that uses the store."""
        if self._thread.ended:
            raise LedgerUnavailable("the ledger is closed")
        return await self._thread.do(partial(function, *args))

    async def begin_incarnation(self, why: str, issued: int = 0) -> None:
        await super().begin_incarnation(why, issued)
        await self.propose(RecordAct(_incarnation_act(why), ACTS_MAX))

    async def _history_of(self, txid: TxId) -> DecisionRecord | None:
        return self._recent.recent().get(txid) or await self.in_thread(self.store.history_of, txid)

    async def _history(self, limit: int, before: DecisionRecord | None) -> Sequence[DecisionRecord]:
        return await self._recent.page(limit, before, partial(self.in_thread, self.store.history))

    async def _expire_former_owner(self) -> None:
        """Expire the sessions that a former owner opened for itself. The lock proves that the former owner
        has ended, or has closed the ledger, so their lifetimes need not be waited for."""
        for book in list(self.machine.state.sessions.values()):
            if book.owner and book.state is SessionState.OPEN:
                await self.propose(ExpireSession(book.id))

    async def _look_at_file(self) -> None:
        """Stop recording if the ledger's file was removed: later records would be lost with this process."""
        if self._broken is None:
            try:
                await self.in_thread(self.store.check_in_place)
            except LedgerUnusable as error:
                broken = StoreBroken(str(error))
                self._fail(broken)
                self._commit.close()
                self._commit.refuse_waiting(broken)

    async def _look_after(self) -> None:
        await self._look_at_file()
        await self.expire_due()


def _held(store: SqliteStore, loaded: Loaded, *, serves: bool) -> Loaded:
    """Make ``store`` move its anchor from now on; returns what the file contains then. If the file was set
    back, a new incarnation begins, if ``serves`` allows it: before any session of the file is expired, which
    may have continued after the lost entry; and before the anchor is moved, so that a crash in between
    conceals nothing. Raises ``LedgerUnusable``, ``LedgerUnavailable``."""
    anchor = anchored.open_anchor(store.path, loaded)
    try:
        if loaded.lacks(anchor.mark):
            anchored.check_may_accept(store.path, anchor.mark.index, loaded, serves=serves)
            why = f"{store.path} lacks entry {anchor.mark.index}, which was durable"
            log_new_incarnation(why)
            commands = (Restore(SESSION_SKIP), RecordAct(_incarnation_act(why), ACTS_MAX))
            store.append(loaded.last_index + 1, [encode(command) for command in commands])
            loaded = store.load()
    except BaseException:
        anchor.close()
        raise
    store.hold(anchor, loaded.last, new=not loaded.anchored or not loaded.place)
    return loaded


def _incarnation_act(why: str) -> Act:
    return new_act(NEW_INCARNATION, f"the ledger was set back: {why}", result=DONE).clipped()


def rebuilt(loaded: Loaded, path: Path) -> Machine:
    """The state machine with the loaded snapshot and entries. Raises ``LedgerUnusable``."""
    machine = Machine(loaded.ledger_id)
    try:
        if loaded.snapshot is not None:
            machine.restore(loaded.snapshot)
        for entry in loaded.entries:
            machine.apply(decode(entry))
    except msgspec.MsgspecError as error:
        raise LedgerUnusable(
            f"ledger {path} contains data that this version of undoubt cannot read ({error});"
            " was it written by a newer version?"
        ) from error
    return machine
