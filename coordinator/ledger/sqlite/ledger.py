"""``sqlite:///path``: one file, owned by one process at a time and used by many.

The process that has taken the lock owns the file. All other processes send their calls to the owner through
its socket; when the owner ends, one of them becomes the owner. All calls may be repeated, so a call whose
answer was lost with the owner is sent again."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from undoubt.coordinator.errors import LedgerLocked, LedgerUnavailable, LedgerUnusable, WrongProcess
from undoubt.coordinator.ledger.calls import AnyLedgerCall, BackupFileCall, CallingLedger, decode_call
from undoubt.coordinator.ledger.contract import Create
from undoubt.coordinator.ledger.disk import usable
from undoubt.coordinator.ledger.server import LedgerServer
from undoubt.coordinator.ledger.sqlite import unix_socket
from undoubt.coordinator.ledger.sqlite.lock import FileLock, holder
from undoubt.coordinator.ledger.sqlite.owner import OwnedLedger
from undoubt.coordinator.ledger.sqlite.owner_client import ConnectionGone, OwnerConnection
from undoubt.coordinator.rpc.client import judged
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.tasks import Uncancellable, uncancellable

RETRY_S = 0.02


class SqliteLedger(CallingLedger):
    """A SQLite ledger, owned by this process or by another. Made by :meth:`open`. May be used only in the
    event loop and the process in which it was opened."""

    def __init__(
        self,
        path: Path,
        settings: LedgerSettings,
        clock: Callable[[], float],
        *,
        create: Create = False,
        serves: bool = False,
    ) -> None:
        self.path = Path(os.path.realpath(path))  # unlike resolve() it does not raise for a circle of links
        self._create = create
        self._serves = serves
        self.settings = settings
        self._clock = clock
        self._pid = os.getpid()
        self._ledger_id = ""
        self._closed = False
        self._lock: FileLock | None = None
        self.owned: OwnedLedger | None = None
        """The ledger itself, if this process is its owner; otherwise None."""
        self._server: LedgerServer | None = None
        self._connection: OwnerConnection | None = None
        self._owning: Uncancellable[None] | None = None
        self._finding = asyncio.Lock()

    @classmethod
    async def open(
        cls,
        path: Path,
        settings: LedgerSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        create: Create = True,
        serves: bool = False,
    ) -> SqliteLedger:
        """Become the owner of the file, or connect to its owner. ``clock`` is monotonic, in seconds, and used
        while this process is the owner. ``create``: whether a ledger may be made now if there is none. It is
        never made later, when a former owner has ended and the file is missing. ``serves``: whether a new
        incarnation may begin if the file was set back; otherwise such a file is refused. Raises
        ``LedgerUnusable`` (including ``LedgerMissing``) or ``LedgerLocked``."""
        ledger = cls(path, settings, clock, create=create, serves=serves)
        try:
            await ledger._find_within(settings.request_timeout_s)
        except BaseException:
            await ledger.close()
            raise
        return ledger

    @property
    def ledger_id(self) -> str:
        return self._ledger_id

    @property
    def leads(self) -> bool:
        return self.owned is not None

    @property
    def secret(self) -> bytes:
        """The secret of the ledger; empty unless this process is the owner."""
        return b"" if self.owned is None else self.owned.machine.state.secret

    async def close(self) -> None:
        """Release the ledger; another process may own it from now on."""
        self._closed = True
        if os.getpid() != self._pid:
            return
        async with self._finding:
            if self._owning is not None:
                await asyncio.wait([self._owning])
            await self._release()

    async def _release(self) -> None:
        if self._connection is not None:
            await self._connection.close()
        if self._server is not None:
            await self._server.close()
        if self.owned is not None:
            await self.owned.close()
        if self._lock is not None:
            self._lock.release()
        self._connection = self._server = self.owned = self._lock = None

    async def backup(self, path: Path) -> int:
        """Write a backup to the absolute ``path``; returns its size in bytes. Raises ``LedgerError``."""
        size: int = await self._call(BackupFileCall(str(path)))
        return size

    async def _call(self, call: AnyLedgerCall) -> Any:
        if os.getpid() != self._pid:
            raise WrongProcess(
                f"this ledger was opened by process {self._pid}; after a fork, open the ledger again"
            )
        judged(call, decode_call)
        if self.owned is not None:
            return await call.serve(self.owned, remote=False)
        try:
            async with asyncio.timeout(self.settings.request_timeout_s):
                return await self._ask(call)
        except TimeoutError:
            raise LedgerUnavailable(
                f"no answer from the owner of ledger {self.path} (process {holder(self.path)})"
                f" within {self.settings.request_timeout_s} s"
            ) from None

    async def _ask(self, call: AnyLedgerCall) -> Any:
        while True:
            await self._find_within(self.settings.request_timeout_s)
            if self.owned is not None:
                return await call.serve(self.owned, remote=False)
            if self._connection is None:
                continue
            try:
                return await self._connection.request(call)
            except ConnectionGone:
                await asyncio.sleep(0)

    async def _find_within(self, seconds: float) -> None:
        """Return once this process owns the ledger or is connected to its owner. Raises the error of the last
        attempt after ``seconds``."""
        end = asyncio.get_running_loop().time() + seconds
        async with self._finding:
            while True:
                if self._closed:
                    raise LedgerUnavailable("the ledger is closed")
                if self._found:
                    return
                try:
                    await self._find()
                except LedgerLocked:
                    if asyncio.get_running_loop().time() >= end:
                        raise
                    await asyncio.sleep(RETRY_S)

    @property
    def _found(self) -> bool:
        if self.owned is not None:
            return True
        return self._connection is not None and not self._connection.gone.done()

    async def _find(self) -> None:
        if self._owning is None or self._owning.done():
            lock = FileLock.take(self.path)
            if lock is None:
                await self._connect()
                return
            self._owning = uncancellable(self._own(lock), name="undoubt-ledger-open")
        await asyncio.shield(self._owning)

    async def _own(self, lock: FileLock) -> None:
        """Open the file, whose lock is taken, then the socket. This continues even if no caller waits for it:
        a disk may need longer than any caller waits, and stopping half way would leave a lock without an
        owner that answers."""
        try:
            create = False if self._ledger_id else self._create
            with usable(self.path):
                owned = await OwnedLedger.open(
                    self.path, self.settings, self._clock, create=create, serves=self._serves
                )
            server = LedgerServer(owned)
            try:
                self._identify(owned.ledger_id)
                await server.start(unix_socket.listen(self.path))
            except BaseException:
                await server.close()
                await owned.close()
                raise
        except BaseException:
            lock.release()
            raise
        self._lock, self.owned, self._server, self._connection = lock, owned, server, None
        if self._closed:
            await self._release()

    async def _connect(self) -> None:
        try:
            connected = unix_socket.connect(self.path)
            connection = await OwnerConnection.connect(connected, timeout_s=self.settings.request_timeout_s)
        except (OSError, ConnectionGone) as error:
            raise LedgerLocked(
                f"ledger {self.path} is owned by process {holder(self.path)}, which does not answer: {error}"
            ) from error
        self._connection = connection
        self._identify(connection.ledger_id)

    def _identify(self, ledger_id: str) -> None:
        if self._ledger_id not in {"", ledger_id}:
            raise LedgerUnusable(
                f"ledger {self.path} was replaced by another ledger ({ledger_id}; it was {self._ledger_id})"
            )
        self._ledger_id = ledger_id
