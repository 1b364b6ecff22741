"""A disk of version 0.1.0 is carried over, once and whole."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from tests.coordinator.node.format_2 import write
from tests.coordinator.node.test_storage import FIRST, IDENTITY, entries, found, promised, record
from undoubt.coordinator.errors import LedgerUnusable
from undoubt.coordinator.node.storage.contract import Snapshot, StorageDamaged, Stored
from undoubt.coordinator.node.storage.history_file import FILE_NAME
from undoubt.coordinator.node.storage.node_storage import NodeStorage
from undoubt.coordinator.paxos import Marks, RestoredAcceptor
from undoubt.coordinator.raft import HardState, SnapshotMeta

OLD = Stored(
    IDENTITY,
    HardState(3, 2),
    Snapshot(SnapshotMeta(3, 2, FIRST[1].meta.configuration), b"image"),
    entries(2, 2, 2, 3, 3, 3),
    {1: "disk-1", 3: "disk-3"},
    RestoredAcceptor(Marks(2, ((1, 2),)), (promised(4), promised(5))),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a killed node of that version left: some of it in the WAL."""
    place = tmp_path / "running"
    place.mkdir()
    connection = write(place / FILE_NAME, OLD, [record(1), record(2)])
    shutil.copytree(place, tmp_path / "node")
    connection.close()
    return tmp_path / "node"


async def test_everything_is_there_and_the_old_tables_are_gone(folder: Path) -> None:
    """A vote, an entry or a promise that is left behind is one that was taken back."""
    assert await found(folder) == OLD
    storage, stored = await NodeStorage.open(folder)
    assert stored == OLD
    assert list(await storage.history(10, None)) == [record(2), record(1)]
    await storage.close()
    with sqlite3.connect(folder / FILE_NAME) as connection:
        tables = {
            name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")
        }
    connection.close()
    assert tables == {"meta", "history"}


@pytest.mark.parametrize("step", ["SegmentHeader.encoded", "sync_folder"])
async def test_a_crash_on_the_way_changes_nothing(
    folder: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a log beside the old file must be neither run on nor keep the node from starting."""

    def die(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(f"undoubt.coordinator.node.storage.segment.{step}", die)
        with pytest.raises(MemoryError):
            await NodeStorage.open(folder)
    assert await found(folder) == OLD


async def test_a_log_that_is_lost_is_not_taken_for_an_old_file(folder: Path) -> None:
    """The file that was carried over holds history alone."""
    await found(folder)
    for path in folder.glob("log-*"):
        path.unlink()
    with pytest.raises(StorageDamaged, match="its log is missing") as caught:
        await NodeStorage.open(folder, number=2)
    assert "`undoubt cluster remove 2`" in str(caught.value), "a line that can be run as it is"
    assert "node.db" not in str(caught.value), "that file is whole"


async def test_a_flipped_bit_in_its_wal_is_no_torn_tail(folder: Path) -> None:
    """SQLite reads up to a frame whose checksum is wrong, and takes all behind it for what a crash left:
    entries that were acknowledged would be gone without a word."""
    wal = folder / f"{FILE_NAME}-wal"
    whole = wal.read_bytes()
    frame = 24 + 4096
    frames = range(32, len(whole) - frame, frame)
    assert len(frames) > 20
    places = [9, 17, *(at + byte for at in frames for byte in (1, 9, 17, 24 + 4000))]
    for at in places:
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        wal.write_bytes(damaged)
        with pytest.raises(StorageDamaged, match=r"node\.db-wal"):
            await NodeStorage.open(folder)
    wal.write_bytes(whole)
    assert await found(folder) == OLD


async def test_a_torn_tail_of_its_wal_is_cut(folder: Path) -> None:
    """A crash in its last write is no damage."""
    wal = folder / f"{FILE_NAME}-wal"
    whole = wal.read_bytes()
    wal.write_bytes(whole[:-1000] + b"\x5a" * 300)
    stored = await found(folder)
    assert stored.entries == OLD.entries[:-1]


async def test_an_older_format_is_refused(folder: Path) -> None:
    """It would be misread."""
    with sqlite3.connect(folder / FILE_NAME) as connection:
        connection.execute("update meta set value = '1' where key = 'format'")
    connection.close()
    with pytest.raises(LedgerUnusable, match="has format 1, this version of undoubt reads 2"):
        await NodeStorage.open(folder)


DAMAGES = {
    "a byte of an entry": "update entry set data = cast('entry X' as blob) where idx = 3",
    "the term of an entry": "update entry set term = 1 where idx = 3",
    "an entry's place": "delete from entry where idx = 3",
    "the first entries": "delete from entry where idx < 5",
    "the last entry's checksum": "update entry set crc = crc + 1 where idx = 6",
    "the snapshot": "update snapshot set image = x'00'",
    "the vote": "delete from hard_state",
    "a term that is too old": "update hard_state set term = 2",
    "no snapshot at all": "delete from snapshot",
    "a kind that is none": "update entry set kind = 9 where idx = 2",
    "a promise": "update promise set record = cast(record || x'00' as blob)",
    "a promise's checksum": "update promise set crc = crc + 1",
    "the marks": "update mark set marks = x'90'",
}


async def test_a_damaged_page_is_found_though_no_row_that_is_read_lies_on_it(folder: Path) -> None:
    """SQLite reads past it: an index that does not match its table, a page that is in no list."""
    with sqlite3.connect(folder / FILE_NAME) as connection:
        connection.execute("pragma writable_schema = on")
        connection.execute("create table other (number integer primary key, text text)")
        connection.execute("create index other_text on other (text)")
        connection.execute("insert into other values (1, 'one')")
        connection.execute(
            "update sqlite_master set sql = replace(sql, '(text)', '(number)') where name = 'other_text'"
        )
    connection.close()
    with pytest.raises(StorageDamaged, match="SQLite's own check finds"):
        await NodeStorage.open(folder)


@pytest.mark.parametrize("damage", DAMAGES)
async def test_damage_stops_the_node_and_says_how_to_rejoin(folder: Path, damage: str) -> None:
    """It may have acknowledged what is damaged: to run on with less would take a committed decision back."""
    with sqlite3.connect(folder / FILE_NAME) as connection:
        assert connection.execute(DAMAGES[damage]).rowcount >= 1
    connection.close()
    with pytest.raises(
        StorageDamaged,
        match=r"is damaged: .*must not run on it again.* under a new number: `undoubt cluster remove 2`",
    ):
        await NodeStorage.open(folder)
