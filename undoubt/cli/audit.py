"""``undoubt audit``: who did what, when and why."""

from __future__ import annotations

import click

from undoubt.cli.context import Context, common, opened, pass_context
from undoubt.coordinator.ledger.contract import ACTS_MAX, Act
from undoubt.report import shapes
from undoubt.report.times import iso


@click.command()
@click.option(
    "-n", "--limit", type=click.IntRange(1, ACTS_MAX), default=50, show_default=True, help="At most so many."
)
@common
@pass_context
def audit(context: Context, limit: int) -> None:
    """List what operators did, newest first.

    Each act is recorded before it is carried out, with the process's system user, with the name in its
    certificate if the ledger is raft://, and with --note. Its result is recorded afterwards; `-` means that
    the process ended in between. The newest 5,000 acts are kept.

    \b
    Example:
      undoubt audit
      undoubt audit -o json | jq '.[] | select(.verb | startswith("tx resolve"))'
    """
    acts = context.run(_acts(context, limit))
    if context.output.json:
        context.output.document([shapes.act(one) for one in acts])
        return
    context.output.table(
        ("when", "who", "certificate", "act", "what", "result", "note"),
        [
            (
                iso(one.at),
                one.who or "-",
                one.certificate or "-",
                one.verb,
                one.subject,
                one.result or "-",
                one.note,
            )
            for one in acts
        ],
    )
    if not acts:
        context.output.note("no act of an operator is recorded")


async def _acts(context: Context, limit: int) -> list[Act]:
    """The acts by the time at which they began. They are recorded a little later, some only when they have
    ended, so the ledger has them in another order."""
    async with opened(context) as tools:
        acts = await tools.ledger.acts(limit=ACTS_MAX)
    return sorted(acts, key=lambda act: act.at, reverse=True)[:limit]
