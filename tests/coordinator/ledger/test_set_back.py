"""A SQLite ledger that was set back, copied, damaged or lost is noticed, and never answers ABORTED for what
it has forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.coordinator.ledger.signing import Signing
from undoubt.config import Settings
from undoubt.coordinator import ledger as ledgers
from undoubt.coordinator.errors import LedgerMissing, LedgerUnavailable, LedgerUnusable
from undoubt.coordinator.ledger import maintenance
from undoubt.coordinator.ledger.backup import NOT_IN_BACKUP
from undoubt.coordinator.ledger.contract import BranchRecord, RecordedDecision, Session, Verdict
from undoubt.coordinator.ledger.sqlite import anchored
from undoubt.coordinator.ledger.sqlite.ledger import SqliteLedger
from undoubt.coordinator.ledger.sqlite.store import SqliteStore
from undoubt.coordinator.settings import LedgerSettings
from undoubt.doctor.ledger import look_at_ledger
from undoubt.participants.contract import Decision
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import Gid

COMMIT = Decision.COMMIT
BRANCHES = (BranchRecord(1, "orders"), BranchRecord(2, "payments"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def settings(path: Path) -> LedgerSettings:
    return LedgerSettings(url=f"sqlite:///{path}", request_timeout_s=3.0)


async def opened(settings: LedgerSettings) -> Signing:
    return Signing(await ledgers.open_ledger(settings, create=True, serves=True))


def files(path: Path) -> list[Path]:
    """The ledger's file with what SQLite keeps beside it."""
    return [each for suffix in ("", "-wal", "-shm") if (each := Path(f"{path}{suffix}")).exists()]


def put_back(copy: Path, path: Path, suffixes: Sequence[str] = ("", "-wal")) -> None:
    """As ``cp`` of a copy over the file, whose inode stays."""
    for left in files(path):
        if left != path:
            left.unlink()
    for suffix in suffixes:
        if Path(f"{copy}{suffix}").exists():
            with Path(f"{path}{suffix}").open("wb") as file:
                file.write(Path(f"{copy}{suffix}").read_bytes())


class Story:
    """A session that has committed a transaction before the copy was made, and another one after it."""

    def __init__(self, session: Session, before: Gid, after: Gid) -> None:
        self.session, self.before, self.after = session, before, after


async def told(path: Path, settings: LedgerSettings, tmp_path: Path) -> Story:
    """The story, with the copy in ``tmp_path / "copy"``. The ledger's process is killed at its end: its file
    stays as it is, its WAL with it."""
    ledger = await opened(settings)
    session = await ledger.open_session("application", 600)
    await ledger.decide(session.txid(1), COMMIT, BRANCHES)
    for each in files(path):
        shutil.copy(each, tmp_path / each.name.replace("ledger.db", "copy"))
    await ledger.decide(session.txid(2), COMMIT, BRANCHES)
    keep = tmp_path / "kept"
    keep.mkdir()
    for each in [*files(path), anchored.path_of(path)]:
        shutil.copy(each, keep)
    before, after = (ledger.gid(session.txid(seq)) for seq in (1, 2))
    await ledger.close()
    for left in files(path):
        left.unlink()
    for each in keep.iterdir():
        shutil.copy(each, path.parent)
    return Story(session, before, after)


