"""The calls for locks over the state machine in this process."""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from undoubt.coordinator.ledger.commands import AskLock, Command, EndLock, RevokeLock
from undoubt.coordinator.ledger.lock_queue import LockTable
from undoubt.coordinator.ledger.locks import (
    LOCK_WAIT_S_MAX,
    LOCKS_PAGE_MAX,
    LockEntry,
    LockInfo,
    LockRequest,
)
from undoubt.coordinator.ledger.machine import Machine
from undoubt.participants.bounds import count, seconds


class MachineLocks(abc.ABC):
    """Implements :class:`~undoubt.coordinator.ledger.locks.LockLedger` over ``machine``."""

    machine: Machine
    _wall: Callable[[], float]

    def __init__(self) -> None:
        self._changes: set[asyncio.Future[None]] = set()
        self.machine.state.locks.changed = self._locks_changed

    @abc.abstractmethod
    async def _run(self, command: Command) -> Any: ...

    @abc.abstractmethod
    async def _up_to_date(self) -> None: ...

    @property
    def _locks(self) -> LockTable:
        return self.machine.state.locks

    async def lock(self, request: LockRequest, *, wait: bool) -> LockEntry | None:
        command = AskLock(msgspec.structs.replace(request, at=self._wall()), wait)
        entry: LockEntry | None = await self._run(command)
        return entry

    async def lock_entry(self, request: LockRequest, *, wait_s: float = 0.0) -> LockEntry | None:
        loop = asyncio.get_running_loop()
        end = loop.time() + min(seconds("wait_s", wait_s), LOCK_WAIT_S_MAX)
        await self._up_to_date()
        while (entry := self._locks.find(request)) is not None and not entry.granted and loop.time() < end:
            await self._change(end - loop.time())
        if wait_s:
            await self._up_to_date()  # another process may lead by now
        return self._locks.find(request)

    async def _change(self, timeout_s: float) -> None:
        """Return once any lock has changed, or after ``timeout_s``."""
        change: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changes.add(change)
        try:
            await asyncio.wait([change], timeout=timeout_s)
        finally:
            self._changes.discard(change)
            change.cancel()

    def _locks_changed(self) -> None:
        for change in self._changes:
            if not change.done():
                change.set_result(None)

    async def unlock(self, request: LockRequest) -> bool:
        return bool(await self._run(EndLock(request)))

    async def session_locks(self, session: int, nonce: str) -> Sequence[LockEntry]:
        await self._up_to_date()
        return self._locks.of_one(session, nonce)

    async def locks(
        self, *, after: str = "", limit: int = LOCKS_PAGE_MAX, only: str = ""
    ) -> Sequence[LockInfo]:
        count("limit", limit, least=1, most=LOCKS_PAGE_MAX)
        await self._up_to_date()
        if only:
            queue = self._locks.queues.get(only)
            return [LockInfo(only, queue)] if queue else []
        return self._locks.page(after, limit)

    async def contended_locks(self) -> Sequence[LockInfo]:
        await self._up_to_date()
        # Those that wait are at the end of the queue.
        waited = [item for item in self._locks.queues.items() if not item[1][-1].granted]
        return [LockInfo(name, queue) for name, queue in sorted(waited)]

    async def revoke_lock(self, name: str, token: int) -> bool:
        return bool(await self._run(RevokeLock(name, token)))
