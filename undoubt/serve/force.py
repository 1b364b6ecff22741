"""``undoubt cluster restore --force``: a cluster goes on from the newest disk that is left, when the majority
is gone for good.

Every entry of that disk's log counts, whether or not it was known to be committed there: a leader that the
old cluster might still have elected would have kept it. What was acknowledged and is on none of the disks is
lost, so that a new incarnation begins, as after a restore from a backup."""

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
    """The newest disk of some: ``folder``, of ``node``, whose log ends at ``index`` of ``term``. ``disks``
    were given of the ``voters``. ``may_lack``: an acknowledged decision may be on none of them. ``doubts``:
    of each disk that cannot be read whole, why."""

    folder: str
    node: int
    index: int
    term: int
    disks: int
    voters: int
    may_lack: bool
    doubts: tuple[str, ...] = ()


class Forced(Begun, frozen=True):
    """A node of the cluster that goes on."""

    ledger_id: str
    left: NewestDisk


async def survey_disks(folders: Sequence[Path]) -> tuple[NewestDisk, bytes]:
    """The newest of these disks, and the image of the state machine after all of its log. Raises
    ``UsageError`` for disks of several clusters or of one node, ``LedgerUnusable``, ``LedgerLocked``."""
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
            raise UsageError(f"{folder} is of cluster {me.cluster}, others are of {of.pop()}")
        found[me.node] = (folder, stored)
    folder, stored = max(found.values(), key=lambda one: _end(one[1]))
    term, index = _end(stored)
    voters = _voters(stored)
    given = len(voters & found.keys())
    # A decision is on a majority: who has so many disks that no majority lies beside them has it. A disk
    # that cannot be read whole may lack what it had.
    may_lack = len(voters & found.keys() - doubts.keys()) + majority_size(voters) <= len(voters)
    told = tuple(doubts[node] for node in sorted(doubts))
    left = NewestDisk(str(folder), stored.identity.node, index, term, given, len(voters), may_lack, told)
    return left, _image(stored)


async def _read(folder: Path) -> tuple[Stored, str]:
    """All of a disk, or what can be read of a damaged one, and then why that may not be all. Raises
    ``LedgerUnusable``, ``LedgerLocked``."""
    try:
        storage, stored = await NodeStorage.open(folder)
    except StorageDamaged:
        return await asyncio.to_thread(salvaged, folder)
    await storage.close()
    return stored, ""


def _end(stored: Stored) -> tuple[int, int]:
    """Term and index of its last entry."""
    last = stored.entries[-1] if stored.entries else stored.snapshot.meta
    return last.term, last.index


def _voters(stored: Stored) -> frozenset[int]:
    """By the last change of the members that is in its log."""
    meta = stored.snapshot.meta
    restored_log = RestoredState(stored.hard_state, meta, stored.entries, meta.index)
    raft = Raft(stored.identity.node, RaftSettings(), Random(0), restored_log)  # noqa: S311 - it draws nothing
    return raft.configuration.incoming


def _image(stored: Stored) -> bytes:
    replicated = NodeStateMachine(Machine(""), {})
    try:
        replicated.restore(stored.snapshot.image)
    except ValueError as error:  # msgspec's are
        raise LedgerUnusable(
            f"its snapshot cannot be read ({error}); was it written by a newer one?"
        ) from error
    for entry in stored.entries:
        if entry.index > stored.snapshot.meta.index:
            replicated.apply(entry)
    if not replicated.machine.state.ledger_id:
        raise LedgerUnusable("that node had joined and was told nothing yet: there is nothing to go on from")
    return replicated.image()


async def force(
    settings: Settings, left: NewestDisk, image: bytes, ticket: str = "", note: str = ""
) -> Forced:
    """Make this node one of the first of a new cluster that goes on from ``image``. Raises ``UsageError``,
    ``LedgerUnusable``."""
    number, addresses = first_of(settings)
    cluster, digest = new_cluster(ticket, addresses, hashlib.sha256(image).hexdigest())
    ledger_id, hard_state, snapshot = restored(image, addresses, settings.node.speaks)
    if not ticket:
        await refuse_twins(settings, ledger_id)
    folder = Path(settings.node.data)
    create(folder, DiskIdentity(cluster, number, new_nonce()), hard_state, snapshot)
    what = f"node {number} of cluster {cluster} from the disk of node {left.node}"
    pending_acts.keep(folder, new_act("cluster restore --force", what, note, result=DONE))
    return Forced(cluster, number, f"{cluster}-{digest}", ledger_id, left)
