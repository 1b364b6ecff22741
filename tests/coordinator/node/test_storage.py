"""A node's file: what was stored is there, what cannot be trusted stops the node."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from tests.coordinator.node.full_disk import FullDisk
from undoubt.coordinator.errors import LedgerLocked, LedgerUnavailable, LedgerUnusable
from undoubt.coordinator.ledger.contract import BranchRecord, DecisionRecord
from undoubt.coordinator.ledger.disk import StoreFull
from undoubt.coordinator.node.bootstrap import beginning
from undoubt.coordinator.node.storage import segment
from undoubt.coordinator.node.storage.contract import (
    DiskIdentity,
    DiskWrite,
    Finished,
    Promises,
    Snapshot,
    StorageDamaged,
    Stored,
)
from undoubt.coordinator.node.storage.history_file import FILE_NAME
from undoubt.coordinator.node.storage.node_storage import RESERVE_NAME, NodeStorage, create
from undoubt.coordinator.node.storage.segment_log import ANCHOR_NAME, SEGMENT_BYTES
from undoubt.coordinator.paxos import (
    Accepted,
    AcceptorRecord,
    Ballot,
    BranchInstance,
    Known,
    Marks,
    RestoredAcceptor,
    Value,
)
from undoubt.coordinator.quorum import Joint
from undoubt.coordinator.raft import Entry, HardState, SnapshotMeta
from undoubt.participants.contract import Decision
from undoubt.participants.ids import Protocol, TxId

IDENTITY = DiskIdentity("abcdefghij", 2, "disk-2")
FIRST = beginning("abcdefghij", {1: "a:1", 2: "b:2", 3: "c:3"})


def entries(first: int, *terms: int) -> tuple[Entry, ...]:
    return tuple(Entry.make(first + at, term, b"entry %d" % (first + at)) for at, term in enumerate(terms))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create(tmp_path / "node", IDENTITY, *FIRST, segment_bytes=1024)
    return tmp_path / "node"


async def written(folder: Path, *writes: DiskWrite) -> Stored:
    """What is found after ``writes``, each synced by itself, and a restart."""
    storage, _ = await NodeStorage.open(folder)
    for write in writes:
        await storage.write([write])
    await storage.close()
    return await found(folder)


async def found(folder: Path) -> Stored:
    storage, stored = await NodeStorage.open(folder)
    await storage.close()
    return stored


async def opened(folder: Path, *, segment_bytes: int) -> NodeStorage:
    storage, _ = await NodeStorage.open(folder, segment_bytes=segment_bytes)
    return storage


async def test_a_new_node_begins_like_its_peers(folder: Path) -> None:
    """First nodes that began differently could elect two leaders."""
    stored = await found(folder)
    assert (stored.identity, stored.hard_state, stored.snapshot) == (IDENTITY, *FIRST)
    assert stored.entries == ()
    assert beginning("abcdefghij", {3: "c:3", 1: "a:1", 2: "b:2"}) == FIRST


async def test_what_was_written_is_there(folder: Path) -> None:
    """A vote or an acknowledged entry that is forgotten breaks every promise of Raft."""
    stored = await written(
        folder,
        DiskWrite(hard_state=HardState(3, 1), entries=entries(2, 2, 3)),
        DiskWrite(entries=entries(4, 3)),
        DiskWrite(hard_state=HardState(4, 2)),
    )
    assert stored.hard_state == HardState(4, 2)
    assert stored.entries == entries(2, 2, 3, 3)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_whatever_is_written_together_the_newest_is_there(tmp_path: Path, data: DataObject) -> None:
    """Small segments, so that many end and are dropped: an entry, a vote or a promise that was only in one of
    those would be lost, one that was replaced would come back."""
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:  # each example has a reserve of 16 MiB
        await _write_and_read_again(Path(folder) / "node", data)


async def _write_and_read_again(folder: Path, data: DataObject) -> None:
    create(folder, IDENTITY, *FIRST, segment_bytes=1024)
    kept: dict[int, Entry] = {}
    promises: dict[int, AcceptorRecord] = {}
    state, image, highest = FIRST[0], FIRST[1], 1
    storage = await opened(folder, segment_bytes=2048)
    for number in range(1, data.draw(st.integers(2, 12))):
        writes = []
        for _ in range(data.draw(st.integers(1, 3))):
            kinds = ("entries", "entries", "entries", "vote", "promise", "cut", "snapshot", "keep")
            match data.draw(st.sampled_from(kinds)):
                case "entries":
                    begin = data.draw(st.integers(max(image.meta.index + 1, highest - 3), highest + 1))
                    new = entries(begin, *[number + 1] * data.draw(st.sampled_from((1, 1, 2, 4, 20))))
                    kept = {at: entry for at, entry in kept.items() if at < begin}
                    kept |= {entry.index: entry for entry in new}
                    writes.append(DiskWrite(entries=new))
                case "cut":
                    image, kept = Snapshot(SnapshotMeta(highest + 4, 1), b"theirs"), {}
                    writes.append(DiskWrite(snapshot=image, replaces_log=True))
                case "snapshot":
                    image = Snapshot(SnapshotMeta(highest, 1), b"image %d" % number)
                    writes.append(DiskWrite(snapshot=image))
                case "keep":
                    low = data.draw(st.integers(1, image.meta.index + 1))
                    kept = {at: entry for at, entry in kept.items() if at >= low}
                    writes.append(DiskWrite(keep_from=low))
                case "promise":
                    promises[number] = promised(number, data.draw(st.integers(0, 3)))
                    writes.append(DiskWrite(promises=Promises((promises[number],))))
                case _:
                    state = HardState(number, 1)
                    writes.append(DiskWrite(hard_state=state))
            highest = max(kept, default=image.meta.index)
        await storage.write(writes)
        if data.draw(st.booleans()):
            await storage.close()
            storage, stored = await NodeStorage.open(folder, segment_bytes=2048)
            assert stored.entries == tuple(kept[at] for at in sorted(kept))
            assert (stored.hard_state, stored.snapshot) == (state, image)
            assert stored.acceptor.records == tuple(promises[at] for at in sorted(promises))
    await storage.close()


async def test_entries_replace_the_tail_from_their_first_on(folder: Path) -> None:
    """A tail of another leader that stays behind a shorter one would come back as if it were the log."""
    stored = await written(
        folder, DiskWrite(entries=entries(2, 2, 2, 2, 2)), DiskWrite(entries=entries(3, 3))
    )
    assert stored.entries == (*entries(2, 2), *entries(3, 3))


async def test_a_leaders_snapshot_replaces_everything(folder: Path) -> None:
    """Entries that stay behind it are of another history."""
    meta = SnapshotMeta(50, 7, FIRST[1].meta.configuration)
    stored = await written(
        folder,
        DiskWrite(entries=entries(2, 2, 2)),
        DiskWrite(snapshot=Snapshot(meta, b"image"), replaces_log=True, entries=entries(51, 7)),
    )
    assert stored.snapshot == Snapshot(meta, b"image")
    assert stored.entries == entries(51, 7)


async def test_an_own_snapshot_keeps_what_is_behind_it(folder: Path) -> None:
    """What is not part of it would be lost."""
    meta = SnapshotMeta(4, 2, FIRST[1].meta.configuration)
    stored = await written(
        folder,
        DiskWrite(entries=entries(2, 2, 2, 2, 2)),
        DiskWrite(snapshot=Snapshot(meta, b"image")),
        DiskWrite(keep_from=3),
    )
    assert stored.snapshot.meta.index == 4
    assert stored.entries == entries(3, 2, 2, 2)


def promised(seq: int, round_number: int = 0) -> AcceptorRecord:
    """What an acceptor keeps of a transaction."""
    value = Accepted(Ballot(round_number), Value(True, b"evidence"))
    known = Known((BranchInstance(1, "orders"),), (value,))
    return AcceptorRecord(TxId(1, "0" * 16, seq), Joint(frozenset({1, 2, 3})), Ballot(round_number, 7), known)


async def test_promises_are_replaced_and_dropped_in_order(folder: Path) -> None:
    """A promise that an older one overwrites would be broken; one that comes back after it was forgotten
    could be voted on anew."""
    marks = Marks(2, ((1, 2),))
    stored = await written(
        folder,
        DiskWrite(promises=Promises((promised(1), promised(2), promised(3)))),
        DiskWrite(promises=Promises((promised(2, 5),))),
        DiskWrite(promises=Promises((), (promised(1).txid,), marks)),
        DiskWrite(promises=Promises((promised(4),))),
    )
    assert stored.acceptor == RestoredAcceptor(marks, (promised(2, 5), promised(3), promised(4)))


@pytest.fixture
def disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> FullDisk:
    return FullDisk(folder, monkeypatch)


async def test_a_batch_without_room_leaves_nothing_and_may_be_given_again(
    folder: Path, disk: FullDisk
) -> None:
    """Half a batch would be a state that no Ready ever described."""
    storage = await opened(folder, segment_bytes=4096)
    storage.reserve.give_up = lambda: False  # type: ignore[method-assign]
    batch = [
        DiskWrite(hard_state=HardState(9, 1), entries=entries(2, 2)),
        DiskWrite(entries=(Entry.make(3, 2, b"x" * 5000),)),
    ]
    disk.full = True
    with pytest.raises(StoreFull, match="no room for node data"):
        await storage.write([*batch, DiskWrite(entries=(Entry.make(4, 2, b"y" * SEGMENT_BYTES),))])
    await storage.close()
    stored = await found(folder)
    assert (stored.hard_state, stored.entries) == (FIRST[0], ())
    storage = await opened(folder, segment_bytes=4096)
    storage.reserve.give_up = lambda: False  # type: ignore[method-assign]
    large = DiskWrite(entries=(Entry.make(4, 2, b"y" * SEGMENT_BYTES),))
    with pytest.raises(StoreFull):
        await storage.write([*batch, large])
    disk.full = False
    assert await storage.write([*batch, large])
    await storage.close()
    stored = await found(folder)
    assert (stored.hard_state, [entry.index for entry in stored.entries]) == (HardState(9, 1), [2, 3, 4])


async def test_the_reserve_is_given_up_for_what_cannot_wait(folder: Path, disk: FullDisk) -> None:
    """Without it a node whose disk is full can store no vote."""
    storage = await opened(folder, segment_bytes=4096)
    assert await storage.write([DiskWrite(entries=entries(2, 2))])
    reserve = folder / RESERVE_NAME
    assert reserve.exists()
    give_up = storage.reserve.give_up

    def make_room() -> bool:
        disk.full = False
        return give_up()

    storage.reserve.give_up = make_room  # type: ignore[method-assign]
    storage.reserve.hold = lambda: False  # type: ignore[method-assign]
    disk.full = True
    large = DiskWrite(entries=(Entry.make(3, 2, b"x" * SEGMENT_BYTES),))
    assert await storage.write([large]) is False, "there is no room for more"
    assert not reserve.exists()
    await storage.close()
    assert len((await found(folder)).entries) == 2


def last_segment(folder: Path) -> Path:
    return segment.path_of(folder, segment.numbers_in(folder)[-1])


async def test_a_torn_tail_is_cut(folder: Path, tmp_path: Path) -> None:
    """A crash in the middle of a write must neither keep the node from starting nor leave half of it. The
    anchor is of before: it is written after the sync."""
    storage, _ = await NodeStorage.open(folder)
    await storage.write([DiskWrite(entries=entries(2, 2, 2))])
    anchor = (folder / ANCHOR_NAME).read_bytes()
    whole = storage.files.log.active.end
    await storage.write([DiskWrite(hard_state=HardState(3, 3), entries=entries(4, 3, 3))])
    longer = storage.files.log.active.end
    await storage.close()
    size = last_segment(folder).stat().st_size
    for cut in range(whole, longer - 8, 3):  # behind which there are only zeros
        place = tmp_path / f"torn-{cut}"
        shutil.copytree(folder, place)
        (place / ANCHOR_NAME).write_bytes(anchor)
        with last_segment(place).open("r+b") as file:
            file.truncate(cut)
            file.truncate(size)
            if cut % 2:  # and what the disk held there before
                file.seek(cut)
                file.write(b"\x5a" * 300)
        stored = await found(place)
        assert (stored.entries, stored.hard_state) == (entries(2, 2, 2), FIRST[0]), cut
        stored = await written(place, DiskWrite(entries=entries(4, 4)))
        assert stored.entries == (*entries(2, 2, 2), *entries(4, 4))
        shutil.rmtree(place)


@pytest.mark.parametrize("bit", range(8))
async def test_any_flipped_bit_in_what_was_acknowledged_stops_the_node(
    folder: Path, tmp_path: Path, bit: int
) -> None:
    """To run on with less would take a committed decision back. The last record has nothing behind it: only
    the anchor tells that it was whole."""
    storage, _ = await NodeStorage.open(folder)
    await storage.write([DiskWrite(entries=entries(2, 2, 2))])
    await storage.write([DiskWrite(promises=Promises((promised(1),), (), Marks(1)))])
    end = storage.files.log.active.end
    await storage.close()
    paths = [last_segment(folder), folder / ANCHOR_NAME, *folder.glob("snapshot-*")]
    for path in paths:
        data = path.read_bytes()
        length = end if path.suffix == ".segment" else len(data)
        for at in range(bit, length, 8):
            damaged = bytearray(data)
            damaged[at] ^= 1 << bit
            path.write_bytes(damaged)
            assert await _stops_or_is_whole(folder, path, at), f"{path.name}, byte {at}"
        path.write_bytes(data)
    assert (await found(folder)).entries == entries(2, 2, 2)


async def _stops_or_is_whole(folder: Path, path: Path, at: int) -> bool:
    try:
        stored = await found(folder)
    except StorageDamaged as error:
        return "again under a new number" in str(error)
    # Zeros that pad a record to a multiple of eight bytes say nothing.
    return stored.entries == entries(2, 2, 2) and len(stored.acceptor.records) == 1


async def test_damage_in_the_middle_is_noticed_without_the_anchor(folder: Path) -> None:
    """After a power failure the anchor may be older than the log. What stands behind the damage was written
    after what is damaged was synced."""
    storage, _ = await NodeStorage.open(folder)
    anchor = (folder / ANCHOR_NAME).read_bytes()
    begin = storage.files.log.active.end
    await storage.write([DiskWrite(entries=entries(2, 2, 2))])
    end = storage.files.log.active.end
    await storage.write([DiskWrite(hard_state=HardState(3, 1))])
    await storage.close()
    (folder / ANCHOR_NAME).write_bytes(anchor)
    path = last_segment(folder)
    data = path.read_bytes()
    for at in range(begin, end - 8):  # the last bytes may be padding
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.raises(StorageDamaged, match=f"damaged at byte {begin}"):
            await NodeStorage.open(folder)


MISSING = ("log-*.segment", "log.anchor", "snapshot-*")


@pytest.mark.parametrize("pattern", MISSING)
async def test_a_missing_file_stops_the_node(folder: Path, pattern: str) -> None:
    """A node that begins anew under its number would vote for what it has forgotten."""
    await written(folder, DiskWrite(entries=entries(2, 2, 2, 2)))
    for path in folder.glob(pattern):
        path.unlink()
    with pytest.raises(StorageDamaged, match=r"missing|lacks"):
        await NodeStorage.open(folder)


async def test_a_missing_segment_stops_the_node(folder: Path) -> None:
    """Whichever it is: the first is needed as long as no checkpoint says otherwise."""
    storage = await opened(folder, segment_bytes=1024)
    for index in range(2, 40):
        await storage.write([DiskWrite(entries=entries(index, 2))])
    await storage.close()
    numbers = segment.numbers_in(folder)
    assert len(numbers) > 3
    for number in numbers:
        path = segment.path_of(folder, number)
        data = path.read_bytes()
        path.unlink()
        with pytest.raises(StorageDamaged):
            await NodeStorage.open(folder)
        path.write_bytes(data)
    assert len((await found(folder)).entries) == 38


async def test_a_log_that_was_set_back_stops_the_node(folder: Path, tmp_path: Path) -> None:
    """Every checksum in a copy of yesterday is right. It may have voted and acknowledged since."""
    await written(folder, DiskWrite(entries=entries(2, 2, 2)))
    shutil.copytree(folder, tmp_path / "copy")
    await written(folder, DiskWrite(entries=entries(4, 2)))
    for path in (tmp_path / "copy").glob("log-*"):
        shutil.copy(path, folder)
    with pytest.raises(StorageDamaged, match="set back"):
        await NodeStorage.open(folder)


@pytest.mark.parametrize("all_files", [True, False])
async def test_files_of_another_node_are_called_that(folder: Path, tmp_path: Path, all_files: bool) -> None:
    """Broken if the message tells to remove the healthy node whose files were copied: that loses a node."""
    mine = tmp_path / "mine"
    create(mine, DiskIdentity("abcdefghij", 1, "disk-1"), *FIRST, segment_bytes=1024)
    for path in folder.glob("log*" if all_files else "log-*"):
        shutil.copy(path, mine)
    for number in (1, 0):
        if all_files and not number:
            break  # then it is a whole disk
        with pytest.raises(StorageDamaged, match="files of another node or disk lie in") as caught:
            await NodeStorage.open(mine, number=number)
        assert "of node 2" in str(caught.value)
        assert "remove" not in str(caught.value)


async def test_segments_are_removed_once_nothing_in_them_is_needed(folder: Path) -> None:
    """Otherwise the disk fills up. What only they held is in a checkpoint."""
    storage = await opened(folder, segment_bytes=2048)
    await storage.write([DiskWrite(promises=Promises((promised(7),), (), Marks(3)), disks={3: "disk-3"})])
    for index in range(2, 80):
        await storage.write([DiskWrite(entries=entries(index, 2))])
        if index % 20 == 0:
            await storage.write([DiskWrite(snapshot=Snapshot(SnapshotMeta(index, 2), b"image"))])
            await storage.write([DiskWrite(keep_from=index - 2)])
    await storage.close()
    assert segment.numbers_in(folder)[0] > 3
    assert len(list(folder.glob("snapshot-*"))) == 1
    stored = await found(folder)
    assert [entry.index for entry in stored.entries] == list(range(58, 80))
    assert (stored.acceptor, stored.disks) == (RestoredAcceptor(Marks(3), (promised(7),)), {3: "disk-3"})


async def test_a_history_that_is_damaged_is_told_and_stops_nothing(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is for people. Answering from half of it would be a guess told as a fact."""
    storage, _ = await NodeStorage.open(folder)
    await storage.write([DiskWrite(finished=Finished((record(1), record(2)), 1_000, 5_000))])
    await storage.close()
    (folder / FILE_NAME).write_bytes(b"no database" * 1000)
    storage, _ = await NodeStorage.open(folder)
    assert "Decisions are not affected" in caplog.text
    with pytest.raises(LedgerUnavailable, match="begin a new history"):
        await storage.history(10, None)
    await storage.write([DiskWrite(entries=entries(2, 2), finished=Finished((record(3),), 1_000, 5_000))])
    await storage.close()
    assert (await found(folder)).entries == entries(2, 2)


