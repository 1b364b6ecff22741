"""Elects the leading process, which advances ledger time, expires sessions and deletes old rows.

One row (``clock``) names the leader. The leader advances ledger time by the time that its own monotonic clock
measured, and increments the row's ``beat`` each time. Sessions expire by ledger time; no wall clock is
compared. A process that has seen the same beat for ``LEADER_TIMEOUT_S`` of its own clock takes over, unless
another process has done so before. A full lifetime of each session begins at the takeover. If no process
leads, or none reaches the ledger, ledger time does not advance, and no session expires.

It is harmless if two processes believe that they lead: only the one in the row can change anything.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from undoubt.coordinator.errors import LedgerError
from undoubt.coordinator.ledger.postgres.connections import Connections, LedgerConnection
from undoubt.coordinator.ledger.postgres.locks import end_stale
from undoubt.coordinator.ledger.postgres.sql import query
from undoubt.coordinator.settings import LedgerSettings
from undoubt.coordinator.supervision import Upkeep
from undoubt.participants.ids import new_nonce

log = logging.getLogger(__name__)

BEAT_INTERVAL_S = 0.5
BEAT_S_MAX = 2 * BEAT_INTERVAL_S
"""The most by which one beat advances ledger time: while the leader was stopped or cut off, sessions may not
have been renewed."""
LEADER_TIMEOUT_S = 3.0
RETENTION_INTERVAL_S = 60.0


class Leadership:
    """The part of one process in the election. ``clock`` is monotonic, in seconds. ``leads`` may change at
    any time."""

    def __init__(
        self, connections: Connections, settings: LedgerSettings, clock: Callable[[], float]
    ) -> None:
        self.leads = False
        self.me = new_nonce()
        self._connections = connections
        self._settings = settings
        self._clock = clock
        self._seen: tuple[str | None, int] | None = None
        self._seen_at = 0.0
        self._moved_at = 0.0
        self._retired_at = clock()
        self.loop = Upkeep(
            "ledger upkeep", self._keep_up, BEAT_INTERVAL_S, undone="sessions cannot be expired now"
        )

    async def start(self) -> None:
        """Take the lead if it is free, then start the periodic work. Raises ``LedgerError``."""
        await self.look()
        self.loop.start("undoubt-ledger-upkeep")

    async def close(self) -> None:
        """Stop, and resign, so that another process can lead immediately."""
        await self.loop.stop()
        if self.leads:
            self.leads = False
            try:
                await self._connections.run("resign", me=self.me)
            except LedgerError as error:
                log.info("could not resign, so the next leader of the ledger has to wait: %s", error)

    async def look(self) -> None:
        """Take the lead if it is free, or if the beat has not changed for ``LEADER_TIMEOUT_S``."""
        ((leader, beat),) = await self._connections.ask("leader")
        now = self._clock()
        if (leader, beat) != self._seen:
            self._seen, self._seen_at = (leader, beat), now
        if leader is not None and leader != self.me and now - self._seen_at < LEADER_TIMEOUT_S:
            return
        ((taken,),) = await self._connections.ask("take_the_lead", me=self.me, leader=leader, beat=beat)
        self.leads = taken is not None
        self._moved_at = self._clock()

    async def beat(self) -> None:
        """Advance ledger time by the elapsed time, and expire sessions that were not renewed in time."""
        now = self._clock()
        elapsed_s = min(now - self._moved_at, BEAT_S_MAX)
        self._moved_at = now
        await self.move(round(elapsed_s * 1000))
        if self.leads:
            await self.expire()

    async def move(self, elapsed_ms: int) -> None:
        ((moved_to,),) = await self._connections.ask("tick", me=self.me, elapsed_ms=elapsed_ms)
        self.leads = moved_to is not None

    async def expire(self) -> list[int]:
        """Expire the sessions that are due; returns their numbers."""
        ((expired,),) = await self._connections.ask("expire", me=self.me)
        return list(expired)

    async def retire(self) -> list[int]:
        """Drop the sessions that are older than the retention, and delete the history of dropped sessions
        that is older than ``history_s``. Returns the numbers of the sessions that were dropped. What a key
        or a session has as its time is that of the last beat before: so they are kept for the longest beat
        longer."""
        retention_ms = round((self._settings.retention_s + BEAT_S_MAX) * 1000)
        history_ms = round(self._settings.history_s * 1000)
        dropped = await self._connections.work(lambda line, left_s: _drop(line, left_s, retention_ms))
        await self._connections.ask("drop_doomed")
        await self._connections.ask("drop_keys", retention_ms=retention_ms)
        await end_stale(self._connections, self._settings)
        ((purged, *_),) = await self._connections.run("purge", history_ms=history_ms)
        while purged:
            ((purged, *_),) = await self._connections.run("purge", history_ms=history_ms)
        return dropped

    async def _keep_up(self) -> None:
        try:
            if not self.leads:
                await self.look()
                return
            await self.beat()
            if self._clock() - self._retired_at >= RETENTION_INTERVAL_S:
                self._retired_at = self._clock()
                await self.retire()
        except LedgerError:
            self.leads = False
            raise


async def _drop(line: LedgerConnection, left_s: float, retention_ms: int) -> list[int]:
    """Drop sessions. The only transaction with several statements: each must see what was committed before
    it."""

    async def run(sql: str, **parameters: Any) -> list[tuple[Any, ...]]:
        return await line.run(sql, parameters, left_s)

    await run("begin isolation level read committed")
    try:
        locked = [row[0] for row in await run(query("lock_droppable"), retention_ms=retention_ms)]
        dropped = [row[0] for row in await run(query("drop_sessions"), ids=locked)] if locked else []
        await run("commit")
    except BaseException:
        if not line.broken:
            await run("rollback")
        raise
    return dropped
