"""Makes the disk of a node.

The node is one of the first of a new cluster, which starts empty or from a backup, or it joins a running
cluster."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from undoubt.config import Settings
from undoubt.coordinator.errors import ClusterRefused, LedgerMisconfigured, LedgerUnavailable, LedgerUnusable
from undoubt.coordinator.ledger import backup
from undoubt.coordinator.ledger.acting import DONE, new_act
from undoubt.coordinator.ledger.cluster import admin
from undoubt.coordinator.ledger.cluster.messages import MemberChange
from undoubt.coordinator.ledger.cluster.status import survey
from undoubt.coordinator.ledger.cluster.url import RAFT, addresses_of
from undoubt.coordinator.node.bootstrap import beginning, joining, restored
from undoubt.coordinator.node.storage.contract import DiskIdentity
from undoubt.coordinator.node.storage.node_storage import NodeStorage, create, discard, lives_in
from undoubt.coordinator.wire import Address
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import InvalidName, check_ledger_id, new_ledger_id, new_nonce
from undoubt.serve import pending_acts

LOOK_S = 1.0
"""How long a connection to a machine that may not exist may take; and how long a listener must keep the
connection open: a node waits for its caller to send first."""


class Begun(msgspec.Struct, frozen=True):
    """A first node of a new cluster. The other first nodes have to be made with the same ``ticket``."""

    cluster: str
    node: int
    ticket: str


class RestoredCluster(Begun, frozen=True):
    """A first node of a cluster that was made from a backup. ``backup_at``: when the backup was made, in
    seconds since 1970."""

    ledger_id: str
    backup_at: float


class Joined(msgspec.Struct, frozen=True):
    """A node that was added to a cluster, and the address at which the other nodes connect to it."""

    cluster: str
    node: int
    address: str


def init(settings: Settings, ticket: str = "", note: str = "") -> Begun:
    """Make this node one of the first of a new cluster, whose id is drawn unless there is a ``ticket``. The
    act is recorded, with ``note``, once the cluster runs. Raises ``UsageError``, ``LedgerUnusable``."""
    number, addresses = first_of(settings)
    version = settings.node.supported.highest
    cluster, digest = new_cluster(ticket, addresses, f"version {version}")
    identity = DiskIdentity(cluster, number, new_nonce())
    create(Path(settings.node.data), identity, *beginning(cluster, addresses, version))
    act = new_act("cluster init", f"node {number} of cluster {cluster}", note, result=DONE)
    pending_acts.keep(Path(settings.node.data), act)
    return Begun(cluster, number, f"{cluster}-{digest}")


async def restore(settings: Settings, path: Path, ticket: str = "", note: str = "") -> RestoredCluster:
    """Make this node one of the first of a new cluster that goes on with the ledger of a backup. The cluster
    gets a new id, so no node of the former cluster can join it. The act is recorded as by :func:`init`.
    Raises ``UsageError``, ``LedgerUnusable``."""
    number, addresses = first_of(settings)
    kept = backup.read(path)
    cluster, digest = new_cluster(ticket, addresses, kept.digest)
    ledger_id, hard_state, snapshot = restored(kept.image, addresses, settings.node.supported)
    if not ticket:
        await refuse_twins(settings, ledger_id)
    create(Path(settings.node.data), DiskIdentity(cluster, number, new_nonce()), hard_state, snapshot)
    act = new_act("cluster restore", f"node {number} of cluster {cluster} from {path}", note, result=DONE)
    pending_acts.keep(Path(settings.node.data), act)
    return RestoredCluster(cluster, number, f"{cluster}-{digest}", ledger_id, kept.about.at)


async def refuse_twins(settings: Settings, ledger_id: str) -> None:
    """Check that no node of ledger ``ledger_id`` runs: two clusters of one ledger would decide differently.
    Raises ``LedgerUnusable``."""
    try:
        nodes = (await survey(settings.ledger)).nodes
    except LedgerMisconfigured as error:
        if settings.ledger.wire.tls is None:
            raise
        # The TLS files are made with the id that is drawn here.
        await _refuse_listeners(settings, ledger_id, str(error))
        return
    for seen in nodes:
        if seen.status is not None and seen.status.ledger_id == ledger_id:
            raise LedgerUnusable(
                f"a node of ledger {ledger_id} runs at {seen.address}: end all of its nodes first, for good;"
                " two clusters of one ledger would decide differently"
            )


async def _refuse_listeners(settings: Settings, ledger_id: str, why: str) -> None:
    for address in first_nodes(settings):
        if await _listens(address):
            raise LedgerUnusable(
                f"a process listens at {address}, and cannot be asked whether it is a node of ledger"
                f" {ledger_id} ({why}): end all nodes of the former cluster first, for good; two clusters of"
                " one ledger would decide differently"
            )


async def _listens(address: Address) -> bool:
    """Whether a process at ``address`` accepts a connection and keeps it open. A port forwarder without a
    process behind it closes the connection."""
    try:
        async with asyncio.timeout(LOOK_S):
            reader, writer = await asyncio.open_connection(address.host, address.port)
    except (OSError, TimeoutError):
        return False
    try:
        async with asyncio.timeout(LOOK_S):
            return await reader.read(1) != b""
    except TimeoutError:
        return True
    except OSError:
        return False
    finally:
        writer.close()


async def join(settings: Settings, address: str = "", note: str = "") -> Joined:
    """Make this node a learner of the cluster of ``ledger.url``. The other nodes connect to ``address``, by
    default the address at which this node listens. May be repeated. Raises ``UsageError``,
    ``ClusterRefused``, ``LedgerError``."""
    number, folder = number_of(settings), Path(settings.node.data)
    where = parsed(address) if address else listen_address(settings)
    if where.host in {"0.0.0.0", "::"}:  # noqa: S104 - refused
        raise UsageError(f"other nodes cannot reach {where}: pass --address with a host that they can reach")
    cluster = (await survey(settings.ledger)).cluster
    if not cluster:
        raise LedgerUnavailable(f"no node of the cluster answers: {settings.ledger.url}")
    made = not lives_in(folder)
    if made:
        create(folder, DiskIdentity(cluster, number, new_nonce()), *joining())
    storage, stored = await NodeStorage.open(folder, number=number)
    await storage.close()
    me = stored.identity
    if (me.cluster, me.node) != (cluster, number):
        raise LedgerUnusable(
            f"{folder} is the disk of node {me.node} of cluster {me.cluster}, not {number} of {cluster}"
        )
    try:
        added = MemberChange("add", number, str(where), me.disk, settings.node.supported.highest)
        await admin.change_members(settings.ledger, [added], note=note)
    except ClusterRefused:
        if made:
            discard(folder)
        raise
    return Joined(cluster, number, str(where))


def first_of(settings: Settings) -> tuple[int, dict[int, str]]:
    """This node's number, and the addresses of all first nodes. Raises ``UsageError``."""
    first = first_nodes(settings)
    number = number_of(settings)
    if number > len(first):
        raise UsageError(
            f"node.number is {number}, but the first nodes are {len(first)}: {', '.join(map(str, first))};"
            " further nodes join a running cluster, with `undoubt cluster add`"
        )
    return number, {count: str(address) for count, address in enumerate(first, 1)}


