"""Three-phase commit whose ledger is destroyed: a coordinator dies at each of its steps, the ledger's file is
deleted, and ``undoubt recover --without-ledger`` ends what is left, from the databases alone."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from tests.prove.bank import NAMES, audit, set_up
from tests.prove.cases import Case, Victim, cases
from tests.prove.processes import Child
from tests.prove.run import TRANSFERS, WORKERS
from tests.undoubt.cli.harness import Ran, undoubt
from undoubt.embedded import EmbeddedServer
from undoubt.participants.ids import Protocol
from undoubt.participants.postgres.schema import migrate
from undoubt.participants.settings import ParticipantSettings
from undoubt.participants.three_phase import Termination


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", default="", help="only cases whose name contains this")


async def main(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    chosen = [
        case
        for case in cases(Protocol.THREE_PHASE)
        if case.victim is Victim.COORDINATOR and options.only in str(case)
    ]
    totals = dict.fromkeys(
        ("not_killed", "in_doubt", "half_applied", "acknowledged_lost", "prepared_after"), 0
    )
    failures: list[str] = []
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="undoubt-no-ledger-")))
        servers = {name: await stack.enter_async_context(EmbeddedServer()) for name in NAMES}
        for number, case in enumerate(chosen, 1):
            database = f"case{number}"
            dsns = {name: await server.create_database(database) for name, server in servers.items()}
            problems = await _one(case, list(Termination)[number % 2], dsns, folder / database, totals)
            failures += [f"{case}: {problem}" for problem in problems]
            print(f"{number:3} {case}: {problems or 'ok'}", file=sys.stderr)
    result: dict[str, Any] = {"cases": len(chosen), **totals, "failures": failures}
    return result, not failures and totals["in_doubt"] > 0


async def _one(
    case: Case, rule: Termination, dsns: dict[str, str], folder: Path, totals: dict[str, int]
) -> list[str]:
    """What went wrong; empty if nothing did."""
    folder.mkdir()
    await set_up(dsns)
    for name, dsn in dsns.items():
        await migrate(name, ParticipantSettings(dsn=dsn))
    settings = {
        "ledger": {"url": f"sqlite:///{folder}/ledger.db"},
        "coordinator": {"protocol": "3pc", "termination": rule, "timeout_s": 5.0},
        "participants": {name: {"dsn": dsn} for name, dsn in dsns.items()},
    }
    child = await Child.start(
        "tests.prove.coordinator_process",
        json.dumps(settings), case.trap.encode(), "t", str(WORKERS), str(TRANSFERS),
    )  # fmt: skip
    problems = []
    if await child.ended() != -signal.SIGKILL or child.heard.at != case.trap.step:
        totals["not_killed"] += 1
        problems.append(f"not killed at {case.trap.step}")
    for file in folder.iterdir():
        if file.is_file():
            file.unlink()
    before = await audit(dsns, [], [])
    totals["in_doubt"] += len(before.prepared)
    (folder / "undoubt.toml").write_text(
        "".join(f'[participants.{name}]\ndsn = "{dsn}"\n' for name, dsn in dsns.items())
    )
    ran = await asyncio.to_thread(
        undoubt, "recover", "--without-ledger", "--config", "undoubt.toml", "-o", "json", cwd=folder
    )
    found = await audit(dsns, child.heard.acknowledged, child.heard.aborted)
    for what, names in (
        ("half_applied", [*found.half_applied, *found.aborted_applied]),
        ("acknowledged_lost", found.acknowledged_lost),
        ("prepared_after", found.prepared),
    ):
        totals[what] += len(names)
        problems += [f"{what}: {name}" for name in names]
    if found.money:
        totals["half_applied"] += 1
        problems.append(f"{found.money} of money appeared")
    return problems + _left_or_made(ran, folder)


def _left_or_made(ran: Ran, folder: Path) -> list[str]:
    problems = []
    if ran.status != 0:
        problems.append(f"recover ended with status {ran.status}: {ran.err}")
    if list(folder.glob("*.db")):
        problems.append("a ledger was made")
    return problems


__all__ = ["add_arguments", "main"]
