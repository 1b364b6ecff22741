"""Every kind of file of a node and of a SQLite ledger is damaged, bit by bit and cut by cut, or is missing:
whatever was acknowledged is there afterwards, or its loss is told.

Each case is a copy of the files as a process that was killed has left them, with one change, which is then
opened by the shipped code. ``flips_in_acknowledged``: bits of what was acknowledged that were flipped, in
files of the log, snapshots, anchors and the database. ``silent_loss``: something acknowledged is missing or
different, and nobody is told. ``false_alarm``: what a crash may leave (a torn tail, an older anchor), or a
change of a file that holds nothing acknowledged, keeps the store from opening, or makes it believe that it
was set back.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from tests.prove.control import control
from tests.prove.damage_ledger import NAME as DATABASE
from tests.prove.damage_ledger import LedgerFiles
from tests.prove.damage_node import NodeFiles
from tests.prove.damaging import Change, Files, Heard, changes

MUTANTS = ["damage-taken-for-a-torn-tail", "wal-damage-taken-for-a-torn-tail", "anchor-not-compared"]
CONTROL = ["--no-control", "--step", "197"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--step", type=int, default=61, help="flip a bit of every so many bytes")
    parser.add_argument("--no-control", action="store_true", help="do not look for the planted bugs")


async def main(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    counts: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="undoubt-damage-") as folder:
        for files in (NodeFiles(Path(folder) / "node"), LedgerFiles(Path(folder) / "ledger")):
            await files.make()
            for change in changes(files, options.step):
                problem = await _tried(files, change, counts)
                kinds[f"{type(files).__name__} {change.kind} {files.kind_of(change.name)}"] += 1
                if problem:
                    failures.append(problem)
                    print(problem, file=sys.stderr, flush=True)
    result: dict[str, Any] = {
        "changes": sum(kinds.values()),
        "flips_in_acknowledged": counts["flips_in_acknowledged"],
        "told": counts["told"],
        "silent_loss": counts["silent_loss"],
        "false_alarm": counts["false_alarm"],
        "kinds": dict(sorted(kinds.items())),
        "failures": failures[:20],
    }
    holds = counts["flips_in_acknowledged"] >= 1 and not failures
    if not options.no_control:
        found = (await control("damage", *CONTROL, mutants=MUTANTS)).result
        result["control"] = found["silent_loss"]
        holds = holds and found["silent_loss"] >= 1
    return result, holds


async def _tried(files: Files, change: Change, counts: Counter[str]) -> str:
    try:
        heard = await files.open(change)
    except Exception as error:  # noqa: BLE001 - whatever it is, people would see a traceback
        return f"a traceback: {change}: {type(error).__name__}: {error}"
    return judged(files, change, heard, counts)


def judged(files: Files, change: Change, heard: Heard, counts: Counter[str]) -> str:
    """What is wrong; empty if nothing is."""
    acknowledged = files.acknowledged(change)
    met = acknowledged and (change.name != DATABASE or bool(heard.alarm))  # most of its pages hold nothing
    counts["flips_in_acknowledged"] += met and change.kind == "flip"
    counts["told"] += bool(heard.alarm)
    if heard.lost and not heard.alarm:
        counts["silent_loss"] += 1
        return f"silent loss: {change}: {heard.lost}"
    if heard.alarm and not acknowledged and not heard.lost:
        counts["false_alarm"] += 1
        return f"false alarm: {change}: {heard.alarm}"
    return ""


__all__ = ["add_arguments", "main"]
