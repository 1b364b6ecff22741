"""What a caller gives is refused to that caller at once, and touches nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.coordinator.ledger.conftest import Backend, Raft, Sqlite, SqliteClient
from tests.coordinator.stage import Stage
from undoubt.coordinator.coordinator import Coordinator
from undoubt.coordinator.errors import LedgerUnusable
from undoubt.coordinator.ledger.cluster import ledger as cluster_ledger
from undoubt.coordinator.ledger.contract import BranchRecord, RecordedDecision
from undoubt.coordinator.ledger.sqlite.ledger import SqliteLedger
from undoubt.coordinator.rpc import envelope
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.contract import Decision
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import TxId
from undoubt.participants.registry import Registry

SOME = TxId(3, "99b2" * 4, 1)
BAD: dict[str, Any] = {
    "text": str(SOME),
    "nothing": None,
    "a number": 7,
    "a number too large": TxId(2**70, "99b2" * 4, 1),
    "no Unicode": TxId(3, "\ud800", 1),
    "text in a number": TxId("3", "99b2" * 4, 1),  # type: ignore[arg-type]
}
CALLS: dict[str, Callable[[Any, Any], Awaitable[Any]]] = {
    "records": lambda ledger, bad: ledger.records([SOME, bad]),
    "decide": lambda ledger, bad: ledger.decide(bad, Decision.ABORT, [BranchRecord(1, "orders")]),
    "finish": lambda ledger, bad: ledger.finish([bad]),
    "transaction": lambda ledger, bad: ledger.transaction(bad),
}


@pytest.fixture(params=[Sqlite, SqliteClient, Raft])
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    made: Backend = request.param(tmp_path)
    await made.open()
    yield made
    await made.close()


def connections(backend: Backend) -> object:
    """What is connected: another one, if it had to be made again."""
    if isinstance(backend, SqliteClient):
        return backend.ledger._connection
    return backend.client.leader_client.link if isinstance(backend, Raft) else None


@pytest.mark.parametrize("call", list(CALLS))
@pytest.mark.parametrize("bad", list(BAD))
async def test_it_is_refused_at_once_and_never_sent(backend: Backend, bad: str, call: str) -> None:
    """Broken if one caller's mistake cuts the connection of all, and is asked again and again."""
    await backend.ledger.info()
    connected = connections(backend)
    others = [asyncio.ensure_future(backend.ledger.records([SOME])) for _ in range(3)]
    with pytest.raises(UsageError):
        await CALLS[call](backend.ledger, BAD[bad])
    for other in others:
        assert (await other)[SOME] is RecordedDecision.NOT_RECORDED
    assert connections(backend) is connected


@pytest.mark.parametrize("backend", [SqliteClient, Raft], indirect=True)
async def test_what_cannot_be_read_is_answered_as_such(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if a message that the ledger cannot read, of a client with a bug, is repeated until its time has
    passed, or takes others with it."""
    await backend.ledger.info()
    connected = connections(backend)

    def unjudged(call: Any, *_: Any) -> msgspec.Raw:
        return msgspec.Raw(envelope.encode(call))

    monkeypatch.setattr(cluster_ledger, "judged", unjudged)
    monkeypatch.setattr("undoubt.coordinator.ledger.sqlite.ledger.judged", unjudged)
    others = [asyncio.ensure_future(backend.ledger.records([SOME])) for _ in range(3)]
    with pytest.raises(UsageError, match="cannot decode"):
        await backend.ledger.records([str(SOME)])
    for other in others:
        assert (await other)[SOME] is RecordedDecision.NOT_RECORDED
    assert connections(backend) is connected


async def test_the_coordinator_takes_ids_as_text(backend: Backend) -> None:
    async with Coordinator(backend.ledger, Registry()) as coordinator:
        assert (
            await coordinator.outcome(str(SOME))
            is await coordinator.outcome(SOME)
            is RecordedDecision.NOT_RECORDED
        )
        for bad in ("3-99b2….1", "", "SOME", None, 7):
            with pytest.raises(UsageError, match="not a transaction id"):
                await coordinator.outcome(bad)  # type: ignore[arg-type]


async def test_a_transaction_is_cancelled_by_its_text() -> None:
    stage = Stage({})
    async with stage.coordinator as coordinator:
        tx = await coordinator.transaction().start()
        assert coordinator.cancel(str(tx.id), RuntimeError("as told"))
        with pytest.raises(UsageError, match="not a transaction id"):
            coordinator.cancel("no id", RuntimeError("as told"))


async def test_a_call_that_is_too_large_is_refused(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if a call that fits into no frame is thrown away in silence, with all that leaves beside it."""
    monkeypatch.setattr("undoubt.coordinator.rpc.client.CALL_BYTES_MAX", 1000)
    with pytest.raises(UsageError, match="the limit is"):
        await backend.ledger.records([SOME] * 100)


@pytest.mark.parametrize("odd", ["", "relative", "/tmp/nul\0", "/tmp/" + "a" * 1_000, "/", "/nowhere/at/all"])
async def test_where_no_backup_can_be_is_told_to_who_asked(tmp_path: Path, odd: str) -> None:
    """Broken if a path that another process names is a bug of the owner, or a file in the owner's folder."""
    settings = LedgerSettings(url=f"sqlite:///{tmp_path}/ledger.db")
    ledger = await SqliteLedger.open(tmp_path / "ledger.db", settings)
    try:
        with pytest.raises((LedgerUnusable, UsageError)):
            await ledger.backup(Path(odd))
    finally:
        await ledger.close()
