"""A node's file: what was stored is there, what cannot be trusted stops the node."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from coordinator.errors import LedgerLocked, LedgerUnusable
from coordinator.ledger.contract import BranchRecord, Decision, DecisionRecord
from coordinator.ledger.sqlite.file import StoreFull
from coordinator.node.bootstrap import beginning
from coordinator.node.sqlite import promises
from coordinator.node.sqlite.storage import FILE_NAME, SqliteStorage, create
from coordinator.node.sqlite.tables import Tables
from coordinator.node.storage import (
    Finished,
    Identity,
    Promises,
    Snapshot,
    StorageDamaged,
    Stored,
    Write,
)
from coordinator.paxos import Accepted, Ballot, Branch, Known, Marks, Record, Restored, Value
from coordinator.quorum import Joint
from coordinator.raft import Entry, HardState, SnapshotMeta
from participants.ids import TxId

IDENTITY = Identity("abcdefghij", 2, "disk-2")
FIRST = beginning("abcdefghij", {1: "a:1", 2: "b:2", 3: "c:3"})


def entries(first: int, *terms: int) -> tuple[Entry, ...]:
    return tuple(Entry.make(first + at, term, b"entry %d" % (first + at)) for at, term in enumerate(terms))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create(tmp_path / "node", IDENTITY, *FIRST)
    return tmp_path / "node"


async def written(folder: Path, *writes: Write) -> Stored:
    """What is found after ``writes``, each synced by itself, and a restart."""
    storage, _ = await SqliteStorage.open(folder)
    for write in writes:
        await storage.write([write])
    await storage.close()
    return await found(folder)


async def found(folder: Path) -> Stored:
    storage, stored = await SqliteStorage.open(folder)
    await storage.close()
    return stored


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
        Write(hard_state=HardState(3, 1), entries=entries(2, 2, 3)),
        Write(entries=entries(4, 3)),
        Write(hard_state=HardState(4, 2)),
    )
    assert stored.hard_state == HardState(4, 2)
    assert stored.entries == entries(2, 2, 3, 3)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_written_together_the_newest_is_there(tmp_path: Path, data: DataObject) -> None:
    """One entry alone goes another way than several, and a tail is only deleted where there may be one: taken
    for absent, it would come back as if it were the log, or its place be taken."""
    folder = tmp_path / uuid4().hex
    create(folder, IDENTITY, *FIRST)
    kept: dict[int, Entry] = {}
    kept_promises: dict[int, Record] = {}
    tables = Tables(folder / FILE_NAME)
    try:
        for number in range(data.draw(st.integers(1, 8))):
            writes = []
            for _ in range(data.draw(st.integers(1, 3))):
                kind = data.draw(st.sampled_from(("entries", "entries", "entries", "vote", "promise", "cut")))
                highest = max(kept, default=1)
                if kind == "entries":
                    begin = data.draw(st.integers(max(2, highest - 3), highest + 1))
                    new = entries(begin, *[number + 1] * data.draw(st.sampled_from((1, 1, 2, 4))))
                    kept = {at: entry for at, entry in kept.items() if at < begin}
                    kept |= {entry.index: entry for entry in new}
                    writes.append(Write(entries=new))
                elif kind == "cut":
                    writes.append(
                        Write(snapshot=Snapshot(SnapshotMeta(highest + 4, 1), b""), replaces_log=True)
                    )
                    kept = {}
                elif kind == "promise":
                    kept_promises[number] = promised(number, data.draw(st.integers(0, 3)))
                    writes.append(Write(promises=Promises((kept_promises[number],))))
                else:
                    writes.append(Write(hard_state=HardState(number, 1)))
            tables.carry_out(writes)
            if data.draw(st.booleans()):
                tables.file.close()
                tables = Tables(folder / FILE_NAME)
            rows = tables.file.connection.execute("select idx, term, data from entry order by idx")
            assert rows.fetchall() == [(at, kept[at].term, kept[at].data) for at in sorted(kept)]
            assert promises.load(tables.file.connection).records == tuple(
                kept_promises[at] for at in sorted(kept_promises)
            )
    finally:
        tables.file.close()


async def test_entries_replace_the_tail_from_their_first_on(folder: Path) -> None:
    """A tail of another leader that stays behind a shorter one would come back as if it were the log."""
    stored = await written(folder, Write(entries=entries(2, 2, 2, 2, 2)), Write(entries=entries(3, 3)))
    assert stored.entries == (*entries(2, 2), *entries(3, 3))


async def test_a_leaders_snapshot_replaces_everything(folder: Path) -> None:
    """Entries that stay behind it are of another history."""
    meta = SnapshotMeta(50, 7, FIRST[1].meta.configuration)
    stored = await written(
        folder,
        Write(entries=entries(2, 2, 2)),
        Write(snapshot=Snapshot(meta, b"image"), replaces_log=True, entries=entries(51, 7)),
    )
    assert stored.snapshot == Snapshot(meta, b"image")
    assert stored.entries == entries(51, 7)


async def test_an_own_snapshot_keeps_what_is_behind_it(folder: Path) -> None:
    """What is not part of it would be lost."""
    meta = SnapshotMeta(4, 2, FIRST[1].meta.configuration)
    stored = await written(
        folder,
        Write(entries=entries(2, 2, 2, 2, 2)),
        Write(snapshot=Snapshot(meta, b"image")),
        Write(keep_from=3),
    )
    assert stored.snapshot.meta.index == 4
    assert stored.entries == entries(3, 2, 2, 2)


def promised(seq: int, round_number: int = 0) -> Record:
    """What an acceptor keeps of a transaction."""
    value = Accepted(Ballot(round_number), Value(True, b"evidence"))
    known = Known((Branch(1, "orders"),), (value,))
    return Record(TxId(1, "0" * 16, seq), Joint(frozenset({1, 2, 3})), Ballot(round_number, 7), known)


async def test_promises_are_replaced_and_dropped_in_order(folder: Path) -> None:
    """A promise that an older one overwrites would be broken; one that comes back after it was forgotten
    could be voted on anew."""
    marks = Marks(2, ((1, 2),))
    stored = await written(
        folder,
        Write(promises=Promises((promised(1), promised(2), promised(3)))),
        Write(promises=Promises((promised(2, 5),))),
        Write(promises=Promises((), (promised(1).txid,), marks)),
        Write(promises=Promises((promised(4),))),
    )
    assert stored.acceptor == Restored(marks, (promised(2, 5), promised(3), promised(4)))


PROMISE_DAMAGES = (
    "update promise set record = cast(record || x'00' as blob)",
    "update promise set crc = crc + 1",
    "update mark set marks = x'90'",
)


@pytest.mark.parametrize("damage", PROMISE_DAMAGES)
async def test_a_damaged_promise_stops_the_node(folder: Path, damage: str) -> None:
    """An acceptor that skips it has forgotten what a quorum may have counted on."""
    await written(folder, Write(promises=Promises((promised(1),), (), Marks(1))))
    with sqlite3.connect(folder / FILE_NAME) as connection:
        assert connection.execute(damage).rowcount == 1
    connection.close()
    with pytest.raises(StorageDamaged, match="its acceptor has"):
        await SqliteStorage.open(folder)


async def test_a_batch_is_all_or_nothing(folder: Path) -> None:
    """Half a batch would be a state that no Ready ever described."""
    storage, _ = await SqliteStorage.open(folder)
    pages = storage.tables.file.connection
    limit = await storage.in_thread(lambda: int(pages.execute("pragma page_count").fetchone()[0]) + 4)
    storage._reserve.hold = lambda: True  # type: ignore[method-assign]
    await storage.in_thread(lambda: storage.tables.file.limit_pages(limit))
    large = Entry.make(3, 2, b"x" * 200_000)
    with pytest.raises(StoreFull, match="no room for node data"):
        await storage.write(
            [Write(hard_state=HardState(9, 1), entries=entries(2, 2)), Write(entries=(large,))]
        )
    await storage.in_thread(lambda: storage.tables.file.limit_pages(limit + 1000))
    await storage.write([Write(hard_state=HardState(8, 1))])
    await storage.close()
    stored = await found(folder)
    assert stored.hard_state == HardState(8, 1)
    assert stored.entries == ()


async def test_one_entry_alone_without_room_leaves_nothing(folder: Path) -> None:
    """It is a transaction by itself: half of it, or a wrong idea of where the log ends, would stop the node
    when it is given again."""
    storage, _ = await SqliteStorage.open(folder)
    storage._reserve.give_up = lambda: False  # type: ignore[method-assign]
    storage._reserve.hold = lambda: True  # type: ignore[method-assign]
    await storage.write([Write(entries=entries(2, 2))])
    connection = storage.tables.file.connection
    limit = await storage.in_thread(lambda: int(connection.execute("pragma page_count").fetchone()[0]) + 4)
    await storage.in_thread(lambda: storage.tables.file.limit_pages(limit))
    with pytest.raises(StoreFull):
        await storage.write([Write(entries=(Entry.make(3, 2, b"x" * 200_000),))])
    await storage.write([Write(entries=entries(3, 2))])
    await storage.close()
    assert (await found(folder)).entries == entries(2, 2, 2)


async def test_a_torn_tail_is_cut(folder: Path, tmp_path: Path) -> None:
    """A crash in the middle of a write must neither keep the node from starting nor leave half of it."""
    storage, _ = await SqliteStorage.open(folder)
    await storage.write([Write(entries=entries(2, 2, 2))])
    wal = folder / f"{FILE_NAME}-wal"
    whole = wal.stat().st_size
    await storage.write([Write(hard_state=HardState(3, 3), entries=entries(4, 3, 3))])
    longer = wal.stat().st_size
    assert longer > whole
    for cut in range(whole, longer, 997):
        place = tmp_path / f"torn-{cut}"
        shutil.copytree(folder, place)
        with (place / f"{FILE_NAME}-wal").open("r+b") as file:
            file.truncate(cut)
            file.seek(0, 2)
            file.write(b"\x5a" * 300)  # and what the disk held there before
        stored = await found(place)
        assert stored.entries == entries(2, 2, 2)
        assert stored.hard_state == FIRST[0]
    await storage.close()


DAMAGES = {
    "a byte of an entry": "update entry set data = cast('entry X' as blob) where idx = 3",
    "the term of an entry": "update entry set term = 1 where idx = 3",
    "an entry's place": "delete from entry where idx = 3",
    "the first entry": "delete from entry where idx = 2",
    "the last entry's checksum": "update entry set crc = crc + 1 where idx = 4",
    "the snapshot": "update snapshot set image = x'00'",
    "the snapshot's index": "update snapshot set idx = 2",
    "the vote": "delete from hard_state",
    "no snapshot at all": "delete from snapshot",
    "a kind that is none": "update entry set kind = 9 where idx = 2",
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_damage_stops_the_node_and_says_how_to_rejoin(folder: Path, damage: str) -> None:
    """It may have acknowledged what is damaged: to run on with less would take a committed decision back."""
    await written(folder, Write(entries=entries(2, 2, 2, 2)))
    with sqlite3.connect(folder / FILE_NAME) as connection:
        assert connection.execute(DAMAGES[damage]).rowcount == 1
    connection.close()
    with pytest.raises(StorageDamaged, match=r"is damaged: .*rejoin.*`undoubt cluster remove 2`"):
        await SqliteStorage.open(folder)


async def test_a_newer_format_is_refused(folder: Path) -> None:
    """An older version could misread a newer one's log."""
    with sqlite3.connect(folder / FILE_NAME) as connection:
        connection.execute("update meta set value = '3' where key = 'format'")
    connection.close()
    with pytest.raises(LedgerUnusable, match="has format 3, this version of undoubt knows 2"):
        await SqliteStorage.open(folder)


