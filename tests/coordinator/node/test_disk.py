"""A node's disk that refuses: without room, with an error, at each place where something is written."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.coordinator.node.cluster import Cluster, client, running
from tests.coordinator.node.full_disk import FullDisk, without_room
from tests.coordinator.node.test_node import BRANCHES
from tests.coordinator.node.test_storage import FIRST, IDENTITY, entries, found, last_segment, opened
from undoubt.coordinator.ledger import disk as verdict
from undoubt.coordinator.ledger.anchor import Anchor, Mark
from undoubt.coordinator.ledger.contract import DecisionRecord
from undoubt.coordinator.ledger.disk import StoreBroken, StoreFull
from undoubt.coordinator.node.settings import NodeSettings
from undoubt.coordinator.node.storage import segment
from undoubt.coordinator.node.storage.contract import Disk, DiskWrite, Finished, Snapshot
from undoubt.coordinator.node.storage.node_storage import RESERVE_NAME, NodeStorage, create, salvaged
from undoubt.coordinator.node.storage.reserve import RESERVE_BYTES
from undoubt.coordinator.node.storage.segment_log import ANCHOR_NAME, SEGMENT_BYTES
from undoubt.coordinator.raft import Entry, HardState, SnapshotMeta
from undoubt.participants.contract import Decision
from undoubt.participants.ids import Protocol, TxId


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create(tmp_path / "node", IDENTITY, *FIRST, segment_bytes=1024)
    return tmp_path / "node"


def refusing(code: int) -> Callable[..., int]:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code))

    return refuse


SNAPSHOT = DiskWrite(snapshot=Snapshot(SnapshotMeta(1, 1), b"image"))
ENTRY = DiskWrite(entries=entries(2, 2))
PLACES = {
    "a record": ("segment", "os.pwrite", ENTRY),
    "the sync of a record": ("segment", "os.fdatasync", ENTRY),
    "a new segment": ("segment", "allocate", DiskWrite(entries=entries(2, *[2] * 100))),
    "a snapshot": ("snapshot_files", "os.fsync", SNAPSHOT),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
async def test_no_room_is_told_from_failure_in_the_same_way_everywhere(
    folder: Path, place: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if a quota, or ENOSPC at one place, ends a node that freed space would bring back; or if a
    failure is taken for a lack of room, and the write is given again on top of what nobody knows."""
    module, what, write = PLACES[place]
    storage = await opened(folder, segment_bytes=2048)
    storage.reserve.give_up = lambda: False  # type: ignore[method-assign]
    with monkeypatch.context() as patch:
        patch.setattr(f"undoubt.coordinator.node.storage.{module}.{what}", refusing(code))
        with pytest.raises(StoreBroken if code == errno.EIO else StoreFull, match=str(folder)):
            await storage.write([write])
    if code != errno.EIO:
        assert await storage.write([write])
        await storage.close()
        stored = await found(folder)
        assert len(stored.entries) == len(write.entries)
        assert write.snapshot in {None, stored.snapshot}
    else:
        await storage.close()


@pytest.mark.parametrize(
    ("code", "full"),
    [(sqlite3.SQLITE_FULL, True), (sqlite3.SQLITE_IOERR_WRITE, False), (sqlite3.SQLITE_IOERR_FSYNC, False)],
)
def test_sqlite_is_judged_at_the_same_place(tmp_path: Path, code: int, full: bool) -> None:
    """Broken if SQLite's words for the same thing are understood otherwise."""
    error = sqlite3.OperationalError("disk")
    error.sqlite_errorcode = code
    told = verdict.failed(error, tmp_path, "it")
    assert isinstance(told, StoreFull if full else StoreBroken)


def test_a_quota_that_is_spent_is_told_from_another_error_of_a_write_of_sqlite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if a ledger needs a restart because a quota was spent: SQLite tells it as any error."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
    monkeypatch.setattr(os, "write", refusing(errno.EDQUOT))
    assert verdict.no_room(error, tmp_path)
    assert list(tmp_path.iterdir()) == []


