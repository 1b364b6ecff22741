"""``undoubt tx resolve``: ends a whole transaction; also the page that ``explain`` prints for one."""

from __future__ import annotations

from typing import Any

import click

from undoubt.cli import shapes
from undoubt.cli.context import Context, common, note_option, opened, pass_context, yes_option
from undoubt.cli.exits import CommandError, Exit
from undoubt.cli.names import TxIdParam
from undoubt.cli.output import Output, printable
from undoubt.participants.contract import Decision, Settled
from undoubt.participants.ids import Gid, TxId
from undoubt.participants.plural import plural
from undoubt.recovery.errors import Conflict, NotAllSeen
from undoubt.recovery.operator.survey import ROLE_GONE
from undoubt.recovery.operator.transaction import Resolver
from undoubt.recovery.operator.whole import BranchNow, Whole, check, impostor_line, look
from undoubt.recovery.plan import BranchStanding


@click.command()
@click.argument("txid", type=TxIdParam())
@click.option("--commit", is_flag=True, help="Commit all prepared branches.")
@click.option("--rollback", is_flag=True, help="Roll back all prepared branches.")
@click.option(
    "--heuristic", is_flag=True, help="Do it against or without a recorded decision; this is recorded."
)
@click.option(
    "--contradict",
    is_flag=True,
    help="Do it although a branch has ended, or may have ended, the other way: this splits the transaction.",
)
@click.option(
    "--participant-gone",
    "gone",
    metavar="NAME",
    help="This participant will never answer again: record a hazard for its branches, and stop waiting.",
)
@note_option
@yes_option
@common
@pass_context
def resolve(
    context: Context,
    txid: TxId,
    *,
    commit: bool,
    rollback: bool,
    heuristic: bool,
    contradict: bool,
    gone: str | None,
    note: str,
    yes: bool,
) -> None:
    """End all branches of a transaction in the same direction.

    Shows all branches, what is recorded, and what the databases prove; asks once; then commits or rolls back
    all prepared branches in the safe direction. An undecided three-phase commit or Paxos Commit is decided by
    the termination of its protocol. If no direction is proved to be safe, choose --commit or --rollback with
    --heuristic. TXID is a transaction's id, or the gid of one of its branches. Exit status 5 if a needed flag
    is missing, or a branch had ended the other way; 4 if a participant did not answer, or no list of the
    branches is recorded and a branch is not known.

    \b
    Example:
      undoubt tx resolve 3-4f1d0c9a77b2e815.42
      undoubt tx resolve 3-4f1d0c9a77b2e815.42 --rollback --heuristic --note "agreed with accounting"
      undoubt tx resolve 3-4f1d0c9a77b2e815.42 --participant-gone payments
    """
    if gone is not None and (commit or rollback or heuristic or contradict):
        raise click.UsageError("--participant-gone ends no branch: give it without the flags that end one")
    chosen = _direction(commit=commit, rollback=rollback)
    found = context.run(_looked(context, txid))
    if not context.output.json:
        page(context.output, found)
    if gone is not None:
        _gone(context, found, gone, note, yes=yes)
        return
    if found.asks_protocol and not heuristic:
        found, yes = _let_it_terminate(context, txid, note, yes=yes), True
    chosen = chosen or found.direction
    if chosen is None or not found.prepared:
        _nothing_to_do(context, found, note, chosen)
        return
    if _allowed(found, chosen, heuristic=heuristic, contradict=contradict):
        _ask(context, found, chosen, yes=yes)
    # The resolver also refuses what is not allowed, and records that.
    results = context.run(_end(context, txid, chosen, heuristic=heuristic, contradict=contradict, note=note))
    _report(context, found, chosen, results)


def _direction(*, commit: bool, rollback: bool) -> Decision | None:
    """The chosen direction; None for the safe one."""
    if commit and rollback:
        raise click.UsageError("--commit and --rollback contradict each other: give one of them")
    return Decision.COMMIT if commit else Decision.ABORT if rollback else None


