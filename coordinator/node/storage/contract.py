"""What a node keeps on its disk, and the contract of whatever keeps it.

The state machine itself is not kept: it lives in memory, and after a restart it is made anew from the last
snapshot and the log behind it. So there is no applied index that could disagree with what was applied; the
snapshot's is where it begins. History, which is for people, is written beside the log and may be written
again.
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
    """Who this disk belongs to. ``disk`` is random: the same number on another disk is another node."""

    cluster: str
    node: int
    disk: str


class Snapshot(msgspec.Struct, frozen=True):
    """An image of the state machine, and what it stands for."""

    meta: SnapshotMeta
    image: bytes


class Finished(msgspec.Struct, frozen=True):
    """Records for the history. Times are ledger time; what is older than ``history_ms`` is let go."""

    records: tuple[DecisionRecord, ...]
    now_ms: int
    history_ms: int


class Promises(msgspec.Struct, frozen=True):
    """What an acceptor of Paxos Commit must not forget: ``records``, each in place of its transaction's;
    then ``dropped`` away, and ``marks``, so that nothing of these begins anew."""

    records: tuple[AcceptorRecord, ...] = ()
    dropped: tuple[TxId, ...] = ()
    marks: Marks | None = None


class DiskWrite(msgspec.Struct, frozen=True):
    """One change of the disk, all or nothing; what is in it is done in the order of the fields."""

    hard_state: HardState | None = None
    finished: Finished | None = None
    snapshot: Snapshot | None = None
    """Takes the place of the former one."""
    replaces_log: bool = False
    """The snapshot came from a leader: nothing of the log that is here counts any more."""
    keep_from: int = 0
    """Entries before this index are needed no more."""
    entries: tuple[Entry, ...] = ()
    """Whatever is stored from ``entries[0].index`` on is replaced."""
    disks: dict[int, str] = {}
    """Disks of other nodes, by number, that were met for the first time."""
    promises: Promises | None = None


NOTHING = DiskWrite()

Disk = GroupCommit[DiskWrite]
"""A node's disk, as those who store on it see it."""


class Stored(msgspec.Struct, frozen=True):
    """What a disk held. ``entries`` are sound and without a gap, and may begin before the snapshot ends."""

    identity: DiskIdentity
    hard_state: HardState
    snapshot: Snapshot
    entries: tuple[Entry, ...]
    disks: dict[int, str] = {}
    acceptor: RestoredAcceptor = RestoredAcceptor()


class StorageDamaged(LedgerUnusable):
    """What is stored is not what was written. The node must not vote or answer with it any more."""


class Storage(Store[DiskWrite], Protocol):
    """All methods belong to the loop that opened it and return at once; the futures are the loop's. While
    there is no room, only what cannot wait should be written."""

    def history_of(self, txid: TxId) -> asyncio.Future[DecisionRecord | None]: ...

    def history(self, limit: int, before: DecisionRecord | None) -> asyncio.Future[Sequence[DecisionRecord]]:
        """The newest first, by time of decision, session and seq; older than ``before``."""
        ...

    def close(self) -> asyncio.Future[None]:
        """After all that was given."""
        ...
