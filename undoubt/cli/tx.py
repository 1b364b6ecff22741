"""``undoubt tx``: shows what the ledger knows about transactions, and ends one."""

from __future__ import annotations

import contextlib

import click

from undoubt.cli.context import Context, common, opened, pass_context
from undoubt.cli.exits import CommandError, Exit
from undoubt.cli.names import TxIdParam
from undoubt.cli.output import Output
from undoubt.cli.tx_resolve import resolve
from undoubt.coordinator.errors import LedgerError
from undoubt.coordinator.ledger.contract import Ledger, TransactionInfo
from undoubt.coordinator.ledger.session_mark import transactions_without_marks
from undoubt.participants.ids import Protocol, TxId
from undoubt.report import shapes
from undoubt.report.times import age, show_duration
from undoubt.report.transactions import known, state


@click.group()
def tx() -> None:
    """Look up transactions in the ledger, and end one as a whole.

    \b
    Example:
      undoubt tx list
      undoubt tx show 3-4f1d0c9a77b2e815.42
    """


@tx.command("list")
@click.option(
    "-n", "--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="At most so many."
)
@click.option(
    "--before", type=TxIdParam(), metavar="TXID", help="The decisions before this one: the next page."
)
@common
@pass_context
def list_(context: Context, limit: int, before: TxId | None) -> None:
    """List the newest decisions.

    They are listed as far back as the ledger's history goes, newest first. Transactions that were read-only,
    changed one database only, or were rolled back before a decision leave no record, and are not listed.

    \b
    Example:
      undoubt tx list --limit 20
      undoubt tx list -o json | jq '.[] | select(.finished | not)'
    """
    found, ledger_id = context.run(_list(context, limit, before))
    if context.output.json:
        context.output.document([shapes.transaction(info, ledger_id) for info in found])
        return
    context.output.table(
        ("transaction", "state", "protocol", "participants", "decided", "coordinator"),
        [
            (
                info.txid,
                state(info),
                shapes.protocol_name(info.protocol) or "-",
                " ".join(sorted({branch.participant for branch in info.branches})),
                _ago(info.decided_at),
                info.coordinator,
            )
            for info in found
        ],
    )
    if not found:
        context.output.note("no decision is recorded")


tx.add_command(resolve)


@tx.command()
@click.argument("txid", type=TxIdParam())
@common
@pass_context
def show(context: Context, txid: TxId) -> None:
    """Show one transaction.

    Shows its decision, its branches, and whether all have applied the decision. TXID is a transaction's id,
    or the gid of one of its branches. Exit status 3 if the ledger has no record of it.

    \b
    Example:
      undoubt tx show 3-4f1d0c9a77b2e815.42
    """
    info, ledger_id, agent = context.run(_show(context, txid))
    if info is None:
        raise CommandError(
            Exit.NOT_FOUND,
            f"the ledger has no record of transaction {txid}: it is not of this ledger, or left no"
            " record (read-only, one database only, rolled back), or is older than the history kept",
        )
    if context.output.json:
        context.output.document(shapes.transaction(info, ledger_id) | {"agent": agent or None})
    else:
        _page(context.output, info, ledger_id, agent)


async def _list(context: Context, limit: int, before: TxId | None) -> tuple[list[TransactionInfo], str]:
    async with opened(context) as tools:
        found = await transactions_without_marks(tools.ledger, limit=limit, before=before)
        return found, tools.ledger.ledger_id


async def _show(context: Context, txid: TxId) -> tuple[TransactionInfo | None, str, str]:
    async with opened(context) as tools:
        info = await known(tools.ledger, txid)
        return info, tools.ledger.ledger_id, await _agent(tools.ledger, info)


async def _agent(ledger: Ledger, info: TransactionInfo | None) -> str:
    """The participant that was the agent of a last-agent commit. Its branch is not recorded: it has committed
    with the decision. Empty if there is none, if the ledger has dropped the session, or if the ledger does
    not tell this client."""
    if info is None or info.protocol is not Protocol.LAST:
        return ""
    with contextlib.suppress(LedgerError):
        [key] = await ledger.agent_keys([info.txid])
        return "" if key is None else key.binding.participant
    return ""


def _page(out: Output, info: TransactionInfo, ledger_id: str, agent: str) -> None:
    document = shapes.transaction(info, ledger_id)
    out.heading(f"transaction {info.txid}")
    facts = [
        ("state", state(info)),
        ("decision", str(info.record).replace("_", " ")),
        ("decided", f"{document['decided_at']} ({_ago(info.decided_at)})" if info.decided_at else "-"),
        ("protocol", document["protocol"] or "-"),
        *([("agent", f"{agent}, whose branch commits with the decision")] if agent else []),
        ("coordinator", info.coordinator or "-"),
        *([("key", info.key)] if info.key else []),
    ]
    for name, value in facts:
        out.line(f"  {name:<12} {value}")
    if info.branches:
        out.line()
        out.table(
            ("branch", "participant", "xid", "gid"),
            [
                (
                    branch["number"],
                    branch["participant"],
                    (branch["evidence"] or {}).get("xid", "-"),
                    branch["gid"],
                )
                for branch in document["branches"]
            ],
        )
    for found in document["heuristics"]:
        out.line()
        seen = " (forgotten)" if found["forgotten"] else ""
        out.line(f"  {found['kind'].replace('_', ' ')}{seen}: {found['gid']}")
        out.line(f"    found {found['found_at']}. {found['note']}".rstrip())


def _ago(seconds: float | None) -> str:
    passed = age(seconds)
    return "-" if passed is None else f"{show_duration(passed)} ago"
