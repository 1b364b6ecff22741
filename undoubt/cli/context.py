"""What every command shares: the flags of all commands, the settings, the opened ledger."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from undoubt import wiring
from undoubt.cli.exits import CommandError, Exit
from undoubt.cli.output import JSON, TABLE, Output
from undoubt.config import Settings, load
from undoubt.coordinator.errors import LedgerError, LedgerMisconfigured, LedgerMissing

if TYPE_CHECKING:
    from undoubt.coordinator.ledger.acting import CameOf
    from undoubt.coordinator.ledger.contract import Act, Ledger
    from undoubt.participants.registry import Registry

NO_LEDGER = "0" * 10
"""Stands for the id of a ledger that does not answer."""

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


@dataclass
class Context:
    """One run of the command line. Flags may stand before or after the command; the later one wins."""

    config: str | None = None
    debug: bool = False
    output: Output = field(default_factory=Output)

    def settings(self) -> Settings:
        """Raises ``ConfigurationError``."""
        return load(self.config)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run(work)

    def confirm(self, question: str, *, yes: bool) -> None:
        """Ask before an irreversible act. Without a terminal and without ``--yes`` it is refused."""
        if yes:
            return
        if not sys.stdin.isatty():
            raise CommandError(Exit.USAGE, f"{question}\nstdin is not a terminal: pass --yes to confirm")
        if not click.confirm(question, err=True):
            raise CommandError(Exit.FAILURE, "nothing was done")


@dataclass(frozen=True)
class OpenedLedger:
    """An opened ledger and the participants beside it."""

    settings: Settings
    ledger: Ledger
    participants: Registry


@contextlib.asynccontextmanager
async def opened(context: Context, *, serves: bool = False) -> AsyncIterator[OpenedLedger]:
    """The ledger of the settings, which must exist, and every participant. Both are closed on exit.
    ``serves``: see ``open_ledger``."""
    settings = context.settings()
    must_exist(settings)
    async with wiring.opened(settings, serves=serves) as (ledger, participants):
        yield OpenedLedger(settings, ledger, participants)


@contextlib.asynccontextmanager
async def recorded(context: Context, act: Act, *, needed: bool) -> AsyncIterator[CameOf]:
    """Record an act on participants around the body. The body also runs without a ledger, and, unless
    ``needed``, with a ledger that does not answer; a note then says that nothing is recorded."""
    from undoubt.coordinator.ledger.acting import CameOf, acting  # noqa: PLC0415 - only who acts needs it

    came_of = CameOf()
    async with contextlib.AsyncExitStack() as stack:
        try:
            tools = await stack.enter_async_context(opened(context))
            came_of = await stack.enter_async_context(acting(tools.ledger, act))
        except LedgerError as error:
            if isinstance(error, LedgerMisconfigured) or (needed and not isinstance(error, LedgerMissing)):
                raise
            context.output.note(f"{act.verb} is not recorded: {error}")
        yield came_of


@contextlib.asynccontextmanager
async def without_ledger(context: Context) -> AsyncIterator[Registry]:
    """All participants, for reading while the ledger does not answer."""
    participants = wiring.registry(context.settings(), NO_LEDGER)
    try:
        yield participants
    finally:
        await participants.close()


def must_exist(settings: Settings) -> None:
    """Only ``ledger init`` and applications create a ledger. Otherwise a command in the wrong folder would
    make an empty ledger, to which every branch in doubt belongs to another ledger."""
    url = settings.ledger.url
    if not url.startswith("sqlite:///"):
        return
    from undoubt.coordinator.ledger.disk import usable  # noqa: PLC0415 - SQLite comes with it
    from undoubt.coordinator.ledger.sqlite import ledger_files  # noqa: PLC0415 - as above

    path = Path(url.removeprefix("sqlite:///"))
    with usable(path):
        if path.exists():
            return
        ledger_files.check_absent(path)
        where = settings.file or "no configuration file was found: pass --config"
        raise LedgerMissing(f"no ledger at {url} ({where}); to make a new one: undoubt ledger init")


def ask_about_lost(context: Context, *, yes: bool) -> None:
    """Before a ledger is made: show the branches that an earlier ledger has left and the participants that do
    not answer, and ask whether to make the ledger in spite of them."""
    left = context.run(wiring.left_prepared(context.settings()))
    for name, error in left.unreachable.items():
        context.output.note(f"participant {name!r} was not asked for branches of a lost ledger: {error}")
    if left.branches:
        context.confirm(
            f"{left.in_words()}. Find or restore that ledger, unless it is lost. Make a new one?"
            f" It has no decisions about these branches; `undoubt recover --adopt {left.ledgers[0]}` ends"
            " them.",
            yes=yes,
        )


pass_context = click.make_pass_decorator(Context, ensure=True)


json_log = click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="json",
    show_default=True,
    help="What it writes on stderr while it runs: lines of text, or of JSON.",
)
"""The option of services whose log is read by machines unless told otherwise."""


def common(command: F) -> F:
    """The flags that every command takes."""
    for option in (
        click.option(
            "--debug", is_flag=True, expose_value=False, callback=_debug, help="Show tracebacks of errors."
        ),
        click.option(
            "--config",
            type=click.Path(),
            metavar="FILE",
            expose_value=False,
            callback=_config,
            help="Configuration file [default: $UNDOUBT_CONFIG, then ./undoubt.toml].",
        ),
        click.option(
            "-o",
            "--output",
            type=click.Choice([TABLE, JSON]),
            expose_value=False,
            callback=_output,
            help="How to print results [default: table].",
        ),
    ):
        command = option(command)
    return command


def yes_option(command: F) -> F:
    """For what destroys."""
    return click.option("-y", "--yes", is_flag=True, help="Do not ask.")(command)


def note_option(command: F) -> F:
    """The flag ``--note`` of all acts of an operator."""
    return click.option("--note", default="", metavar="TEXT", help="Why, for the record.")(command)


def _config(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.ensure_object(Context).config = value


def _debug(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Context).debug = True


def _output(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.ensure_object(Context).output.form = value