@pytest.mark.parametrize("what", ["record", "row"])
async def test_history_that_was_changed_is_told(folder: Path, what: str) -> None:
    """Broken if a flipped bit shows people another transaction, or hides one."""
    storage, _ = await NodeStorage.open(folder)
    await storage.write([DiskWrite(finished=Finished((record(1), record(2)), 1_000, 5_000))])
    await storage.close()
    with contextlib.closing(sqlite3.connect(folder / FILE_NAME)) as connection, connection:
        if what == "record":
            (blob,) = connection.execute("select record from history where seq = 1").fetchone()
            assert b"\xa2me" in blob
            other = blob.replace(b"\xa2me", b"\xa2mf")
            connection.execute("update history set record = ? where seq = 1", (other,))
    if what == "row":
        data = (folder / FILE_NAME).read_bytes()
        nonce = data.rindex(b"0" * 16)
        changed = bytearray(data)
        changed[nonce - 1] ^= 1  # the length or the value of a column before it
        changed[nonce - 2] ^= 1
        (folder / FILE_NAME).write_bytes(changed)
    storage, _ = await NodeStorage.open(folder)
    with pytest.raises(LedgerUnavailable, match="Decisions are not affected"):
        await storage.history(10, None)
    await storage.close()


async def test_no_node_without_a_beginning(tmp_path: Path) -> None:
    """A node that lost its disk and starts empty under its number would vote for what it has forgotten."""
    with pytest.raises(LedgerUnusable, match="never started again under its number"):
        await NodeStorage.open(tmp_path)
    assert list(tmp_path.iterdir()) == []


