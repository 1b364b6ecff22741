"""``undoubt doctor``: checks everything at once."""

from __future__ import annotations

import itertools
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from undoubt.cli.context import Context, common, pass_context
from undoubt.cli.duration import Duration
from undoubt.cli.exits import CommandError, Exit
from undoubt.cli.output import Output, printable, styled
from undoubt.doctor import examine
from undoubt.participants.findings import Finding, Severity
from undoubt.report import shapes

F = TypeVar("F", bound=Callable[..., Any])

WIDTH = 96
_COLOURS = {
    Severity.OK: "green",
    Severity.WARNING: "yellow",
    Severity.UNREACHABLE: "red",
    Severity.PROBLEM: "red",
}


def older_than_option(command: F) -> F:
    """The age from which a prepared transaction counts as left behind."""
    return click.option(
        "--older-than",
        type=Duration(),
        default=300.0,
        show_default="5m",
        metavar="DURATION",
        help="Younger branches are left to recovery.",
    )(command)


@click.command()
@older_than_option
@common
@pass_context
def doctor(context: Context, older_than: float) -> None:
    """Check configuration, ledger and databases.

    For each problem it prints the consequence, and the line that repairs it. Nothing is changed. Exit status
    1 if there is a problem, 4 if the only problem is that something did not answer; 0 with warnings only.

    \b
    Example:
      undoubt doctor
      undoubt doctor -o json | jq '.findings[] | select(.severity != "ok")'
    """
    report(context, context.run(examine(context.settings(), older_than_s=older_than)))


def report(context: Context, findings: Sequence[Finding]) -> None:
    """Print the findings; raises ``CommandError`` if there is a problem, or something did not answer."""
    count = Counter(finding.severity for finding in findings)
    healthy = not count[Severity.PROBLEM] and not count[Severity.UNREACHABLE]
    if context.output.json:
        context.output.document(
            {"healthy": healthy, "findings": [shapes.finding(finding) for finding in findings]}
        )
    else:
        _page(context.output, findings)
    if healthy:
        warnings = count[Severity.WARNING]
        context.output.note(f"no problems; warnings: {warnings}" if warnings else "all is well")
        return
    status = Exit.FAILURE if count[Severity.PROBLEM] else Exit.UNREACHABLE
    raise CommandError(
        status,
        f"problems: {count[Severity.PROBLEM]}; no answer: {count[Severity.UNREACHABLE]};"
        f" warnings: {count[Severity.WARNING]}",
    )


def _page(out: Output, findings: Sequence[Finding]) -> None:
    width = max((len(finding.check) for finding in findings), default=0)
    for number, (participant, group) in enumerate(
        itertools.groupby(findings, key=lambda one: one.participant)
    ):
        if number:
            out.line()
        out.heading(participant or "undoubt")
        for finding in group:
            word = f"{finding.severity:<11}"
            shown = click.style(word, fg=_COLOURS[finding.severity]) if styled() else word
            out.line(f"  {shown}  {finding.check:<{width}}  {printable(finding.what)}")
            for line in textwrap.wrap(finding.why, WIDTH, break_long_words=False, break_on_hyphens=False):
                out.line(f"      {line}")
            for line in (finding.fix or "").splitlines():
                out.line(f"    {line}")
