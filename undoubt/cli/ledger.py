"""``undoubt ledger``: creates, migrates, checks, backs up, restores and moves a ledger."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from undoubt import wiring
from undoubt.cli.context import (
    Context,
    ask_about_lost,
    common,
    must_exist,
    note_option,
    pass_context,
    yes_option,
)
from undoubt.cli.duration import Duration
from undoubt.cli.exits import CommandError, Exit
from undoubt.participants.plural import plural
from undoubt.participants.redact import redact
from undoubt.report.times import iso

if TYPE_CHECKING:
    from undoubt.coordinator.ledger.sqlite.restoring import Restoring
    from undoubt.coordinator.settings import LedgerSettings


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
    help="The former SQLite ledger is lost, without a backup: move its remaining files aside.",
)
@note_option
@yes_option
@common
@pass_context
def init(context: Context, export_secret: Path | None, *, former_lost: bool, note: str, yes: bool) -> None:
    """Create the ledger of the configuration.

    An existing ledger is not changed; its identity and size are shown. If there is none, the participants are
    asked first: if they have branches of a lost ledger, you see them and are asked. If files of a SQLite
    ledger exist whose main file is lost, no ledger is made, unless --former-lost is given: then these files
    are kept under another name, and `recover --adopt` ends the branches of that ledger.

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
        raise click.UsageError("--former-lost: the ledger exists and can be opened; nothing was changed")
    if missing:
        ask_about_lost(context, yes=yes)
    verb = "ledger init"
    if former_lost:
        verb = "ledger init --former-lost"
        context.confirm("Give up the former ledger, and move its remaining files aside?", yes=yes)
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
    """Migrate the ledger's schema to this version.

    First stop everything that uses the ledger, and take a backup. A newer ledger is refused.

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
    """Check the ledger.

    Changes nothing. A SQLite ledger is read as a whole, and must not be in use; of a PostgreSQL ledger the
    rows and the server's settings are checked. Exit status 1 if there is a problem.

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
        raise CommandError(Exit.FAILURE, f"the ledger has {plural(len(problems), 'problem')}")
    context.output.note("the ledger is healthy")


