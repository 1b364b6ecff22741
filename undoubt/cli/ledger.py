"""``undoubt ledger``: create it, bring it up to date, look it over, back it up, bring it back."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from undoubt.cli.context import (
    Context,
    ask_about_lost,
    common,
    must_exist,
    note_option,
    pass_context,
    yes_option,
)
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
@click.option(
    "--export-secret",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the ledger's secret to FILE, for `undoubt recover --adopt` when the ledger is lost.",
)
@click.option(
    "--former-lost",
    is_flag=True,
    help="The former SQLite ledger is lost, without a backup: put aside what is left of it.",
)
@note_option
@yes_option
@common
@pass_context
def init(context: Context, export_secret: Path | None, *, former_lost: bool, note: str, yes: bool) -> None:
    """Create the ledger of the configuration.

    An existing one is left as it is. Its identity and size are shown. Where there is none, the participants
    are asked first: if they have branches of a ledger that was lost, you are told, and asked. Where files of
    a SQLite ledger lie whose main file is lost, none is made, unless --former-lost is given: they are kept
    under another name, and `recover --adopt` ends what that ledger has left.

    \b
    Example:
      undoubt ledger init
      undoubt ledger init --former-lost
      undoubt ledger init --export-secret /safe/undoubt.secret
    """
    # SQLAlchemy comes with it, which `undoubt ledger --help` can do without.
    from undoubt.coordinator.ledger.maintenance import export_secret as export  # noqa: PLC0415 - as above
    from undoubt.coordinator.ledger.maintenance import init as create  # noqa: PLC0415
    from undoubt.coordinator.ledger.maintenance import is_missing, put_aside  # noqa: PLC0415 - as above

    settings = context.settings().ledger
    missing = context.run(is_missing(settings))
    if former_lost and not missing:
        raise click.UsageError("--former-lost: there is a ledger, and it can be opened; nothing was changed")
    if missing:
        ask_about_lost(context, yes=yes)
    verb = "ledger init"
    if former_lost:
        verb = "ledger init --former-lost"
        context.confirm("Give up the former ledger, and put aside what is left of it?", yes=yes)
        if (kept := context.run(put_aside(settings))) is not None:
            context.output.note(f"what was left of the former ledger is kept as {kept}")
    shown = msgspec.to_builtins(context.run(create(settings, note=note, verb=verb)))
    if export_secret is not None:
        context.run(export(settings, export_secret.absolute(), note=note))
    if context.output.json:
        context.output.document(shown)
        return
    for key, value in shown.items():
        context.output.line(f"{key.replace('_', ' '):<16} {value}")


@ledger.command()
@note_option
@common
@pass_context
def migrate(context: Context, note: str) -> None:
    """Bring the ledger's schema up to this version.

    Stop everything that uses it, and take a backup, before. A newer ledger is refused.

    \b
    Example:
      undoubt ledger migrate
    """
    from undoubt.coordinator.ledger.maintenance import migrate as upgrade  # noqa: PLC0415 - as above

    must_exist(context.settings())
    applied = context.run(upgrade(context.settings().ledger, note=note))
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
    from undoubt.coordinator.ledger.maintenance import check as look_over  # noqa: PLC0415 - as above

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


@ledger.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@note_option
@common
@pass_context
def backup(context: Context, file: Path, note: str) -> None:
    """Write a backup of a SQLite ledger to FILE.

    Also while it is in use. FILE holds the ledger's secret: keep it as you keep passwords. Details of
    finished transactions are not in it.

    \b
    Example:
      undoubt ledger backup /backups/undoubt-2026-05-01.backup
    """
    from undoubt.coordinator.ledger.maintenance import backup as write  # noqa: PLC0415 - as above

    must_exist(context.settings())
    size = context.run(write(context.settings().ledger, file.absolute(), note=note))
    if context.output.json:
        context.output.document({"file": str(file), "size_bytes": size})
    else:
        context.output.line(f"{file}  {size} bytes")


@ledger.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@note_option
@yes_option
@common
@pass_context
def restore(context: Context, file: Path | None, note: str, yes: bool) -> None:
    """Make a SQLite ledger anew from the backup FILE; without FILE, believe the ledger's file as it is.

    For a file that is damaged, was lost, was copied from elsewhere or set back. Nobody may use the ledger
    meanwhile. A new incarnation begins: what was decided after the backup is not known to it, so recovery
    touches no branch of before that is undecided there, and shows them to you (`undoubt indoubt list`). All
    that was there before is kept under another name.

    \b
    Example:
      undoubt ledger restore /backups/undoubt-2026-05-01.backup
    """
    from undoubt.coordinator.ledger.maintenance import restore as bring_back  # noqa: PLC0415 - as above

    settings = context.settings().ledger
    what = f"Make {settings.url} anew from {file}?" if file else f"Believe {settings.url} as it is?"
    context.confirm(f"{what} What it has forgotten is left to you to decide.", yes=yes)
    restored = context.run(bring_back(settings, file, note=note))
    shown = msgspec.to_builtins(restored)
    if context.output.json:
        context.output.document(shown)
        return
    for key, value in shown.items():
        if value is not None:
            context.output.line(f"{key.replace('_', ' '):<16} {value}")
    context.output.note("now look at what is in doubt: undoubt indoubt list")
