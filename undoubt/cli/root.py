"""The command ``undoubt``: its subcommands by name, each imported only when it is used."""

from __future__ import annotations

import importlib
from typing import NamedTuple

import click
from click.shell_completion import CompletionItem

import undoubt
from undoubt.cli.context import common


class LazyCommand(NamedTuple):
    """The place of a command, and its line in ``undoubt --help``, which imports no command."""

    module: str
    attribute: str
    help: str


COMMANDS: dict[str, LazyCommand] = {
    "demo": LazyCommand(
        "undoubt.demo.command", "demo", "Real databases, real crashes, recovery, and the proof."
    ),
    "indoubt": LazyCommand("undoubt.cli.indoubt", "indoubt", "See, explain and resolve branches in doubt."),
    "tx": LazyCommand("undoubt.cli.tx", "tx", "Look up transactions."),
    "locks": LazyCommand("undoubt.cli.locks", "locks", "See distributed locks, and release one."),
    "audit": LazyCommand("undoubt.cli.audit", "audit", "What operators did: who, when, why."),
    "recover": LazyCommand(
        "undoubt.cli.recover", "recover", "Resolve what is in doubt, once or continuously."
    ),
    "relay": LazyCommand("undoubt.cli.relay", "relay", "Deliver what transactions have published."),
    "participants": LazyCommand(
        "undoubt.cli.participants", "participants", "List, check and migrate the databases."
    ),
    "ledger": LazyCommand("undoubt.cli.ledger", "ledger", "Create, migrate and check the ledger."),
    "doctor": LazyCommand("undoubt.cli.doctor", "doctor", "Check everything, and print the repairs."),
    "cluster": LazyCommand("undoubt.cli.cluster", "cluster", "Make and manage the nodes of the ledger."),
    "node": LazyCommand("undoubt.cli.node", "node", "Run a node of the ledger's cluster."),
    "sidecar": LazyCommand("undoubt.cli.sidecar", "sidecar", "Serve transactions over HTTP."),
    "health": LazyCommand("undoubt.cli.health", "health", "Whether a node or sidecar lives: for probes."),
    "dev": LazyCommand("undoubt.cli.dev", "dev", "A whole system to try things on, until Ctrl-C."),
    "bench": LazyCommand("undoubt.bench.command", "bench", "Measure commits against hand-written scripts."),
    "completion": LazyCommand(
        "undoubt.cli.completion", "completion", "Print the completion script of a shell."
    ),
}


class Lazy(click.Group):
    """A group whose commands are named in a table and imported when one is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = getattr(importlib.import_module(entry.module), entry.attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{entry.module}.{entry.attribute} is not a command")
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names from the table: completing a word imports no command."""
        names = [
            CompletionItem(name, help=entry.help)
            for name, entry in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


@click.group(
    cls=Lazy,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="First steps: undoubt demo. Then: undoubt ledger init, and undoubt indoubt list.",
)
@click.version_option(undoubt.__version__, prog_name="undoubt", message="%(prog)s %(version)s")
@common
def root() -> None:
    """One atomic commit across several PostgreSQL databases, and nothing left in doubt.

    Results go to stdout, everything else to stderr. Exit status: 0 ok, 1 failure, 2 usage, 3 not found,
    4 no quorum or unreachable, 5 conflicts with a recorded decision, 6 timeout, 7 in doubt found by
    `indoubt check`.
    """
