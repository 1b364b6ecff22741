"""The SQLite ledger's own promises: one owner, takeover, a full or damaged disk, forks."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory

from tests.coordinator.ledger.signing import Signing
from undoubt.coordinator import ledger as ledgers
from undoubt.coordinator.errors import BranchListMismatch, LedgerLocked, LedgerUnavailable, LedgerUnusable
from undoubt.coordinator.ledger import maintenance, schema, state_machine_ledger
from undoubt.coordinator.ledger.acting import system_user
from undoubt.coordinator.ledger.commands import Decide, OpenSession, encode
from undoubt.coordinator.ledger.contract import (
    Act,
    BranchRecord,
    RecordedDecision,
    Session,
    SessionState,
    Verdict,
)
from undoubt.coordinator.ledger.sqlite import owner as owner_module
from undoubt.coordinator.ledger.sqlite import unix_socket
from undoubt.coordinator.ledger.sqlite.ledger import SqliteLedger
from undoubt.coordinator.ledger.sqlite.store import Loaded, SqliteStore
from undoubt.coordinator.ledger.state import LedgerState
from undoubt.coordinator.settings import LedgerSettings
from undoubt.coordinator.wire.connection import HEADER, header
from undoubt.participants.bounds import OutOfBounds
from undoubt.participants.contract import Decision
from undoubt.participants.ids import Gid, Protocol, SessionKey, TxId

COMMIT = Decision.COMMIT
BRANCHES = (BranchRecord(1, "orders"), BranchRecord(2, "payments"))

OWNER = """
import asyncio, sys
from undoubt.coordinator.ledger import open_ledger
from undoubt.coordinator.ledger.contract import BranchRecord, Decision
from undoubt.coordinator.settings import LedgerSettings
from tests.coordinator.ledger.signing import Signing

async def main(url):
    ledger = await open_ledger(LedgerSettings(url=url), create=True)
    session = await ledger.open_session("owner", 600)
    branches = (BranchRecord(1, "orders"), BranchRecord(2, "payments"))
    await Signing(ledger).remember(session).decide(session.txid(1), Decision.COMMIT, branches)
    print(ledger.leads, session.txid(1), session.txid(2), session.key.hex(), flush=True)
    await asyncio.sleep(600)