@ledger.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@note_option
@common
@pass_context
def backup(context: Context, file: Path, note: str) -> None:
    """Write a backup of a SQLite ledger to FILE.

    The ledger may be in use. FILE contains the ledger's secret: protect it like a password. It does not
    contain the details of finished transactions.

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
@click.option(
    "--other-ledger",
    is_flag=True,
    help="FILE is a backup of another ledger: give up the one that is there, and keep its files aside.",
)
@note_option
@yes_option
@common
@pass_context
def restore(context: Context, file: Path | None, *, other_ledger: bool, note: str, yes: bool) -> None:
    """Restore a SQLite ledger from the backup FILE; without FILE, accept the ledger's file as it is.

    For a file that is damaged, lost, copied from elsewhere or set back. Nothing may use the ledger meanwhile.
    A new incarnation begins: it lacks the decisions made after the backup, so recovery changes no older
    branch without a decision in it, and `undoubt indoubt list` shows these branches. The former files are
    kept under another name. A backup of another ledger is refused (exit status 5), unless --other-ledger.

    \b
    Example:
      undoubt ledger restore /backups/undoubt-2026-05-01.backup
    """
    from undoubt.coordinator.ledger.maintenance import before_restore  # noqa: PLC0415 - as above
    from undoubt.coordinator.ledger.maintenance import restore as bring_back  # noqa: PLC0415

    settings = context.settings().ledger
    what = f"Accept {redact(settings.url)} as it is?"
    if file is not None:
        what = _from_backup(settings, context.run(before_restore(settings, file)), file, other_ledger)
    context.confirm(f"{what} You decide the branches whose decision it lacks.", yes=yes)
    restored = context.run(bring_back(settings, file, note=note, other_ledger=other_ledger))
    shown = msgspec.to_builtins(restored)
    if context.output.json:
        context.output.document(shown)
        return
    for key, value in (shown | {"backup_at": iso(restored.backup_at)}).items():
        if value is not None:
            context.output.line(f"{key.replace('_', ' '):<16} {value}")
    if restored.instead_of is not None:
        context.output.note(
            f"ledger {restored.instead_of} is given up: what its operators did is only in its former file,"
            f" {restored.kept_as}; recover --adopt {restored.instead_of} ends the branches that it has left"
        )
    context.output.note("next, list what is in doubt: undoubt indoubt list")


def _from_backup(settings: LedgerSettings, would: Restoring, file: Path, other_ledger: bool) -> str:
    """The question before a restore from ``file``. Raises ``CommandError`` if it is a backup of another
    ledger, and that was not asked for."""
    if not would.other:
        return f"Restore {settings.url}, ledger {would.kept}, from {file}?"
    if not other_ledger:
        raise CommandError(Exit.CONFLICT, would.refusal(settings.url, file))
    return (
        f"{file} is a backup of ledger {would.kept}, and {settings.url} is ledger {would.present}. Give up"
        f" {would.present}, with its decisions and what is recorded of its operators, and restore"
        f" {would.kept}? Its files are kept under another name."
    )


@ledger.command()
@click.option("--to", metavar="URL", help="Where the ledger is moved to: there is none there yet.")
@click.option(
    "--wait",
    "wait_s",
    type=Duration(),
    default="0s",
    metavar="DURATION",
    help="How long to wait for sessions of processes that were killed to expire.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be moved.")
@click.option("--undo", is_flag=True, help="Instead: give up a move that is not complete.")
@note_option
@yes_option
@common
@pass_context
def move(  # noqa: PLR0917 - one for each option
    context: Context, to: str | None, wait_s: float, dry_run: bool, undo: bool, note: str, yes: bool
) -> None:
    """Move the ledger to another URL, of any kind.

    Stop all processes that use the ledger first; nodes, databases and etcd run. The old place is sealed:
    from then on it answers nothing, and names the new place. Everything is copied, read back and compared;
    then the old place is marked as moved, and the new one answers, as a new incarnation of the same ledger.
    Afterwards change ledger.url everywhere, and run `undoubt recover --once`.

    If the command fails or is killed, repeat it, or give the move up with --undo as long as the old place is
    not marked as moved.

    \b
    Example:
      undoubt ledger move --to postgresql+psycopg://undoubt@db/ledger --dry-run
      undoubt ledger move --to raft://10.0.0.1:7400,10.0.0.2:7400,10.0.0.3:7400 --wait 30s
      undoubt ledger move --undo
    """
    from undoubt.coordinator.ledger.moving import move as moving  # noqa: PLC0415 - SQLite and drivers come with it

    settings = context.settings()
    if undo == (to is not None) or (undo and dry_run):
        raise click.UsageError("either --to URL or --undo; --dry-run only with --to")
    if to is None:
        undone = context.run(moving.undo(settings.ledger))
        _show(context, {"undone": undone.id, "url": redact(settings.ledger.url), "place": undone.place})
        context.output.note(f"what was copied to {undone.place} is of no use")
        return
    must_exist(settings)
    would = context.run(moving.plan(settings.ledger, to, wait_s=0.0 if dry_run else wait_s))
    if dry_run:
        _show(context, msgspec.to_builtins(would))
        return
    context.confirm(
        f"Move ledger {would.ledger_id} from {would.source} to {would.target}? Nothing can be decided at"
        f" {would.source} any more.",
        yes=yes,
    )
    moved = context.run(
        moving.move(
            settings.ledger,
            to,
            wait_s=wait_s,
            note=note,
            prepared=lambda ledger_id: wiring.prepared_with_acceptors(settings, ledger_id),
        )
    )
    _show(context, msgspec.to_builtins(moved))
    context.output.note(f"next: set ledger.url to {moved.target}; then undoubt recover --once")


def _show(context: Context, shown: dict[str, Any]) -> None:
    if context.output.json:
        context.output.document(shown)
        return
    for key, value in shown.items():
        if isinstance(value, dict):
            for name, count in value.items():
                context.output.line(f"{name:<16} {count}")
        elif isinstance(value, list):
            context.output.line(f"{key.replace('_', ' '):<16} {', '.join(map(str, value)) or 'none'}")
        elif value is not None:
            context.output.line(f"{key.replace('_', ' '):<16} {value}")
