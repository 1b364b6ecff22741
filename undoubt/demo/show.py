"""Prints the demo on stderr, with colour and a progress bar if stderr is a terminal."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from undoubt.cli.explain_page import explain_page
from undoubt.cli.output import Output, printable_lines
from undoubt.demo.proof import Proof
from undoubt.recovery.operator.explain import Explanation
from undoubt.recovery.operator.survey import SurveyedBranch
from undoubt.report.explain import document

REFRESH_S = 0.1
ROWS_MAX = 12


class _Aside(Output):
    """Output for the operator on stderr, besides a command's result."""

    def line(self, text: str = "") -> None:
        click.echo(("  " + printable_lines(text)).rstrip(), err=True)

    def heading(self, text: str) -> None:
        self.line(text)


class Show:
    """Prints one run of the demo."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)

    def chapter(self, title: str) -> None:
        self._console.print()
        self._console.print(Text(title, style="bold"))

    def say(self, text: str) -> None:
        self._console.print(Text(f"  {text}"))

    def death(self, text: str) -> None:
        self._console.print(Text(f"  SIGKILL  {text}", style="bold red"))

    @contextlib.asynccontextmanager
    async def progress(
        self, what: str, seconds: float, begun: asyncio.Event, done: Callable[[], int]
    ) -> AsyncIterator[None]:
        """Show a progress bar during the block, which moves once ``begun`` is set; ``done`` returns the
        number of transfers."""
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[done]} transfers committed"),
            TimeElapsedColumn(),
        )
        with Progress(
            *columns, console=self._console, transient=True, disable=not self._console.is_terminal
        ) as progress:
            moving = asyncio.create_task(self._move(progress, what, seconds, begun, done))
            try:
                yield
            finally:
                moving.cancel()
                await asyncio.gather(moving, return_exceptions=True)
        self.say(f"{what}: {done()} transfers committed so far")

    @staticmethod
    async def _move(
        progress: Progress, what: str, seconds: float, begun: asyncio.Event, done: Callable[[], int]
    ) -> None:
        task = progress.add_task(what, total=seconds, done=done())
        await begun.wait()
        while True:
            await asyncio.sleep(REFRESH_S)
            progress.update(task, advance=REFRESH_S, done=done())

    def in_doubt(self, found: Sequence[SurveyedBranch]) -> None:
        """Print the list of branches. Lines are not wrapped, so that gids can be copied."""
        for one in found[:ROWS_MAX]:
            line = f"  {one.participant:10}{one.standing:11}{one.standing.action:10}{one.branch.gid}"
            self._console.print(Text(line), soft_wrap=True)
        if len(found) > ROWS_MAX:
            self.say(f"… and {len(found) - ROWS_MAX} more")

    def explanation(self, explained: Explanation) -> None:
        self._console.print()
        explain_page(_Aside(), document(explained))

    def next(self, commands: Sequence[tuple[str, str]]) -> None:
        self.chapter("Everything is still running. Try next")
        for why, command in commands:
            self.say(f"# {why}")
            self._console.print(Text(f"  {command}"), soft_wrap=True)


def result(out: Output, proof: Proof) -> None:
    """Print the proof as a table on stdout."""
    killed = proof.kills.leader
    leader = [] if killed is msgspec.UNSET else [("killed during commits", f"{killed} leader of the ledger")]
    out.table(
        ("what", "result"),
        [
            ("transactions", proof.transactions),
            ("committed in both databases", proof.committed),
            ("aborted, in neither", proof.aborted),
            ("killed between prepare and decision", f"{proof.kills.coordinator_before_decision} coordinator"),
            ("killed after the decision", f"{proof.kills.coordinator_after_decision} coordinator"),
            ("killed at work", f"{proof.kills.database} database server"),
            *leader,
            ("in doubt after the crashes", proof.in_doubt_after_crash),
            ("committed by recovery", proof.resolved.committed),
            ("rolled back by recovery", proof.resolved.rolled_back),
            ("in doubt after recovery", proof.in_doubt_after_recovery),
            ("acknowledged and lost", proof.acknowledged_lost),
            ("money before", proof.money_before),
            ("money after", proof.money_after),
            ("proved", "yes" if proof.ok else "NO"),
        ],
    )