asyncio.run(main(sys.argv[1]))
"""


async def open_ledger(settings: LedgerSettings) -> Signing:
    return Signing(await ledgers.open_ledger(settings, create=True))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def settings(path: Path) -> LedgerSettings:
    return LedgerSettings(url=f"sqlite:///{path}", request_timeout_s=3.0)


@pytest.fixture
async def ledger(path: Path, settings: LedgerSettings) -> AsyncIterator[Signing]:
    opened = await SqliteLedger.open(path, settings)
    yield Signing(opened)
    await opened.close()


class Owner:
    """Another process that owns the ledger, with one committed and one open transaction."""

    def __init__(self, url: str) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", OWNER, url], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        leads, committed, undecided, key = self.process.stdout.readline().split()
        assert leads == "True"
        self.committed, self.undecided = TxId.parse(committed), TxId.parse(undecided)
        number, nonce = self.committed.session, self.committed.nonce
        self.session = Session(number, nonce, "owner", 600, key=bytes.fromhex(key))

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def owner(settings: LedgerSettings) -> Iterator[Owner]:
    found = Owner(settings.url)
    yield found
    found.end()


async def test_a_killed_owner_is_succeeded_and_nothing_is_lost(
    owner: Owner, settings: LedgerSettings
) -> None:
    """Decisions of an owner that died by SIGKILL stand; what it had undecided is aborted at once, since
    the lock proves that it is dead."""
    client = (await open_ledger(settings)).remember(owner.session)
    session = await client.open_session("client", 600)
    assert not client.leads
    assert (await client.outcomes([owner.undecided]))[owner.undecided] is Verdict.ACTIVE
    owner.process.send_signal(signal.SIGKILL)
    assert owner.process.wait() == -signal.SIGKILL
    assert (await client.records([owner.committed]))[owner.committed] is RecordedDecision.COMMIT
    assert client.leads
    assert (await client.outcomes([owner.undecided]))[owner.undecided] is Verdict.ABORTED
    states = {info.id: info.state for info in await client.sessions()}
    assert states[session.id] is SessionState.OPEN, "a session of another process outlives the owner"
    assert await client.decide(session.txid(1), COMMIT, BRANCHES) is COMMIT
    await client.close()


async def test_of_many_clients_exactly_one_takes_over(owner: Owner, settings: LedgerSettings) -> None:
    """Two owners of one file would each believe their own decisions."""
    clients = [await open_ledger(settings) for _ in range(5)]
    sessions = [await client.open_session("client", 600) for client in clients]
    owner.process.kill()
    decided = await asyncio.gather(
        *(
            client.decide(session.txid(seq), COMMIT, BRANCHES)
            for client, session in zip(clients, sessions, strict=True)
            for seq in range(1, 21)
        )
    )
    assert set(decided) == {COMMIT}
    assert sum(client.leads for client in clients) == 1
    info = await clients[0].info()
    assert info.decisions_kept == 101
    for client in clients:
        await client.close()


async def test_a_stopped_owner_is_not_succeeded(owner: Owner, settings: LedgerSettings) -> None:
    """It may wake up: whoever took the file from it would make two owners. Calls fail, and say who."""
    impatient = LedgerSettings(url=settings.url, request_timeout_s=0.3)
    client = await open_ledger(settings)
    owner.process.send_signal(signal.SIGSTOP)
    with pytest.raises(LedgerLocked, match=str(owner.process.pid)):
        await open_ledger(impatient)
    owner.process.send_signal(signal.SIGCONT)
    assert (await client.records([owner.committed]))[owner.committed] is RecordedDecision.COMMIT
    await client.close()


async def test_an_owner_that_was_stopped_itself_expires_nobody_for_that(
    path: Path, settings: LedgerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if an owner that could hear nobody for a while, its event loop blocked or its process stopped,
    takes everybody for dead, its own coordinator too."""
    monkeypatch.setattr(state_machine_ledger, "UPKEEP_INTERVAL_S", 0.05)
    now_s, looked = 0.0, asyncio.Event()
    expire_due = owner_module.OwnedLedger.expire_due

    async def look(self: owner_module.OwnedLedger) -> list[int]:
        try:
            return await expire_due(self)
        finally:
            looked.set()

    ledger = await SqliteLedger.open(path, settings, clock=lambda: now_s)
    await ledger.open_session("shop", 10)
    monkeypatch.setattr(owner_module.OwnedLedger, "expire_due", look)
    time.sleep(3 * 0.05)  # noqa: ASYNC251 - this is the fault
    now_s = 10 + 0.05
    looked.clear()
    await looked.wait()
    assert [session.state for session in await ledger.sessions()] == [SessionState.OPEN]
    now_s += 3600
    while [session.state for session in await ledger.sessions()] != [SessionState.EXPIRED]:
        looked.clear()
        await looked.wait()
    await ledger.close()


async def test_a_full_disk_refuses_commands_loses_nothing_and_recovers(
    ledger: SqliteLedger, path: Path
) -> None:
    """Running on with a decision that is not on the disk would lose it; stopping for good would be rude."""
    session = await ledger.open_session("test", 600)
    mine = ledger.owned
    assert mine is not None
    pages = path.stat().st_size // 4096 + 2
    await mine.in_thread(mine.store.limit_pages, pages)
    kept, refused = 0, None
    while refused is None:
        try:
            assert await ledger.decide(session.txid(kept + 1), COMMIT, BRANCHES) is COMMIT
            kept += 1
        except LedgerUnavailable as error:
            refused = error
    assert "no room" in str(refused)
    assert (await ledger.records([session.txid(kept + 1)]))[
        session.txid(kept + 1)
    ] is RecordedDecision.NOT_RECORDED
    await mine.in_thread(mine.store.limit_pages, pages + 1000)
    assert await ledger.decide(session.txid(kept + 1), COMMIT, BRANCHES) is COMMIT
    await ledger.close()
    again = await SqliteLedger.open(path, ledger.settings)
    txids = [session.txid(seq) for seq in range(1, kept + 2)]
    assert set((await again.records(txids)).values()) == {RecordedDecision.COMMIT}
    await again.close()


