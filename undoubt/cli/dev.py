"""``undoubt dev``: a whole system on a laptop."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import click
import msgspec

from undoubt.cli.context import Context, common, pass_context
from undoubt.cli.sidecar import needs_extra

if TYPE_CHECKING:
    from undoubt.serve.local.system import System


@click.command()
@common
@pass_context
def dev(context: Context) -> None:
    """A whole system to try things on: databases, ledger, sidecar.

    Two PostgreSQL servers of its own with a small schema, orders and payments, three nodes that keep the
    ledger, and a sidecar. What is needed to use them is printed once all of it serves. Kill any of its
    processes: it is started again. Ctrl-C and SIGTERM end it, and nothing of it stays. Needs the extras: pip
    install 'undoubt[demo,sidecar]'.

    \b
    Example:
      undoubt dev
      undoubt dev -o json
    """
    needs_extra("dev")
    context.run(_run(context))


async def _run(context: Context) -> None:
    from undoubt.serve.local.dev import run  # noqa: PLC0415 - `undoubt dev --help` does without the servers

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    context.output.note("starting two databases, three nodes and a sidecar")
    await run(stop, lambda built: _ready(context, built), context.output.note)


def _ready(context: Context, built: System) -> None:
    if context.output.json:
        document = {
            "sidecar": built.sidecar,
            "console": built.console,
            "token": built.token,
            "nodes": built.nodes,
            "participants": built.participants,
            "config": str(built.config),
        }
        click.echo(msgspec.json.encode(document).decode())
        return
    out = context.output
    out.table(
        ("what", "where"),
        [
            ("sidecar", built.sidecar),
            ("console", built.console),
            ("token", built.token),
            *((f"node {number}", address) for number, address in enumerate(built.nodes, 1)),
            *((f"database {name}", dsn) for name, dsn in built.participants.items()),
            ("configuration", built.config),
        ],
    )
    for each, _ in built.kept:
        out.note(f"{each.name}: process {each.pid}")
    out.note("Ctrl-C ends it and removes everything. To begin a transaction:")
    out.note(
        f"curl -s {built.sidecar}/v1/transactions -H 'Authorization: Bearer {built.token}' --json '{{}}'"
    )
