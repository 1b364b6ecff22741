"""``undoubt participants``: the databases that take part."""

from __future__ import annotations

import contextlib

import click

from undoubt.cli.context import Context, common, note_option, opened, pass_context, recorded
from undoubt.cli.doctor import older_than_option, report
from undoubt.cli.duration import Duration
from undoubt.cli.exits import CommandError, Exit
from undoubt.config import redact
from undoubt.coordinator.errors import LedgerMissing
from undoubt.coordinator.ledger.acting import new_act
from undoubt.coordinator.settings import PROTOCOLS
from undoubt.doctor import examine
from undoubt.participants.errors import UnknownParticipant
from undoubt.participants.ids import Gid
from undoubt.participants.plural import plural


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

    They are the participants of the configuration. Passwords are not shown; no connection is made.

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


@participants.command()
@click.argument("names", nargs=-1, metavar="[NAME]…")
@older_than_option
@common
@pass_context
def check(context: Context, names: tuple[str, ...], older_than: float) -> None:
    """Check the databases.

    Is each reachable, is it set up for prepared transactions, may its role finish branches of other roles,
    has anything been prepared for too long, and what does that block? Without names: all participants.
    Nothing is changed. Exit status 1 if there is a problem, 4 if the only problem is that one did not answer.

    \b
    Example:
      undoubt participants check orders
    """
    settings = context.settings()
    chosen = names or tuple(sorted(settings.participants))
    for name in chosen:
        if name not in settings.participants:
            raise UnknownParticipant(name, list(settings.participants))
    report(context, context.run(examine(settings, older_than_s=older_than, only=chosen)))


@participants.command()
@click.argument("names", nargs=-1, metavar="[NAME]…")
@click.option("--sql", is_flag=True, help="Print the tables as SQL for a DBA, without connecting.")
@note_option
@common
@pass_context
def migrate(context: Context, names: tuple[str, ...], sql: bool, note: str) -> None:
    """Create or upgrade undoubt's own tables in the databases.

    Three-phase commit needs them. For two-phase commit they are optional: with them, undoubt can prove that a
    one-phase COMMIT whose answer was lost has happened; that costs one small insert per transaction with a
    single writing database. Without names: all participants. The role of the dsn must be allowed to create a
    schema; where another role made the tables, three-phase commit needs select, insert, update and delete on
    undoubt.undoubt_branch, and select on undoubt.undoubt_note and undoubt.undoubt_commit, granted to it.

    \b
    Example:
      undoubt participants migrate orders
      undoubt participants migrate --sql | less
    """
    if sql:
        from undoubt.participants.postgres import schema  # noqa: PLC0415 - SQLAlchemy is slow to import

        click.echo(schema.script(), nl=False)
        return
    settings = context.settings()
    for name in names:
        if name not in settings.participants:
            raise UnknownParticipant(name, list(settings.participants))
    chosen = names or tuple(sorted(settings.participants))
    applied = context.run(_migrate(context, chosen, note))
    if context.output.json:
        context.output.document({"migrated": list(chosen), "applied": applied})
        return
    for name, revisions in applied.items():
        done = f"applied {' '.join(revisions)}" if revisions else "nothing to do"
        context.output.line(f"{name}: {done}, up to date")
    if not applied:
        context.output.note("no participant is configured")


@participants.command()
@click.option(
    "--older-than",
    type=Duration(),
    default=86_400.0,
    show_default="1d",
    metavar="DURATION",
    help="Keep what is younger.",
)
@click.option(
    "--lost-ledger",
    default="",
    metavar="ID",
    help="Also delete what last-agent commits of this ledger, which no longer exists, have left.",
)
@note_option
@common
@pass_context
def prune(context: Context, older_than: float, lost_ledger: str, note: str) -> None:
    """Delete old notes of one-phase commits from the tables that `migrate` made, and rows of locks that no
    branch has guarded for a week.

    A caller asks within seconds after its answer was lost, so one day is enough. What is younger than an
    hour is kept in any case.

    Rows of last-agent commit are deleted by the recovery of their ledger. Those of other ledgers are listed;
    with --lost-ledger they are deleted after a week, if nothing of that ledger is prepared any more.

    \b
    Example:
      undoubt participants prune --older-than 2h
    """
    deleted = context.run(_prune(context, older_than, lost_ledger, note))
    if context.output.json:
        context.output.document(deleted)
    else:
        context.output.table(
            ("participant", "deleted"), [(name, str(count)) for name, count in deleted.items()]
        )


