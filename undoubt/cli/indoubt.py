"""``undoubt indoubt``: lists, explains and ends prepared branches."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import Any

import click

from undoubt.cli.context import (
    Context,
    OpenedLedger,
    common,
    note_option,
    opened,
    pass_context,
    without_ledger,
    yes_option,
)
from undoubt.cli.duration import Duration
from undoubt.cli.exits import CommandError, Exit
from undoubt.cli.explain_page import explain_page
from undoubt.cli.names import GidParam, NameParam
from undoubt.cli.tx_resolve import end_unless_all_seen, page
from undoubt.coordinator.errors import LedgerError, LedgerMisconfigured, LedgerMissing
from undoubt.coordinator.ledger.contract import Heuristic
from undoubt.participants.contract import Decision
from undoubt.participants.ids import Foreign, Gid, TxId
from undoubt.participants.plural import plural
from undoubt.recovery.operator.explain import explain as explain_branch
from undoubt.recovery.operator.explain import mending, sibling_line
from undoubt.recovery.operator.explain_heuristic import explain_heuristic
from undoubt.recovery.operator.resolve import Operator
from undoubt.recovery.operator.survey import ROLE_GONE, Survey, SurveyedBranch, survey, survey_alone
from undoubt.recovery.operator.whole_transaction import Whole, look
from undoubt.recovery.plan import BranchStanding
from undoubt.report import shapes
from undoubt.report.explain import document, heuristic_document
from undoubt.report.times import age, show_duration
from undoubt.report.transactions import not_seen, splitting

WAIT_PAUSE_S = 0.2

heuristic_option = click.option(
    "--heuristic", is_flag=True, help="Do it against or without a recorded decision; this is recorded."
)
contradict_option = click.option(
    "--contradict",
    is_flag=True,
    help="Do it although another branch has ended the other way, or will: this splits the transaction.",
)
participant_option = click.option(
    "--participant",
    default="",
    metavar="NAME",
    help="Which one, if databases of several participants have something prepared under this name.",
)


@click.group()
def indoubt() -> None:
    """See, explain and resolve branches in doubt.

    A branch is in doubt while it is prepared in a database that cannot know the decision. Until it is
    finished it holds its locks and holds back vacuum. Recovery finishes it; these commands show branches, and
    end those that recovery must leave to an operator.

    \b
    Example:
      undoubt indoubt list
      undoubt indoubt explain GID
    """


@indoubt.command("list")
@click.option(
    "--older-than",
    type=Duration(),
    default=0.0,
    show_default="0s",
    metavar="DURATION",
    help="List only what is at least this old.",
)
@common
@pass_context
def list_(context: Context, older_than: float) -> None:
    """List everything that is prepared, and open heuristic outcomes.

    All participants are asked, then the ledger. Foreign prepared transactions and impostors are listed too,
    with what is wrong with each; undoubt changes neither. If a participant does not answer, the others are
    listed, with exit status 4. If the ledger does not answer, prepared branches are listed without decisions,
    with exit status 4; heuristic outcomes are not known then (`null` in JSON). The oldest comes first. Live
    traffic prepares branches for milliseconds all the time: --older-than leaves these out.

    \b
    Example:
      undoubt indoubt list
      undoubt indoubt list --older-than 5m
      undoubt indoubt list -o json | jq '.branches[] | select(.action == "decide")'
    """
    seen = context.run(_survey_anyhow(context)).older_than(older_than)
    if context.output.json:
        context.output.document(shapes.survey(seen))
    else:
        _tables(context, seen, seen.found)
        if not seen.found and not seen.heuristics and not seen.unreachable:
            open_ones = "" if seen.ledger_error else ", and no heuristic outcome is open"
            old = f" for {show_duration(older_than)} or longer" if older_than else ""
            context.output.note(f"nothing is prepared{open_ones}{old}")
    _end_unless_all_answered(seen)


@indoubt.command()
@click.argument("name", type=NameParam(), metavar="GID|TXID")
@participant_option
@common
@pass_context
def explain(context: Context, name: Gid | Foreign | TxId, participant: str) -> None:
    """Explain one prepared branch, or a whole transaction.

    Shows the decision and its reason, the votes, the sessions that the branch blocks, how long it has held
    back vacuum, the safe action, and the proof that it is safe. For a branch with a heuristic outcome: what
    became of it, and what to repair by hand. For a transaction, and for a branch whose database does not
    answer: what the ledger and the other databases know; exit status 4 if not everything is known.

    \b
    Example:
      undoubt indoubt explain undoubt:k3v9q0x2ab:2:3-4f1d0c9a77b2e815.42:1:orders
    """
    found = context.run(_explain(context, name, participant))
    if isinstance(found, Whole):
        if context.output.json:
            context.output.document(shapes.whole(found))
        else:
            page(context.output, found)
        end_unless_all_seen(found)
    elif context.output.json:
        context.output.document(found)
    else:
        explain_page(context.output, found)


@indoubt.command()
@click.argument("gid", type=GidParam())
@heuristic_option
@contradict_option
@note_option
@yes_option
@common
@pass_context
def commit(
    context: Context, gid: Gid | Foreign, *, heuristic: bool, contradict: bool, note: str, yes: bool
) -> None:
    """Commit a branch whose COMMIT is recorded.

    Without a recorded COMMIT it is refused with exit status 5, unless --heuristic is given: then the branch
    is committed whatever the other participants did, and that is recorded as your decision. If another branch
    was rolled back, or will be, --contradict is needed too. `tx resolve` ends all branches together.

    \b
    Example:
      undoubt indoubt commit GID
      undoubt indoubt commit GID --heuristic --note "agreed with accounting"
    """
    before = context.run(_before(context, gid, Decision.COMMIT))
    decided = before.standing is BranchStanding.COMMITTED
    if decided or (heuristic and (contradict or not before.splits)):
        _warn(context, before)
    if not decided and heuristic and (contradict or not before.splits):
        context.confirm(f"Commit {gid} against or without a recorded decision?", yes=yes)
    context.run(_commit(context, gid, heuristic, contradict, note))
    _report(context, gid, "committed")


@indoubt.command()
@click.argument("gid", type=GidParam())
@heuristic_option
@contradict_option
@participant_option
@note_option
@yes_option
@common
@pass_context
def rollback(
    context: Context,
    gid: Gid | Foreign,
    *,
    heuristic: bool,
    contradict: bool,
    participant: str,
    note: str,
    yes: bool,
) -> None:
    """Record ABORT, then roll the branch back.

    What the branch wrote is lost. If COMMIT is recorded, it is refused with exit status 5, unless --heuristic
    is given; then the recorded COMMIT is shown before you are asked. If another branch has committed, or
    its database does not answer, --contradict is needed too. If ABORT was recorded, recovery rolls back the
    other branches of the transaction.

    For an impostor it first shows why it is one. Then it rolls back exactly the prepared transaction that was
    shown, and records only your act.

    \b
    Example:
      undoubt indoubt rollback GID
    """
    before = context.run(_before(context, gid, Decision.ABORT, participant))
    if before.standing is BranchStanding.IMPOSTOR:
        _show_impostor(context, before.found)
        context.confirm("Roll back this impostor? What it wrote is lost.", yes=yes)
        context.run(_end_impostor(context, before.found, note))
        _report(context, gid, "rolled back")
        return
    splits = bool(before.splits) and before.standing is not BranchStanding.ABORTED
    refused = (before.standing is BranchStanding.COMMITTED and not heuristic) or (splits and not contradict)
    if not refused:
        _warn(context, before)
        context.confirm(f"Roll back {gid}? What it wrote is lost.", yes=yes)
    context.run(_roll_back(context, gid, heuristic, contradict, note))
    _report(context, gid, "rolled back")


@indoubt.command()
@click.argument("gid", type=GidParam())
@note_option
@yes_option
@common
@pass_context
def forget(context: Context, gid: Gid | Foreign, note: str, yes: bool) -> None:
    """Forget a heuristic outcome you have dealt with.

    This cannot be undone: it is no longer listed, and no longer makes `check` fail; `tx show` still shows it.
    Exit status 3 if none is open for GID.

    \b
    Example:
      undoubt indoubt forget GID
    """
    if not isinstance(gid, Gid):
        raise CommandError(
            Exit.NOT_FOUND, f"no heuristic outcome is recorded for {gid}: it is not a branch of undoubt"
        )
    context.confirm(f"Forget the heuristic outcome of {gid}?", yes=yes)
    if not context.run(_forget(context, gid, note)):
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

    With a gid or a transaction id, wait until that branch, or all branches of that transaction, are finished.
    It ends nothing; recovery must run somewhere. Exit status 6 after the timeout.

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
    help="Count only what is at least this old.",
)
@common
@pass_context
def check(context: Context, older_than: float) -> None:
    """Fail if something is in doubt, for monitoring.

    Exit status 7 if a branch of this ledger has been prepared, or a heuristic outcome open, for at least
    --older-than; else 4 if a participant did not answer; else 0. Live traffic prepares branches for
    milliseconds all the time: give --older-than.

    \b
    Example:
      undoubt indoubt check --older-than 5m
    """
    seen = context.run(_survey(context))
    old = seen.older_than(older_than)
    late, open_ones = old.in_doubt(), old.heuristics
    if context.output.json:
        counted = {"in_doubt": len(late) + len(open_ones), "older_than_s": older_than}
        context.output.document(counted | shapes.survey(replace(old, found=tuple(late))))
    else:
        _tables(context, Survey((), open_ones, seen.unreachable), late)
    if late or open_ones:
        raise CommandError(
            Exit.IN_DOUBT,
            f"{len(late)} in doubt, {plural(len(open_ones), 'heuristic outcome')} open: undoubt indoubt list",
        )
    _end_unless_all_answered(seen)
    context.output.note("nothing is in doubt")


# ---------------------------------------------------------------------------------------------- the work


async def _survey(context: Context) -> Survey:
    async with opened(context) as tools:
        return await survey(tools.ledger, tools.participants)


async def _survey_anyhow(context: Context) -> Survey:
    """A survey, also while the ledger does not answer."""
    try:
        return await _survey(context)
    except LedgerMisconfigured:
        raise
    except LedgerError as error:
        async with without_ledger(context) as participants:
            seen = await survey_alone(participants, str(error), lost=isinstance(error, LedgerMissing))
        if isinstance(error, LedgerMissing) and not seen.in_doubt():
            raise
        return seen


async def _explain(context: Context, gid: Gid | Foreign | TxId, participant: str) -> dict[str, Any] | Whole:
    async with opened(context) as tools:
        if isinstance(gid, TxId):
            return await look(tools.ledger, tools.participants, gid)
        seen = await survey(tools.ledger, tools.participants)
        if not seen.of(gid) and isinstance(gid, Gid):
            ended = await explain_heuristic(tools.ledger, gid)
            if ended is not None:
                return heuristic_document(ended)
            if seen.unreachable and await tools.ledger.transaction(gid.txid) is not None:
                return await look(tools.ledger, tools.participants, gid.txid)
        one = seen.one(gid, participant)
        explanation = await explain_branch(tools.ledger, tools.participants, one, seen)
        shown = document(explanation, seen.siblings(one))
        shown["proof"] = [*await _others_not_seen(tools, one), *shown["proof"]]
        return shown


async def _others_not_seen(tools: OpenedLedger, one: SurveyedBranch) -> list[str]:
    """For a branch that an operator has to decide: what is not known about its siblings."""
    gid = one.branch.gid
    if not isinstance(gid, Gid) or one.standing is not BranchStanding.FORGOTTEN:
        return []
    return not_seen(await look(tools.ledger, tools.participants, gid.txid))


@dataclass(frozen=True)
class _Before:
    """What is known before a branch is ended by hand. ``siblings``: what was done by hand to its siblings;
    ``splits``: what the order splits the transaction from, in words; ``not_seen``: what is not known about
    the siblings."""

    found: SurveyedBranch
    splits: list[str]
    siblings: list[Heuristic]
    order: Decision
    not_seen: list[str]

    @property
    def standing(self) -> BranchStanding:
        return self.found.standing


async def _before(context: Context, gid: Gid | Foreign, order: Decision, participant: str = "") -> _Before:
    async with opened(context) as tools:
        seen = await survey(tools.ledger, tools.participants)
        one = seen.one(gid, participant)
        own, splits = one.branch.gid, []
        if isinstance(own, Gid) and one.standing.ours:
            whole = await look(tools.ledger, tools.participants, own.txid)
            splits = whole.contradicts(order, besides=own.branch)
        return _Before(one, splits, seen.siblings(one), order, await _others_not_seen(tools, one))


def _warn(context: Context, before: _Before) -> None:
    if before.order is Decision.ABORT and before.standing is BranchStanding.COMMITTED:
        context.output.note(
            "COMMIT IS RECORDED: the other branches of the transaction have committed, or will commit."
        )
    if before.order is Decision.COMMIT and before.standing is BranchStanding.ABORTED:
        context.output.note("ABORTED: the other branches of the transaction are rolled back, or will be.")
    for one in before.siblings:
        context.output.note(sibling_line(one))
    for line in splitting(before.splits):
        context.output.note(line)
    for line in before.not_seen:
        context.output.note(line)


async def _commit(context: Context, gid: Gid | Foreign, heuristic: bool, contradict: bool, note: str) -> None:
    async with opened(context) as tools:
        await Operator(tools.ledger, tools.participants).commit(
            gid, heuristic=heuristic, contradict=contradict, note=note
        )


async def _roll_back(
    context: Context, gid: Gid | Foreign, heuristic: bool, contradict: bool, note: str
) -> None:
    async with opened(context) as tools:
        await Operator(tools.ledger, tools.participants).roll_back(
            gid, heuristic=heuristic, contradict=contradict, note=note
        )


async def _end_impostor(context: Context, shown: SurveyedBranch, note: str) -> None:
    async with opened(context) as tools:
        await Operator(tools.ledger, tools.participants).end_impostor(shown, note=note)


async def _forget(context: Context, gid: Gid, note: str) -> bool:
    async with opened(context) as tools:
        return await Operator(tools.ledger, tools.participants).forget(gid, note=note)


async def _wait(context: Context, name: Gid | Foreign | TxId | None, timeout: float) -> float:
    started = time.monotonic()
    async with opened(context) as tools:
        while True:
            seen = await survey(tools.ledger, tools.participants)
            left = seen.in_doubt() if name is None else seen.of(name)
            left = [one for one in left if one.standing is not BranchStanding.IMPOSTOR]
            waited = time.monotonic() - started
            if not left and not seen.unreachable:
                return waited
            if waited >= timeout:
                silent = ", ".join(seen.unreachable)
                unanswered = f"; no answer from {silent}" if silent else ""
                raise CommandError(
                    Exit.TIMEOUT, f"still {len(left)} in doubt after {show_duration(timeout)}{unanswered}"
                )
            await asyncio.sleep(min(WAIT_PAUSE_S, timeout - waited))


# ---------------------------------------------------------------------------------------------- the print


def _tables(context: Context, seen: Survey, found: tuple[SurveyedBranch, ...] | list[SurveyedBranch]) -> None:
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
    impostors = [one for one in found if one.standing is BranchStanding.IMPOSTOR]
    if impostors:
        context.output.table(
            ("impostor", "prepared by role", "why it is none of ours", "if that role is yours"),
            [(one.branch.gid, one.branch.owner, one.why, one.fix or "-") for one in impostors],
        )
    if gone := [
        one for one in found if one.branch.owner_gone and one.standing is not BranchStanding.IMPOSTOR
    ]:
        context.output.table(
            ("cannot be finished from here", "why", "in database", "statement"),
            [
                (one.branch.gid, ROLE_GONE, one.branch.database, one.fix or "(none is proved yet)")
                for one in gone
            ],
        )
    siblings = [(one.branch.gid, each) for one in found for each in seen.siblings(one)]
    if siblings:
        context.output.table(
            ("branch", "another branch of its transaction", "has ended as"),
            [(gid, each.gid, str(each.kind).replace("_", " ")) for gid, each in siblings],
        )
    if seen.heuristics:
        context.output.table(
            ("heuristic outcome", "decided", "found", "gid", "note"),
            [
                (
                    str(one.kind).replace("_", " "),
                    one.decision or "-",
                    f"{show_duration(age(one.found_at) or 0.0)} ago",
                    one.gid,
                    one.note,
                )
                for one in seen.heuristics
            ],
        )


def _show_impostor(context: Context, shown: SurveyedBranch) -> None:
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
    if seen.ledger_error:
        raise CommandError(
            Exit.UNREACHABLE,
            f"the ledger does not answer, so decisions are not known: {seen.ledger_error}",
        )
    if seen.unreachable:
        reasons = "; ".join(str(error) for error in seen.unreachable.values())
        raise CommandError(Exit.UNREACHABLE, f"not everything is known: {reasons}")
