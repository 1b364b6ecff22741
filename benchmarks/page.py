"""Writes the figures into the pages of documentation: each block of a page is what one command printed.

A block is between ``<!-- figures: NAME -->`` and ``<!-- end of figures -->``; its first line says which
command printed it. Nobody edits a block by hand.

    python -m benchmarks.page            all blocks
    python -m benchmarks.page raft leader
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import msgspec

from benchmarks.table import tables
from undoubt.bench.figures import Figures

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("performance.md", "performance-background.md")
BLOCK = re.compile(r"<!-- figures: (?P<name>[a-z-]+) -->\n(?P<text>.*?)<!-- end of figures -->", re.DOTALL)


class Block(NamedTuple):
    """``command``: its arguments after ``python -m``. ``comparison``: it prints the JSON of ``undoubt
    bench``."""

    command: str
    comparison: bool = False


def _comparison(arguments: str) -> Block:
    return Block(f"undoubt bench --output json {arguments}", comparison=True)


BLOCKS = {
    "sqlite": _comparison(
        "--seconds 30 --concurrency 1,32"
        " --contenders local,naive,sqlalchemy,undoubt-sqlite,undoubt-sqlite-sync"
    ),
    "raft": _comparison(
        "--seconds 60 --concurrency 1,32"
        " --contenders naive,sqlalchemy,undoubt-raft,undoubt-raft-sync,undoubt-raft-3pc,undoubt-raft-paxos"
    ),
    "sidecar": _comparison(
        "--seconds 30 --concurrency 1,32 --contenders undoubt-raft,undoubt-sidecar,undoubt-sidecar-sql"
    ),
    "distance": _comparison(
        "--rtt 1 --seconds 30 --concurrency 1"
        " --contenders naive,undoubt-sqlite,undoubt-raft,undoubt-raft-3pc,undoubt-raft-paxos"
    ),
    "leader": Block("benchmarks.leader --kills 10 --stops 10"),
    "recovery": Block("benchmarks.in_doubt"),
    "concurrency": Block("benchmarks.growth concurrency"),
    "branches": Block("benchmarks.growth branches"),
    "backlog": Block("benchmarks.growth backlog"),
    "finished": Block("benchmarks.growth finished"),
    "nodes": Block("benchmarks.growth nodes"),
    "where": Block("benchmarks.where --seconds 10"),
    "etcd": Block("benchmarks.ledger --seconds 20"),
    "etcd-client": Block("benchmarks.etcd_client --seconds 8"),
}


def found() -> dict[str, str]:
    """The page of each block that the documentation contains."""
    return {match["name"]: page for page in PAGES for match in BLOCK.finditer((DOCS / page).read_text())}


def measured(name: str) -> str:
    """Run the command of a block; return the block's text."""
    block = BLOCKS[name]
    ran = subprocess.run(
        [sys.executable, "-m", *block.command.split()],
        cwd=DOCS.parent,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    text = tables(msgspec.json.decode(ran.stdout, type=Figures)) if block.comparison else ran.stdout
    return f"{heading(name)}\n\n{text.strip()}\n"


def heading(name: str) -> str:
    """The first line of a block."""
    command = BLOCKS[name].command.replace("--output json ", "")
    return f"`{command if command.startswith('undoubt') else f'python -m {command}'}`:"


def write(name: str, text: str) -> None:
    """Replace one block. Raises ``LookupError`` if no page contains it."""
    path = DOCS / found()[name]
    path.write_text(
        BLOCK.sub(
            lambda old: (
                f"<!-- figures: {name} -->\n{text}<!-- end of figures -->" if old["name"] == name else old[0]
            ),
            path.read_text(),
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("blocks", nargs="*", metavar="BLOCK", help=", ".join(BLOCKS))
    options = parser.parse_args()
    if unknown := set(options.blocks) - set(BLOCKS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    for name in options.blocks or BLOCKS:
        print(f"{name}: {BLOCKS[name].command}", file=sys.stderr)
        write(name, measured(name))


if __name__ == "__main__":
    main()