async def test_a_copy_that_is_put_back_begins_a_new_incarnation(
    path: Path, settings: LedgerSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its sessions would expire, and what was committed since the copy would be called aborted, with a
    proof."""
    story = await told(path, settings, tmp_path)
    put_back(tmp_path / "copy", path)
    assert any("was set back" in problem for problem in await maintenance.check(settings))
    ledger = await opened(settings)
    assert "lacks entry" in caplog.text
    verdicts = await ledger.outcomes([story.before, story.after])
    assert (verdicts[story.before], verdicts[story.after]) == (Verdict.COMMITTED, Verdict.FORGOTTEN)
    assert (await ledger.info()).incarnation == 2
    later = await ledger.open_session("application", 600)
    assert later.id > story.session.id + 1_000_000
    await ledger.close()
    ledger = await opened(settings)
    assert (await ledger.info()).incarnation == 2, "it is begun once"
    assert (await ledger.outcomes([story.after]))[story.after] is Verdict.FORGOTTEN
    await ledger.close()


async def test_a_process_that_only_looks_leaves_a_set_back_file_and_its_proof_alone(
    path: Path, settings: LedgerSettings, tmp_path: Path
) -> None:
    """Broken if a command that only looks takes the older file for good, and the next check calls it
    healthy."""
    await told(path, settings, tmp_path)
    put_back(tmp_path / "copy", path)
    anchor = anchored.path_of(path).read_bytes()
    for _ in range(2):
        with pytest.raises(LedgerUnusable, match=r"not opened: it lacks entry .*Put the newer file back"):
            await ledgers.open_ledger(settings)
        for act in (maintenance.init(settings), maintenance.backup(settings, tmp_path / "backup")):
            with pytest.raises(LedgerUnusable, match="lacks entry"):
                await act
    assert anchored.path_of(path).read_bytes() == anchor
    [problem] = await maintenance.check(settings)
    assert "Put the newer file back" in problem
    for kept in (tmp_path / "kept").iterdir():
        shutil.copy(kept, path.parent)
    ledger = Signing(await ledgers.open_ledger(settings))
    assert (await ledger.info()).incarnation == 1, "the newer file was put back"
    await ledger.close()


async def test_a_new_incarnation_is_in_the_audit_and_doctor_names_it(
    path: Path, settings: LedgerSettings, tmp_path: Path
) -> None:
    """Broken if nobody can see afterwards that the ledger has forgotten something."""
    await told(path, settings, tmp_path)
    put_back(tmp_path / "copy", path)
    await (await opened(settings)).close()
    ledger = await ledgers.open_ledger(settings)
    [act] = await ledger.acts(limit=5)
    assert (act.verb, act.result) == ("new incarnation", "done")
    assert "lacks entry" in act.subject
    found = await look_at_ledger(ledger, Settings(ledger=settings), 60.0)
    [finding] = [each for each in found if each.check == "ledger_set_back"]
    assert act.subject in finding.what
    await ledger.close()


@pytest.mark.parametrize("accepting", ["opening it", "ledger restore"])
async def test_a_crash_while_a_set_back_file_is_accepted_conceals_nothing(
    path: Path, settings: LedgerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accepting: str
) -> None:
    """Broken if the anchor names the older file's last entry before its new incarnation is durable."""
    await told(path, settings, tmp_path)
    put_back(tmp_path / "copy", path)

    def crash(*_: object) -> None:
        raise LedgerUnavailable("crashed")

    with monkeypatch.context() as patched:
        patched.setattr(SqliteStore, "append", crash)
        with pytest.raises(LedgerUnavailable, match="crashed"):
            await (opened(settings) if accepting == "opening it" else maintenance.restore(settings, None))
    [problem] = await maintenance.check(settings)
    assert "lacks entry" in problem


@pytest.mark.parametrize("lost", ["the copy's WAL", "the WAL"])
async def test_a_wal_that_is_missing_begins_a_new_incarnation(
    path: Path, settings: LedgerSettings, tmp_path: Path, lost: str
) -> None:
    """What was committed stands in ``-wal`` until SQLite carries it over. A copy without it is a ledger of
    before."""
    story = await told(path, settings, tmp_path)
    if lost == "the WAL":
        Path(f"{path}-wal").unlink()
    else:
        put_back(tmp_path / "copy", path, [""])
    ledger = await opened(settings)
    assert (await ledger.outcomes([story.after]))[story.after] in {Verdict.FORGOTTEN, Verdict.IMPOSTOR}
    await ledger.close()


async def test_a_flipped_bit_in_what_was_acknowledged_is_never_taken_for_a_torn_tail(
    path: Path, settings: LedgerSettings, tmp_path: Path
) -> None:
    """In the WAL, in every frame: the ledger is refused, or it begins a new incarnation. The answer is never
    ABORTED."""
    story = await told(path, settings, tmp_path)
    kept = {each: each.read_bytes() for each in [*files(path), anchored.path_of(path)]}
    wal = Path(f"{path}-wal")
    size = len(kept[wal])
    told_of = 0
    for at in range(0, size, size // 60):
        for each, data in kept.items():
            each.write_bytes(data)
        damaged = bytearray(kept[wal])
        damaged[at] ^= 1 << at % 8
        wal.write_bytes(damaged)
        try:
            ledger = await opened(settings)
        except LedgerUnusable:
            told_of += 1
            continue
        verdicts = await ledger.outcomes([story.before, story.after])
        incarnation = (await ledger.info()).incarnation
        await ledger.close()
        assert Verdict.ABORTED not in verdicts.values(), at
        if incarnation == 1:
            assert set(verdicts.values()) == {Verdict.COMMITTED}, at
        else:
            told_of += 1
    assert told_of > 20


async def test_damage_in_the_middle_of_the_wal_is_refused_and_nothing_is_changed(
    path: Path, settings: LedgerSettings, tmp_path: Path
) -> None:
    """Broken if SQLite opens the file before its WAL was looked at: it cuts the WAL at the damage, and
    removes it, with whatever stood behind."""
    await told(path, settings, tmp_path)
    wal = Path(f"{path}-wal")
    data = bytearray(wal.read_bytes())
    data[len(data) // 4] ^= 1
    wal.write_bytes(data)
    with pytest.raises(LedgerUnusable, match="followed by whole transactions"):
        await opened(settings)
    assert wal.read_bytes() == data
    assert "frame" in (await maintenance.check(settings))[0]
    assert wal.read_bytes() == data
    restored = await maintenance.restore(settings, None)
    assert restored.incarnation == 2


async def test_without_its_anchor_it_is_not_opened(
    path: Path, settings: LedgerSettings, tmp_path: Path
) -> None:
    """Nobody can tell what a file lacks that was copied from elsewhere."""
    story = await told(path, settings, tmp_path)
    clone = tmp_path / "clone.db"
    shutil.copy(path, clone)
    shutil.copy(f"{path}-wal", f"{clone}-wal")
    elsewhere = replace(settings, url=f"sqlite:///{clone}")
    with pytest.raises(LedgerUnusable, match=r"anchor is missing.*undoubt ledger restore"):
        await opened(elsewhere)
    assert any("missing" in problem for problem in await maintenance.check(elsewhere))
    restored = await maintenance.restore(elsewhere, None)
    assert (restored.incarnation, restored.sessions_closed) == (2, 1)
    ledger = await opened(elsewhere)
    verdicts = await ledger.outcomes([story.before, story.after])
    assert set(verdicts.values()) == {Verdict.COMMITTED}
    assert ledger.ledger_id == story.after.ledger
    await ledger.close()


async def test_a_whole_copy_is_not_opened_at_another_place(
    path: Path, settings: LedgerSettings, tmp_path: Path
) -> None:
    """With its anchor it is sound in itself. Beside the original it would expire the sessions that are at
    work there, and have their branches rolled back."""
    story = await told(path, settings, tmp_path)
    for each in (*files(path), anchored.path_of(path)):
        shutil.copy(each, tmp_path / each.name.replace("ledger.db", "clone.db"))
    clone = replace(settings, url=f"sqlite:///{tmp_path}/clone.db")
    with pytest.raises(LedgerUnusable, match=rf"last opened at {path}.*it is a copy, or it was moved"):
        await opened(clone)
    ledger = await opened(settings)
    assert (await ledger.outcomes([story.after]))[story.after] is Verdict.COMMITTED
    await ledger.close()
    assert (await maintenance.restore(clone, None)).incarnation == 2
    await (await opened(clone)).close()


async def test_another_ledgers_anchor_is_refused(
    path: Path, settings: LedgerSettings, tmp_path: Path
) -> None:
    """A file that is put in another one's place would be believed with the other's anchor."""
    await told(path, settings, tmp_path)
    other = tmp_path / "other.db"
    ledger = await opened(replace(settings, url=f"sqlite:///{other}"))
    await ledger.close()
    shutil.copy(other, path)
    Path(f"{path}-wal").unlink()
    with pytest.raises(LedgerUnusable, match="belongs to"):
        await opened(settings)


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
async def test_a_damaged_anchor_is_refused(
    path: Path, settings: LedgerSettings, tmp_path: Path, damage: str
) -> None:
    """As a missing one."""
    await told(path, settings, tmp_path)
    anchor = anchored.path_of(path)
    data = bytearray(anchor.read_bytes())
    data[20] ^= 1
    anchor.write_bytes({"flipped": bytes(data), "cut": bytes(data[:100]), "empty": b""}[damage])
    with pytest.raises(LedgerUnusable, match="anchor is damaged"):
        await opened(settings)


async def test_an_anchor_that_may_not_be_read_is_not_taken_for_damage(
    path: Path, settings: LedgerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made by root, say: ``ledger restore`` would begin a new incarnation, and forget what is undecided,
    where chown is enough."""
    story = await told(path, settings, tmp_path)
    anchor = anchored.path_of(path)
    kept = {each: each.read_bytes() for each in [*files(path), anchor]}
    with monkeypatch.context() as patched:
        patched.setattr("undoubt.coordinator.ledger.anchor.os.open", denying(anchor))
        with pytest.raises(
            LedgerUnusable, match=rf"Permission denied.*chown --reference={path} {anchor}"
        ) as told_so:
            await opened(settings)
        assert "ledger restore" not in str(told_so.value)
        assert "ledger restore" not in "".join(await maintenance.check(settings))
        with pytest.raises(LedgerUnusable, match="Permission denied"):
            await maintenance.restore(settings, None)
        assert {each: each.read_bytes() for each in kept if each.exists()}[anchor] == kept[anchor]
    ledger = await opened(settings)
    assert (await ledger.info()).incarnation == 1
    assert (await ledger.outcomes([story.after]))[story.after] is Verdict.COMMITTED
    await ledger.close()


def denying(path: Path) -> Callable[..., int]:
    """``os.open`` for a user who may not open ``path``."""
    really = os.open

    def open_unless_denied(name: str | Path, *more: Any, **named: Any) -> int:
        if Path(name) == path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(name))
        return really(name, *more, **named)

    return open_unless_denied


async def test_a_missing_file_is_not_made_anew(path: Path, settings: LedgerSettings, tmp_path: Path) -> None:
    """An empty ledger would call every branch in doubt another ledger's, and doctor would be content."""
    await told(path, settings, tmp_path)
    for each in files(path):
        each.unlink()
    with pytest.raises(LedgerUnusable, match=r"is missing.*undoubt ledger restore"):
        await opened(settings)
    assert files(path) == []


async def test_a_ledger_is_made_only_if_that_is_allowed(
    path: Path, settings: LedgerSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder that was lost looks like one that was never used: an empty ledger there would call everything
    that is in doubt another ledger's."""
    asked = []

    async def refuse() -> None:
        asked.append(files(path))
        raise LedgerMissing("it was there yesterday")

    with pytest.raises(LedgerMissing, match=r"undoubt ledger restore.*undoubt ledger init"):
        await ledgers.open_ledger(settings)
    with pytest.raises(LedgerMissing, match="yesterday"):
        await ledgers.open_ledger(settings, create=refuse)
    assert asked == [[]], "asked once, before anything was made"
    assert not path.exists()
    assert await maintenance.is_missing(settings)
    path.touch()
    with pytest.raises(LedgerMissing):
        await ledgers.open_ledger(settings)
    with caplog.at_level("INFO"):
        ledger = await ledgers.open_ledger(settings, create=True)
    assert f"a new one was made, {ledger.ledger_id}" in caplog.text
    again = await ledgers.open_ledger(settings, create=refuse)
    assert again.ledger_id == ledger.ledger_id
    await again.close()
    await ledger.close()
    assert not await maintenance.is_missing(settings)


async def test_a_client_whose_owner_took_the_folder_with_it_makes_no_new_one(
    path: Path, settings: LedgerSettings
) -> None:
    """It may have been allowed to make one when it was started."""
    owner = await ledgers.open_ledger(settings, create=True)
    client = await ledgers.open_ledger(settings, create=True)
    session = await client.open_session("application", 600)
    await owner.close()
    for each in path.parent.iterdir():
        each.unlink() if each.is_file() else shutil.rmtree(each)
    with pytest.raises(LedgerMissing):
        await client.keep_alive(session, 1)
    assert not path.exists()
    await client.close()


@pytest.mark.parametrize("how", ["removed", "replaced"])
async def test_an_owner_whose_file_is_taken_away_records_nothing_more(
    path: Path, settings: LedgerSettings, how: str
) -> None:
    """What it records would be gone with its process: COMMIT would be acknowledged, and forgotten."""
    ledger = await opened(settings)
    session = await ledger.open_session("application", 600)
    await ledger.decide(session.txid(1), COMMIT, BRANCHES)
    data = path.read_bytes()
    path.unlink()
    if how == "replaced":
        path.write_bytes(data)
    with pytest.raises(LedgerUnavailable, match="was removed or replaced while it was in use"):
        async with asyncio.timeout(10):
            for seq in itertools.count(2):
                await ledger.decide(session.txid(seq), COMMIT, BRANCHES)
                await asyncio.sleep(0.02)
    await ledger.close()


async def test_a_crash_between_the_file_and_its_anchor_is_no_alarm(
    path: Path, settings: LedgerSettings
) -> None:
    """A power failure may leave an older anchor: it is not synced."""
    ledger = await opened(settings)
    anchor = anchored.path_of(path).read_bytes()
    session = await ledger.open_session("application", 600)
    await ledger.decide(session.txid(1), COMMIT, BRANCHES)
    await ledger.close()
    anchored.path_of(path).write_bytes(anchor)
    assert await maintenance.check(settings) == []
    ledger = await opened(settings)
    assert (await ledger.info()).incarnation == 1
    await ledger.close()


async def test_a_ledger_of_the_first_version_gets_an_anchor_once(
    path: Path, settings: LedgerSettings
) -> None:
    """Its file has none, and notes that it got one."""
    ledger = await opened(settings)
    await ledger.close()
    store = SqliteStore(path)
    with store._file.writing():
        store._connection.execute("delete from meta where key = 'anchored'")
    store.close()
    anchored.path_of(path).unlink()
    ledger = await opened(settings)
    await ledger.close()
    assert anchored.path_of(path).exists()
    anchored.path_of(path).unlink()
    with pytest.raises(LedgerUnusable, match="cannot be trusted"):
        await opened(settings)


async def test_snapshots_do_not_break_the_chain(
    path: Path, settings: LedgerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the log is replaced by a snapshot, the anchor is compared with what the snapshot says."""
    monkeypatch.setattr("undoubt.coordinator.ledger.sqlite.owner.LOG_BYTES_MIN", 2000)
    ledger = await opened(settings)
    session = await ledger.open_session("application", 600)
    for seq in range(1, 120):
        await ledger.decide(session.txid(seq), COMMIT, BRANCHES)
    await ledger.close()
    assert await maintenance.check(settings) == []
    ledger = await opened(settings)
    assert (await ledger.info()).incarnation == 1
    assert (await ledger.records([session.txid(119)]))[session.txid(119)] is RecordedDecision.COMMIT
    await ledger.close()


async def test_a_backup_is_made_by_the_owner_and_brought_back(
    path: Path, settings: LedgerSettings, tmp_path: Path
) -> None:
    """Online, by another process than the owner's too; what was decided since is FORGOTTEN, and the former
    file kept."""
    owner = await opened(settings)
    client = await SqliteLedger.open(path, settings)
    assert not client.leads
    session = await owner.open_session("application", 600)
    await owner.decide(session.txid(1), COMMIT, BRANCHES)
    file = tmp_path / "undoubt.backup"
    assert await client.backup(file) == file.stat().st_size
    assert file.stat().st_mode & 0o777 == 0o600
    await owner.decide(session.txid(2), COMMIT, BRANCHES)
    before, after = (owner.gid(session.txid(seq)) for seq in (1, 2))
    await client.close()
    await owner.close()
    restored = await maintenance.restore(settings, file)
    assert restored.sessions_closed == 1
    assert restored.kept_as is not None
    assert (path.parent / restored.kept_as).exists()
    ledger = await opened(settings)
    verdicts = await ledger.outcomes([before, after])
    assert (verdicts[before], verdicts[after]) == (Verdict.COMMITTED, Verdict.FORGOTTEN)
    assert (await ledger.info()).incarnation == 2
    await ledger.close()
    for each in [*files(path), anchored.path_of(path)]:
        each.unlink()
    await maintenance.restore(settings, file)
    assert await maintenance.check(settings) == []


async def test_a_restored_ledger_has_no_act_that_seems_to_be_under_way(
    settings: LedgerSettings, tmp_path: Path
) -> None:
    """Broken if the backup's own act looks, in each ledger made of it, as if its process had been killed."""
    ledger = await opened(settings)
    await ledger.close()
    file = tmp_path / "undoubt.backup"
    await maintenance.backup(settings, file)
    await maintenance.restore(settings, file)
    ledger = await opened(settings)
    results = {act.verb: act.result for act in await ledger.acts(limit=10)}
    assert results == {"ledger restore": "done", "ledger backup": NOT_IN_BACKUP}
    await ledger.close()


async def test_who_took_the_secret_is_recorded(settings: LedgerSettings, tmp_path: Path) -> None:
    """With it names can be made that the ledger believes."""
    ledger = await opened(settings)
    await ledger.close()
    await maintenance.export_secret(settings, tmp_path / "secret", note="for the safe")
    ledger = await opened(settings)
    (act,) = await ledger.acts(limit=10)
    await ledger.close()
    assert (act.verb, act.subject) == ("ledger init --export-secret", str(tmp_path / "secret"))
    assert (act.note, act.result) == ("for the safe", "done")


async def test_a_backup_overwrites_nothing_and_a_damaged_one_is_refused(
    settings: LedgerSettings, tmp_path: Path
) -> None:
    """It is what is left when all else is lost."""
    ledger = await opened(settings)
    await ledger.close()
    file = tmp_path / "undoubt.backup"
    await maintenance.backup(settings, file)
    with pytest.raises(UsageError, match="exists already"):
        await maintenance.backup(settings, file)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(LedgerUnusable, match="damaged"):
        await maintenance.restore(settings, file)
    assert await maintenance.check(settings) == [], "nothing was changed"


async def test_damage_that_checksums_do_not_reach_is_told_in_words(
    path: Path, settings: LedgerSettings
) -> None:
    """Broken if a column that became another type, or a hash that is none, is a traceback."""
    ledger = await opened(settings)
    await ledger.close()
    made = SqliteStore(path)
    made.load()
    made.replace_log(0, b"state", (), now_ms=0, history_ms=0)
    made.close()
    for damage in (
        "update meta set value = '0:zz' where key = 'chain'",
        "update meta set value = 'x:' || value",
    ):
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(damage)
        store = SqliteStore(path)
        with pytest.raises(LedgerUnusable, match="is damaged"):
            store.load()
        store.close()