async def test_without_room_votes_do_not_wait_behind_history_and_images(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if a node whose disk is full can store no vote, because details for people and an image of its
    own wait for room in front of it. What was left out is told, and is not lost."""
    storage = await opened(folder, segment_bytes=1 << 16)
    storage.reserve.give_up = lambda: False  # type: ignore[method-assign]
    storage.reserve.hold = lambda: False  # type: ignore[method-assign]
    told: list[str] = []
    failed: list[BaseException] = []
    disk = Disk(storage, lambda full: told.append(f"full {full}"), failed.append)
    txid = TxId(1, "0" * 16, 1)
    record = DecisionRecord(txid, Protocol.TWO_PHASE, Decision.COMMIT, (), 1.0, "me")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refusing(errno.ENOSPC))
        disk.give(SNAPSHOT, lambda: told.append("image"), refused=lambda _: told.append("no image"))
        disk.give(DiskWrite(hard_state=HardState(7, 2)), lambda: told.append("vote"))
        disk.flush()
        while "vote" not in told:
            await asyncio.sleep(0.01)
    assert told == ["full True", "no image", "vote"]
    del storage.reserve.hold
    while told[-1] != "full False":
        await asyncio.sleep(0.01)
    disk.give(DiskWrite(finished=Finished((record,), 1, 1)), lambda: told.append("history"))
    disk.flush()
    while told[-1] != "history":
        await asyncio.sleep(0.01)
    await storage.close()
    assert failed == []
    assert (await found(folder)).hard_state == HardState(7, 2)


async def test_room_is_looked_for_again_if_everything_was_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if a node stays full for ever after it had no room for an image and nothing else to write."""
    storage = await opened(folder, segment_bytes=1 << 16)
    storage.reserve.give_up = lambda: False  # type: ignore[method-assign]
    full: list[bool] = []
    disk = Disk(storage, full.append, lambda _: None)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refusing(errno.ENOSPC))
        disk.give(SNAPSHOT, lambda: None, refused=lambda _: None)
        disk.flush()
        while not full:
            await asyncio.sleep(0.01)
    while full != [True, False]:
        await asyncio.sleep(0.01)
    await storage.close()


async def test_what_was_under_way_when_the_disk_became_full_is_stored(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if votes wait for room behind entries that were taken before anybody knew that there is none,
    and whatever the node gives up is used up at once by others: the next segment was made in advance."""
    storage = await opened(folder, segment_bytes=1 << 16)
    assert await storage.write([ENTRY])
    disk = FullDisk(folder, monkeypatch)
    disk.full = True
    storage.reserve.give_up = lambda: False  # type: ignore[method-assign]
    large = Entry.make(3, 2, b"x" * (1 << 15))
    assert not await storage.write([DiskWrite(entries=(large,))])
    assert not await storage.write([DiskWrite(hard_state=HardState(9, 1))])
    disk.full = False
    assert await storage.write([])
    await storage.close()
    stored = await found(folder)
    assert (stored.hard_state, len(stored.entries)) == (HardState(9, 1), 2)


async def test_a_node_starts_on_a_full_disk_at_the_expense_of_its_reserve(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if a node that dies while its disk is full cannot come back before there is room: here a torn
    tail asks for a new segment."""
    storage = await opened(folder, segment_bytes=1024)
    anchor = (folder / ANCHOR_NAME).read_bytes()
    begin = storage.files.log.active.end
    await storage.write([ENTRY])
    await storage.close()
    assert (folder / RESERVE_NAME).exists()
    with last_segment(folder).open("r+b") as file:
        file.seek(begin + 20)
        file.write(bytes(100))
    (folder / ANCHOR_NAME).write_bytes(anchor)
    disk = FullDisk(folder, monkeypatch)
    disk.full = True
    unlink = Path.unlink

    def freed(path: Path, *, missing_ok: bool = False) -> None:
        disk.full = disk.full and path.name != RESERVE_NAME
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", freed)
    stored = await found(folder)
    assert stored.entries == ()


async def test_a_full_disk_is_no_reason_not_to_start(folder: Path) -> None:
    """Broken if a start has to write to the history."""
    (folder / "node.db").chmod(0o600)
    before = (folder / "node.db").read_bytes()
    await found(folder)
    assert (folder / "node.db").read_bytes() == before


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """From where to where was written to segments."""
    ranges: list[tuple[int, int]] = []
    pwrite = os.pwrite

    def noted(descriptor: int, data: bytes, at: int) -> int:
        count = pwrite(descriptor, data, at)
        ranges.append((at, at + count))
        return count

    monkeypatch.setattr(os, "pwrite", noted)
    return ranges


async def test_what_a_failed_sync_may_have_left_in_memory_is_written_again(
    folder: Path, written: list[tuple[int, int]]
) -> None:
    """Broken if a node that was started again counts on records that only the page cache holds: after a sync
    that failed the kernel takes them for written, and the next sync succeeds without writing anything."""
    storage = await opened(folder, segment_bytes=1024)
    await storage.write([ENTRY])
    end = storage.files.log.active.end
    await storage.close()
    written.clear()
    await found(folder)
    covered = 0
    for begin, until in written:
        if begin <= covered:
            covered = max(covered, until)
    assert covered >= end


async def test_a_vote_needs_no_room_for_a_whole_segment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if a node that has room for its vote, and not for 4 MB, elects nobody until others free
    space."""
    storage = await opened(folder, segment_bytes=SEGMENT_BYTES)
    without_room(storage)
    allocate = segment.allocate

    def refuse(path: Path, size_bytes: int) -> None:
        if size_bytes > 1024 * 1024:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        allocate(path, size_bytes)

    with monkeypatch.context() as patch:
        patch.setattr(segment, "allocate", refuse)
        assert not await storage.write([DiskWrite(hard_state=HardState(9, 2))])
    await storage.close()
    assert (await found(folder)).hard_state == HardState(9, 2)


def test_what_is_under_way_fits_into_what_is_given_up() -> None:
    """Broken if votes wait for room behind entries that were under way when the disk became full."""
    raft = NodeSettings().raft
    at_once = max(raft.uncommitted_bytes_max, raft.inflight_bytes_max) + raft.append_bytes_max
    assert at_once + SEGMENT_BYTES < RESERVE_BYTES


async def test_an_anchor_without_room_stays_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if a filesystem on which writing in place takes room ends the node; or if what the anchor still
    names is removed."""
    storage = await opened(folder, segment_bytes=1024)
    move = Anchor.move

    def refuse(anchor: Anchor, mark: Mark) -> None:
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        move(anchor, mark)

    monkeypatch.setattr(Anchor, "move", refuse)
    full = True
    for index in range(2, 60):
        await storage.write([DiskWrite(entries=entries(index, 2))])
    await storage.write([DiskWrite(snapshot=Snapshot(SnapshotMeta(59, 2), b"image"))])
    await storage.write([DiskWrite(keep_from=59)])
    numbers = segment.numbers_in(folder)
    assert numbers[0] == 1
    assert len(numbers) > 2
    full = False
    await storage.write([DiskWrite(entries=entries(60, 2))])
    assert segment.numbers_in(folder)[0] > 1
    await storage.close()
    assert [entry.index for entry in (await found(folder)).entries] == [59, 60]


async def test_a_sync_that_fails_ends_the_node_with_the_reason_and_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if the node goes on after it: the next sync would succeed, without the data on the disk."""
    async with running(tmp_path) as cluster, client(cluster) as ledger:
        session = await ledger.open_session("test", 60.0)
        leader = await cluster.leader()
        syncs = failing_syncs(cluster, leader.identity.node, monkeypatch)
        for seq in range(1, 20):
            assert await ledger.decide(session.txid(seq), Decision.COMMIT, BRANCHES) is Decision.COMMIT
        error = await leader.failed
        assert isinstance(error, StoreBroken)
        assert "Input/output error" in str(error)
        assert len(syncs) == 1
        assert (await cluster.leader(but=leader.identity.node)).leads


def failing_syncs(cluster: Cluster, number: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From now on of that node's log; those that were asked for."""
    active = cluster.storages[number].files.log.active
    asked: list[int] = []
    fdatasync = os.fdatasync

    def fail(descriptor: int) -> None:
        if descriptor != active._descriptor:
            fdatasync(descriptor)
            return
        asked.append(descriptor)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fail)
    return asked


