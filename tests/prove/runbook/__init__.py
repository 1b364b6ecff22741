"""The runbook (``docs/runbook.md``), run command by command on real nodes and servers.

Each section with commands has a scene: what is wrong when an operator opens that section. The commands of
the page then run as they stand there, each in a shell of the machine that the page names. A step is a
command; it fails if its exit status, or what its block prints, is not what the page says, or if the scene
is not repaired afterwards.

``control``: how many steps fail with a copy of the page in which wrong commands are planted.

In the order in which a run uses them:

===================  =========================================================================================
:mod:`.page`         reads the page.
:mod:`.machines`     runs a command on a machine.
:mod:`.site`         is the cluster with its databases.
:mod:`.scenes`       prepares what is wrong in the databases, and looks whether it is repaired.
:mod:`.node_scenes`  does so with nodes.
:mod:`.etcd_scenes`  does so with the etcd of a ledger.
===================  =========================================================================================
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.prove.runbook.etcd_scenes import ETCD_SCENES
from tests.prove.runbook.node_scenes import NODE_SCENES
from tests.prove.runbook.page import PAGE, Block, differs, sections
from tests.prove.runbook.scenes import SCENES as DATABASE_SCENES
from tests.prove.runbook.scenes import SHARED
from tests.prove.runbook.site import Servers, Site

SCENES = {**DATABASE_SCENES, **NODE_SCENES, **ETCD_SCENES}
PLANTED = {
    "When the alarm wakes you": ("undoubt cluster status", "undoubt cluster stats"),
    "A branch is in doubt": ("undoubt indoubt rollback", "undoubt indoubt commit"),
    "A prepared transaction is an impostor": ("undoubt indoubt rollback", "undoubt indoubt forget"),
}
"""By section: a command of the page, and a wrong one in its place."""


class StepFailed(Exception):
    """A command did not end as the page says, or printed something else."""


@dataclass
class Told:
    steps: int = 0
    failures: list[str] = field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", choices=list(SCENES), help="only these sections")
    parser.add_argument("--no-control", action="store_true", help="without the control")
    parser.add_argument("--verbose", action="store_true", help="print what each command prints")


async def main(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    told, control = Told(), Told()
    async with Servers() as servers:
        wanted = options.only or [heading for heading, steps in sections().items() if steps]
        await walk(PAGE, wanted, servers, told, verbose=options.verbose)
        if not options.no_control:
            with tempfile.TemporaryDirectory(prefix="undoubt-runbook-") as name:
                chosen = [each for each in wanted if each in PLANTED]
                await walk(planted(Path(name)), chosen, servers, control, verbose=False)
    result = {
        "steps": told.steps,
        "failed": len(told.failures),
        "failures": told.failures,
        "control": len(control.failures),
    }
    return result, not told.failures and (options.no_control or bool(control.failures))


def planted(folder: Path) -> Path:
    """A copy of the page with wrong commands."""
    text = PAGE.read_text()
    for heading, (right, wrong) in PLANTED.items():
        before, title, after = text.partition(f"\n## {heading}\n")
        text = before + title + after.replace(right, wrong, 1)
    page = folder / PAGE.name
    page.write_text(text)
    return page


async def walk(page: Path, headings: Sequence[str], servers: Servers, told: Told, *, verbose: bool) -> None:
    """Through these sections: first those that can share one site, as long as it is whole."""
    read = sections(page)
    left = [heading for heading in headings if heading in SHARED]
    while left:
        async with _site(servers) as site:
            await site.begun()
            whole = True
            while left and whole:
                heading = left.pop(0)
                whole = await _timed(site, heading, read[heading], told, verbose=verbose)
    for heading in headings:
        if heading not in SHARED:
            async with _site(servers) as site:
                await _timed(site, heading, read[heading], told, verbose=verbose)


@asynccontextmanager
async def _site(servers: Servers) -> AsyncIterator[Site]:
    with tempfile.TemporaryDirectory(prefix="undoubt-runbook-") as name:
        async with Site(Path(name), servers) as site:
            yield site


async def _timed(site: Site, heading: str, blocks: list[Block], told: Told, *, verbose: bool) -> bool:
    """Whether nothing has failed."""
    began, before = time.monotonic(), len(told.failures)
    try:
        async with SCENES[heading](site):
            await _section(site, blocks, told, verbose=verbose)
    except Exception as error:  # noqa: BLE001 - a failure of any kind: the other sections are run too
        told.failures.append(f"{heading}: {type(error).__name__}: {error}")
    for failure in told.failures[before:]:
        print(failure, file=sys.stderr)
    print(f"{heading}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    return len(told.failures) == before


async def _section(site: Site, blocks: list[Block], told: Told, *, verbose: bool) -> None:
    """Until a command fails: the next ones of a section need what it has done."""
    for block in blocks:
        said = ""
        for command in block.commands:
            told.steps += 1
            variables = site.variables_of(block.where)
            status, out = await site.machines.run(block.where, command.text, variables)
            said += out
            if verbose:
                print(f"{block.where}$ {command.text}\n{out}[{status}]", file=sys.stderr)
            if status != command.status:
                raise StepFailed(f"line {block.line}: {command.text}: exit status {status}: {out}")
        if block.printed is not None and (wrong := differs(block.printed, said)):
            raise StepFailed(f"line {block.line}: {wrong}")
