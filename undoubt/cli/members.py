"""``undoubt cluster add|promote|remove|transfer|snapshot|backup|restore``: changes a cluster."""

from __future__ import annotations

import asyncio
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from undoubt.cli.context import Context, common, note_option, pass_context, yes_option
from undoubt.cli.duration import Duration
from undoubt.cli.exits import CommandError, Exit
from undoubt.coordinator.errors import LedgerError, UnknownNode
from undoubt.participants.plural import plural

if TYPE_CHECKING:
    from undoubt.coordinator.ledger.cluster.messages import NodeStatus
    from undoubt.coordinator.settings import LedgerSettings

# Commands import late: --help does not need the wire.

NODE = click.IntRange(min=1)


@click.command()
@click.option(
    "--address", metavar="HOST:PORT", default="", help="Where others reach it [default: where it listens]."
)
@note_option
@common
@pass_context
def add(context: Context, note: str, address: str) -> None:
    """Let this node join the cluster, as a learner.

    Run it on the new machine, with node.number set to a number that no node has had, an empty node.data, and
    node.listen. Then start the node there: it receives the log. Then promote it. A node that has lost its
    disk joins in the same way, under a new number; remove the old one.

    \b
    Example:
      undoubt cluster add --config node-4.toml
      undoubt node --config node-4.toml
      undoubt cluster promote 4
    """
    from undoubt.serve import bootstrap  # noqa: PLC0415

    joined = context.run(bootstrap.join(context.settings(), address, note))
    if context.output.json:
        context.output.document(msgspec.to_builtins(joined))
        return
    context.output.line(f"node {joined.node} is a learner of cluster {joined.cluster}, at {joined.address}")
    context.output.note(f"start it: undoubt node; then: undoubt cluster promote {joined.node}")


@click.command()
@click.argument("nodes", metavar="NODE...", nargs=-1, required=True, type=NODE)
@click.option(
    "--wait", "wait_s", type=Duration(), default="1m", show_default=True, help="For it to catch up."
)
@note_option
@common
@pass_context
def promote(context: Context, note: str, nodes: tuple[int, ...], wait_s: float) -> None:
    """Make learners voters, once they have caught up.

    Several at once are one step. Grow from three to five by adding two nodes and promoting both.

    \b
    Example:
      undoubt cluster promote 4 5
    """
    _show(context, _change(context, "promote", nodes, wait_s, note))


@click.command()
@click.argument("nodes", metavar="NODE...", nargs=-1, required=True, type=NODE)
@click.option(
    "--wait", "wait_s", type=Duration(), default="15s", show_default=True, help="For others to be ready."
)
@yes_option
@note_option
@common
@pass_context
def remove(context: Context, note: str, nodes: tuple[int, ...], wait_s: float, yes: bool) -> None:
    """Remove nodes for good: their numbers are never used again.

    Several nodes at once are one change. To remove a former member again changes nothing.
    It is refused if the remaining nodes would have no responsive
    majority, or could not end undecided transactions. To replace a dead node, add a new one, promote it, then
    remove the dead one, in this order if possible. Stop a live node after it was removed, not before.

    \b
    Example:
      undoubt cluster remove 2
    """
    listed = " and ".join(map(str, nodes))
    context.confirm(f"Remove node {listed} from the cluster, for good?", yes=yes)
    _show(context, _change(context, "remove", nodes, wait_s, note))
    is_ = "is no member any more: stop it" if len(nodes) == 1 else "are no members any more: stop them"
    context.output.note(f"node {listed} {is_} for good")


@click.command()
@click.argument("node", required=False, default=0, type=click.IntRange(min=0), metavar="[NODE]")
@note_option
@common
@pass_context
def transfer(context: Context, note: str, node: int) -> None:
    """Transfer leadership to this node, or to the best candidate.

    \b
    Example:
      undoubt cluster transfer
      undoubt cluster transfer 3
    """
    from undoubt.coordinator.ledger.cluster import admin  # noqa: PLC0415

    _show(context, context.run(admin.transfer(context.settings().ledger, node, note=note)))


