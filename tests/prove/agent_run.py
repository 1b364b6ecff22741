"""A case of last-agent commit in which the coordinator dies while the agent executes its COMMIT.

A trigger of the agent's table makes that COMMIT wait, with its row written and not visible. The session of
the dead coordinator stays: its server does not look whether its client is still there. A tombstone waits for
it."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack

import asyncpg

from tests.prove.cases import Victim
from tests.prove.processes import Heard, within
from tests.prove.run import AGENT, Run
from tests.prove.trap import NO_TRAP

LATCH = """
create function latch() returns trigger language plpgsql as
    'begin perform pg_catalog.pg_advisory_xact_lock_shared(77); return new; end';
create trigger latch after insert on undoubt.undoubt_agent for each row when (new.decision = 'commit')
    execute function latch();
"""
WAITS = "select exists (select from pg_locks where not granted and locktype = $1)"


class AgentRun(Run):
    timeout_s = 60.0
    """A session waits for locks no longer than its transaction may take."""
    _latch: asyncpg.Connection[asyncpg.Record] | None = None

    async def run(self) -> list[str]:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._unlatch)
            return await super().run()

    async def coordinate(self) -> Heard:
        self._latch = await asyncpg.connect(self.dsns[AGENT])
        await self._latch.execute(LATCH)
        await self._latch.execute("select pg_advisory_lock(77)")
        child = await self.start_coordinator(NO_TRAP)
        await self._until_waiting("advisory")
        if await child.kill() != -signal.SIGKILL:
            self.count("not_killed", "the coordinator ended by itself")
        return child.heard

    async def recover(self) -> None:
        if self.case.victim is Victim.ARRIVED and self._latch is not None:
            recovering = asyncio.create_task(super().recover())
            await self._until_waiting("transactionid")
            await self._unlatch()
            await recovering
        else:
            await super().recover()

    async def _until_waiting(self, kind: str) -> None:
        if self._latch is None:
            raise RuntimeError("nothing is latched")
        async with within(f"a wait for a lock of type {kind} at the agent"):
            while not await self._latch.fetchval(WAITS, kind):
                await asyncio.sleep(0.005)

    async def _unlatch(self) -> None:
        latch, self._latch = self._latch, None
        if latch is not None:
            await latch.close()
