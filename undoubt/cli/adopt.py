"""``undoubt recover --adopt``: the branches of a ledger that is lost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from undoubt import wiring
from undoubt.cli.context import Context
from undoubt.cli.exits import CommandError, Exit, status_of
from undoubt.cli.names import TxIdParam
from undoubt.cli.output import printable
from undoubt.config import Settings
from undoubt.coordinator.errors import LedgerError, LedgerMisconfigured, LedgerMissing
from undoubt.coordinator.ledger.acting import DONE, Records, acting, new_act
from undoubt.coordinator.ledger.anchor import Anchor
from undoubt.coordinator.ledger.contract import Ledger
from undoubt.coordinator.ledger.sqlite import ledger_files
from undoubt.coordinator.ledger.urls import SQLITE, backend_of, sqlite_file
from undoubt.participants.contract import Decision
from undoubt.participants.errors import UndoubtError
from undoubt.participants.ids import TxId
from undoubt.participants.plural import plural
from undoubt.recovery.operator.adopt import Adoption, LostBranch, LostBranches, LostTransaction
from undoubt.recovery.report import ReportedBranch
from undoubt.report import shapes
from undoubt.report.times import show_duration
from undoubt.serve.secrets import read_secret

TERMINATE = "terminate"
F = TypeVar("F", bound=Callable[..., Any])


def adopt_options(command: F) -> F:
    """The flags of ``undoubt recover`` for a lost ledger."""
    txid = TxIdParam()
    for option in (
        click.option(
            "--terminate",
            multiple=True,
            type=txid,
            metavar="TXID",
            help="With --adopt: let its own protocol end it.",
        ),
        click.option(
            "--rollback", multiple=True, type=txid, metavar="TXID", help="With --adopt: roll it back."
        ),
        click.option("--commit", multiple=True, type=txid, metavar="TXID", help="With --adopt: commit it."),
        click.option(
            "--secret",
            type=click.Path(dir_okay=False, path_type=Path),
            help="With --adopt: a backup of that ledger, or what `ledger init --export-secret` has written.",
        ),
        click.option(
            "--adopt", metavar="ID", help="This ledger is lost: show and end its prepared branches."
        ),
    ):
        command = option(command)
    return command


@dataclass(frozen=True)
class Wishes:
    """The flags as given. ``chosen``: ``commit``, ``rollback`` or ``terminate`` by transaction."""

    ledger_id: str
    secret: Path | None
    chosen: dict[TxId, str]
    dry_run: bool
    yes: bool
    note: str

    @classmethod
    def read(  # noqa: PLR0913 - flags
        cls,
        *,
        adopt: str | None,
        secret: Path | None,
        commit: Iterable[TxId],
        rollback: Iterable[TxId],
        terminate: Iterable[TxId],
        dry_run: bool,
        yes: bool,
        note: str,
    ) -> Wishes | None:
        """None without ``--adopt``. Raises click's ``UsageError``, and ``CommandError``."""
        chosen = _chosen(commit, rollback, terminate)
        if adopt is not None:
            return cls(adopt, secret, chosen, dry_run, yes, note)
        if secret is not None or chosen:
            raise click.UsageError("--secret, --commit, --rollback and --terminate go with --adopt")
        return None


def _chosen(commit: Iterable[TxId], rollback: Iterable[TxId], terminate: Iterable[TxId]) -> dict[TxId, str]:
    """The choice by transaction. Raises ``CommandError`` if a transaction has two."""
    found: dict[TxId, str] = {}
    for word, txids in (("commit", commit), ("rollback", rollback), (TERMINATE, terminate)):
        for txid in txids:
            if found.setdefault(txid, word) != word:
                raise CommandError(
                    Exit.USAGE, f"{txid} is given with both --{found[txid]} and --{word}: choose one"
                )
    return found


def adopt(context: Context, wishes: Wishes) -> None:
    """See the command."""
    secret = b"" if wishes.secret is None else read_secret(wishes.secret, wishes.ledger_id)
    context.run(_adopt(context, wishes, secret))


