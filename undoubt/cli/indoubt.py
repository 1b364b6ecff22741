"""``undoubt indoubt``: see, explain and resolve what is prepared and not finished."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import click

from participants.ids import Foreign, Gid, TxId
from recovery.operator.explain import explain as explain_branch
from recovery.operator.explain import mending
from recovery.operator.explain_heuristic import explain_heuristic
from recovery.operator.resolve import Operator
from recovery.operator.survey import Found, Survey, survey
from recovery.plan import Standing
from undoubt.cli import shapes
from undoubt.cli.context import Context, common, opened, pass_context, yes_option
from undoubt.cli.durations import Duration, show_duration
from undoubt.cli.exits import CommandError, Exit
from undoubt.cli.explain import document, heuristic_document
from undoubt.cli.explain_page import explain_page
from undoubt.cli.names import GidParam, NameParam

WAIT_PAUSE_S = 0.2

heuristic_option = click.option(
    "--heuristic", is_flag=True, help="Do it against or without a recorded decision; this is recorded."
)
note_option = click.option("--note", default="", metavar="TEXT", help="Why, for the record.")


@click.group()
def indoubt() -> None:
    """See, explain and resolve branches in doubt.

    A branch is in doubt while it is prepared in a database that cannot know the decision. It holds its
    locks, and vacuum, until it is finished. Recovery finishes it by itself; these commands are for looking,
    and for what recovery must leave to a person.

    \b
    Example:
      undoubt indoubt list
      undoubt indoubt explain GID
    """


@indoubt.command("list")
@common
@pass_context
def list_(context: Context) -> None:
    """List everything prepared, and open heuristics.

    All participants are asked, then the ledger. Foreign prepared transactions are listed too, and so are
    impostors, with what is wrong with each; neither is ever touched. Exit status 4 if a participant did not
    answer; the others are listed all the same.

    \b
    Example:
      undoubt indoubt list
      undoubt indoubt list -o json | jq '.branches[] | select(.action == "decide")'
    """
    seen = context.run(_survey(context))
    if context.output.json:
        context.output.document(shapes.survey(seen))
    else:
        _tables(context, seen, seen.found)
        if not seen.found and not seen.heuristics and not seen.unreachable:
            context.output.note("nothing is prepared, and no heuristic outcome is open")
    _end_unless_all_answered(seen)


@indoubt.command()
@click.argument("gid", type=GidParam())
@common
@pass_context
def explain(context: Context, gid: Gid | Foreign) -> None:
    """Explain one prepared branch.

    The decision and why, who voted, which sessions it blocks, how long it has held back vacuum, the safe
    action, and the proof that it is safe. Of a branch with a heuristic outcome: what became of it, and what
    is left to do by hand.

    \b
    Example:
      undoubt indoubt explain undoubt:k3v9q0x2ab:2:3-4f1d0c9a77b2e815.42:1:orders
    """
    found = context.run(_explain(context, gid))
    if context.output.json:
        context.output.document(found)
    else:
        explain_page(context.output, found)


@indoubt.command()
@click.argument("gid", type=GidParam())
@heuristic_option
@note_option
@yes_option
@common
@pass_context
def commit(context: Context, gid: Gid | Foreign, heuristic: bool, note: str, yes: bool) -> None:
    """Commit a branch whose COMMIT is recorded.

    Without a recorded COMMIT it is refused with exit status 5, unless --heuristic is given: then the
    database does what you say, whatever the other participants did, and it is recorded as your decision.

    \b
    Example:
      undoubt indoubt commit GID
      undoubt indoubt commit GID --heuristic --note "agreed with accounting"
    """
    if heuristic:
        context.confirm(f"Commit {gid} against or without a recorded decision?", yes=yes)
    context.run(_commit(context, gid, heuristic, note))
    _report(context, gid, "committed")


@indoubt.command()
@click.argument("gid", type=GidParam())
@heuristic_option
@note_option
@yes_option
@common
@pass_context
def rollback(context: Context, gid: Gid | Foreign, heuristic: bool, note: str, yes: bool) -> None:
    """Record ABORT, then roll the branch back.

    What the branch wrote is lost. Where COMMIT is recorded it is refused with exit status 5, unless
    --heuristic is given. Recovery rolls back the other branches of the transaction.

    Of an impostor you are told first why it is one; then just the prepared transaction that you were shown is
    rolled back, and nothing is recorded.

    \b
    Example:
      undoubt indoubt rollback GID
    """
    shown = context.run(_impostor(context, gid))
    if shown is not None:
        _tell_of_impostor(context, shown)
        context.confirm("Roll back this impostor? What it wrote is lost.", yes=yes)
        context.run(_end_impostor(context, shown))
        _report(context, gid, "rolled back")
        return
    context.confirm(f"Roll back {gid}? What it wrote is lost.", yes=yes)
    context.run(_roll_back(context, gid, heuristic, note))
    _report(context, gid, "rolled back")


@indoubt.command()
@click.argument("gid", type=GidParam())
@yes_option
@common
@pass_context
def forget(context: Context, gid: Gid | Foreign, yes: bool) -> None:
    """Forget a heuristic outcome you have dealt with.

    It is no longer listed, and no longer makes `check` fail; `tx show` still tells of it. Exit status 3 if
    none is open for GID.

    \b
    Example:
      undoubt indoubt forget GID
    """
    if not isinstance(gid, Gid):
        raise CommandError(Exit.NOT_FOUND, f"no heuristic outcome is recorded for {gid}: it is not undoubt's")
    context.confirm(f"Forget the heuristic outcome of {gid}?", yes=yes)
    if not context.run(_forget(context, gid)):
        raise CommandError(Exit.NOT_FOUND, f"no heuristic outcome is open for {gid}")
    _report(context, gid, "forgotten")


@indoubt.command()
@click.argument("name", type=NameParam(), required=False, metavar="[GID|TXID]")
@click.option(
    "--timeout",
    type=Duration(),
    default=60.0,
    show_default="60s",
    metavar="DURATION",
    help="Give up after so long.",
)
@common
@pass_context
def wait(context: Context, name: Gid | Foreign | TxId | None, timeout: float) -> None:
    """Wait until nothing is in doubt.

    With a gid or a transaction id, until that branch, or all branches of that transaction, are finished.
    It only looks; recovery must run somewhere. Exit status 6 when the time is over.

    \b
    Example:
      undoubt indoubt wait --timeout 5m
      undoubt indoubt wait 3-4f1d0c9a77b2e815.42
    """
    waited = context.run(_wait(context, name, timeout))
    if context.output.json:
        context.output.document({"name": None if name is None else str(name), "waited_s": round(waited, 3)})
    else:
        context.output.line(f"nothing is in doubt, after {show_duration(waited)}")


@indoubt.command()
@click.option(
    "--older-than",
    type=Duration(),
    default=0.0,
    show_default="0s",
    metavar="DURATION",
    help="Count only what has been so for at least so long.",
)
@common
@pass_context
def check(context: Context, older_than: float) -> None:
    """Fail if something is in doubt, for monitoring.

    Exit status 7 if a branch of this ledger is prepared, or a heuristic outcome open, for at least
    --older-than; else 4 if a participant did not answer; else 0. Under live traffic branches are prepared
    all the time, for milliseconds: give --older-than.

    \b
    Example:
      undoubt indoubt check --older-than 5m
    """
    seen = context.run(_survey(context))
    late = seen.in_doubt(older_than)
    open_ones = [one for one in seen.heuristics if time.time() - one.found_at >= older_than]
    if context.output.json:
        counted = {"in_doubt": len(late) + len(open_ones), "older_than_s": older_than}
        context.output.document(
            counted | shapes.survey(Survey(tuple(late), tuple(open_ones), seen.unreachable))
        )
    else:
        _tables(context, Survey((), tuple(open_ones), seen.unreachable), late)
    if late or open_ones:
        raise CommandError(
            Exit.IN_DOUBT,
            f"{len(late)} in doubt, {len(open_ones)} heuristic outcomes open: undoubt indoubt list",
        )
    _end_unless_all_answered(seen)
    context.output.note("nothing is in doubt")


# ---------------------------------------------------------------------------------------------- the work


async def _survey(context: Context) -> Survey:
    async with opened(context) as tools:
        return await survey(tools.ledger, tools.participants)


async def _explain(context: Context, gid: Gid | Foreign) -> dict[str, Any]:
    async with opened(context) as tools:
        seen = await survey(tools.ledger, tools.participants)
        if not seen.of(gid) and isinstance(gid, Gid):
            ended = await explain_heuristic(tools.ledger, gid)
            if ended is not None:
                return heuristic_document(ended)
        return document(await explain_branch(tools.ledger, tools.participants, seen.one(gid), seen))


async def _commit(context: Context, gid: Gid | Foreign, heuristic: bool, note: str) -> None:
    async with opened(context) as tools:
        await Operator(tools.ledger, tools.participants).commit(gid, heuristic=heuristic, note=note)


async def _roll_back(context: Context, gid: Gid | Foreign, heuristic: bool, note: str) -> None:
    async with opened(context) as tools:
        await Operator(tools.ledger, tools.participants).roll_back(gid, heuristic=heuristic, note=note)


async def _impostor(context: Context, gid: Gid | Foreign) -> Found | None:
    async with opened(context) as tools:
        found = (await survey(tools.ledger, tools.participants)).one(gid)
        return found if found.standing is Standing.IMPOSTOR else None


async def _end_impostor(context: Context, shown: Found) -> None:
    async with opened(context) as tools:
        await Operator(tools.ledger, tools.participants).end_impostor(shown)


async def _forget(context: Context, gid: Gid) -> bool:
    async with opened(context) as tools:
        return await Operator(tools.ledger, tools.participants).forget(gid)


async def _wait(context: Context, name: Gid | Foreign | TxId | None, timeout: float) -> float:
    started = time.monotonic()
    async with opened(context) as tools:
        while True:
            seen = await survey(tools.ledger, tools.participants)
            left = seen.in_doubt() if name is None else seen.of(name)
            left = [one for one in left if one.standing is not Standing.IMPOSTOR]
            waited = time.monotonic() - started
            if not left and not seen.unreachable:
                return waited
            if waited >= timeout:
                silent = ", ".join(seen.unreachable)
                told = f"; no answer from {silent}" if silent else ""
                raise CommandError(
                    Exit.TIMEOUT, f"still {len(left)} in doubt after {show_duration(timeout)}{told}"
                )
            await asyncio.sleep(min(WAIT_PAUSE_S, timeout - waited))


# ---------------------------------------------------------------------------------------------- the print


def _tables(context: Context, seen: Survey, found: tuple[Found, ...] | list[Found]) -> None:
    if found:
        context.output.table(
            ("participant", "age", "ledger says", "safe action", "gid"),
            [
                (
                    one.participant,
                    show_duration(one.branch.age_s),
                    str(one.standing).replace("_", " "),
                    one.standing.action,
                    one.branch.gid,
                )
                for one in found
            ],
        )
    impostors = [one for one in found if one.standing is Standing.IMPOSTOR]
    if impostors:
        context.output.table(
            ("impostor", "prepared by role", "why it is none of ours", "if that role is yours"),
            [(one.branch.gid, one.branch.owner, one.why, one.fix or "-") for one in impostors],
        )
    if seen.heuristics:
        context.output.table(
            ("heuristic outcome", "decided", "found", "gid", "note"),
            [
                (
                    str(one.kind).replace("_", " "),
                    one.decision or "-",
                    f"{show_duration(shapes.age(one.found_at) or 0.0)} ago",
                    one.gid,
                    one.note,
                )
                for one in seen.heuristics
            ],
        )


def _tell_of_impostor(context: Context, shown: Found) -> None:
    branch = shown.branch
    context.output.note(
        f"{branch.gid} is an impostor: {shown.why}.\nPrepared in {shown.participant} (database"
        f" {branch.database}) by role {branch.owner}, transaction id {branch.xid}, for"
        f" {show_duration(branch.age_s)}."
    )
    if shown.fix is not None:
        context.output.note(mending(shown))


def _report(context: Context, gid: Gid | Foreign, result: str) -> None:
    if context.output.json:
        context.output.document({"gid": str(gid), "result": result.replace(" ", "_")})
    else:
        context.output.line(f"{result}: {gid}")


def _end_unless_all_answered(seen: Survey) -> None:
    if seen.unreachable:
        told = "; ".join(str(error) for error in seen.unreachable.values())
        raise CommandError(Exit.UNREACHABLE, f"not everything could be seen: {told}")
