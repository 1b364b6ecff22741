"""``undoubt cluster``: the nodes that keep the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import msgspec

from undoubt.cli.context import Context, common, pass_context
from undoubt.cli.exits import CommandError, Exit

if TYPE_CHECKING:
    from coordinator.ledger.cluster.survey import Survey


@click.group()
def cluster() -> None:
    """The nodes that keep the ledger.

    \b
    Example:
      undoubt cluster init
      undoubt cluster status
    """


@cluster.command()
@click.option("--id", "ticket", metavar="ID", default="", help="What the first node's init printed.")
@common
@pass_context
def init(context: Context, ticket: str) -> None:
    """Make this node one of the first of a new cluster.

    Run it once on each of the nodes that the ledger's URL names: on one of them, which draws the cluster's id
    and prints it, then with that --id on the others. Never use it on a node that has lost its disk: it
    would vote for what it has forgotten. Such a node is removed, and joins again under a new number.

    \b
    Example:
      undoubt cluster init --config node-1.toml
      undoubt cluster init --config node-2.toml --id 4k2j9x0qpa-1f0c77de
    """
    from undoubt.serve import node as serve  # noqa: PLC0415 - recovery and drivers come with it

    begun = serve.init(context.settings(), ticket)
    if context.output.json:
        context.output.document(msgspec.to_builtins(begun))
        return
    context.output.line(begun.ticket)
    if not ticket:
        context.output.note(f"on the other first nodes: undoubt cluster init --id {begun.ticket}")


@cluster.command()
@common
@pass_context
def status(context: Context) -> None:
    """Who leads, who follows, and how far.

    Asks every node that the ledger's URL names, and every member that they name. Exit status 4 if nobody
    leads.

    \b
    Example:
      undoubt cluster status
      undoubt cluster status -o json
    """
    from coordinator.ledger.cluster.survey import survey  # noqa: PLC0415 - as above

    settings = context.settings()
    found = context.run(survey(settings.ledger))
    if context.output.json:
        context.output.document(_document(found))
    else:
        _page(context, found)
    if not found.leader:
        raise CommandError(Exit.UNREACHABLE, "no node leads: nothing can be decided at present")


def _document(found: Survey) -> dict[str, Any]:
    return {
        "cluster": found.cluster,
        "leader": found.leader or None,
        "nodes": [
            {"address": seen.address, "error": seen.error}
            | (msgspec.to_builtins(seen.status, str_keys=True) if seen.status is not None else {})
            for seen in found.nodes
        ],
    }


def _page(context: Context, found: Survey) -> None:
    rows = []
    for seen in found.nodes:
        if (told := seen.status) is None:
            rows.append(("-", seen.address, "does not answer", "-", "-", "-", seen.error))
            continue
        note = "its disk is full" if told.disk_full else ""
        role = "learner" if told.node in told.learners else told.role
        rows.append(
            (
                str(told.node),
                seen.address,
                role,
                str(told.term),
                str(told.commit_index),
                str(told.applied_index),
                note,
            )
        )
    context.output.table(("node", "address", "role", "term", "committed", "applied", "note"), rows)
