"""One case of the crash matrix, from empty databases to the audit."""

from __future__ import annotations

import json
import signal
from typing import Any

from tests.etcd import Majority
from tests.pgbouncer import PgBouncer
from tests.prove.bank import NAMES, audit, rows_left, set_up
from tests.prove.cases import Case, Victim
from tests.prove.processes import Child, Heard
from tests.prove.stage import Stage
from tests.prove.trap import NO_TRAP, Trap
from undoubt.embedded import EmbeddedServer
from undoubt.participants.postgres.schema import migrate
from undoubt.participants.settings import ParticipantSettings

WORKERS, TRANSFERS = 4, 6
AGENT = NAMES[1]
"""In last-agent commit."""
STAYS_DOWN = frozenset({Victim.DATABASE_DOWN, Victim.AGENT_DOWN})
PASSES_MAX = 600
PASSES_DOWN_MAX = 3
"""How often a recovery looks at a database that will be down for as long as it looks."""


class Run:
    """A coordinator transfers money; who dies, and when, is the case's; then recovery runs to its end."""

    timeout_s = 5.0
    """Of a transaction."""

    def __init__(self, number: int, case: Case, stage: Stage, totals: dict[str, int], protocol: str) -> None:
        """``totals`` are counted up."""
        self.case = case
        self.stage = stage
        self.dsns: dict[str, str] = {}
        self.problems: list[str] = []
        self.protocol = protocol
        self._number = number
        self._totals = totals
        self._settings = ""
        self._children: list[Child] = []

    async def run(self) -> list[str]:
        """What went wrong; empty if nothing did."""
        try:
            await self._run(f"case{self._number}")
        except Exception as error:  # noqa: BLE001 - a server that does not start again, something that hangs
            self.problems.append(f"{type(error).__name__}: {error}")
        finally:
            for child in self._children:
                await child.kill()
        return self.problems

    async def _run(self, database: str) -> None:
        dsns = {name: await server.create_database(database) for name, server in self.stage.servers.items()}
        self.dsns = dsns
        await set_up(dsns)
        if self.protocol != "2pc":
            for name, dsn in dsns.items():
                await migrate(name, ParticipantSettings(dsn=dsn))
        settings: dict[str, Any] = {
            "coordinator": {
                "protocol": self.protocol,
                "session_ttl_s": self.session_ttl_s,
                "timeout_s": self.timeout_s,
                **({"agent": AGENT} if self.protocol == "last" else {}),
            },
            "ledger": await self.stage.ledgers.fresh(database),
            "participants": self.stage.participants(database, declared=self._number % 2 == 0),
        }
        self.prepare(settings, dsns, database)
        self._settings = json.dumps(settings)
        logins = self.stage.logins
        heard = await self.coordinate()
        if self.case.in_recovery:
            await self.recover_with_a_victim()
        await self.recover()
        if await self.stage.ledgers.caught_up():
            await self.recover()
        await self._audit(dsns, heard)
        if self.stage.poolers and self.stage.logins == logins:
            self.problems.append("nothing went through the pooler")

    def prepare(self, settings: dict[str, Any], dsns: dict[str, str], name: str) -> None:
        """What a kind of case adds to ``settings``; ``dsns`` are direct, ``name`` is the case's."""

    @property
    def session_ttl_s(self) -> float:
        return self.stage.ledgers.session_ttl_s

    async def start_coordinator(self, trap: Trap) -> Child:
        return await self._start("coordinator_process", trap, "t", WORKERS, TRANSFERS)

    async def start_recovery(self, trap: Trap, passes: int) -> Child:
        after = PASSES_DOWN_MAX if self.case.victim in STAYS_DOWN else passes
        # A coordinator that goes on deletes its rows itself.
        goes_on = self.case.victim in {Victim.STOPPED, Victim.SPARED}
        waits = "rows" if self.protocol == "last" and not goes_on else "branches"
        return await self._start("recovery_process", trap, passes, after, waits)

    async def _start(self, module: str, trap: Trap, *more: object) -> Child:
        return await self.start_child(module, self._settings, trap.encode(), *more)

    async def start_child(self, module: str, *arguments: object) -> Child:
        """``tests.prove.module``, which is killed at the end of the case if it has not ended by then."""
        child = await Child.start(f"tests.prove.{module}", *map(str, arguments))
        self._children.append(child)
        return child

    async def coordinate(self) -> Heard:
        """Run the coordinator, and whatever the case has happen to it."""
        trap = self.case.before or self.case.trap
        child = await self.start_coordinator(trap)
        if self.case.victim in {Victim.COORDINATOR, Victim.RECOVERY} or self.case.in_recovery:
            self._expect_killed(await child.ended(), child.heard, trap)
        else:
            await self._strike(child, trap)
        return child.heard

    async def recover_with_a_victim(self) -> None:
        """Run a recovery, and whatever the case has happen to it."""
        trap = self.case.trap
        child = await self.start_recovery(trap, self.passes)
        if self.case.victim is Victim.RECOVERY:
            self._expect_killed(await child.ended(), child.heard, trap)
        else:
            await self._strike(child, trap)

    @property
    def passes(self) -> int:
        """Of a recovery with a victim. Of those that find a three-phase commit at once, one ends it, and the
        others come again."""
        return max(1 if self.protocol == "2pc" else 20, self.stage.ledgers.passes)

    async def _strike(self, child: Child, trap: Trap) -> None:
        if await child.until_at_trap():
            await self.strike(child, child.heard.last["subject"])
        else:
            self.count("not_killed", f"the process ended without reaching {trap.step}")

    async def strike(self, child: Child, subject: str) -> None:
        """``child`` waits in its trap, at a step about ``subject``: kill the victim, and let it go on."""
        victim = self._server_of(subject)
        died_of = await victim.kill()
        if died_of != signal.SIGKILL:
            self.count("not_killed", f"the server died of signal {died_of}")
        if self.case.victim not in STAYS_DOWN | {Victim.LEDGER_DOWN}:
            await victim.start()
        await child.go_on()
        if self.case.victim is Victim.LEDGER_DOWN:
            await victim.start()
        await self.expect_ended(child)
        if self.case.victim in STAYS_DOWN:
            await victim.start()

    def _server_of(self, subject: str) -> EmbeddedServer | Majority | PgBouncer:
        """The one that is to die."""
        if self.case.victim is Victim.POOLER:
            [pooler] = self.stage.poolers.values()
            return pooler
        if self.case.victim in {Victim.LEDGER, Victim.LEDGER_DOWN}:
            if self.stage.ledgers.server is None:
                raise RuntimeError(f"{self.case}: this ledger has no server")
            return self.stage.ledgers.server
        if self.case.victim in {Victim.AGENT, Victim.AGENT_DOWN}:
            return self.stage.servers[AGENT]
        return self.stage.servers[subject if subject in NAMES else NAMES[max(self.case.trap.branch, 1) - 1]]

    async def expect_ended(self, child: Child) -> None:
        """By itself, as if nothing had happened."""
        if (status := await child.ended()) != 0:
            self.problems.append(f"the process that lost another ended with status {status}")

    def _expect_killed(self, status: int, heard: Heard, trap: Trap) -> None:
        if status != -signal.SIGKILL or heard.at != trap.step:
            self.count("not_killed", f"status {status} at {heard.at}, not SIGKILL at {trap.step}")

    async def recover(self) -> None:
        """Until nothing is left."""
        child = await self.start_recovery(NO_TRAP, PASSES_MAX)
        status = await child.ended()
        told = child.heard.last
        if status != 0 or told.get("left") or told.get("errors") or told.get("heuristics"):
            self.problems.append(f"recovery ended with status {status} and told {told}")

    async def _audit(self, dsns: dict[str, str], heard: Heard) -> None:
        found = await audit(dsns, heard.acknowledged, heard.aborted)
        for what, names in (
            ("half_applied", found.half_applied),
            ("half_applied", found.aborted_applied),
            ("acknowledged_lost", found.acknowledged_lost),
            ("prepared_after", found.prepared),
        ):
            for name in names:
                self.count(what, f"{what}: {name}")
        if found.money:
            self.count("half_applied", f"{found.money} of money appeared")
        for key in await rows_left(dsns[AGENT]) if self.protocol == "last" else ():
            self.problems.append(f"the row {key} was left at the agent, and no recovery has deleted it")
        if not heard.begun:
            self.problems.append("no transfer was begun")

    def count(self, what: str, problem: str) -> None:
        self._totals[what] += 1
        self.problems.append(problem)
