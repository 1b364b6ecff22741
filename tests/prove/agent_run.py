"""A case of last-agent commit in which the coordinator dies while the agent executes its COMMIT.

A trigger of the agent's table makes that COMMIT wait, with its row written and not visible; or the COMMIT has
happened, and waits for a synchronous standby. The session of the dead coordinator stays: its server does not
look whether its client is still there. A tombstone waits for it."""

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
COMMITTED = (
    "select pid from pg_stat_activity where wait_event = 'SyncRep' and application_name like 'undoubt:%'"
)
"""The sessions that wait for a standby in the COMMIT of a branch."""
LEFT = "select count(*) from pg_stat_activity where pid = any ($1)"


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
        if self.case.victim is Victim.UNCONFIRMED:
            await self._lose_the_standby()
        if await child.kill() != -signal.SIGKILL:
            self.count("not_killed", "the coordinator ended by itself")
        return child.heard

    async def recover(self) -> None:
        if self.case.victim is Victim.IN_FLIGHT or self._latch is None:
            await super().recover()
            return
        recovering = asyncio.create_task(super().recover())
        if self.case.victim is Victim.ARRIVED:
            await self._until_waiting("transactionid")
        else:
            await self._until_terminated()
        await self._unlatch()
        await recovering

    async def _until_waiting(self, kind: str) -> None:
        async with within(f"a wait for a lock of type {kind} at the agent"):
            while not await self._latched.fetchval(WAITS, kind):
                await asyncio.sleep(0.005)

    async def _lose_the_standby(self) -> None:
        """From now on every COMMIT at the agent waits; those of the coordinator go on until they do."""
        at = self._latched
        await at.execute("alter system set synchronous_standby_names = 'nobody'")
        await at.execute("select pg_reload_conf()")
        probe = await asyncpg.connect(self.dsns[AGENT])
        async with within("a COMMIT that waits for a standby"):
            # The setting holds once the checkpointer has told all sessions.
            while not await self._waits_for_a_standby(probe):
                pass
            await at.execute("select pg_advisory_unlock(77)")
            while not await at.fetch(COMMITTED):
                await asyncio.sleep(0.005)
        await probe.close()

    async def _waits_for_a_standby(self, probe: asyncpg.Connection[asyncpg.Record]) -> bool:
        at, pid = self._latched, probe.get_server_pid()
        waits = "select exists (select from pg_stat_activity where pid = $1 and wait_event = 'SyncRep')"
        writing = asyncio.create_task(probe.execute("select pg_logical_emit_message(true, 'probe', '')"))
        while not writing.done():
            if await at.fetchval(waits, pid):
                await at.execute("select pg_cancel_backend($1)", pid)
                await writing
                return True
            await asyncio.sleep(0.005)
        await writing
        return False

    async def _until_terminated(self) -> None:
        pids = [row["pid"] for row in await self._latched.fetch(COMMITTED)]
        async with within("a recovery that terminates a session of the dead coordinator"):
            while await self._latched.fetchval(LEFT, pids) == len(pids):
                await asyncio.sleep(0.005)

    @property
    def _latched(self) -> asyncpg.Connection[asyncpg.Record]:
        if self._latch is None:
            raise RuntimeError("nothing is latched")
        return self._latch

    async def _unlatch(self) -> None:
        latch, self._latch = self._latch, None
        if latch is not None:
            await latch.execute("alter system reset synchronous_standby_names")
            await latch.execute("select pg_reload_conf()")
            await latch.close()
