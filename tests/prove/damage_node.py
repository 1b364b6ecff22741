"""A node's disk: log segments, anchor, snapshot, history, and what is set aside."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.prove.damaging import Change, Heard, copied
from undoubt.coordinator.errors import LedgerError, LedgerUnavailable
from undoubt.coordinator.ledger.contract import BranchRecord, DecisionRecord
from undoubt.coordinator.node.bootstrap import beginning
from undoubt.coordinator.node.storage import segment
from undoubt.coordinator.node.storage.contract import (
    DiskIdentity,
    DiskWrite,
    Finished,
    Promises,
    Snapshot,
    Stored,
)
from undoubt.coordinator.node.storage.history_file import FILE_NAME
from undoubt.coordinator.node.storage.node_storage import RESERVE_NAME, NodeStorage, create
from undoubt.coordinator.node.storage.segment_log import ANCHOR_NAME
from undoubt.coordinator.paxos import Accepted, AcceptorRecord, Ballot, BranchInstance, Known, Marks, Value
from undoubt.coordinator.quorum import Joint
from undoubt.coordinator.raft import Entry, HardState, SnapshotMeta
from undoubt.participants.contract import Decision
from undoubt.participants.ids import Protocol, TxId

SEGMENT_BYTES = 2048
LAST_INDEX = 60
SNAPSHOT_INDEX = 30
TORN_STEP = 3


class NodeFiles:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._place = folder.with_name("node-damaged")
        self._before = folder.with_name("node-before")
        """One record earlier."""
        self._ends: dict[str, int] = {}
        """By segment: where its records end."""

    async def make(self) -> None:
        identity = DiskIdentity("abcdefghij", 2, "disk-2")
        hard_state, image = beginning("abcdefghij", {1: "a:1", 2: "b:2", 3: "c:3"})
        create(self.folder, identity, hard_state, image, segment_bytes=SEGMENT_BYTES)
        storage, _ = await NodeStorage.open(self.folder, segment_bytes=SEGMENT_BYTES)
        finished = [_finished(seq) for seq in range(1, 20)]
        for index in range(2, LAST_INDEX):
            await storage.write([DiskWrite(entries=(Entry.make(index, 2, b"an entry %d" % index * 4),))])
            if index % 5 == 0:
                await storage.write([DiskWrite(promises=Promises((_promised(index),)))])
            if index == SNAPSHOT_INDEX:
                snapshot = Snapshot(SnapshotMeta(index, 2), b"an image of the state machine" * 8)
                history = Finished(tuple(finished), 1_000, 10**9)
                await storage.write([DiskWrite(finished=history, snapshot=snapshot)])
                await storage.write([DiskWrite(keep_from=index - 4)])
        await storage.write([DiskWrite(hard_state=HardState(3, 1), disks={3: "disk-3"})])
        copied(self.folder, self._before)
        kept = self.folder.with_name("node-killed")
        last = Entry.make(LAST_INDEX, 3, b"the last entry" * 4)
        await storage.write([DiskWrite(entries=(last,), promises=Promises((), (), Marks(7)))])
        copied(self.folder, kept)  # as a process that was killed leaves it
        active = storage.files.log.active
        self._ends[active.path.name] = active.end
        await storage.close()
        shutil.rmtree(self.folder)
        kept.rename(self.folder)
        for number in segment.numbers_in(self.folder)[1:]:
            path = segment.path_of(self.folder, number)
            header = segment.SegmentHeader.decoded(path.read_bytes())
            self._ends[segment.path_of(self.folder, number - 1).name] = header.previous_end
        self._reference, self._finished = await _read(copied(self.folder, self._place))
        self._earlier, _ = await _read(copied(self._before, self._place))
        assert self._reference.entries[-1].index == LAST_INDEX
        assert len(self._finished or ()) == len(finished)

    def kind_of(self, name: str) -> str:
        return "segment" if name.startswith("log-") else "snapshot" if name.startswith("snapshot-") else name

    def acknowledged(self, change: Change) -> bool:
        if change.kind == "crash":
            return False
        if change.name in self._ends:
            return change.kind == "missing" or change.at < self._ends[change.name]
        return change.name == ANCHOR_NAME or change.name.startswith("snapshot-")

    def crashes(self) -> int:
        return len(self._torn()) + 1

    def _torn(self) -> list[int]:
        """Where the write of the last record may have been cut."""
        name = max(self._ends)
        before = (self._before / name).read_bytes() if (self._before / name).exists() else b""
        begin = segment.HEADER_BYTES
        whole = (self.folder / name).read_bytes()[: self._ends[name]]
        while begin < len(whole) and before[begin : begin + 1] == whole[begin : begin + 1]:
            begin += 1
        return list(range(begin, len(whole), TORN_STEP))

    async def open(self, change: Change) -> Heard:
        copied(self.folder, self._place)
        torn = change.kind == "crash" and change.at < len(self._torn())
        if change.kind == "crash":
            # The anchor is written after the sync; after a power failure it may be older still.
            shutil.copyfile(self._before / ANCHOR_NAME, self._place / ANCHOR_NAME)
            if torn:
                name = max(self._ends)
                Change("zeros", name, self._torn()[change.at]).apply(self._place)
        else:
            change.apply(self._place)
        try:
            stored, finished = await _read(self._place)
        except LedgerError as error:
            return Heard(str(error), "")
        if torn:
            whole = stored in (self._earlier, self._reference)
            return Heard("", "" if whole else "what was durable before the torn write")
        if stored != self._reference:
            return Heard("", "entries, term, vote, promises, snapshot or disks are not those")
        if finished is not None and finished != self._finished:
            missing = change.kind in {"missing", "cut"} and change.name.startswith(FILE_NAME)
            return Heard("", "" if missing else "history is told otherwise")
        return Heard("", "")


async def _read(folder: Path) -> tuple[Stored, list[DecisionRecord] | None]:
    """What a node finds there; None for history that it says is damaged. Raises ``LedgerError``."""
    storage, stored = await NodeStorage.open(folder, segment_bytes=SEGMENT_BYTES)
    try:
        try:
            return stored, list(await storage.history(1_000, None))
        except LedgerUnavailable:
            return stored, None
    finally:
        await storage.close()


def _finished(seq: int) -> DecisionRecord:
    branches = (BranchRecord(1, "orders"), BranchRecord(2, "payments"))
    return DecisionRecord(
        TxId(1, "0" * 16, seq), Protocol.TWO_PHASE, Decision.COMMIT, branches, float(seq), "me"
    )


def _promised(seq: int) -> AcceptorRecord:
    value = Accepted(Ballot(1), Value(True, b"evidence"))
    known = Known((BranchInstance(1, "orders"),), (value,))
    return AcceptorRecord(TxId(1, "0" * 16, seq), Joint(frozenset({1, 2, 3})), Ballot(1, 7), known)


__all__ = ["RESERVE_NAME", "NodeFiles"]