def _let_it_terminate(context: Context, txid: TxId, note: str, *, yes: bool) -> Whole:
    context.confirm(f"Let the termination of its protocol decide and end {txid}?", yes=yes)
    found = context.run(_terminated(context, txid, note))
    if not context.output.json:
        page(context.output, found)
    return found


def _ask(context: Context, found: Whole, chosen: Decision, *, yes: bool) -> None:
    for line in warnings(found, chosen):
        context.output.note(line)
    branches = plural(len(found.prepared), "branch", "branches")
    context.confirm(f"{_word(chosen)} {branches} of {found.txid}?", yes=yes)


def warnings(found: Whole, chosen: Decision) -> list[str]:
    """The warnings that are shown before the question."""
    lines = []
    recorded = None if found.info is None else str(found.info.record)
    if chosen is Decision.ABORT and (recorded == "commit" or found.direction is Decision.COMMIT):
        lines.append("COMMIT IS RECORDED: the other branches have committed, or will commit.")
    if chosen is Decision.COMMIT and found.direction is Decision.ABORT:
        lines.append("ABORTED: the other branches are rolled back, or will be.")
    if chosen is Decision.COMMIT and any(one.standing is BranchStanding.ACTIVE for one in found.prepared):
        lines.append("ITS COORDINATOR IS ALIVE: it may still abort, and then the transaction is split.")
    lines += splitting(found.contradicts(chosen))
    lines += [
        f"Branch {one.number} in {one.participant} is not known: {one.why or 'it is not configured'}."
        for one in found.branches
        if one.now in {"no_answer", "not_configured"}
    ]
    return lines + not_seen(found)


def splitting(against: list[str]) -> list[str]:
    """The warning that an order splits a transaction; ``against`` is what :meth:`Whole.contradicts` says."""
    return [f"{line[0].upper()}{line[1:]}: this splits the transaction." for line in against]


def not_seen(found: Whole) -> list[str]:
    """The warning that there may be other, unknown branches."""
    lines = [*found.not_seen, *filter(None, [found.more_unknown])]
    return [f"{line[0].upper()}{line[1:]}." for line in lines]


def page(out: Output, found: Whole) -> None:
    """For people."""
    info = found.info
    out.heading(f"transaction {found.txid}")
    out.line(f"  recorded     {'nothing' if info is None else str(info.record).replace('_', ' ')}")
    safe = "none is proved" if found.direction is None else _word(found.direction).lower()
    out.line(f"  safe         {safe}: {found.why}")
    out.line()
    out.table(
        ("branch", "participant", "now", "its database proves", "heuristic outcome", "gid"),
        [
            (
                one.number,
                one.participant,
                one.now.replace("_", " "),
                "-" if str(one.proved) == "unknown" else str(one.proved).replace("_", " "),
                _heuristic(one),
                one.gid or "-",
            )
            for one in found.branches
        ],
    )
    for false in found.impostors:
        out.line(f"  {printable(impostor_line(false))}")
    for one in found.branches:
        if one.now == "prepared" and ROLE_GONE in one.why:
            out.line(f"  branch {one.number}: {one.why}" + (f": {one.fix}" if one.fix else ""))
        if one.heuristic is not None and one.heuristic.note and _heuristic(one) != "-":
            out.line(f"  branch {one.number}: {one.heuristic.note}")
    for line in not_seen(found):
        out.line(f"  {line}")


def _heuristic(one: BranchNow) -> str:
    """Of a branch whose end is proved, a hazard says nothing any more."""
    found = one.heuristic
    if found is None or (
        found.kind is Settled.HEURISTIC_HAZARD and str(one.proved) in {"committed", "aborted"}
    ):
        return "-"
    return str(found.kind).replace("_", " ") + (" (forgotten)" if found.forgotten else "")


def end_unless_all_seen(found: Whole) -> None:
    """Raise ``NotAllSeen`` if the state of a branch is not known, or there may be an unknown branch."""
    if hidden := [one for one in found.branches if one.now in {"no_answer", "not_configured"}]:
        unseen = ", ".join(f"branch {one.number} in {one.participant}" for one in hidden)
        raise NotAllSeen(
            f"not everything is known: {unseen}; {hidden[0].why or 'the participant is not configured'}"
        )
    if found.not_seen:
        raise NotAllSeen(f"not everything is known: {'; '.join(found.not_seen)}")


