"""Background loops are begun again when they fail, and counted."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.coordinator.node.cluster import running
from undoubt.coordinator import supervision
from undoubt.coordinator.finisher import Finisher
from undoubt.coordinator.ledger.memory import MemoryLedger
from undoubt.coordinator.ledger.sqlite.ledger import SqliteLedger
from undoubt.coordinator.settings import LedgerSettings
from undoubt.coordinator.supervision import Supervised, restarts
from undoubt.participants.ids import TxId
from undoubt.participants.registry import Registry
from undoubt.recovery.service import RecoveryService


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision.Supervised.__init__, "__kwdefaults__", {"pause_s": 0.0})
    restarts.clear()


async def test_a_loop_that_fails_is_begun_again(caplog: pytest.LogCaptureFixture) -> None:
    """Broken if it ends without a word, or begins again after it has returned."""
    begun = 0

    async def loop() -> None:
        nonlocal begun
        begun += 1
        if begun < 4:
            raise RuntimeError("nobody foresaw this")

    await Supervised("some loop", loop, pause_s=0.0).run()
    assert (begun, restarts["some loop"]) == (4, 3)
    assert "Traceback" in caplog.text
    assert "nobody foresaw this" in caplog.text


async def test_a_cancelled_loop_stays_ended() -> None:
    async def loop() -> None:
        await asyncio.Event().wait()

    task = Supervised("some loop", loop).start("some loop")
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert not restarts


class Once:
    """Fails at the first call, and tells of the second."""

    def __init__(self, goes_on: Any) -> None:
        self.calls = 0
        self.again = asyncio.Event()
        self._goes_on = goes_on

    async def __call__(self, *given: Any, **more: Any) -> Any:
        self.calls += 1
        if self.calls == 1:
            raise RuntimeError("nobody foresaw this")
        self.again.set()
        return await self._goes_on(*given, **more)


async def test_the_upkeep_of_a_sqlite_ledger_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if no session ever expires again."""
    monkeypatch.setattr("undoubt.coordinator.ledger.state_machine_ledger.UPKEEP_INTERVAL_S", 0.01)
    path = tmp_path / "ledger.db"
    ledger = await SqliteLedger.open(path, LedgerSettings(url=f"sqlite:///{path}"))
    owned: Any = ledger.owned
    owned.expire_due = once = Once(owned.expire_due)
    async with asyncio.timeout(30):
        await once.again.wait()
    await ledger.close()
    assert restarts["ledger upkeep"] == 1


async def test_the_upkeep_of_a_node_goes_on(tmp_path: Path) -> None:
    async with running(tmp_path, 1) as cluster:
        leader: Any = await cluster.leader()
        leader.ledger.expire_due = once = Once(leader.ledger.expire_due)
        async with asyncio.timeout(30):
            await once.again.wait()
    assert restarts["node upkeep"] == 1


async def test_finished_transactions_are_told_after_a_failure() -> None:
    ledger: Any = MemoryLedger()
    ledger.finish = once = Once(ledger.finish)
    finisher = Finisher(ledger, Registry(), None)
    finisher.start()
    finisher.finished.append(TxId(1, "99b2" * 4, 1))
    finisher.filled.set()
    async with asyncio.timeout(30):
        await once.again.wait()
    await finisher.close()
    assert restarts["finish"] == 1


async def test_recovery_keeps_its_workers_after_a_failure() -> None:
    """Broken if nothing in doubt is resolved any more."""
    service: Any = RecoveryService(MemoryLedger(), Registry())
    service._end_workers = once = Once(service._end_workers)
    async with service, asyncio.timeout(30):
        await once.again.wait()
    assert restarts["recovery"] == 1
