"""``undoubt participants``: the databases that take part."""

from __future__ import annotations

import click

from undoubt.cli.context import Context, common, pass_context
from undoubt.config import redact


@click.group()
def participants() -> None:
    """The databases that take part in transactions.

    \b
    Example:
      undoubt participants list
    """


@participants.command("list")
@common
@pass_context
def list_(context: Context) -> None:
    """List the participants.

    They are those of the configuration. Passwords are not shown; nothing is connected to.

    \b
    Example:
      undoubt participants list -o json
    """
    settings = context.settings()
    found = sorted(settings.participants.items())
    if context.output.json:
        context.output.document(
            [
                {
                    "name": name,
                    "driver": one.driver,
                    "dsn": redact(one.dsn),
                    "connections_max": one.connections_max,
                    "pooler": one.pooler,
                }
                for name, one in found
            ]
        )
        return
    context.output.table(
        ("participant", "driver", "dsn"), [(name, one.driver, redact(one.dsn)) for name, one in found]
    )
    if not found:
        where = settings.file or "undoubt.toml"
        context.output.note(
            f"no participant is configured; add [participants.orders] with its dsn to {where}"
        )
