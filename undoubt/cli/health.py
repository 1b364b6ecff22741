"""``undoubt health``: whether a node or a sidecar of this machine lives, for probes of containers."""

from __future__ import annotations

import click

from undoubt.cli.context import Context, common, pass_context
from undoubt.cli.duration import Duration
from undoubt.cli.exits import CommandError, Exit


@click.command()
@click.argument("service", type=click.Choice(["node", "sidecar"]))
@click.option("--ready", is_flag=True, help="Whether it can be counted on, not only whether it lives.")
@click.option(
    "--timeout",
    type=Duration(),
    default=3.0,
    show_default="3s",
    metavar="DURATION",
    help="When it counts as dead.",
)
@common
@pass_context
def health(context: Context, service: str, ready: bool, timeout: float) -> None:
    """Ask the node or the sidecar of this configuration whether it lives.

    For health checks of containers, which run a command. A node is asked at `node.health`, a sidecar at its
    socket or its address. Exit status 4 if it does not answer, or with --ready: if it is not ready.

    \b
    Example:
      undoubt health node --config undoubt.toml
      undoubt health sidecar --ready
    """
    from undoubt.serve import probe  # noqa: PLC0415 - SSL and HTTP come with it

    connect = probe.node if service == "node" else probe.sidecar
    path = "/readyz" if ready else "/livez"
    try:
        probe.ask(connect(context.settings()), path, timeout)
    except probe.NotHealthy as error:
        raise CommandError(Exit.UNREACHABLE, f"{service}: {error}") from None
    if context.output.json:
        context.output.document({"ok": True})
    else:
        context.output.line("ready" if ready else "alive")
