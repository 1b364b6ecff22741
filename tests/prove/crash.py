"""The crash matrix: SIGKILL of a coordinator, of recovery and of a database server at every named step.

Real servers, real processes. After each death recovery runs to its end; then every transfer is in both
databases or in neither, nothing is prepared, nothing that was acknowledged is lost. With ``--pooler`` that
participant is reached through a PgBouncer in transaction mode, which is a victim too; in every other case
undoubt is not told of it. With ``--ledger postgresql`` the ledger is on a server of its own, a victim too;
with ``--ledger etcd`` two of its three members are: one is killed, one is stopped, and all are compacted.

With ``--ledger raft``, or ``--protocol paxos``, three nodes keep it, which are victims too: each in its role,
two at once, at steps of their own, and everything at once; and the coordinator is also only stopped, and goes
on when it has been given up.

With ``--door sidecar`` services transfer the money through a sidecar, which run their branches themselves or
have the sidecar run them; the victims are the service, the sidecar, and both.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from tests.prove.agent_run import AgentRun
from tests.prove.bank import NAMES
from tests.prove.cases import CLUSTERED, IN_ITS_COMMIT, Case, cases
from tests.prove.ledgers import LEDGERS
from tests.prove.node_run import NodeRun
from tests.prove.run import Run
from tests.prove.sidecar_cases import SidecarCase, sidecar_cases
from tests.prove.sidecar_run import SidecarRun
from tests.prove.stage import Stage
from undoubt.coordinator.settings import PROTOCOLS
from undoubt.participants.settings import DRIVERS

DOORS = ("library", "sidecar")
TRIES_MAX = 5
"""Of a case in which nothing went wrong but that its victim lived."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--door", choices=DOORS, default=DOORS[0])
    parser.add_argument("--ledger", choices=list(LEDGERS), help="sqlite; raft for paxos")
    parser.add_argument("--protocol", choices=list(PROTOCOLS), default="2pc")
    parser.add_argument("--pooler", choices=NAMES, help="the participant behind PgBouncer")
    parser.add_argument("--driver", choices=DRIVERS, default=DRIVERS[0])
    parser.add_argument("--lanes", type=int, help="cases at once, each on servers of its own")
    parser.add_argument("--only", nargs="+", default=[""], help="only cases whose name contains one of these")


async def main(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    options.ledger = options.ledger or ("raft" if options.protocol == "paxos" else "sqlite")
    every: Sequence[Case | SidecarCase] = (
        sidecar_cases(PROTOCOLS[options.protocol])
        if options.door == "sidecar"
        else cases(
            PROTOCOLS[options.protocol],
            pooler=options.pooler is not None,
            ledger=options.ledger in {"postgresql", "etcd"},
            nodes=options.ledger == "raft",
        )
    )
    chosen = [case for case in every if any(part in str(case) for part in options.only)]
    numbered = iter(list(enumerate(chosen, 1)))
    totals = dict.fromkeys(("not_killed", "half_applied", "acknowledged_lost", "prepared_after"), 0)
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="undoubt-crash-") as folder:
        await asyncio.gather(
            *(
                _lane(Path(folder), numbered, totals, failures, options)
                for _ in range(options.lanes or LEDGERS[options.ledger].lanes)
            )
        )
    result: dict[str, Any] = {"cases": len(chosen), **totals, "failures": failures}
    return result, not failures and not any(totals.values()) and bool(chosen)


async def _lane(
    folder: Path,
    numbered: Iterator[tuple[int, Case | SidecarCase]],
    totals: dict[str, int],
    failures: list[str],
    options: argparse.Namespace,
) -> None:
    """Cases one after another, on a stage of their own; on a new one after a case that failed, so that the
    others speak for themselves. A node that was to die at a step of its own and was not needed there, since a
    majority is enough, gets another chance."""
    todo, tries = next(numbered, None), 1
    while todo is not None:
        async with AsyncExitStack() as stack:
            stage = Stage(options.driver, LEDGERS[options.ledger](folder))
            await stage.build(stack, options.pooler)
            problems: list[str] = []
            while todo is not None and not problems:
                number, case = todo
                counted = dict.fromkeys(totals, 0)
                problems = await _run_of(number, case, stage, counted, options.protocol).run()
                print(f"{number:3} {case}: {problems or 'ok'}", file=sys.stderr)
                missed_only = case.of_node and len(problems) == counted["not_killed"]
                if problems and missed_only and tries < TRIES_MAX:
                    tries += 1
                    continue
                for what, times in counted.items():
                    totals[what] += times
                failures += [f"{case}: {problem}" for problem in problems]
                todo, tries = next(numbered, None), 1


def _run_of(
    number: int, case: Case | SidecarCase, stage: Stage, totals: dict[str, int], protocol: str
) -> Run:
    if isinstance(case, SidecarCase):
        return SidecarRun(number, case, stage, totals, protocol)
    if case.victim in IN_ITS_COMMIT:
        return AgentRun(number, case, stage, totals, protocol)
    return (NodeRun if case.victim in CLUSTERED else Run)(number, case, stage, totals, protocol)


__all__ = ["add_arguments", "main"]
