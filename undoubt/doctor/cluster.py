"""Checks the nodes of a replicated ledger.

The findings say which nodes answer, how many more may fail, which disks are full or stalled, which nodes hold
back a version, and which role the client's certificate has."""

from __future__ import annotations

from collections.abc import Iterator

from undoubt.coordinator.errors import LedgerUnusable
from undoubt.coordinator.ledger.cluster.status import ClusterStatus, Seen, survey
from undoubt.coordinator.settings import LedgerSettings
from undoubt.coordinator.wire import SCHEME, named_right, tls_of
from undoubt.participants.findings import Finding, Severity
from undoubt.participants.plural import plural

RAFT = "raft://"


async def look_at_nodes(settings: LedgerSettings) -> list[Finding]:
    """The findings about the nodes. Empty if the ledger is not a cluster, or its URL cannot be used: opening
    the ledger reports that."""
    if not settings.url.startswith(RAFT):
        return []
    try:
        found = await survey(settings)
    except LedgerUnusable:
        return []
    return [_answering(found), *_disks(found), *_versions(found), *_role(settings)]


def _answering(found: ClusterStatus) -> Finding:
    leader = found.leading
    if leader is None:
        return Finding(
            None,
            "ledger_nodes",
            Severity.UNREACHABLE,
            f"no node leads: {'; '.join(_words(seen) for seen in found.nodes)}",
            "nothing can be decided before a majority of the nodes run and reach one another",
            "undoubt cluster status",
        )
    answering = {seen.status.node for seen in found.nodes if seen.status is not None}
    voters = set(leader.voters)
    spare = len(voters & answering) - (len(voters) // 2 + 1)
    answers = plural(len(voters & answering), "answers", "answer")
    what = f"node {leader.node} leads; of {plural(len(voters), 'voter')} {answers}"
    if voters <= answering and spare > 0:
        return Finding(None, "ledger_nodes", Severity.OK, f"{what}, and {spare} may fail")
    if voters <= answering:
        return Finding(
            None,
            "ledger_nodes",
            Severity.WARNING,
            f"{what}, and none may fail",
            "if one fails, nothing can be decided: add nodes, up to three voters or five",
            "undoubt cluster add",
        )
    silent = "; ".join(_words(seen) for seen in found.nodes if seen.status is None)
    return Finding(
        None,
        "ledger_nodes",
        Severity.WARNING,
        what,
        f"{spare} more may fail before nothing can be decided: start or replace what is down. {silent}",
        "undoubt cluster status",
    )


def _disks(found: ClusterStatus) -> Iterator[Finding]:
    for seen in found.nodes:
        if (status := seen.status) is None:
            continue
        disk = f"the disk of node {status.node} ({seen.address})"
        if status.disk_full:
            fix = "the node takes no part in decisions until there is room: make room"
            yield Finding(None, "ledger_disk", Severity.PROBLEM, f"{disk} is full", fix)
        if status.disk_stalled:
            fix = (
                "the node takes no part in decisions and does not lead until the write is finished: look at"
                " the disk and at other programs that use it"
            )
            yield Finding(None, "ledger_disk", Severity.PROBLEM, f"{disk} does not finish a write", fix)


def _role(settings: LedgerSettings) -> Iterator[Finding]:
    """The role of the client's certificate of these settings. No finding about a node's certificate."""
    tls = settings.wire.tls
    names = tls_of(tls).own.names if tls is not None else ()
    clients = [name.removeprefix(SCHEME).split("/") for name in names if "/client/" in name]
    if not clients:
        return
    cluster, _, who = clients[0]
    right = named_right(names, cluster)
    if right is None:
        yield Finding(
            None,
            "ledger_role",
            Severity.WARNING,
            f"the certificate of client {who} names no role: its holder may do what operators may do",
            "give it the role that it needs: transact for an application, observe for reading only",
            f"undoubt cluster certs --renew --client {who} --role transact",
        )
    else:
        yield Finding(
            None, "ledger_role", Severity.OK, f"the certificate of client {who} has the role {right}"
        )


def _versions(found: ClusterStatus) -> Iterator[Finding]:
    if (leading := found.leading) is not None and found.held_up_by:
        nodes = ", ".join(map(str, found.held_up_by))
        yield Finding(
            None,
            "ledger_version",
            Severity.WARNING,
            f"the cluster works with version {leading.agreed_version}, and has nodes that support"
            f" {found.highest_version}",
            f"the functions of that version are refused until node {nodes} supports it too: upgrade it,"
            " remove a lower node.version_max there, or start it",
            "undoubt cluster status",
        )


def _words(seen: Seen) -> str:
    return f"{seen.address} {'follows' if seen.status is not None else 'does not answer: ' + seen.error}"