@participants.command()
@click.argument("name")
@click.option(
    "--protocol",
    type=click.Choice([*PROTOCOLS]),
    metavar="PROTOCOL",
    help="The commit protocol.  [default: coordinator.protocol]",
)
@common
@pass_context
def grants(context: Context, name: str, protocol: str | None) -> None:
    """Print the rights that undoubt's role needs, as SQL.

    They are the smallest set for transactions, recovery, deadlock detection and doctor, for the role of the
    dsn, after the owner of the tables has run `undoubt participants migrate`. The rights of the application
    on its own tables are not included. No connection is made.

    \b
    Example:
      undoubt participants grants orders | psql orders
    """
    from undoubt.participants.postgres.roles import grants as rights  # noqa: PLC0415 - libpq is slow to load

    settings = context.settings()
    if name not in settings.participants:
        raise UnknownParticipant(name, list(settings.participants))
    chosen = PROTOCOLS[protocol or settings.coordinator.protocol]
    statements = rights(name, settings.participants[name], protocol=chosen)
    if context.output.json:
        context.output.document(statements)
    else:
        for statement in statements:
            context.output.line(statement)


@participants.command()
@click.argument("name")
@note_option
@common
@pass_context
def restored(context: Context, name: str, note: str) -> None:
    """Declare that a server was cloned, or that its disk was set back.

    What undoubt knows about the branches of a database is valid for one history of it. A promotion, and a
    restore that replays the WAL, begin another history by themselves. A clone, and a disk snapshot that was
    put back, cannot be detected: run this once that server is up, before applications use it. What became of
    branches that were prepared before and are missing is then unknown. Needs the owner of undoubt's tables.

    \b
    Example:
      undoubt participants restored orders
    """
    settings = context.settings()
    if name not in settings.participants:
        raise UnknownParticipant(name, list(settings.participants))
    drawn = context.run(_restored(context, name, note))
    if context.output.json:
        context.output.document({"participant": name, "history": drawn})
    else:
        context.output.line(f"{name} has a new history: {drawn}")
        context.output.note("applications that were connected before use the old history: restart them")


async def _migrate(context: Context, names: tuple[str, ...], note: str) -> dict[str, list[str]]:
    """The revisions that were applied, by participant."""
    from undoubt.participants.postgres import schema  # noqa: PLC0415 - SQLAlchemy is slow to import

    # Often the first command, before any ledger runs; it adds tables and ends no branch.
    applied: dict[str, list[str]] = {}
    act = new_act("participants migrate", " ".join(names), note)
    async with recorded(context, act, needed=False) as came_of:
        for name in names:
            applied[name] = await schema.migrate(name, context.settings().participants[name])
        if not any(applied.values()):
            came_of.result = "nothing: all are up to date"
    return applied


async def _restored(context: Context, name: str, note: str) -> str:
    from undoubt.participants.postgres import schema  # noqa: PLC0415 - SQLAlchemy is slow to import

    async with recorded(context, new_act("participants restored", name, note), needed=True):
        return await schema.restored(name, context.settings().participants[name])


async def _prune(context: Context, older_than_s: float, lost_ledger: str, note: str) -> dict[str, int]:
    from undoubt.participants.postgres import schema  # noqa: PLC0415 - SQLAlchemy is slow to import

    chosen = sorted(context.settings().participants.items())
    if lost_ledger:
        await _refuse_needed(context, lost_ledger)
    act = new_act("participants prune", " ".join((*(name for name, _ in chosen), lost_ledger)).strip(), note)
    async with recorded(context, act, needed=True) as came_of:
        deleted = {
            name: await schema.prune(name, one, older_than_s=older_than_s, lost_ledger=lost_ledger)
            for name, one in chosen
        }
        if not any(deleted.values()):
            came_of.result = "nothing: no note is that old"
    await _list_others(context)
    return deleted


async def _refuse_needed(context: Context, ledger_id: str) -> None:
    """Raises ``CommandError`` if rows of last-agent commit of that ledger may still be needed."""
    async with opened(context) as tools:
        if tools.ledger.ledger_id == ledger_id:
            why = f"{ledger_id} is the ledger of this installation, whose recovery deletes its rows"
            raise CommandError(Exit.CONFLICT, why)
        for participant in tools.participants:
            if ledger_id in participant.other_ledgers:
                why = f"{ledger_id} is named in participants.{participant.name}.other_ledgers: it is in use"
                raise CommandError(Exit.CONFLICT, why)
            gids = [row.gid for row in await participant.in_doubt()]
            if any(isinstance(gid, Gid) and gid.ledger == ledger_id for gid in gids):
                raise CommandError(
                    Exit.CONFLICT,
                    f"branches of ledger {ledger_id} are still prepared in {participant.name!r}, and rows may"
                    f" prove their outcome: end them first, by undoubt recover --adopt {ledger_id}",
                )


async def _list_others(context: Context) -> None:
    """Tell which ledgers other than this one have left rows of last-agent commit."""
    from undoubt.participants.postgres import schema  # noqa: PLC0415 - SQLAlchemy is slow to import

    with contextlib.suppress(LedgerMissing):
        async with opened(context) as tools:
            own = tools.ledger.ledger_id
            for name, one in sorted(context.settings().participants.items()):
                found = await schema.agent_ledgers(name, one)
                for ledger_id, count in found.items():
                    if ledger_id != own and ledger_id not in one.other_ledgers:
                        context.output.note(
                            f"{name}: {plural(count, 'row')} of last-agent commit of another ledger,"
                            f" {ledger_id}"
                        )
