"""Who leads, ledger time, expiry and retention.

One row (``clock``) says who leads. The leader moves ledger time by what its own monotonic clock measured, and
with each move the row's ``beat``; sessions expire by ledger time. Nobody compares a wall clock with anything.
A process that has seen the same beat for ``LEADER_TIMEOUT_S`` of its own clock takes over, unless somebody
was quicker; the time of the takeover is the beginning of a full lifetime for every session. While nobody
leads, or nobody reaches the ledger, its time stands still, and nobody expires.

Two that believe to lead do no harm: only the one in the row moves anything.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from undoubt.coordinator.errors import LedgerError
from undoubt.coordinator.ledger.postgres.connections import Connections, LedgerConnection
from undoubt.coordinator.ledger.postgres.sql import query
from undoubt.coordinator.settings import LedgerSettings
from undoubt.coordinator.supervision import Upkeep
from undoubt.participants.ids import new_nonce

log = logging.getLogger(__name__)

BEAT_INTERVAL_S = 0.5
BEAT_S_MAX = 2 * BEAT_INTERVAL_S
"""Ledger time moves by no more at once: while its leader was stopped, or cut off, nobody could be renewed."""
LEADER_TIMEOUT_S = 3.0
RETENTION_INTERVAL_S = 60.0


class Leadership:
    """``clock`` is monotonic, in seconds. ``leads`` may change at any time."""

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
            "ledger upkeep", self._keep_up, BEAT_INTERVAL_S, undone="nobody can be expired now"
        )

    async def start(self) -> None:
        """Lead if nobody does, and go on in the background. Raises ``LedgerError``."""
        await self.look()
        self.loop.start("undoubt-ledger-upkeep")

    async def close(self) -> None:
        """Stop, and leave the lead to others at once."""
        await self.loop.stop()
        if self.leads:
            self.leads = False
            try:
                await self._connections.run("resign", me=self.me)
            except LedgerError as error:
                log.info("the next leader of the ledger has to wait: %s", error)

    async def look(self) -> None:
        """Take the lead if it is free, or if its holder has not been heard of for long enough."""
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
        """Move ledger time by what has passed, and expire who was not renewed in time."""
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
        """The numbers of the sessions that were expired."""
        ((expired,),) = await self._connections.ask("expire", me=self.me)
        return list(expired)

    async def retire(self) -> list[int]:
        """Drop the sessions that retention lets go, and what history lets go of those dropped before; the
        numbers of those that were dropped."""
        retention_ms = round(self._settings.retention_s * 1000)
        history_ms = round(self._settings.history_s * 1000)
        dropped = await self._connections.work(lambda line, left_s: _drop(line, left_s, retention_ms))
        await self._connections.ask("pardon")
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
    """The only transaction of several statements: each must see what was committed before it."""

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