async def test_a_beginning_is_made_once(folder: Path) -> None:
    """Init on a running cluster's node must not wipe it."""
    with pytest.raises(LedgerUnusable, match="contains the data of a node already"):
        create(folder, IDENTITY, *FIRST)


async def test_one_process_at_a_time(folder: Path) -> None:
    """Two nodes on one disk would each overwrite the other's votes."""
    storage, _ = await NodeStorage.open(folder)
    with pytest.raises(LedgerLocked, match="is in use by process"):
        await NodeStorage.open(folder)
    await storage.close()
    await found(folder)


def record(seq: int) -> DecisionRecord:
    txid = TxId(1, "0" * 16, seq)
    return DecisionRecord(
        txid, Protocol.TWO_PHASE, Decision.COMMIT, (BranchRecord(1, "a"),), float(seq), "me"
    )


async def test_history_is_kept_once_and_for_its_time(folder: Path) -> None:
    """A log that is replayed after a crash writes it again; nobody wants to see a transaction twice."""
    storage, _ = await NodeStorage.open(folder)
    await storage.write([DiskWrite(finished=Finished((record(1), record(2)), 1_000, 5_000))])
    await storage.write([DiskWrite(finished=Finished((record(2), record(3)), 4_000, 5_000))])
    assert list(await storage.history(10, None)) == [record(3), record(2), record(1)]
    assert await storage.history_of(record(2).txid) == record(2)
    await storage.write([DiskWrite(finished=Finished((), 7_000, 5_000))])
    assert list(await storage.history(10, None)) == [record(3), record(2)]
    await storage.close()