async def test_a_failing_disk_stops_commands_but_not_reading(ledger: SqliteLedger) -> None:
    """After a failed write nobody knows what is on the disk: no later answer may rest on it."""
    session = await ledger.open_session("test", 600)
    await ledger.decide(session.txid(1), COMMIT, BRANCHES)
    mine = ledger.owned
    assert mine is not None
    await mine.in_thread(mine.store._connection.execute, "drop table entry")
    for seq in (2, 3):
        with pytest.raises(LedgerUnavailable):
            await ledger.decide(session.txid(seq), COMMIT, BRANCHES)
    assert (await ledger.records([session.txid(1)]))[session.txid(1)] is RecordedDecision.COMMIT


async def test_a_damaged_entry_is_refused_by_name(path: Path, settings: LedgerSettings) -> None:
    """Applying it could turn a COMMIT into anything."""
    await _used(settings)
    _edit(path, "update entry set command = cast(x'93' || substr(command, 2) as blob) where idx = 2")
    with pytest.raises(LedgerUnusable, match="entry 2"):
        await open_ledger(settings)
    assert any("entry 2" in problem for problem in await maintenance.check(settings))


async def test_a_missing_entry_is_refused(path: Path, settings: LedgerSettings) -> None:
    """A hole in the log is a lost decision."""
    await _used(settings)
    _edit(path, "delete from entry where idx = 2")
    with pytest.raises(LedgerUnusable, match="entry 2"):
        await open_ledger(settings)


async def test_a_lost_identity_is_refused(path: Path, settings: LedgerSettings) -> None:
    """A ledger that draws a new id would not recognise its own prepared transactions."""
    await _used(settings)
    _edit(path, "delete from meta")
    with pytest.raises(LedgerUnusable, match="its ledger id, which is missing"):
        await open_ledger(settings)


async def test_a_newer_version_is_refused(path: Path, settings: LedgerSettings) -> None:
    """An old program would misread a new file."""
    await _used(settings)
    _edit(path, "update alembic_version set version_num = '9999'")
    for attempt in (open_ledger, maintenance.migrate):
        with pytest.raises(LedgerUnusable, match="newer version"):
            await attempt(settings)
    assert await maintenance.check(settings) != []


async def test_what_is_no_ledger_is_refused_and_left_alone(path: Path, settings: LedgerSettings) -> None:
    """A typo in a URL must not change somebody's file."""
    path.write_bytes(b"these are the minutes of our last meeting" * 100)
    before = path.read_bytes()
    with pytest.raises(LedgerUnusable, match=r"not a database\..*correct ledger\.url.*ledger restore BACKUP"):
        await open_ledger(settings)
    assert path.read_bytes() == before
    path.unlink()
    _edit(path, "create table customers (name text)")
    with pytest.raises(LedgerUnusable, match="not a ledger"):
        await open_ledger(settings)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://x/y", "ledger.db"])
async def test_other_urls_are_refused(url: str) -> None:
    """``:memory:`` above all: it would forget its decisions."""
    with pytest.raises(OutOfBounds, match="url must not be empty"):
        LedgerSettings(url="sqlite:///")
    with pytest.raises(LedgerUnusable, match="sqlite:///"):
        await open_ledger(LedgerSettings(url=url))


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnusable, match="nowhere"):
        await open_ledger(LedgerSettings(url=f"sqlite:///{tmp_path}/nowhere/ledger.db"))


async def test_maintenance_needs_the_ledger_for_itself(
    ledger: SqliteLedger, settings: LedgerSettings
) -> None:
    """A second connection to a live file can corrupt it."""
    for work in (maintenance.check, maintenance.migrate):
        with pytest.raises(LedgerLocked, match=str(os.getpid())):
            await work(settings)
    await ledger.close()
    assert await maintenance.check(settings) == []
    assert await maintenance.migrate(settings) == []