async def test_no_node_without_a_beginning(tmp_path: Path) -> None:
    """A node that lost its disk and starts empty under its number would vote for what it has forgotten."""
    with pytest.raises(LedgerUnusable, match="never started again under its number"):
        await SqliteStorage.open(tmp_path)
    assert list(tmp_path.iterdir()) == []


async def test_a_beginning_is_made_once(folder: Path) -> None:
    """Init on a running cluster's node must not wipe it."""
    with pytest.raises(LedgerUnusable, match=r"lives in .* already"):
        create(folder, IDENTITY, *FIRST)


async def test_one_process_at_a_time(folder: Path) -> None:
    """Two nodes on one disk would each overwrite the other's votes."""
    storage, _ = await SqliteStorage.open(folder)
    with pytest.raises(LedgerLocked, match="is in use by process"):
        await SqliteStorage.open(folder)
    await storage.close()
    await found(folder)


def record(seq: int) -> DecisionRecord:
    txid = TxId(1, "0" * 16, seq)
    return DecisionRecord(txid, "2", Decision.COMMIT, (BranchRecord(1, "a"),), float(seq), "me")


async def test_history_is_kept_once_and_for_its_time(folder: Path) -> None:
    """A log that is replayed after a crash writes it again; nobody wants to see a transaction twice."""
    storage, _ = await SqliteStorage.open(folder)
    await storage.write([Write(finished=Finished((record(1), record(2)), 1_000, 5_000))])
    await storage.write([Write(finished=Finished((record(2), record(3)), 4_000, 5_000))])
    assert list(await storage.history(10, None)) == [record(3), record(2), record(1)]
    assert await storage.history_of(record(2).txid) == record(2)
    await storage.write([Write(finished=Finished((), 7_000, 5_000))])
    assert list(await storage.history(10, None)) == [record(3), record(2)]
    await storage.close()