async def _adopt(context: Context, wishes: Wishes, secret: bytes) -> None:
    settings = context.settings()
    async with contextlib.AsyncExitStack() as stack:
        ledger = await _present_ledger(stack, settings, wishes.ledger_id)
        participants = wiring.registry(settings, wishes.ledger_id)
        stack.push_async_callback(participants.close)
        adoption = Adoption(participants, wishes.ledger_id, secret)
        seen = await adoption.look()
        for txid in wishes.chosen:
            seen.one(txid)
        todo = _to_do(wishes, seen)
        if not context.output.json:
            _page(context, wishes, seen, todo)
        lines: list[ReportedBranch] = []
        refused: UndoubtError | None = None
        if isinstance(ledger, LedgerMissing):
            if todo and not wishes.dry_run:
                raise CommandError(
                    Exit.NOT_FOUND, f"nothing was done, because each act has to be recorded: {ledger}"
                )
        elif todo and not wishes.dry_run:
            count = plural(len(seen.transactions), "transaction")
            context.confirm(f"End {len(todo)} of {count} as shown?", yes=wishes.yes)
            lines, refused = await _carry_out(ledger, adoption, seen, todo, wishes)
        if todo and wishes.dry_run:
            lines = [_would(one.txid, seen, word) for one, word in todo]
    if context.output.json:
        context.output.document(_document(wishes, seen, lines))
    else:
        for line in lines:
            context.output.line(f"{line.gid}  {line.action}: {line.result.replace('_', ' ')}  {line.why}")
    _end(seen, todo, lines, refused, dry_run=wishes.dry_run)


async def _present_ledger(
    stack: contextlib.AsyncExitStack, settings: Settings, lost: str
) -> Ledger | LedgerMissing:
    """The ledger of the settings, in which every act is recorded, or the error which says that there is none.

    A ledger that does not answer, is in use, or cannot be opened may be ledger ``lost`` itself, with
    decisions that a branch has followed already: no branch is ended then. Raises ``LedgerMisconfigured`` and
    ``CommandError``."""
    try:
        ledger, _ = await stack.enter_async_context(wiring.opened(settings))
    except LedgerMisconfigured:
        raise
    except LedgerMissing as error:
        return error
    except LedgerError as error:
        whose = " is the ledger of the settings, and" if _is_anchored(settings, lost) else " may be"
        raise CommandError(
            status_of(error) or Exit.FAILURE,
            f"ledger {lost}{whose} not lost: {error}. Nothing was done. If ledger {lost} is lost, name"
            " another one in ledger.url, which `undoubt ledger init` makes, and repeat this command",
        ) from error
    if ledger.ledger_id == lost:
        raise CommandError(Exit.USAGE, f"ledger {lost} is not lost: undoubt recover --once")
    return ledger


def _is_anchored(settings: Settings, ledger_id: str) -> bool:
    """Whether the anchor of the SQLite ledger of the settings says that the ledger is ``ledger_id``."""
    if backend_of(settings.ledger.url) != SQLITE:
        return False
    return (
        Anchor.owner_of(ledger_files.part(sqlite_file(settings.ledger.url), ledger_files.ANCHOR)) == ledger_id
    )


def _to_do(wishes: Wishes, seen: LostBranches) -> list[tuple[LostTransaction, str]]:
    """The transactions that the operator has named, and those that their own protocol ends because the secret
    proves their names."""
    return [
        (one, wishes.chosen.get(one.txid, TERMINATE))
        for one in seen.transactions
        if one.txid in wishes.chosen or (one.proved and (one.charter is not None or one.agent))
    ]


async def _carry_out(
    ledger: Records,
    adoption: Adoption,
    seen: LostBranches,
    todo: list[tuple[LostTransaction, str]],
    wishes: Wishes,
) -> tuple[list[ReportedBranch], UndoubtError | None]:
    """End each transaction by itself: a refusal does not stop the others."""
    lines: list[ReportedBranch] = []
    refused: UndoubtError | None = None
    for found, word in todo:
        proof = "" if found.proved else ", unproved"
        act = new_act(f"recover --adopt {wishes.ledger_id} ({word}{proof})", found.txid, wishes.note)
        try:
            async with acting(ledger, act) as came_of:
                if word == TERMINATE:
                    ended = await adoption.terminate(found)
                else:
                    direction = Decision.COMMIT if word == "commit" else Decision.ABORT
                    ended = await adoption.end(found, seen, direction)
                came_of.result = came_of_lines(ended)
                lines += ended
        except LedgerError:
            raise
        except UndoubtError as error:
            refused = error
            lines += [
                ReportedBranch(str(one.gid), one.holder, None, word, "failed", str(error))
                for one in found.prepared
            ]
    return lines, refused