def _allowed(found: Whole, chosen: Decision, *, heuristic: bool, contradict: bool) -> bool:
    """Whether there is a question to ask; what would be refused is refused without a question."""
    try:
        check(found, chosen, heuristic=heuristic, contradict=contradict)
    except (Conflict, NotAllSeen):
        return False
    return True


def _word(decision: Decision) -> str:
    return "Commit" if decision is Decision.COMMIT else "Roll back"


def _nothing_to_do(context: Context, found: Whole, note: str, chosen: Decision | None) -> None:
    if context.output.json:
        context.output.document(shapes.whole(found) | {"results": []})
    if found.prepared:
        choice = "Choose --commit or --rollback, with --heuristic"
        if found.may_be_fenced:
            choice = (
                "To end it before that: --rollback, which records ABORT first, so that the transaction is not"
                " split"
            )
        raise Conflict(f"{found.why}; nothing was done. {choice}")
    end_unless_all_seen(found)
    context.output.note("no branch of it is prepared: there is nothing to end")
    if chosen is not None and (ended := found.splits(chosen)):
        raise Conflict(f"branch {ended[0].number} in {ended[0].participant} has ended the other way")
    if chosen is not None and found.direction not in {None, chosen}:
        raise Conflict(f"it has ended the other way: {found.why}")


def _gone(context: Context, found: Whole, name: str, note: str, *, yes: bool) -> None:
    context.confirm(
        f"Will participant {name} never answer again? Its branch is recorded as a hazard, and recovery stops"
        " waiting for it.",
        yes=yes,
    )
    gids = context.run(_end_gone(context, found.txid, name, note))
    if context.output.json:
        context.output.document({"txid": str(found.txid), "hazards": [str(gid) for gid in gids]})
        return
    for gid in gids:
        context.output.line(f"recorded as a hazard: {gid}")


def _report(context: Context, found: Whole, chosen: Decision, results: list[tuple[BranchNow, str]]) -> None:
    if context.output.json:
        done: dict[str, Any] = {
            "results": [
                {"gid": str(one.gid), "result": "done" if said == "done" else "failed", "why": said}
                for one, said in results
            ]
        }
        context.output.document(shapes.whole(found) | done)
    else:
        word = "committed" if chosen is Decision.COMMIT else "rolled back"
        for one, said in results:
            context.output.line(f"{word if said == 'done' else said}: {one.gid}")
    if failed := [said for _, said in results if said != "done"]:
        count = plural(len(results), "branch", "branches")
        raise CommandError(Exit.CONFLICT, f"{len(failed)} of {count}: {failed[0]}")
    if ended := found.splits(chosen):
        raise Conflict(f"branch {ended[0].number} in {ended[0].participant} has ended the other way")
    end_unless_all_seen(found)
    if against := found.contradicts(chosen):
        raise Conflict(against[0])


async def _looked(context: Context, txid: TxId) -> Whole:
    async with opened(context) as tools:
        return await look(tools.ledger, tools.participants, txid)


async def _terminated(context: Context, txid: TxId, note: str) -> Whole:
    async with opened(context) as tools:
        return await Resolver(tools.ledger, tools.participants).terminate(txid, note=note)


async def _end(
    context: Context, txid: TxId, chosen: Decision, *, heuristic: bool, contradict: bool, note: str
) -> list[tuple[BranchNow, str]]:
    async with opened(context) as tools:
        resolver = Resolver(tools.ledger, tools.participants)
        return await resolver.end(txid, chosen, heuristic=heuristic, contradict=contradict, note=note)


async def _end_gone(context: Context, txid: TxId, name: str, note: str) -> list[Gid]:
    async with opened(context) as tools:
        return await Resolver(tools.ledger, tools.participants).gone(txid, name, note=note)