@click.command()
@click.argument("node", required=False, default=0, type=click.IntRange(min=0), metavar="[NODE]")
@note_option
@common
@pass_context
def snapshot(context: Context, node: int, note: str) -> None:
    """Make a node, or all nodes, store a snapshot now.

    Nodes also do this as their logs grow. A snapshot makes a restart quicker and the log shorter.

    \b
    Example:
      undoubt cluster snapshot
    """
    taken = context.run(_snapshots(context.settings().ledger, node, note))
    if context.output.json:
        context.output.document({"snapshots": taken})
    else:
        rows = [(str(each["node"]), str(each["index"] or "-"), str(each["error"])) for each in taken]
        context.output.table(("node", "index", "error"), rows)
    if not taken:
        raise CommandError(Exit.UNREACHABLE, "no node of the cluster answers")
    if any(each["error"] for each in taken):
        raise CommandError(Exit.UNREACHABLE, "not all nodes have stored a snapshot")


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@note_option
@common
@pass_context
def backup(context: Context, file: Path, note: str) -> None:
    """Write the ledger, as the cluster agrees on it now, into one file.

    It can be taken at any time. No file is overwritten. It contains the ledger's secret, so the act is
    recorded; it does not contain the details of finished transactions.

    \b
    Example:
      undoubt cluster backup ledger-monday.backup
    """
    about, size = context.run(_backup(context.settings().ledger, file, note))
    document = {"file": str(file), "bytes": size, **msgspec.to_builtins(about)}
    if context.output.json:
        context.output.document(document)
        return
    context.output.line(f"{file}: ledger {about.ledger_id} up to index {about.index}, {size} bytes")


@click.command()
@click.argument("files", metavar="FILE", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--id", "ticket", metavar="ID", default="", help="What the first node's restore printed.")
@click.option(
    "--force", is_flag=True, help="From the newest of these disks (FILE…: node.data folders), not a backup."
)
@note_option
@yes_option
@common
@pass_context
def restore(
    context: Context, /, *, files: tuple[Path, ...], ticket: str, force: bool, note: str, yes: bool
) -> None:
    """Make this node one of the first of a new cluster with the ledger of a backup.

    Run it like `init`: once on each of the nodes, on the others with the --id that the first one printed. All
    nodes of the former cluster must have stopped for good. All sessions are closed. What was undecided when
    the backup was made is never presumed aborted: `indoubt list` shows it, and an operator decides it.

    --force is for a majority that is gone for good, if a remaining disk is newer than every backup: name the
    node.data folders (or copies) of all remaining nodes. The newest is taken, with its whole log. It says
    what may be lost, and asks.

    \b
    Example:
      undoubt cluster restore ledger-monday.backup --config node-1.toml
      undoubt cluster restore ledger-monday.backup --config node-2.toml --id 8c1v7m2xqe-5d20b3f1
      undoubt cluster restore --force /old/node-3 --config node-1.toml
    """
    from undoubt.serve import bootstrap  # noqa: PLC0415

    if force:
        _force(context, files, ticket, note, yes=yes)
        return
    if len(files) > 1:
        raise click.UsageError("one backup; several FILEs go with --force")
    (file,) = files
    if not ticket:
        context.confirm("Have all nodes of the former cluster stopped for good?", yes=yes)
    restored = context.run(bootstrap.restore(context.settings(), file, ticket, note))
    if context.output.json:
        context.output.document(msgspec.to_builtins(restored))
        return
    context.output.line(restored.ticket)
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(restored.backup_at))
    context.output.note(f"node {restored.node} has ledger {restored.ledger_id} as it was at {made}")
    if not ticket and context.settings().ledger.wire.tls is not None:
        context.output.note(
            "its certificates are new, in a folder of their own: undoubt cluster certs --dir FOLDER --id"
            f" {restored.ticket} --node N …"
        )
    if not ticket:
        context.output.note(
            f"on the other first nodes: undoubt cluster restore {file} --id {restored.ticket}"
        )


