"""The crash matrix: SIGKILL of a coordinator, of recovery and of a database server at every named step.

Real servers, real processes. After each death recovery runs to its end; then every transfer is in both
databases or in neither, nothing is prepared, nothing that was acknowledged is lost. With ``--pooler`` that
participant is reached through a PgBouncer in transaction mode, which is a victim too; in every other case
undoubt is not told of it. With ``--ledger postgresql`` the ledger is on a server of its own, a victim too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coordinator.settings import PROTOCOLS
from participants.postgres.schema import migrate
from participants.settings import DRIVERS, ParticipantSettings
from tests.pgbouncer import PgBouncer
from tests.prove.bank import NAMES, audit, set_up
from tests.prove.cases import Case, Victim, cases
from tests.prove.ledgers import LEDGERS, SqliteLedgers
from tests.prove.processes import Child, Heard
from tests.prove.trap import NEVER, Trap
from undoubt.embedded import EmbeddedServer

WORKERS, TRANSFERS = 4, 6
PASSES_MAX = 600
NO_TRAP = Trap(NEVER, "-", 0, 0).encode()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ledger", choices=list(LEDGERS), default="sqlite")
    parser.add_argument("--protocol", choices=list(PROTOCOLS), default="2pc")
    parser.add_argument("--pooler", choices=NAMES, help="the participant behind PgBouncer")
    parser.add_argument("--driver", choices=DRIVERS, default=DRIVERS[0])
    parser.add_argument("--lanes", type=int, default=2, help="cases at once, each on servers of its own")
    parser.add_argument("--only", default="", help="only cases whose name contains this")


async def main(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    every = cases(
        PROTOCOLS[options.protocol],
        pooler=options.pooler is not None,
        ledger=options.ledger != "sqlite",
    )
    chosen = [case for case in every if options.only in str(case)]
    numbered = iter(list(enumerate(chosen, 1)))
    totals = dict.fromkeys(("not_killed", "half_applied", "acknowledged_lost", "prepared_after"), 0)
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="undoubt-crash-") as folder:
        await asyncio.gather(
            *(Lane(Path(folder), totals, failures, options).run(numbered) for _ in range(options.lanes))
        )
    result: dict[str, Any] = {"cases": len(chosen), **totals, "failures": failures}
    return result, not failures and not any(totals.values()) and bool(chosen)


@dataclass(slots=True)
class Stage:
    """Two servers, the pooler before one of them, and the ledgers."""

    driver: str
    ledgers: SqliteLedgers
    servers: dict[str, EmbeddedServer] = field(default_factory=dict)
    poolers: dict[str, PgBouncer] = field(default_factory=dict)

    async def build(self, stack: AsyncExitStack, pooled: str | None) -> None:
        await self.ledgers.build(stack)
        for name in NAMES:
            self.servers[name] = await stack.enter_async_context(EmbeddedServer())
        if pooled is not None:
            pooler = PgBouncer(self.servers[pooled].port)
            self.poolers[pooled] = await stack.enter_async_context(pooler)

    def participants(self, database: str, *, declared: bool) -> dict[str, dict[str, object]]:
        """Their settings; ``declared``: undoubt is told of the pooler, and need not find out by itself."""
        direct = {name: {"dsn": server.dsn(database)} for name, server in self.servers.items()}
        pooled = {
            name: {"dsn": pooler.dsn(database), "pooler": declared} for name, pooler in self.poolers.items()
        }
        return {name: {"driver": self.driver, **one} for name, one in (direct | pooled).items()}

    @property
    def logins(self) -> int:
        return sum(pooler.logins for pooler in self.poolers.values())


class Lane:
    """A stage, and the cases that run on it one after another."""

    def __init__(
        self, folder: Path, totals: dict[str, int], failures: list[str], options: argparse.Namespace
    ) -> None:
        self._protocol = options.protocol
        self._folder = folder
        self._totals = totals
        self._failures = failures
        self._options = options

    async def run(self, numbered: Iterator[tuple[int, Case]]) -> None:
        async with AsyncExitStack() as stack:
            stage = Stage(self._options.driver, LEDGERS[self._options.ledger](self._folder))
            await stage.build(stack, self._options.pooler)
            for number, case in numbered:
                problems = await Run(number, case, stage, self._totals, self._protocol).run()
                for problem in problems:
                    self._failures.append(f"{case}: {problem}")
                print(f"{number:3} {case}: {problems or 'ok'}", file=sys.stderr)


class Run:
    """One case, from empty databases to the audit."""

    def __init__(
        self,
        number: int,
        case: Case,
        stage: Stage,
        totals: dict[str, int],
        protocol: str,
    ) -> None:
        self._protocol = protocol
        self._number = number
        self._case = case
        self._stage = stage
        self._servers = stage.servers
        self._totals = totals
        self._problems: list[str] = []

    async def run(self) -> list[str]:
        """What went wrong; empty if nothing did."""
        database = f"case{self._number}"
        dsns = {name: await server.create_database(database) for name, server in self._servers.items()}
        await set_up(dsns)
        if self._protocol != "2pc":
            for name, dsn in dsns.items():
                await migrate(name, ParticipantSettings(dsn=dsn))
        settings = json.dumps(
            {
                "coordinator": {
                    "protocol": self._protocol,
                    "session_ttl_s": self._stage.ledgers.session_ttl_s,
                },
                "ledger": {"url": await self._stage.ledgers.fresh(database)},
                "participants": self._stage.participants(database, declared=self._number % 2 == 0),
            }
        )
        logins = self._stage.logins
        heard = await self._coordinate(settings)
        if self._case.in_recovery:
            await self._recover_with_a_victim(settings)
        await self._recover(settings)
        await self._audit(dsns, heard)
        if self._stage.poolers and self._stage.logins == logins:
            self._problems.append("nothing went through the pooler")
        return self._problems

    async def _coordinate(self, settings: str) -> Heard:
        trap = self._case.before or self._case.trap
        child = await Child.start(
            "tests.prove.coordinator_process", settings, trap.encode(), "t", str(WORKERS), str(TRANSFERS)
        )
        if self._case.victim in {Victim.COORDINATOR, Victim.RECOVERY} or self._case.in_recovery:
            self._expect_killed(await child.ended(), child.heard, trap)
        else:
            await self._kill_server_of(child, trap)
        return child.heard

    async def _recover_with_a_victim(self, settings: str) -> None:
        trap = self._case.trap
        # Of those that find a branch of a three-phase commit at once, one ends it, and the others come again.
        passes = str(max(1 if self._protocol == "2pc" else 20, self._stage.ledgers.passes))
        child = await Child.start("tests.prove.recovery_process", settings, trap.encode(), passes)
        if self._case.victim is Victim.RECOVERY:
            self._expect_killed(await child.ended(), child.heard, trap)
        else:
            await self._kill_server_of(child, trap)

    async def _kill_server_of(self, child: Child, trap: Trap) -> None:
        if not await child.until_at_trap():
            self._count("not_killed", f"the process ended without reaching {trap.step}")
            return
        victim = self._server_of(child.heard.last["subject"], trap)
        died_of = await victim.kill()
        if died_of != signal.SIGKILL:
            self._count("not_killed", f"the server died of signal {died_of}")
        if self._case.victim not in {Victim.DATABASE_DOWN, Victim.LEDGER_DOWN}:
            await victim.start()
        await child.go_on()
        if self._case.victim is Victim.LEDGER_DOWN:
            await victim.start()
        if (status := await child.ended()) != 0:
            self._problems.append(f"the process that lost its server ended with status {status}")
        if self._case.victim is Victim.DATABASE_DOWN:
            await victim.start()

    def _server_of(self, subject: str, trap: Trap) -> EmbeddedServer | PgBouncer:
        """The one that is to die at ``trap``."""
        if self._case.victim is Victim.POOLER:
            [pooler] = self._stage.poolers.values()
            return pooler
        if self._case.victim in {Victim.LEDGER, Victim.LEDGER_DOWN}:
            if self._stage.ledgers.server is None:
                raise RuntimeError(f"{self._case}: this ledger has no server")
            return self._stage.ledgers.server
        return self._servers[subject if subject in NAMES else NAMES[max(trap.branch, 1) - 1]]

    def _expect_killed(self, status: int, heard: Heard, trap: Trap) -> None:
        if status != -signal.SIGKILL or heard.at != trap.step:
            self._count("not_killed", f"status {status} at {heard.at}, not SIGKILL at {trap.step}")

    async def _recover(self, settings: str) -> None:
        child = await Child.start("tests.prove.recovery_process", settings, NO_TRAP, str(PASSES_MAX))
        status = await child.ended()
        told = child.heard.last
        if status != 0 or told.get("left") or told.get("errors") or told.get("heuristics"):
            self._problems.append(f"recovery ended with status {status} and told {told}")

    async def _audit(self, dsns: dict[str, str], heard: Heard) -> None:
        found = await audit(dsns, heard.acknowledged, heard.aborted)
        for what, names in (
            ("half_applied", found.half_applied),
            ("half_applied", found.aborted_applied),
            ("acknowledged_lost", found.acknowledged_lost),
            ("prepared_after", found.prepared),
        ):
            for name in names:
                self._count(what, f"{what}: {name}")
        if found.money:
            self._count("half_applied", f"{found.money} of money appeared")
        if not heard.begun:
            self._problems.append("no transfer was begun")

    def _count(self, what: str, problem: str) -> None:
        self._totals[what] += 1
        self._problems.append(problem)


__all__ = ["add_arguments", "main"]
