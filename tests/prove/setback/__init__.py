"""Set back: ledgers that were copied back, cloned, lost or set back with their volume, under transactions
that are half done.

In each case a session has committed a transaction before a copy was taken, and has acknowledged others since:
one that is committed in one database only, one that is prepared in both, one that is undecided, and one of a
session that was opened after the copy. Then the processes die, the case does its damage, and recovery and
doctor look at what is left. The proof holds if no transaction was split, nothing that was acknowledged was
called aborted, and what is lost was told: the ledger is refused, or shows it as an operator's to decide, and
doctor is not content. Where a ledger cannot see it (a whole volume that was set back), the pages have to lead
to the verb, which is run first.

- :mod:`world`: the databases, the story, and what is looked at afterwards.
- :mod:`sqlite_cases`, :mod:`postgres_cases`, :mod:`raft_cases`: the damage.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
import traceback
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from tests.prove.control import control
from tests.prove.setback import postgres_cases, raft_cases, sqlite_cases
from tests.prove.setback.world import CASES, Servers, Told, World

CASE_S = 120.0
PLANTED = (
    "anchor-not-compared",
    "missing-anchor-made-anew",
    "copied-folder-is-opened",
    "lost-branches-are-anothers",
)
CONTROLLED = "sqlite"
CONTROL_S = 600.0
MODULES = (sqlite_cases, postgres_cases, raft_cases)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", default="", help="only cases whose name contains this, or|that")
    parser.add_argument("--no-control", action="store_true")


async def main(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    words = options.only.split("|")
    wanted = [case for case in CASES if any(word in case.name for word in words)]
    found: dict[str, Told] = {}
    errors: list[str] = []
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="undoubt-setback-")))
        servers = await stack.enter_async_context(Servers())
        for number, case in enumerate(wanted):
            began = time.monotonic()
            world = World(servers, folder / f"case-{number}")
            try:
                async with asyncio.timeout(CASE_S):
                    await world.build()
                    found[case.name] = await case.run(world)
            except Exception as error:  # noqa: BLE001 - the others are tried all the same
                errors.append(f"{case.name}: {type(error).__name__}: {error}")
                traceback.print_exc(limit=-6, file=sys.stderr)
            finally:
                await world.close()
            told = found.get(case.name)
            print(f"{time.monotonic() - began:5.1f} s  {case.name}: {told}", file=sys.stderr)
    result: dict[str, Any] = {
        "cases": len(wanted),
        "split": sum(one.split for one in found.values()),
        "false_proofs": sum(one.false_proofs for one in found.values()),
        "silent": sum(one.silent for one in found.values()),
        "led_to_verb": sum(one.led_to_verb for one in found.values()),
        "failures": [f"{name}: {one}" for name, one in found.items() if one.bad],
        "errors": errors,
    }
    holds = len(wanted) >= 14 and not result["failures"] and not errors and result["led_to_verb"] >= 2
    if not options.no_control:
        planted = await control(
            "setback", "--no-control", "--only", CONTROLLED, mutants=PLANTED, timeout_s=CONTROL_S
        )
        result["control"] = len(planted.result["failures"])
        holds = holds and result["control"] >= 1
    return result, holds


__all__ = ["MODULES", "add_arguments", "main"]