def _force(context: Context, folders: tuple[Path, ...], ticket: str, note: str, *, yes: bool) -> None:
    from undoubt.serve.force import force, survey_disks  # noqa: PLC0415

    left, image = context.run(survey_disks(folders))
    if not ticket:
        lost = (
            "Decisions that were acknowledged after that, and are on no remaining disk, are lost: you decide"
            " their branches that are still prepared; committed branches stay committed"
            if left.may_lack
            else "Every acknowledged decision is on one of these disks, and so on the newest"
        )
        for doubt in left.doubts:
            context.output.note(f"a disk can be read only in part: {doubt}. The rest may be lost")
        voters = plural(left.voters, "voter's disk is", "voters' disks are")
        context.confirm(
            f"The newest disk is {left.folder}, of node {left.node}: its log ends at entry {left.index} of"
            f" term {left.term}. {left.disks} of {voters} given. {lost}. Have all"
            " nodes of the former cluster stopped for good?",
            yes=yes,
        )
    made = context.run(force(context.settings(), left, image, ticket, note))
    if context.output.json:
        context.output.document(msgspec.to_builtins(made))
        return
    context.output.line(made.ticket)
    context.output.note(
        f"node {made.node} has ledger {made.ledger_id} as the disk of node {left.node} had it, up to entry"
        f" {left.index}" + ("; what was acknowledged after it is lost" if left.may_lack else "")
    )
    if not ticket:
        context.output.note(
            f"on the other first nodes: undoubt cluster restore --force {left.folder} --id {made.ticket}"
        )


def _change(context: Context, kind: Any, nodes: tuple[int, ...], wait_s: float, note: str) -> NodeStatus:
    from undoubt.coordinator.ledger.cluster import admin  # noqa: PLC0415
    from undoubt.coordinator.ledger.cluster.messages import MemberChange  # noqa: PLC0415

    changes = [MemberChange(kind, node) for node in nodes]
    wait_s = max(wait_s, admin.WAIT_S)
    return context.run(admin.change_members(context.settings().ledger, changes, wait_s=wait_s, note=note))


def _show(context: Context, status: NodeStatus) -> None:
    if context.output.json:
        context.output.document(
            {
                "cluster": status.cluster,
                "leader": status.leader or None,
                "voters": list(status.voters),
                "learners": list(status.learners),
                "nodes": {str(node): address for node, address in status.nodes.items()},
            }
        )
        return
    rows = [
        (
            str(node),
            address,
            "voter" if node in status.voters else "learner",
            "leads" if node == status.leader else "",
        )
        for node, address in status.nodes.items()
    ]
    context.output.table(("node", "address", "member", ""), rows)


async def _snapshots(settings: LedgerSettings, node: int, note: str) -> list[dict[str, Any]]:
    from undoubt.coordinator.ledger.acting import acting, new_act  # noqa: PLC0415
    from undoubt.coordinator.ledger.cluster import admin  # noqa: PLC0415
    from undoubt.coordinator.ledger.cluster.status import survey  # noqa: PLC0415

    members: dict[int, str] = {}
    for seen in (await survey(settings)).nodes:
        members |= seen.status.nodes if seen.status is not None else {}

    async def one(number: int) -> dict[str, Any]:
        try:
            return {"node": number, "index": await admin.snapshot(settings, members[number]), "error": ""}
        except LedgerError as error:
            return {"node": number, "index": None, "error": str(error)}

    if node and members and node not in members:
        raise UnknownNode(f"node {node} is not a member of the cluster")
    wanted = [number for number in sorted(members) if node in {0, number}]
    subject = f"node {' '.join(map(str, wanted))}"
    # It changes no record, and nodes without a leader can store a snapshot too.
    async with acting(admin.Acts(settings), new_act("cluster snapshot", subject, note), needed=False) as came:
        taken = list(await asyncio.gather(*map(one, wanted)))
        if failed := [each for each in taken if each["error"]]:
            count = plural(len(taken), "node")
            came.result = f"not stored at {len(failed)} of {count}: {failed[0]['error']}"
    return taken


async def _backup(settings: LedgerSettings, file: Path, note: str) -> tuple[Any, int]:
    from undoubt.coordinator.ledger import backup as files  # noqa: PLC0415
    from undoubt.coordinator.ledger.cluster import admin  # noqa: PLC0415

    status, piece, image = await admin.image(settings, note=note)
    about = files.About(
        status.cluster, status.ledger_id, piece.index, piece.term, time.time(), metadata.version("undoubt")
    )
    return about, files.write(file, files.Backup(about, image))


OPERATIONS = (add, promote, remove, transfer, snapshot, backup, restore)
