"""``undoubt cluster``: the nodes that keep the ledger."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import click
import msgspec

from undoubt.cli.context import Context, ask_about_lost, common, note_option, pass_context, yes_option
from undoubt.cli.duration import Duration
from undoubt.cli.exits import CommandError, Exit
from undoubt.cli.members import OPERATIONS
from undoubt.participants.ids import check_ledger_id
from undoubt.participants.plural import plural
from undoubt.report import shapes
from undoubt.report.times import show_duration

if TYPE_CHECKING:
    from undoubt.coordinator.ledger.cluster.status import ClusterStatus
    from undoubt.coordinator.settings import LedgerSettings
    from undoubt.serve.certs import Folder, Issued

CLIENT_ROLES = ("observe", "transact", "operate")
"""``coordinator.wire.ROLES``, which only this command would load."""


SOON_DAYS = 30
"""``cluster status`` reports a certificate that expires within this time."""

WAIT_PAUSE_S = 0.2


@click.group()
def cluster() -> None:
    """The nodes that keep the ledger.

    \b
    Example:
      undoubt cluster init
      undoubt cluster status
    """


@cluster.command()
@click.option("--id", "ticket", metavar="ID", default="", help="What the first node's init printed.")
@yes_option
@note_option
@common
@pass_context
def init(context: Context, ticket: str, note: str, yes: bool) -> None:
    """Make this node one of the first of a new cluster.

    Run it once on each of the nodes that the ledger's URL names. The first one draws the cluster's id and
    prints it; give that --id to the others. Never use it on a node that has lost its disk: it could vote
    twice. Remove such a node, and let it join again under a new number. The first one asks the participants
    of its configuration for branches of a lost cluster, and asks you if it finds any.

    \b
    Example:
      undoubt cluster init --config node-1.toml
      undoubt cluster init --config node-2.toml --id 4k2j9x0qpa-1f0c77de
    """
    from undoubt.serve import bootstrap  # noqa: PLC0415 - SQLite and the wire come with it

    if not ticket:
        ask_about_lost(context, yes=yes)
    begun = bootstrap.init(context.settings(), ticket, note)
    if context.output.json:
        context.output.document(msgspec.to_builtins(begun))
        return
    context.output.line(begun.ticket)
    if not ticket:
        context.output.note(f"on the other first nodes: undoubt cluster init --id {begun.ticket}")


@cluster.command()
@click.option(
    "--wait",
    "wait_s",
    type=Duration(),
    metavar="DURATION",
    help="Wait, at most so long, until a node leads and all members answer and are level.",
)
@common
@pass_context
def status(context: Context, wait_s: float | None) -> None:
    """Show the leader, the followers, their progress, and the agreed version.

    Asks all nodes that the ledger's URL names, and all members that they name. Exit status 4 if no node
    leads.

    With --wait: until a node leads, and each member answers, can write its disk, and has applied what was in
    the leader's log when the leader was first asked. Exit status 6, with the reason, if this takes longer.

    \b
    Example:
      undoubt cluster status
      undoubt cluster status --wait 2m
      undoubt cluster status -o json
    """
    settings = context.settings()
    found, lacking = context.run(_status(settings.ledger, wait_s))
    if context.output.json:
        context.output.document(shapes.cluster(found))
    else:
        _page(context, found)
    if wait_s is not None and lacking:
        raise CommandError(Exit.TIMEOUT, f"after {show_duration(wait_s)}: {'; '.join(lacking)}")
    if not found.leader:
        raise CommandError(Exit.UNREACHABLE, "no node leads: no transaction can be decided now")


async def _status(settings: LedgerSettings, wait_s: float | None) -> tuple[ClusterStatus, list[str]]:
    """The status, and what is lacking after the wait. What another leader's log holds may be less: in a new
    term the members have to reach the new leader."""
    from undoubt.coordinator.ledger.cluster.status import survey  # noqa: PLC0415 - as above

    started = time.monotonic()
    term = index = 0
    while True:
        found = await survey(settings)
        if (leading := found.leading) is not None and leading.term != term:
            term, index = leading.term, leading.last_index
        lacking = found.lacking(index)
        left = (wait_s or 0.0) - (time.monotonic() - started)
        if not lacking or left <= 0:
            return found, lacking
        await asyncio.sleep(min(WAIT_PAUSE_S, left))


def _page(context: Context, found: ClusterStatus) -> None:
    rows = []
    members = None if found.leading is None else found.leading.nodes
    for seen in found.nodes:
        if (node := seen.status) is None:
            why = seen.error
            if members is not None and seen.address not in members.values():
                why = f"no member has this address; {why}"
            rows.append(("-", seen.address, "does not answer", "-", "-", "-", "-", why))
            continue
        notes = ["its disk is full"] if node.disk_full else []
        if node.disk_stalled:
            notes.append("its disk does not finish a write")
        if (days := (node.certificate_until - time.time()) / 86_400) < SOON_DAYS and node.certificate_until:
            left = plural(round(max(days, 0.0)), "day")
            notes.append(f"its certificate ends in {left}")
        if node.node in found.held_up_by:
            notes.append("a newer version is not agreed on until it is upgraded")
        version = str(node.agreed_version)
        if node.highest_version != node.agreed_version:
            version += f" (supports {node.highest_version})"
        role = "learner" if node.node in node.learners else node.role
        if members is not None and node.node not in members:
            role = "no member"
            notes.append("it is no member any more, and can be stopped")
        rows.append(
            (
                str(node.node),
                seen.address,
                role,
                str(node.term),
                str(node.commit_index),
                str(node.applied_index),
                version,
                "; ".join(notes),
            )
        )
    context.output.table(("node", "address", "role", "term", "committed", "applied", "version", "note"), rows)
    if found.held_up_by:
        context.output.note(
            f"version {found.highest_version} is not agreed on yet; to upgrade: node"
            f" {', '.join(map(str, found.held_up_by))}"
        )


@cluster.command()
@click.option(
    "--dir", "place", metavar="FOLDER", default="certs", show_default=True, help="Where they are kept."
)
@click.option("--id", "ticket", metavar="ID", default="", help="The cluster; once, what init printed.")
@click.option("--node", "nodes", metavar="N[=HOST,…]", multiple=True, help="A certificate for this node.")
@click.option("--client", "clients", metavar="NAME", multiple=True, help="A certificate for a client.")
@click.option(
    "--role", type=click.Choice(CLIENT_ROLES), help="What the clients may do; operate unless given."
)
@click.option(
    "--days", type=click.IntRange(1, 3650), default=365, show_default=True, help="How long they last."
)
@click.option(
    "--renew",
    is_flag=True,
    help="Instead: renew all certificates, or those of these clients, with the same keys and names.",
)
@click.option(
    "--revoke", is_flag=True, help="Instead: revoke all certificates of these nodes and clients, in ca.crl."
)
@common
@pass_context
def certs(
    context: Context,
    *,
    place: str,
    ticket: str,
    nodes: tuple[str, ...],
    clients: tuple[str, ...],
    role: str | None,
    days: int,
    renew: bool,
    revoke: bool,
) -> None:
    """Make a CA and certificates.

    Makes a CA if the folder has none, and certificates that it signs for nodes and clients; no existing file
    is overwritten. Give each node and each client ca.crt and its own two files, for ledger.tls_ca, tls_cert
    and tls_key, and keep ca.key elsewhere. Hosts are optional: a node is identified by its number.

    A client with the role observe can only read; one with transact can also decide transactions, as an
    application must; one with operate can do everything. With --renew, --role replaces the role in the
    certificates of the named clients.

    With --revoke, all certificates that were made for these names are added to ca.crl, for ledger.tls_crl,
    and their files are deleted. Processes read a changed ca.crl without a restart.

    \b
    Example:
      undoubt cluster certs --id 4k2j9x0qpa-1f0c77de --node 1 --node 2 --node 3 --client shop
      undoubt cluster certs --client shop --role transact
      undoubt cluster certs --renew
      undoubt cluster certs --renew --client dashboard --role observe
      undoubt cluster certs --revoke --client shop
    """
    _check_wishes(nodes, clients, role, renew=renew, revoke=revoke)
    made = _certs()
    cluster_id = check_ledger_id(ticket.partition("-")[0]) if ticket else ""
    folder = made.Folder(Path(place), cluster_id, days)
    numbered = dict(map(_node_hosts, nodes))
    if revoke:
        _show_revoked(context, folder, folder.revoke(list(numbered), clients))
    elif renew:
        _show_issued(context, folder, folder.renew(clients, made.right_of_role(role) if role else None))
    else:
        issued = folder.issue(numbered, clients, made.right_of_role(role or "operate"))
        _show_issued(context, folder, issued)


def _certs() -> ModuleType:
    """An extra, which only this command needs."""
    try:
        from undoubt.serve import certs  # noqa: PLC0415
    except ModuleNotFoundError:
        raise CommandError(
            Exit.FAILURE, "this command needs the package cryptography: pip install 'undoubt[certs]'"
        ) from None
    return certs


def _show_issued(context: Context, folder: Folder, issued: Sequence[Issued]) -> None:
    if context.output.json:
        context.output.document({"cluster": folder.cluster, "certificates": msgspec.to_builtins(issued)})
        return
    rows = [(each.cert, each.name, each.role, each.until) for each in issued]
    context.output.table(("certificate", "names", "role", "valid until"), rows)


def _show_revoked(context: Context, folder: Folder, names: Sequence[str]) -> None:
    crl = str(folder.place / "ca.crl")
    if context.output.json:
        context.output.document({"cluster": folder.cluster, "revoked": names, "crl": crl})
    else:
        context.output.table(("revoked", "list"), [(name, crl) for name in names])


def _check_wishes(
    nodes: Sequence[str], clients: Sequence[str], role: str | None, *, renew: bool, revoke: bool
) -> None:
    if revoke and (renew or role or not (nodes or clients)):
        raise click.UsageError("--revoke needs --node or --client, and neither --renew nor --role")
    if (renew and nodes) or not (renew or nodes or clients):
        raise click.UsageError("either --renew, alone or with --client, or at least one --node or --client")
    if role and not clients:
        raise click.UsageError("--role is for clients: name them with --client")


def _node_hosts(text: str) -> tuple[int, list[str]]:
    number, _, hosts = text.partition("=")
    if not number.isascii() or not number.isdigit():
        raise click.UsageError(f"--node {text!r} is not N or N=HOST,HOST")
    return int(number), [host for host in hosts.split(",") if host]


for operation in OPERATIONS:
    cluster.add_command(operation)
