"""``undoubt locks``: shows who holds and who waits for distributed locks, and releases one."""

from __future__ import annotations

from collections.abc import Sequence

import click

from undoubt.cli.context import Context, common, note_option, opened, pass_context, yes_option
from undoubt.cli.exits import CommandError, Exit
from undoubt.coordinator.ledger.acting import acting, new_act
from undoubt.coordinator.ledger.contract import Ledger
from undoubt.coordinator.ledger.lock_queue import name_fault
from undoubt.coordinator.ledger.locks import LOCKS_PAGE_MAX, LockEntry, LockInfo
from undoubt.report import shapes
from undoubt.report.times import age, show_duration

_HEADINGS = ("lock", "state", "mode", "token", "session", "owner", "since", "transaction")


@click.group()
def locks() -> None:
    """See distributed locks, and release one.

    \b
    Example:
      undoubt locks list
      undoubt locks show "nightly report"
    """


@locks.command("list")
@click.option(
    "-n", "--limit", type=click.IntRange(1, 10_000), default=1_000, show_default=True, help="At most so many."
)
@click.option("--after", default="", metavar="NAME", help="The locks behind this one: the next page.")
@common
@pass_context
def list_(context: Context, limit: int, after: str) -> None:
    """List the locks that are held.

    Lists each lock by name, with its holders, and behind them the requests that wait, in the order in which
    they will get the lock.

    \b
    Example:
      undoubt locks list -o json | jq '.[] | select(.waiting > 0) | .name'
    """
    found, owners = context.run(_list(context, limit, after))
    if context.output.json:
        context.output.document([shapes.lock(info, owners) for info in found])
        return
    context.output.table(_HEADINGS, [row for info in found for row in _rows(info, owners)])
    if not found:
        context.output.note("no lock is held")


@locks.command()
@click.argument("name")
@common
@pass_context
def show(context: Context, name: str) -> None:
    """Show one lock.

    Shows its holders and the requests that wait. Exit status 3 if nobody holds the lock.

    \b
    Example:
      undoubt locks show "nightly report"
    """
    info, owners = context.run(_show(context, _checked(name)))
    if context.output.json:
        context.output.document(shapes.lock(info, owners))
    else:
        context.output.table(_HEADINGS, _rows(info, owners))


@locks.command()
@click.argument("name")
@click.option(
    "--token", type=click.IntRange(1), required=True, metavar="TOKEN", help="The holder, by its token."
)
@note_option
@yes_option
@common
@pass_context
def release(context: Context, name: str, token: int, note: str, yes: bool) -> None:
    """Take a lock away from its holder.

    The holder may still work: the next one begins although it does. Only databases in which both guard their
    branches (lock.guard) refuse the former holder. A holder that has died needs no release: its session
    expires. Exit status 3 if nobody holds the lock with that token.

    \b
    Example:
      undoubt locks release "nightly report" --token 1795996662123456 --yes
    """
    info, owners = context.run(_show(context, _checked(name)))
    holder = next((entry for entry in info.holders if entry.token == token), None)
    if holder is None:
        raise CommandError(Exit.NOT_FOUND, f"nobody holds lock {name!r} with token {token}")
    context.output.note(
        f"lock {name!r} is held by {owners.get(holder.request.session, 'session')} (session"
        f" {holder.request.session}) since {_since(holder)}; {len(info.waiters)} wait for it"
    )
    context.confirm("Take it away? Its holder may still work, and may not notice.", yes=yes)
    if not context.run(_release(context, name, token, note)):
        raise CommandError(Exit.NOT_FOUND, f"nobody holds lock {name!r} with token {token} any more")
    if context.output.json:
        context.output.document({"name": name, "token": token, "released": True})
    else:
        context.output.line(f"lock {name!r} is released")


def _checked(name: str) -> str:
    if fault := name_fault(name):
        raise CommandError(Exit.USAGE, fault)
    return name


def _rows(info: LockInfo, owners: dict[int, str]) -> Sequence[Sequence[object]]:
    return [
        (
            info.name,
            "held" if entry.granted else "waits",
            "shared" if entry.request.shared else "exclusive",
            entry.token or "-",
            entry.request.session,
            owners.get(entry.request.session, "-"),
            _since(entry),
            entry.request.txid or "-",
        )
        for entry in info.entries
    ]


def _since(entry: LockEntry) -> str:
    passed = age(entry.request.at)
    return "-" if passed is None else f"{show_duration(passed)} ago"


async def _owners(ledger: Ledger) -> dict[int, str]:
    return {info.id: info.name for info in await ledger.sessions()}


async def _list(context: Context, limit: int, after: str) -> tuple[list[LockInfo], dict[int, str]]:
    async with opened(context) as tools:
        found: list[LockInfo] = []
        while len(found) < limit:
            page = await tools.ledger.locks(after=after, limit=min(limit - len(found), LOCKS_PAGE_MAX))
            if not page:
                break
            found += page
            after = page[-1].name
        return found, await _owners(tools.ledger)


async def _show(context: Context, name: str) -> tuple[LockInfo, dict[int, str]]:
    async with opened(context) as tools:
        found = await tools.ledger.locks(only=name)
        if not found:
            raise CommandError(Exit.NOT_FOUND, f"nobody holds lock {name!r}")
        return found[0], await _owners(tools.ledger)


async def _release(context: Context, name: str, token: int, note: str) -> bool:
    async with opened(context) as tools:
        act = new_act("locks release", f"{name} (token {token})", note)
        async with acting(tools.ledger, act) as came_of:
            released = await tools.ledger.revoke_lock(name, token)
            if not released:
                came_of.result = "nobody held it any more"
            return released
