"""One case of the crash matrix through the sidecar: a service, a sidecar, and who of them dies."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import Any

import asyncpg

from tests.prove.cases import Case, Victim
from tests.prove.processes import Child, Heard, within
from tests.prove.run import AGENT, TRANSFERS, WORKERS, Run
from tests.prove.sidecar_cases import SidecarCase, SidecarVictim
from tests.prove.stage import Stage
from tests.prove.trap import KILL, NO_TRAP, Trap
from undoubt.bench.http_client import SidecarConnection

LOOK_S = 0.05
DRAIN_S = 5.0
ALONE_S = 3600.0
"""Between two passes of the recovery in the sidecar that the case is about: its first is over before the
first transaction begins, and steps of that name are the coordinator's."""
OPEN = ("active", "committing")


class SidecarRun(Run):
    timeout_s = 3.0

    def __init__(
        self, number: int, case: SidecarCase, stage: Stage, totals: dict[str, int], protocol: str
    ) -> None:
        super().__init__(number, Case(Victim.COORDINATOR, False, case.trap), stage, totals, protocol)
        self.door = case
        self._dsns: dict[str, str] = {}
        self._socket = ""

    def prepare(self, settings: dict[str, Any], dsns: dict[str, str], name: str) -> None:
        self._dsns = dsns
        self._socket = str(self.stage.ledgers.folder / f"{name}.run" / "http.sock")
        settings["sidecar"] = {"socket": self._socket, "drain_s": DRAIN_S}
        for participant in settings["participants"].values():
            participant["sidecar"] = {"sql": True}

    async def coordinate(self) -> Heard:
        """Run both, kill whoever the case names, and let the others come to their end."""
        in_caller, trap = self.door.in_caller, self.door.trap
        sidecar = await self._start_sidecar(NO_TRAP if in_caller else trap, recovers=False)
        caller = await self._start_caller(trap if in_caller else NO_TRAP)
        stopped = caller if in_caller else sidecar
        if not await stopped.until_at_trap():
            self.count("not_killed", f"nobody reached {trap.step}")
            return caller.heard
        match self.door.victim:
            case SidecarVictim.CALLER:
                await self._killed(caller)
                if not in_caller:
                    await sidecar.go_on()
                await self._undone_by(sidecar)
            case SidecarVictim.SIDECAR:
                await self._killed(sidecar)
                sidecar = await self._start_sidecar(NO_TRAP, recovers=True)
                if in_caller:
                    await caller.go_on()
                await self._told_all(caller)
            case SidecarVictim.BOTH:
                await asyncio.gather(self._killed(sidecar), self._killed(caller))
                sidecar = await self._start_sidecar(NO_TRAP, recovers=True)
                if self.stage.ledgers.nodes is None:
                    await self._nothing_prepared("the recovery of the next sidecar")
        sidecar.terminate()
        await self.expect_ended(sidecar)
        return caller.heard

    async def _killed(self, child: Child) -> None:
        """The victim: it has died of its trap, or waits in it, or is at work."""
        by_itself = self.door.trap.how == KILL  # Popen.kill() of a dead process takes its status from asyncio
        if (status := await (child.ended() if by_itself else child.kill())) != -signal.SIGKILL:
            self.count("not_killed", f"the {self.door.victim} ended with status {status}")

    async def _told_all(self, caller: Child) -> None:
        """The service gets every outcome, from the next sidecar where the first one has not answered."""
        async with within("the outcomes of all transfers"):
            async for message in caller.lines():
                if "ended" in message:
                    break
        await caller.go_on()
        await self.expect_ended(caller)
        for name in caller.heard.unknown:
            self.problems.append(f"nobody knows what has become of {name}: {caller.heard.why[name]}")

    async def _undone_by(self, sidecar: Child) -> None:
        """A sidecar whose caller has vanished leaves nothing open, and nothing prepared."""
        async with within("the end of what a vanished caller has begun"):
            client = await SidecarConnection.over_socket(self._socket)
            try:
                for state in OPEN:
                    while (await client.ask("GET", f"/v1/transactions?state={state}")).body["transactions"]:
                        await asyncio.sleep(LOOK_S)
            finally:
                client.close()
        await self._nothing_prepared("the rollback of what a vanished caller has prepared")

    async def _nothing_prepared(self, what: str) -> None:
        async with within(what):
            for dsn in self._dsns.values():
                connection = await asyncpg.connect(dsn)
                try:
                    while await connection.fetchval(
                        "select count(*) from pg_prepared_xacts where database = current_database()"
                    ):
                        await asyncio.sleep(LOOK_S)
                finally:
                    await connection.close()

    async def _start_sidecar(self, trap: Trap, *, recovers: bool) -> Child:
        settings = json.loads(self._settings)
        if not recovers:
            settings["recovery"] = {"interval_s": ALONE_S}
        child = await self.start_child("sidecar_process", json.dumps(settings), trap.encode())
        async with within("a sidecar that serves"):
            async for message in child.lines():
                if "serves" in message:
                    return child
        raise RuntimeError("the sidecar ended before it served")

    async def _start_caller(self, trap: Trap) -> Child:
        agent = AGENT if self.protocol == "last" else ""
        return await self.start_child(
            "caller_process", self._socket, json.dumps(self._dsns), self.door.way, agent, trap.encode(), "t",
            WORKERS, TRANSFERS,
        )  # fmt: skip