def came_of_lines(lines: list[ReportedBranch]) -> str:
    """For the audit: ``done`` if all branches have ended as ordered, else each other result once."""
    others = [
        ": ".join(filter(None, (f"{line.action} {line.result.replace('_', ' ')}", line.why)))
        for line in lines
        if line.result != "done" or line.action == "heuristic"
    ]
    return "; ".join(dict.fromkeys(others)) or DONE


def _would(txid: TxId, seen: LostBranches, word: str) -> ReportedBranch:
    first = seen.one(txid).prepared[0]
    return ReportedBranch(str(first.gid), first.holder, None, word, "would_do")


def _end(
    seen: LostBranches,
    todo: list[tuple[LostTransaction, str]],
    lines: list[ReportedBranch],
    refused: UndoubtError | None,
    *,
    dry_run: bool,
) -> None:
    if seen.unreachable:
        reasons = "; ".join(f"{name}: {error}" for name, error in seen.unreachable.items())
        raise CommandError(Exit.UNREACHABLE, f"not all participants answered: {reasons}")
    if refused is not None:
        raise CommandError(status_of(refused) or Exit.FAILURE, str(refused))
    if failed := [line for line in lines if line.result == "failed"]:
        count = plural(len(failed), "branch", "branches")
        raise CommandError(Exit.FAILURE, f"{count} could not be ended: {failed[0].why}")
    ended = {line.gid for line in lines if line.result == "done"}
    left = [one for one in seen.transactions if any(str(branch.gid) not in ended for branch in one.prepared)]
    if left and not dry_run:
        count = plural(len(left), "transaction is", "transactions are")
        raise CommandError(
            Exit.IN_DOUBT,
            f"{count} left to you: find out how each has ended in other databases, then"
            " name it with --commit or --rollback",
        )


def _page(
    context: Context, wishes: Wishes, seen: LostBranches, todo: list[tuple[LostTransaction, str]]
) -> None:
    out = context.output
    words = {one.txid: word for one, word in todo}
    for one in seen.transactions:
        proof = "the secret proves its names" if one.proved else "not proved: no secret was given"
        out.heading(f"transaction {one.txid} ({shapes.protocol_name(one.protocol)}), {proof}")
        for branch in one.branches:
            out.line(f"  {branch.gid.branch}:{branch.gid.participant:<16} {_state(branch)}")
        word = words.get(one.txid)
        chosen = {None: "left to you", TERMINATE: "its own termination ends it"}.get(
            word, f"you chose: {word}"
        )
        out.line(f"  {chosen}. {_more(one)}")
    for name, gid, why in seen.impostors:
        out.line(f"not changed: {gid} in {name}: {printable(why)}")
    if not seen.transactions and not seen.impostors and not seen.unreachable:
        out.note(f"no branch of ledger {wishes.ledger_id} is prepared")


def _state(one: LostBranch) -> str:
    word = one.now.replace("_", " ")
    if one.branch is None:
        return word + (" (proved by its note)" if one.now == "committed" else "")
    return f"{word} for {show_duration(one.branch.age_s)} by role {one.branch.owner}"


def _more(one: LostTransaction) -> str:
    if one.committed:
        return "It is proved that a branch has committed: the others can only commit."
    if one.charter is not None:
        return one.why
    return (
        f"{one.why}. Branches that are not listed here are not known: look for the rows that the transaction"
        " wrote in the other databases"
    )


def _document(wishes: Wishes, seen: LostBranches, lines: list[ReportedBranch]) -> dict[str, Any]:
    return {
        "ledger": wishes.ledger_id,
        "transactions": [
            {
                "txid": str(one.txid),
                "protocol": shapes.protocol_name(one.protocol),
                "proved": one.proved,
                "own_termination": one.charter is not None,
                "why": one.why,
                "branches": [
                    {
                        "gid": str(branch.gid),
                        "participant": branch.gid.participant,
                        "now": branch.now,
                        "owner": None if branch.branch is None else branch.branch.owner,
                        "age_s": None if branch.branch is None else round(branch.branch.age_s, 3),
                    }
                    for branch in one.branches
                ],
            }
            for one in seen.transactions
        ],
        "impostors": [
            {"participant": name, "gid": str(gid), "why": why} for name, gid, why in seen.impostors
        ],
        "unreachable": [
            {"participant": name, "error": str(error)} for name, error in seen.unreachable.items()
        ],
        "lines": msgspec.to_builtins(lines),
    }
