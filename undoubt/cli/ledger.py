"""``undoubt ledger``: create it, bring it up to date, look it over."""

from __future__ import annotations

import click
import msgspec

from undoubt.cli.context import Context, common, must_exist, pass_context
from undoubt.cli.exits import CommandError, Exit


@click.group()
def ledger() -> None:
    """Create, migrate and check the ledger.

    \b
    Example:
      undoubt ledger init
      undoubt ledger check
    """


@ledger.command()
@common
@pass_context
def init(context: Context) -> None:
    """Create the ledger of the configuration.

    An existing one is left as it is. Its identity and size are shown.

    \b
    Example:
      undoubt ledger init
    """
    # SQLAlchemy comes with it, which `undoubt ledger --help` can do without.
    from coordinator.ledger.maintenance import init as create  # noqa: PLC0415

    shown = msgspec.to_builtins(context.run(create(context.settings().ledger)))
    if context.output.json:
        context.output.document(shown)
        return
    for key, value in shown.items():
        context.output.line(f"{key.replace('_', ' '):<16} {value}")


@ledger.command()
@common
@pass_context
def migrate(context: Context) -> None:
    """Bring the ledger's schema up to this version.

    Stop everything that uses it, and take a backup, before. A newer ledger is refused.

    \b
    Example:
      undoubt ledger migrate
    """
    from coordinator.ledger.maintenance import migrate as upgrade  # noqa: PLC0415 - as above

    must_exist(context.settings())
    applied = context.run(upgrade(context.settings().ledger))
    if context.output.json:
        context.output.document({"applied": applied})
        return
    for revision in applied:
        context.output.line(f"applied {revision}")
    if not applied:
        context.output.note("the ledger is up to date")


@ledger.command()
@common
@pass_context
def check(context: Context) -> None:
    """Look the ledger over.

    Changes nothing. A SQLite ledger is read whole, and must not be in use; of a PostgreSQL one the rows and
    the server's settings are looked over. Exit status 1 if anything is wrong.

    \b
    Example:
      undoubt ledger check -o json
    """
    from coordinator.ledger.maintenance import check as look_over  # noqa: PLC0415 - as above

    must_exist(context.settings())
    problems = context.run(look_over(context.settings().ledger))
    if context.output.json:
        context.output.document({"healthy": not problems, "problems": problems})
    else:
        for problem in problems:
            context.output.line(problem)
    if problems:
        raise CommandError(Exit.FAILURE, f"the ledger has {len(problems)} problems")
    context.output.note("the ledger is healthy")
