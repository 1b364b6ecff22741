"""Files of a SQLite ledger that are removed while it is in use: what was recorded is never lost without a
word."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from tests.coordinator.ledger.signing import Signing
from undoubt.coordinator import ledger as ledgers
from undoubt.coordinator.errors import LedgerUnavailable
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
