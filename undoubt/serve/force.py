"""``undoubt cluster restore --force``: makes a new cluster after the majority of the old one is lost.

The new cluster is made from the newest disk that is left.

Every entry of that disk's log counts, whether or not the disk shows that it was committed: a leader that the
old cluster might still have elected would have kept it. An acknowledged decision that is on none of the disks
is lost; therefore a new incarnation begins, as after a restore from a backup."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path
from random import Random

import msgspec

from undoubt.config import Settings
from undoubt.coordinator.errors import LedgerUnusable
from undoubt.coordinator.ledger.acting import DONE, new_act
from undoubt.coordinator.ledger.machine import Machine
from undoubt.coordinator.node.bootstrap import restored
from undoubt.coordinator.node.fsm import NodeStateMachine
from undoubt.coordinator.node.storage.contract import DiskIdentity, StorageDamaged, Stored
from undoubt.coordinator.node.storage.node_storage import NodeStorage, create, salvaged
from undoubt.coordinator.quorum import majority_size
from undoubt.coordinator.raft import Raft, RaftSettings, RestoredState
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import new_nonce
from undoubt.serve import pending_acts
from undoubt.serve.bootstrap import Begun, first_of, new_cluster, refuse_twins


class NewestDisk(msgspec.Struct, frozen=True):
    """The newest of the given disks: ``folder``, of ``node``, whose log ends at ``index`` of ``term``.
    ``disks`` of the ``voters`` were given. ``may_lack``: an acknowledged decision may be on none of the given
    disks. ``doubts``: for each disk that cannot be read completely, the reason."""

    folder: str
    node: int
    index: int
    term: int
    disks: int
    voters: int
    may_lack: bool
    doubts: tuple[str, ...] = ()


class Forced(Begun, frozen=True):
    """A first node of the new cluster. ``left`` is the disk that the cluster was made from."""

    ledger_id: str
    left: NewestDisk


async def survey_disks(folders: Sequence[Path]) -> tuple[NewestDisk, bytes]:
    """The newest of these disks, and the image of the state machine after its whole log. Raises
    ``UsageError`` for disks of several clusters and for two disks of one node, ``LedgerUnusable``,
    ``LedgerLocked``."""
    found: dict[int, tuple[Path, Stored]] = {}
    doubts: dict[int, str] = {}
    for folder in folders:
        stored, doubt = await _read(folder)
        me = stored.identity
        if doubt:
            doubts[me.node] = f"{folder}: {doubt}"
        if me.node in found:
            raise UsageError(f"{folder} and {found[me.node][0]} are both of node {me.node}")
        if (of := {one.identity.cluster for _, one in found.values()} - {me.cluster}) != set():
            raise UsageError(f"{folder} is of cluster {me.cluster}, other disks are of {of.pop()}")
        found[me.node] = (folder, stored)
    folder, stored = max(found.values(), key=lambda one: _end(one[1]))
    term, index = _end(stored)
    voters = _voters(stored)
    given = len(voters & found.keys())
    # A decision is on the disks of a majority. If the missing voters are fewer than a majority, one of the
    # given disks has it. A disk that cannot be read completely counts as missing.
    may_lack = len(voters & found.keys() - doubts.keys()) + majority_size(voters) <= len(voters)
    reasons = tuple(doubts[node] for node in sorted(doubts))
    left = NewestDisk(str(folder), stored.identity.node, index, term, given, len(voters), may_lack, reasons)
    return left, _image(stored)


async def _read(folder: Path) -> tuple[Stored, str]:
    """The content of a disk, and an empty text; or what can be read of a damaged disk, and the reason why
    that may be incomplete. Raises ``LedgerUnusable``, ``LedgerLocked``."""
    try:
        storage, stored = await NodeStorage.open(folder)
    except StorageDamaged:
        return await asyncio.to_thread(salvaged, folder)
    await storage.close()
    return stored, ""


def _end(stored: Stored) -> tuple[int, int]:
    """Term and index of the last entry of the log."""
    last = stored.entries[-1] if stored.entries else stored.snapshot.meta
    return last.term, last.index


def _voters(stored: Stored) -> frozenset[int]:
    """The voters after the last configuration change in the log."""
    meta = stored.snapshot.meta
    restored_log = RestoredState(stored.hard_state, meta, stored.entries, meta.index)
    raft = Raft(stored.identity.node, RaftSettings(), Random(0), restored_log)  # noqa: S311 - no number is drawn
    return raft.configuration.incoming


def _image(stored: Stored) -> bytes:
    replicated = NodeStateMachine(Machine(""), {})
    try:
        replicated.restore(stored.snapshot.image)
    except ValueError as error:  # the base of msgspec's errors
        raise LedgerUnusable(
            f"the snapshot of that disk cannot be read ({error}); was it written by a newer release?"
        ) from error
    for entry in stored.entries:
        if entry.index > stored.snapshot.meta.index:
            replicated.apply(entry)
    if not replicated.machine.state.ledger_id:
        raise LedgerUnusable(
            "that node had joined, but had received nothing from a leader yet: its disk has no ledger"
        )
    return replicated.image()


async def force(
    settings: Settings, left: NewestDisk, image: bytes, ticket: str = "", note: str = ""
) -> Forced:
    """Make this node one of the first of a new cluster that goes on from ``image``. Raises ``UsageError``,
    ``LedgerUnusable``."""
    number, addresses = first_of(settings)
    cluster, digest = new_cluster(ticket, addresses, hashlib.sha256(image).hexdigest())
    ledger_id, hard_state, snapshot = restored(image, addresses, settings.node.supported)
    if not ticket:
        await refuse_twins(settings, ledger_id)
    folder = Path(settings.node.data)
    create(folder, DiskIdentity(cluster, number, new_nonce()), hard_state, snapshot)
    what = f"node {number} of cluster {cluster} from the disk of node {left.node}"
    pending_acts.keep(folder, new_act("cluster restore --force", what, note, result=DONE))
    return Forced(cluster, number, f"{cluster}-{digest}", ledger_id, left)
