"""Waits for locks on a ledger that tells no process of a change: the queues are looked at again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from random import SystemRandom

from undoubt.coordinator.ledger.lock_queue import Queue, find
from undoubt.coordinator.ledger.locks import LockEntry, LockRequest
from undoubt.participants.backoff import pauses_around

WATCH_S = (0.02, 0.4)
"""The shortest and the longest pause between two looks at requests that wait; the pauses begin again when one
is granted."""

_random = SystemRandom()


class LockWatch:
    """Looks at the queues of all requests of this process that wait, together, as long as there are any."""

    def __init__(self, look: Callable[[Collection[str]], Awaitable[Mapping[str, Queue]]]) -> None:
        self._look = look
        self._waiting: dict[asyncio.Future[LockEntry | None], LockRequest] = {}
        self._task: asyncio.Task[None] | None = None

    async def wait(self, request: LockRequest, entry: LockEntry, wait_s: float) -> LockEntry | None:
        """The entry once it is granted or gone; ``entry`` if it is neither after ``wait_s``. Raises what the
        look raises."""
        future: asyncio.Future[LockEntry | None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = request
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch(), name="undoubt-ledger-locks")
        try:
            await asyncio.wait([future], timeout=wait_s)
            return future.result() if future.done() else entry
        finally:
            self._waiting.pop(future, None)
            future.cancel()

    async def _watch(self) -> None:
        pauses = pauses_around(*WATCH_S, _random)
        while self._waiting:
            await asyncio.sleep(next(pauses))
            waiting = dict(self._waiting)
            try:
                queues = await self._look({request.name for request in waiting.values()})
            except Exception as error:  # noqa: BLE001 - raised to all that wait
                for future in waiting:
                    if not future.done():
                        future.set_exception(error)
                continue
            for future, request in waiting.items():
                found = find(queues.get(request.name, ()), request)
                if (found is None or found.granted) and not future.done():
                    future.set_result(found)
                    pauses = pauses_around(*WATCH_S, _random)
