"""The command ``undoubt demo``."""

from __future__ import annotations

import asyncio
import signal

import click
import msgspec

from undoubt.cli.context import Context, common, pass_context
from undoubt.cli.exits import CommandError, Exit
from undoubt.demo.proof import Proof
from undoubt.demo.show import Show, result
from undoubt.demo.stage import next_commands, stage
from undoubt.demo.story import Story


@click.command()
@click.option(
    "--seconds",
    type=click.FloatRange(2, 3600),
    default=20.0,
    show_default=True,
    metavar="N",
    help="How long to transfer money, in all.",
)
@click.option(
    "--ledger",
    type=click.Choice(["raft", "sqlite"]),
    default="raft",
    show_default=True,
    help="Three nodes that keep the ledger, or one file.",
)
@click.option("--keep", is_flag=True, help="Leave the servers running, and print what to try next.")
@common
@pass_context
def demo(context: Context, seconds: float, ledger: str, keep: bool) -> None:
    """Crash real databases and coordinators, recover, and prove that nothing is lost.

    The demo starts two PostgreSQL servers, orders and payments, and three nodes that keep the ledger, and
    runs concurrent transfers between the databases. It then sends SIGKILL to a coordinator between prepare
    and decision, to a coordinator between decision and second phase, to a database server, and to the node
    that leads the ledger. It explains what is left in doubt, runs recovery, and proves that nothing was lost,
    half done or left behind. The exit status is 0 only if that is proved. Everything is removed, except with
    --keep.

    \b
    Example:
      undoubt demo
      undoubt demo --seconds 10 -o json | jq .ok
    """
    try:
        proof = context.run(_run(seconds, keep, cluster=ledger == "raft"))
    except asyncio.CancelledError:
        raise click.Abort from None  # SIGTERM: all processes are stopped already
    if context.output.json:
        click.echo(msgspec.json.encode(proof).decode())
    else:
        result(context.output, proof)
    if not proof.ok:
        raise CommandError(Exit.FAILURE, "the demo did not prove what it should; please report it")


async def _run(seconds: float, keep: bool, *, cluster: bool) -> Proof:
    if (task := asyncio.current_task()) is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    show = Show()
    show.chapter("Two PostgreSQL servers, one for orders, one for payments")
    async with stage(keep=keep, cluster=cluster) as built:
        for name, server in built.servers.items():
            show.say(f"{name}: process {server.pid}, {built.dsns[name]}")
        if built.nodes is not None:
            show.chapter("Three nodes that keep the ledger")
            for number, pid in built.nodes.pids.items():
                show.say(f"node {number}: process {pid}")
        proof = await Story(built, show, seconds).run()
        if keep:
            show.next(next_commands(built))
    return proof