def new_cluster(ticket: str, addresses: Mapping[int, str], origin: str) -> tuple[str, str]:
    """The cluster's id, drawn unless there is a ``ticket``, and the digest of the ticket. ``origin`` names
    what all first nodes have in common besides their addresses. Raises ``UsageError``."""
    digest = _digest(addresses, origin)
    return (_cluster_of(ticket, addresses, digest) if ticket else new_ledger_id()), digest


def _cluster_of(ticket: str, addresses: Mapping[int, str], digest: str) -> str:
    """The cluster's id in ``ticket``, if the ticket is for these addresses: first nodes that disagree about
    the first nodes could form two majorities. Raises ``UsageError``."""
    cluster, _, given = ticket.partition("-")
    if not given:
        raise UsageError(
            f"--id {ticket!r} is incomplete: give all that the first node's command printed, which is"
            " `ticket` in its JSON, and not `cluster`"
        )
    try:
        check_ledger_id(cluster)
    except InvalidName as error:
        raise UsageError(f"--id {ticket!r}: {error}") from None
    if given != digest:
        listed = ", ".join(f"{number}={address}" for number, address in addresses.items())
        raise UsageError(
            f"--id {ticket!r} was made for other nodes than those here ({listed}), from another backup, or by"
            " another release (or node.version_max); ledger.url (or node.peers) must be the same, in the same"
            " order, on all first nodes"
        )
    return cluster


def _digest(addresses: Mapping[int, str], origin: str) -> str:
    """A checksum of what all first nodes must have in common: their addresses and ``origin``."""
    return f"{zlib.crc32(f'{sorted(addresses.items())!r}{origin}'.encode()):08x}"


def first_nodes(settings: Settings) -> list[Address]:
    if settings.node.peers:
        return [parsed(text) for text in settings.node.peers]
    if not settings.ledger.url.startswith(RAFT):
        raise UsageError(
            "ledger.url names no cluster; for example"
            ' url = "raft://10.0.0.1:7400,10.0.0.2:7400,10.0.0.3:7400"'
        )
    return list(addresses_of(settings.ledger.url))


def number_of(settings: Settings) -> int:
    if settings.node.number < 1:
        raise UsageError("node.number is missing: which node of the cluster is this, counted from 1?")
    return settings.node.number


def listen_address(settings: Settings) -> Address:
    if settings.node.listen:
        return parsed(settings.node.listen)
    first, number = first_nodes(settings), number_of(settings)
    if number > len(first):
        raise UsageError(f"node.listen is missing: ledger.url has no address for node {number}")
    return first[number - 1]


def parsed(text: str) -> Address:
    try:
        return Address.parse(text)
    except ValueError as error:
        raise UsageError(str(error)) from None
