"""The data that a node keeps on its disk, and the contract of a storage.

The state machine itself is not stored: it is in memory, and after a restart it is computed again from the
last snapshot and the log after it. So there is no stored applied index that could disagree with what was
applied; the applied index begins at that of the snapshot. History, which is for operators, is written beside
the log and may be written again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import msgspec

from undoubt.coordinator.errors import LedgerUnusable
from undoubt.coordinator.ledger.contract import DecisionRecord
from undoubt.coordinator.ledger.group_commit import GroupCommit, Store
from undoubt.coordinator.paxos import AcceptorRecord, Marks, RestoredAcceptor
from undoubt.coordinator.raft import Entry, HardState, SnapshotMeta
from undoubt.participants.ids import TxId


class DiskIdentity(msgspec.Struct, frozen=True):
    """The node to which a disk belongs. ``disk`` is random: the same number on another disk is another
    node."""

    cluster: str
    node: int
    disk: str


class Snapshot(msgspec.Struct, frozen=True):
    """An image of the state machine, and which entries it replaces."""

    meta: SnapshotMeta
    image: bytes


class Finished(msgspec.Struct, frozen=True):
    """Records for the history. Times are ledger time; records older than ``history_ms`` are deleted."""

    records: tuple[DecisionRecord, ...]
    now_ms: int
    history_ms: int


class Promises(msgspec.Struct, frozen=True):
    """What an acceptor of Paxos Commit stores: ``records``, each of which replaces the record of its
    transaction; then the transactions whose records are deleted (``dropped``), and ``marks``, so that these
    transactions are never decided again."""

    records: tuple[AcceptorRecord, ...] = ()
    dropped: tuple[TxId, ...] = ()
    marks: Marks | None = None


class DiskWrite(msgspec.Struct, frozen=True):
    """One change of the disk, all or nothing; its parts are done in the order of the fields."""

    hard_state: HardState | None = None
    finished: Finished | None = None
    snapshot: Snapshot | None = None
    """Replaces the former snapshot."""
    replaces_log: bool = False
    """True if the snapshot came from a leader: the whole stored log is dropped."""
    keep_from: int = 0
    """Entries before this index are no longer needed."""
    entries: tuple[Entry, ...] = ()
    """Replace all stored entries from ``entries[0].index`` on."""
    disks: dict[int, str] = {}
    """Disks of other nodes, by number, as they were at the first connection."""
    promises: Promises | None = None


NOTHING = DiskWrite()

Disk = GroupCommit[DiskWrite]
"""A node's disk, as the parts of the node use it."""


class Stored(msgspec.Struct, frozen=True):
    """The contents of a disk. ``entries`` are undamaged and without a gap, and may begin before the
    snapshot's index."""

    identity: DiskIdentity
    hard_state: HardState
    snapshot: Snapshot
    entries: tuple[Entry, ...]
    disks: dict[int, str] = {}
    acceptor: RestoredAcceptor = RestoredAcceptor()


class StorageDamaged(LedgerUnusable):
    """The stored data differ from what was written. From then on the node must neither vote nor answer."""


class Storage(Store[DiskWrite], Protocol):
    """A storage. All methods must be called in the loop that opened it, and return immediately; the futures
    belong to that loop. While there is no room, only urgent changes should be written."""

    def history_of(self, txid: TxId) -> asyncio.Future[DecisionRecord | None]: ...

    def history(self, limit: int, before: DecisionRecord | None) -> asyncio.Future[Sequence[DecisionRecord]]:
        """Return at most ``limit`` decisions older than ``before``, newest first, by time of decision,
        session and seq."""
        ...

    def close(self) -> asyncio.Future[None]:
        """Close the storage after all earlier writes."""
        ...