async def test_the_newest_revision_is_alembics_head() -> None:
    """A forgotten constant would refuse every new ledger."""
    for tree in (schema.SQLITE, schema.POSTGRES):
        script = ScriptDirectory.from_config(tree.alembic_config())
        assert script.get_current_head() == tree.newest
        assert [revision.revision for revision in script.walk_revisions()][::-1] == list(tree.revisions)


async def test_a_snapshot_replaces_the_log_and_history_stays(
    path: Path, settings: LedgerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it a ledger grows for ever; with a faulty one it forgets."""
    monkeypatch.setattr(owner_module, "LOG_BYTES_MIN", 20_000)
    ledger = Signing(await SqliteLedger.open(path, settings))
    session = await ledger.open_session("test", 600)
    txids = [session.txid(seq) for seq in range(1, 601)]
    for start in range(0, 600, 50):
        await asyncio.gather(*(ledger.decide(txid, COMMIT, BRANCHES) for txid in txids[start : start + 50]))
        await ledger.finish(txids[start : start + 49])
    before = await ledger.transactions(limit=1000)
    assert [info.txid for info in before] == txids[::-1]
    await ledger.close()
    with sqlite3.connect(path) as connection:
        (entries,) = connection.execute("select count(*) from entry").fetchone()
        (kept,) = connection.execute("select count(*) from history").fetchone()
    connection.close()
    assert entries < 300
    assert kept > 300
    again = await SqliteLedger.open(path, settings)
    assert await again.transactions(limit=1000) == before
    assert [record.txid for record in await again.unfinished()] == txids[49::50]
    assert await maintenance_free(again) == 600
    await again.close()


async def maintenance_free(ledger: SqliteLedger) -> int:
    return (await ledger.info()).decisions_kept


async def test_a_fork_neither_uses_nor_harms_the_ledger(ledger: SqliteLedger, path: Path) -> None:
    """A child that speaks under its parent's session, or whose exit tidies the parent's files, loses
    decisions; one that keeps the lock after its parent's end keeps everybody out."""
    session = await ledger.open_session("test", 600)
    await ledger.decide(session.txid(1), COMMIT, BRANCHES)
    script = _fork_script(path.parent / "forked.db")
    outcome = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.split() == ["WrongProcess", "wal", "commit", "commit", "taken"]


def _fork_script(path: Path) -> str:
    return f"""
import asyncio, gc, os
from undoubt.coordinator.errors import UndoubtError
from undoubt.coordinator.ledger import open_ledger
from undoubt.coordinator.ledger.contract import BranchRecord, Decision
from undoubt.coordinator.ledger.sqlite.lock import FileLock
from undoubt.coordinator.settings import LedgerSettings
from pathlib import Path
from tests.coordinator.ledger.signing import Signing
settings = LedgerSettings(url="sqlite:///{path}")
branches = (BranchRecord(1, "a"),)
async def main():
    ledger = Signing(await open_ledger(settings, create=True))
    session = await ledger.open_session("parent", 600)
    await ledger.decide(session.txid(1), Decision.COMMIT, branches)
    if os.fork() == 0:
        try:
            coroutine = ledger.decide(session.txid(2), Decision.COMMIT, branches)
            coroutine.send(None)
        except UndoubtError as error:
            print(type(error).__name__, flush=True)
        # What an exit that tidies up would do to the connection. (The loop itself must not be tidied up: its
        # epoll instance is the parent's too.)
        ledger.owned.store._connection = ledger.owned.store._file.connection = None
        gc.collect()
        os._exit(0)
    os.wait()
    await ledger.decide(session.txid(3), Decision.COMMIT, branches)
    print("wal" if Path("{path}-wal").exists() else "no wal: a crash now would lose the last decision")
    reader, writer = os.pipe()
    if os.fork() == 0:  # outlives the parent's hold on the ledger
        os.read(reader, 1)
        os._exit(0)
    await ledger.close()
    lock = FileLock.take(Path("{path}"))
    taken = "taken" if lock else "kept by the child"
    os.write(writer, b"x")
    os.wait()
    lock and lock.release()
    again = await open_ledger(settings)
    found = await again.records([session.txid(1), session.txid(3)])
    print(*(str(record) for record in found.values()), taken)
    await again.close()
asyncio.run(main())
"""


async def test_only_its_user_can_reach_it(ledger: SqliteLedger, path: Path) -> None:
    """Whoever can talk to the ledger can decide."""
    assert path.stat().st_mode & 0o777 == 0o600
    assert unix_socket.folder(path).stat().st_mode & 0o777 == 0o700


JUNK = {
    "too long": HEADER.pack(2**32 - 1, 0, 0),
    "other version": header(b"\x90", 9) + b"\x90",
    "other checksum": HEADER.pack(9, 0, 0) + b"oops",
    "no msgpack": header(b"\xc1", 0) + b"\xc1",
    "http": b"GET / HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK)
async def test_junk_on_the_socket_hurts_nobody(ledger: SqliteLedger, path: Path, junk: bytes) -> None:
    """The connection that sent it is closed; others go on."""
    client = await open_ledger(ledger.settings)
    reader, writer = await asyncio.open_unix_connection(sock=unix_socket.connect(path))
    writer.write(junk)
    received = b""
    while chunk := await reader.read(1000):
        received += chunk
    assert len(received) < 40, "the greeting, and nothing else"
    writer.close()
    assert (await client.info()).ledger_id == ledger.ledger_id
    await client.close()


async def test_a_long_path_still_has_a_socket(tmp_path: Path) -> None:
    """Addresses of unix sockets end at 107 bytes; paths do not."""
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    settings = LedgerSettings(url=f"sqlite:///{deep}/ledger.db")
    first, second = await open_ledger(settings), await open_ledger(settings)
    assert (await second.info()).ledger_id == first.ledger_id
    await second.close()
    await first.close()


async def test_cancelling_the_opening_leaves_nothing_open(path: Path, settings: LedgerSettings) -> None:
    """A lock that nobody holds any more, or a file that is open without it, would both be fatal."""
    for turns in range(0, 60, 3):
        task = asyncio.create_task(open_ledger(settings))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        (result,) = await asyncio.gather(task, return_exceptions=True)
        if not isinstance(result, BaseException):
            await result.close()
    ledger = await open_ledger(settings)
    assert ledger.leads
    await ledger.close()


async def test_whoever_gives_up_waiting_does_not_stop_a_takeover(
    path: Path, settings: LedgerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if the disk is slow while a process becomes the owner, whoever waits for that is cancelled, once
    or twice, and the lock stays taken with nobody behind it: nothing is decided until that process ends."""
    first, second = await open_ledger(settings), await open_ledger(settings)
    reading, readable = threading.Event(), threading.Event()
    load = SqliteStore.load

    def slow(store: SqliteStore) -> Loaded:
        reading.set()
        assert readable.wait(60)
        return load(store)

    monkeypatch.setattr(SqliteStore, "load", slow)
    await first.close()
    asking = asyncio.create_task(second.unfinished())
    await asyncio.to_thread(reading.wait, 60)
    for _ in range(2):
        asking.cancel()
        for _ in range(3):
            await asyncio.sleep(0)
    readable.set()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert await second.unfinished() == []
    assert second.leads
    third = await open_ledger(settings)
    assert await third.unfinished() == []
    assert not third.leads
    await third.close()
    await second.close()


async def _used(settings: LedgerSettings) -> None:
    ledger = await open_ledger(settings)
    session = await ledger.open_session("test", 600)
    for seq in range(1, 4):
        await ledger.decide(session.txid(seq), COMMIT, BRANCHES)
    await ledger.close()


def _edit(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(statement)
    connection.close()


async def test_a_ledger_of_the_first_version_opens_and_its_sessions_end_as_such(
    path: Path, settings: LedgerSettings
) -> None:
    """Broken if an upgrade forgets what is prepared, or believes names that nobody can have given."""
    store = SqliteStore.create(path)
    store.load()
    nonce = "0" * 16
    txid = TxId(1, nonce, 1)
    begun = OpenSession(nonce, "old", 600_000)
    store.append(1, [encode(begun), encode(Decide(txid, Protocol.TWO_PHASE, COMMIT, BRANCHES, 1.0))])
    store.close()
    ledger = await SqliteLedger.open(path, settings)
    decided = Gid(ledger.ledger_id, Protocol.TWO_PHASE, txid, 1, "orders")
    asked = {
        decided: Verdict.COMMITTED,
        replace(decided, txid=TxId(1, nonce, 2)): Verdict.ACTIVE,
        replace(decided, txid=TxId(1, "1" * 16, 1)): Verdict.IMPOSTOR,
        replace(decided, txid=TxId(9, nonce, 1)): Verdict.IMPOSTOR,
        replace(decided, txid=TxId(1, nonce, 2), tag="0" * 20): Verdict.IMPOSTOR,
    }
    assert await ledger.outcomes(asked) == asked
    assert await ledger.decide(TxId(1, nonce, 2), COMMIT, BRANCHES) is COMMIT
    session = await ledger.open_session("new", 600)
    assert session.key
    untagged = replace(decided, txid=session.txid(1))
    assert await ledger.outcomes([untagged]) == {untagged: Verdict.IMPOSTOR}
    await ledger.close()
    again = await SqliteLedger.open(path, settings)
    tagged = untagged.tagged(SessionKey(session.key))
    assert (await again.outcomes([tagged]))[tagged] is Verdict.ABORTED, "the secret was not kept"
    await again.close()


async def test_a_sequence_number_is_no_size(ledger: Signing) -> None:
    """Broken if one name makes the ledger, and every node of a cluster, ask for more memory than there is."""
    session = await ledger.open_session("test", 600)
    txid = session.txid(2**63 - 1)
    assert await ledger.decide(txid, COMMIT, BRANCHES) is COMMIT
    await ledger.finish([txid])
    assert await ledger.decide(txid, COMMIT, BRANCHES) is COMMIT
    with pytest.raises(BranchListMismatch):
        await ledger.decide(txid, COMMIT, BRANCHES[:1])
    owned = ledger.owned
    assert owned is not None
    image = owned.machine.snapshot()
    assert len(image) < 100_000
    assert LedgerState.decode(image).encode() == image


async def test_an_act_is_that_of_the_user_whose_process_is_connected(tmp_path: Path) -> None:
    """Whatever the process says: else the record names whom an operator likes."""
    settings = LedgerSettings(url=f"sqlite:///{tmp_path}/undoubt.db")
    owner = await SqliteLedger.open(tmp_path / "undoubt.db", settings)
    client = await SqliteLedger.open(tmp_path / "undoubt.db", settings)
    try:
        await client.record_act(Act("1", "indoubt commit", "gid", 1.0, "somebody@else", certificate="forged"))
        await client.record_act(Act("2", "indoubt commit", "gid", 1.0, system_user()))
        second, first = await owner.acts(limit=2)
    finally:
        await client.close()
        await owner.close()
    assert (first.who, first.certificate) == (second.who, "")
    assert first.who == system_user()


async def test_who_restored_the_ledger_is_recorded(tmp_path: Path) -> None:
    settings = LedgerSettings(url=f"sqlite:///{tmp_path}/undoubt.db")
    ledger = await SqliteLedger.open(tmp_path / "undoubt.db", settings)
    backup = tmp_path / "some.backup"
    await ledger.backup(backup)
    await ledger.close()
    await maintenance.restore(settings, None, note="believed")
    await maintenance.restore(settings, backup, note="from tape")
    await maintenance.restore(settings, None, note="again")
    ledger = await SqliteLedger.open(tmp_path / "undoubt.db", settings)
    acts = await ledger.acts(limit=9)
    await ledger.close()
    assert [(act.verb, act.note, act.result) for act in acts] == [
        ("ledger restore", "again", "done"),
        ("ledger restore", "from tape", "done"),
    ], "what the backup does not hold is gone with the former file"
    assert acts[0].who == system_user()