async def test_a_record_whose_sync_found_no_room_is_not_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if a node takes its disk for damaged because a refused record is whole: on a filesystem that
    never overwrites in place, the sync says that there is no room, and the record stays readable."""
    storage = await opened(folder, segment_bytes=2048)
    await storage.write([DiskWrite(entries=entries(2, 2))])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", refusing(errno.ENOSPC))
        storage.reserve.give_up = lambda: False  # type: ignore[method-assign]
        with pytest.raises(StoreFull):
            await storage.write([DiskWrite(entries=entries(3, 2))])
    await storage.write([DiskWrite(entries=entries(3, 5))])
    assert storage.files.log.segment > storage.files.log.first_segment
    await storage.close()
    kept = (*entries(2, 2), *entries(3, 5))
    assert (await found(folder)).entries == kept
    stored, why = salvaged(folder)
    assert (stored.entries, why) == (kept, "")


async def test_the_storage_is_opened_anew_after_a_failed_sync(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if what was acknowledged before the failure is not there, or the log does not go on."""
    storage, _ = await NodeStorage.open(folder)
    await storage.write([ENTRY])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", refusing(errno.EIO))
        with pytest.raises(StoreBroken, match="is unknown"):
            await storage.write([DiskWrite(entries=entries(3, 2))])
    await storage.close()
    storage, stored = await NodeStorage.open(folder)
    assert stored.entries[:1] == entries(2, 2)
    await storage.write([DiskWrite(entries=entries(3, 3))])
    await storage.close()
    assert (await found(folder)).entries == (*entries(2, 2), *entries(3, 3))
