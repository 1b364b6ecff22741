"""``undoubt recover``: recovery by hand."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from typing import Any

import click
import msgspec

from undoubt import wiring
from undoubt.cli.adopt import Wishes, adopt, adopt_options
from undoubt.cli.context import NO_LEDGER, Context, common, note_option, opened, pass_context, yes_option
from undoubt.cli.exits import CommandError, Exit
from undoubt.coordinator.errors import LedgerError
from undoubt.coordinator.ledger.acting import acting, new_act
from undoubt.participants.plural import plural
from undoubt.recovery.report import Report, ReportedBranch
from undoubt.recovery.service import RecoveryService
from undoubt.recovery.without_ledger import WithoutLedger

ENDING = {"commit", "rollback", "terminate", "heuristic"}
"""The actions of recovery that leave a trace: a branch is ended, or recorded."""
PAUSE_S = 1.0
"""Pause between two passes without a ledger."""


@click.command()
@click.option("--once", is_flag=True, help="One pass over every participant, then end.")
@click.option("--dry-run", is_flag=True, help="Show what one pass would do, and change nothing.")
@click.option(
    "--without-ledger", is_flag=True, help="The ledger is destroyed: end the branches of three-phase commit."
)
@click.option(
    "--ledger-id", metavar="ID", help="With --without-ledger: the ledger, if there are branches of several."
)
@adopt_options
@note_option
@yes_option
@common
@pass_context
def recover(
    context: Context,
    /,
    *,
    once: bool,
    dry_run: bool,
    without_ledger: bool,
    ledger_id: str | None,
    note: str,
    yes: bool,
    **adopting: Any,
) -> None:
    """Resolve what is in doubt.

    Without --once it resolves branches until it is interrupted. Several recoveries may run at once. Branches
    whose coordinator is alive are not changed. With --once or --dry-run the exit status is 4 if a participant
    or the ledger did not answer, 5 if a branch had ended otherwise than was decided, 1 if a branch could not
    be resolved.

    With --without-ledger no ledger is opened. The participants of a three-phase commit hold its outcome.
    Branches of the other protocols are reported with the reason, and not changed; nor is a branch that
    another role prepared, or that has no row in its database. It ends once there is nothing left that it can
    end.

    With --adopt ID it shows all prepared branches of the lost ledger ID, by transaction, with what is known
    about each. --secret proves that the names are from that ledger; then three-phase commits are ended by
    their own termination, after one question. The outcome of the other protocols is never guessed: name the
    transaction with --commit or --rollback. Without --secret only the transactions that you name are ended,
    three-phase commits with --terminate. Exit status 7 if something is left to you, 5 if your choice
    contradicts a proof.

    \b
    Example:
      undoubt recover --once
      undoubt recover --adopt k3v9q0x2ab --secret undoubt.backup
      undoubt recover --dry-run -o json
      undoubt recover --without-ledger
    """
    if ledger_id is not None and not without_ledger:
        raise click.UsageError("--ledger-id goes with --without-ledger")
    if (wishes := Wishes.read(**adopting, dry_run=dry_run, yes=yes, note=note)) is not None:
        if once or without_ledger:
            raise click.UsageError("--adopt does not go with --once or --without-ledger")
        adopt(context, wishes)
    elif without_ledger:
        report = context.run(_without_ledger(context, ledger_id, once=once, dry_run=dry_run))
        _show(context, report, without_ledger=True)
    elif once or dry_run:
        _show(context, context.run(_once(context, dry_run, note)))
    else:
        context.run(_stay(context, note))


def _show(context: Context, report: Report, *, without_ledger: bool = False) -> None:
    """Without a ledger it is not known what is unfinished."""
    if context.output.json:
        document = msgspec.to_builtins(report)
        context.output.document(document | {"unfinished": None} if without_ledger else document)
    else:
        _page(context, report, without_ledger=without_ledger)
    if report.errors:
        raise CommandError(Exit.UNREACHABLE, "; ".join(report.errors.values()))
    found = [line for line in report.lines if line.action == "heuristic" and line.result == "done"]
    found += [line for line in report.lines if line.result == "done" and line.why.startswith("heuristic")]
    if found and not report.dry_run:
        raise CommandError(
            Exit.CONFLICT,
            f"branches that ended otherwise than was decided: {len({line.gid for line in found})};"
            " undoubt indoubt list",
        )
    if failed := [line for line in report.lines if line.result == "failed"]:
        count = plural(len(failed), "branch", "branches")
        raise CommandError(Exit.FAILURE, f"{count} could not be resolved: {failed[0].why}")


async def _once(context: Context, dry_run: bool, note: str) -> Report:
    """A pass that ended something is recorded afterwards: it applies recorded decisions, and a pass that runs
    each minute and finds nothing would push all other acts out of the audit."""
    async with opened(context) as tools:
        service = RecoveryService(tools.ledger, tools.participants, tools.settings.recovery)
        report = await service.run_once(dry_run=dry_run)
        ended = Counter(
            line.action for line in report.lines if line.result == "done" and line.action in ENDING
        )
        if ended and not dry_run:
            result = ", ".join(f"{action}: {count}" for action, count in sorted(ended.items()))
            try:
                await tools.ledger.record_act(new_act("recover --once", "what was left", note, result=result))
            except LedgerError as error:
                context.output.note(f"this act is not recorded: {error}")
        return report


async def _without_ledger(context: Context, ledger_id: str | None, *, once: bool, dry_run: bool) -> Report:
    """Repeat passes until another pass could do nothing; returns the lines of all."""
    lines: list[ReportedBranch] = []
    participants = wiring.registry(context.settings(), ledger_id or NO_LEDGER)
    try:
        recovery = WithoutLedger(participants, ledger_id)
        while True:
            report = await recovery.run(dry_run=dry_run)
            lines += [line for line in report.lines if line not in lines]
            again = report.errors or any(line.result in {"look_again", "failed"} for line in report.lines)
            if once or dry_run or not again:
                return msgspec.structs.replace(report, lines=tuple(lines))
            await asyncio.sleep(PAUSE_S)
    finally:
        await participants.close()


async def _stay(context: Context, note: str) -> None:
    stop = asyncio.Event()
    async with (
        opened(context, serves=True) as tools,
        acting(tools.ledger, new_act("recover", "what is left and will be", note), needed=False),
    ):
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        async with RecoveryService(tools.ledger, tools.participants, tools.settings.recovery, always=True):
            context.output.note("recovering; Ctrl-C ends it")
            await stop.wait()


def _page(context: Context, report: Report, *, without_ledger: bool) -> None:
    out = context.output
    if report.lines:
        out.table(
            ("participant", "action", "result", "gid", "why"),
            [
                (line.participant, _words(line.action), _result(line), line.gid, line.why)
                for line in report.lines
            ],
        )
    for left in report.unfinished:
        unknown = f"; not configured here: {', '.join(left.unknown)}" if left.unknown else ""
        out.line(f"{left.decision} of {left.txid} waits for {', '.join(left.waits_for)}{unknown}")
    if not report.lines and not report.unfinished and not report.errors:
        out.note("nothing is prepared" + ("" if without_ledger else ", and nothing is unfinished"))


def _result(line: ReportedBranch) -> str:
    return "-" if line.result == "nothing" else _words(line.result)


def _words(name: str) -> str:
    return name.replace("_", " ")
