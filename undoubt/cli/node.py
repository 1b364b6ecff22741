"""``undoubt node``: a member of the ledger's cluster."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable

import click

from undoubt import logs
from undoubt.cli.context import Context, common, pass_context
from undoubt.serve.loop import fastest_loop

log = logging.getLogger(__name__)


@click.command()
@click.option("--insecure", is_flag=True, help="Listen for other machines without TLS.")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="The format of its log on stderr: lines of text, or of JSON.",
)
@common
@pass_context
def node(context: Context, insecure: bool, log_format: str) -> None:
    """Run a node of the ledger's cluster until interrupted.

    `undoubt cluster init` makes the first nodes of a cluster. While it leads, the node also resolves what is
    in doubt in the participants of its configuration. SIGTERM and SIGINT stop it in order: a leader first
    transfers leadership.

    \b
    Example:
      undoubt node --config undoubt.toml
      undoubt node --log-format json
    """
    logs.to_stderr(json_lines=log_format == "json", level=logging.DEBUG if context.debug else logging.INFO)
    with asyncio.Runner(loop_factory=fastest_loop()) as runner:
        runner.run(_run(context, insecure, log.info if log_format == "json" else context.output.note))


async def _run(context: Context, insecure: bool, say: Callable[[str], None]) -> None:
    # A late import: `undoubt node --help` does not need SQLite, the wire and recovery.
    from undoubt.serve.node import run  # noqa: PLC0415

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await run(context.settings(), stop, say, insecure=insecure)
