"""Files of a SQLite ledger that are removed while it is in use: what was recorded is never lost without a
word."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.coordinator.ledger.signing import Signing
from undoubt.coordinator import ledger as ledgers
from undoubt.coordinator.errors import LedgerLocked, LedgerUnavailable, LedgerUnusable
from undoubt.coordinator.ledger import maintenance
from undoubt.coordinator.ledger.contract import BranchRecord, RecordedDecision
from undoubt.coordinator.ledger.sqlite import anchored
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.contract import Decision

BRANCHES = (BranchRecord(1, "orders"), BranchRecord(2, "payments"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "ledger"
    folder.mkdir()
    return folder / "l.db"


@pytest.fixture
def settings(path: Path) -> LedgerSettings:
    return LedgerSettings(url=f"sqlite:///{path}", request_timeout_s=3.0)


async def opened(settings: LedgerSettings, *, create: bool = False) -> Signing:
    return Signing(await ledgers.open_ledger(settings, create=create))


def wal(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


async def test_a_wal_that_is_removed_takes_nothing_with_it(path: Path, settings: LedgerSettings) -> None:
    """Broken if decisions are acknowledged that are in no file any more."""
    ledger = await opened(settings, create=True)
    session = await ledger.open_session("application", 600)
    await ledger.decide(session.txid(1), Decision.COMMIT, BRANCHES)
    wal(path).unlink()
    decided, seq = [session.txid(1)], 2
    with pytest.raises(LedgerUnavailable, match="-wal was removed or replaced while it was in use"):
        async with asyncio.timeout(10):
            while True:
                await ledger.decide(session.txid(seq), Decision.COMMIT, BRANCHES)
                decided.append(session.txid(seq))
                seq += 1
                await asyncio.sleep(0.02)
    copies = path.parent.with_name("copies")
    shutil.copytree(path.parent, copies, ignore=shutil.ignore_patterns("*.run", "*.lock"))
    await ledger.close()
    for each in copies.iterdir():  # as if the process had been killed instead
        shutil.copy(each, path.parent)
    again = await opened(settings)
    records = await again.records(decided)
    await again.close()
    assert set(records.values()) == {RecordedDecision.COMMIT}


async def test_a_write_on_its_way_is_refused_once_a_wal_is_missed(
    path: Path, settings: LedgerSettings
) -> None:
    """Broken if a decision is written between the look at the files and the stop of the ledger: it is in no
    file, but the anchor names it, and the ledger, which has all that was acknowledged, is not opened."""
    ledger = await opened(settings, create=True)
    session = await ledger.open_session("application", 600)
    await ledger.decide(session.txid(1), Decision.COMMIT, BRANCHES)
    wal(path).unlink()
    owned = ledger.owned
    look = asyncio.ensure_future(owned.in_thread(owned.store.check_in_place))
    deciding = asyncio.ensure_future(ledger.decide(session.txid(2), Decision.COMMIT, BRANCHES))
    with pytest.raises(LedgerUnusable, match="-wal was removed"):
        await look
    with pytest.raises(LedgerUnavailable, match="-wal was removed"):
        await deciding
    await ledger.close()
    again = await opened(settings)
    records = await again.records([session.txid(1)])
    info = await again.info()
    await again.close()
    assert (set(records.values()), info.incarnation) == ({RecordedDecision.COMMIT}, 1)


async def test_an_anchor_that_is_removed_in_use_is_made_anew(path: Path, settings: LedgerSettings) -> None:
    """Broken if the next owner finds none, and an operator has to believe the file, which forgets what is
    undecided."""
    ledger = await opened(settings, create=True)
    session = await ledger.open_session("application", 600)
    anchored.path_of(path).unlink()
    async with asyncio.timeout(10):
        while not anchored.path_of(path).exists():
            await asyncio.sleep(0.05)
    await ledger.decide(session.txid(1), Decision.COMMIT, BRANCHES)
    await ledger.close()
    again = await opened(settings)
    info = await again.info()
    await again.close()
    assert info.incarnation == 1


OWNER = """
import asyncio, sys
from pathlib import Path
from undoubt.coordinator.ledger import open_ledger
from undoubt.coordinator.settings import LedgerSettings

async def main(url, backup):
    ledger = await open_ledger(LedgerSettings(url=url), create=True)
    await ledger.backup(Path(backup))
    print("owned", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await ledger.close()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_removed_lock_file_does_not_let_another_process_at_the_file(
    settings: LedgerSettings, path: Path, tmp_path: Path
) -> None:
    """Broken if a restore takes the file away from beneath its owner, or if nobody is told who has it."""
    backup = tmp_path / "some.backup"
    owner = await asyncio.create_subprocess_exec(
        sys.executable, "-c", OWNER, settings.url, str(backup), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert owner.stdout is not None
    assert await owner.stdout.readline() == b"owned\n"
    path.with_name(path.name + ".lock").unlink()
    before = path.stat().st_ino
    named = rf"is open in process {owner.pid}, .*stop that process first"
    for work in (
        maintenance.restore(settings, backup),
        maintenance.restore(settings, None),
        maintenance.check(settings),
        maintenance.migrate(settings),
    ):
        with pytest.raises(LedgerLocked, match=named):
            await work
    with pytest.raises(LedgerLocked, match=named):
        await ledgers.open_ledger(LedgerSettings(url=settings.url, request_timeout_s=0.1))
    assert path.stat().st_ino == before
    await owner.communicate(b"")
    assert owner.returncode == 0


async def test_a_removed_lock_file_does_not_let_this_process_at_its_own_file(
    settings: LedgerSettings, path: Path
) -> None:
    """Broken also if looking ends SQLite's locks: closing any descriptor of a file ends those of the
    process."""
    ledger = await opened(settings, create=True)
    path.with_name(path.name + ".lock").unlink()
    with pytest.raises(LedgerLocked, match="which is this one"):
        await maintenance.restore(settings, None)
    child = f"import sqlite3; sqlite3.connect({str(path)!r}, timeout=0).execute('select 1 from meta')"
    tried = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", child], capture_output=True, text=True
    )
    assert "locked" in tried.stderr
    await ledger.close()
