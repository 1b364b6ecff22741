"""Commands are judged whole, by whoever proposes them and whoever applies them; what is refused changes
nothing, and touches nobody else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.coordinator.ledger.conftest import Backend, Postgres, Raft, Sqlite, SqliteClient
from tests.servers import Server
from undoubt.coordinator.errors import LedgerError, LedgerUnavailable
from undoubt.coordinator.ledger.commands import (
    DURATION_MS_MAX,
    RULES,
    TIME_MS_MAX,
    AdvanceTime,
    ClaimKey,
    CloseSession,
    Command,
    CommandRefused,
    CommitKey,
    Decide,
    Doom,
    DrawSecret,
    ExpireSession,
    Finish,
    ForgetHeuristic,
    FreeKey,
    Judge,
    KeepAlive,
    OpenSession,
    Precommit,
    RecordHeuristic,
    Restore,
    check_command,
    decode,
    encode,
)
from undoubt.coordinator.ledger.contract import BranchRecord, Heuristic, RecordedDecision, Session
from undoubt.coordinator.ledger.keys import RESULT_BYTES_MAX
from undoubt.coordinator.ledger.machine import Machine
from undoubt.participants.contract import Decision, Settled
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import Gid, Protocol, TxId

NONCE = "99b2" * 4
LARGE = 2**63
NAN, INF = float("nan"), float("inf")
TX = TxId(1, NONCE, 1)
GID = Gid("0123456789", Protocol.TWO_PHASE, TX, 1, "orders")
BRANCH = BranchRecord(1, "orders", xid=7)


def of(session: int = 1, seq: int = 1) -> TxId:
    return TxId(session, NONCE, seq)


def heuristic(**changes: Any) -> Heuristic:
    known = Heuristic(GID, Settled.HEURISTIC_COMMIT, None, 0.0)
    return msgspec.structs.replace(known, **changes)


REFUSED: list[Command] = [
    OpenSession(NONCE, "name", 0),
    OpenSession(NONCE, "name", -1),
    OpenSession(NONCE, "name", DURATION_MS_MAX + 1),
    OpenSession(NONCE, "n" * 1001, 1000),
    OpenSession(NONCE, "name", 1000, acceptors=(0,)),
    KeepAlive(0, NONCE, 1),
    KeepAlive(1, NONCE, -1),
    KeepAlive(1, NONCE, LARGE),
    CloseSession(LARGE, NONCE),
    ExpireSession(0),
    *(
        kind(bad, Protocol.TWO_PHASE, *given)
        for bad in (of(seq=LARGE), of(session=LARGE), of(seq=0), of(seq=-1))
        for kind, given in ((Decide, (Decision.ABORT, (BRANCH,), 0.0)), (Precommit, ((BRANCH,), 0.0)))
    ),
    Decide(TX, Protocol.TWO_PHASE, Decision.COMMIT, (BranchRecord(0, "orders"),), 0.0),
    Decide(TX, Protocol.TWO_PHASE, Decision.COMMIT, (BranchRecord(10_000, "orders"),), 0.0),
    Decide(TX, Protocol.TWO_PHASE, Decision.COMMIT, (BRANCH, BranchRecord(2, "orders", xid=-1)), 0.0),
    Decide(TX, Protocol.TWO_PHASE, Decision.ABORT, (BRANCH,), NAN),
    Decide(TX, Protocol.TWO_PHASE, Decision.ABORT, (BRANCH,), INF),
    Decide(TX, Protocol.TWO_PHASE, Decision.ABORT, (BRANCH,), 0.0, "c" * 10_001),
    Precommit(TX, Protocol.THREE_PHASE, (BRANCH,), NAN),
    Finish((TX, of(seq=LARGE))),
    RecordHeuristic(heuristic(found_at=NAN)),
    RecordHeuristic(heuristic(note="n" * 10_001)),
    ForgetHeuristic(GID, "r" * 1_001),
    AdvanceTime(DURATION_MS_MAX + 1, 0),
    AdvanceTime(0, -1),
    AdvanceTime(0, DURATION_MS_MAX + 1),
    Restore(-1),
    Restore(0, LARGE),
    DrawSecret(b"short"),
    Judge(0),
    Doom(of(seq=0), "cause"),
    Doom(TX, "c" * 10_001),
    *(
        command
        for txid, key in ((of(seq=0), "k"), (of(session=LARGE), "k"), (TX, ""), (TX, "k" * 201), (TX, "a\0"))
        for command in (ClaimKey(txid, key), FreeKey(txid, key), CommitKey(txid, key, b"", (BRANCH,), 0.0))
    ),
    CommitKey(TX, "k", bytes(RESULT_BYTES_MAX + 1), (BRANCH,), 0.0),
    CommitKey(TX, "k", b"", (BranchRecord(0, "orders"),), 0.0),
    CommitKey(TX, "k", b"", (BRANCH,), NAN),
]


@pytest.mark.parametrize("command", REFUSED, ids=lambda command: f"{type(command).__name__}")
def test_a_refused_command_changes_nothing(command: Command) -> None:
    """Broken if half a command is applied, or a snapshot cannot be made any more afterwards."""
    machine = Machine("0123456789")
    for before in (Judge(RULES), OpenSession(NONCE, "name", 1000)):
        machine.apply(before)
    image = machine.snapshot()
    read = decode(encode(command))
    assert isinstance(machine.apply(read), CommandRefused)
    assert machine.snapshot() == image
    with pytest.raises(CommandRefused):
        check_command(command)


def test_counters_stay_within_what_a_snapshot_holds() -> None:
    """Broken if commands that are each within bounds end a node together."""
    machine = Machine("0123456789")
    machine.apply(Judge(RULES))
    machine.state.time_ms = TIME_MS_MAX - 1
    machine.state.next_session = 2**63 - 2
    for command in (AdvanceTime(2, 0), Restore(2, 0), Restore(1, 2**63 - 2)):
        assert isinstance(machine.apply(command), CommandRefused)
    assert isinstance(machine.apply(OpenSession(NONCE, "last", 1000)), Session)
    assert isinstance(machine.apply(OpenSession(NONCE[::-1], "none left", 1000)), CommandRefused)
    assert machine.snapshot()


def test_what_was_applied_before_the_rules_is_applied_again_as_it_was() -> None:
    """Broken if a log of version 0.1.0, or a member that has not agreed on the rules yet, ends elsewhere."""
    machine = Machine("0123456789")
    assert isinstance(machine.apply(OpenSession(NONCE, "n" * 2000, DURATION_MS_MAX * 10)), Session)
    machine.apply(Judge(RULES))
    again = Machine("0123456789")
    again.restore(machine.snapshot())
    assert again.state.rules == RULES
    assert again.snapshot() == machine.snapshot()
    assert isinstance(again.apply(OpenSession(NONCE[::-1], "n" * 2000, 1000)), CommandRefused)


@pytest.fixture(params=[Sqlite, SqliteClient, Raft, Postgres])
async def backend(request: pytest.FixtureRequest, tmp_path: Path, postgres: Server) -> AsyncIterator[Backend]:
    made: Backend = request.param(tmp_path)
    if isinstance(made, Postgres):
        made.server = postgres
    await made.open()
    yield made
    await made.close()
    if isinstance(made, Postgres):
        await made.place.__aexit__(None, None, None)


async def test_values_out_of_bounds_are_refused_alone(backend: Backend) -> None:
    """Broken if one caller's value ends the ledger or a node, or fails the decisions beside it."""
    session = await backend.ledger.open_session("sound", 60.0)
    for ttl_s in (NAN, INF, -INF, 1e17, 1e300, -1.0, 0.0):
        with pytest.raises(UsageError):
            await backend.ledger.open_session("name", ttl_s)
    with pytest.raises(UsageError):
        await backend.ledger.keep_alive(session, LARGE)
    for seq in range(1, 6):
        bad = [
            backend.ledger.decide(session.txid(LARGE + seq), Decision.ABORT, [BRANCH]),
            backend.ledger.decide(session.txid(0), Decision.ABORT, [BRANCH]),
            backend.ledger.decide(session.txid(9), Decision.ABORT, [BranchRecord(10_000, "orders")]),
            backend.ledger.decide(session.txid(9), Decision.ABORT, [BRANCH], cause="\ud800"),
        ]
        sound = backend.ledger.decide(session.txid(seq), Decision.ABORT, [BRANCH])
        *refused, decided = await asyncio.gather(*bad, sound, return_exceptions=True)
        assert decided is Decision.ABORT
        assert all(isinstance(each, UsageError) for each in refused), refused
    await backend.ledger.finish([session.txid(seq) for seq in range(1, 6)])
    assert (await backend.ledger.records([session.txid(1)]))[session.txid(1)] is RecordedDecision.ABORT


async def test_an_exception_of_the_machine_stops_a_sqlite_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if commands are applied to, or answers come from, a state in which one was applied in part."""
    backend = Sqlite(tmp_path)
    await backend.open()
    session = await backend.ledger.open_session("name", 60.0)
    owned = backend.owner.owned
    assert owned is not None
    applied: list[Command] = []
    apply = owned.machine.apply

    def failing(command: Command) -> object:
        applied.append(command)
        if isinstance(command, Decide):
            raise MemoryError
        return apply(command)

    monkeypatch.setattr(owned.machine, "apply", failing)
    decisions = [backend.ledger.decide(session.txid(seq), Decision.ABORT, [BRANCH]) for seq in (1, 2, 3)]
    answers = await asyncio.gather(*decisions, return_exceptions=True)
    assert [type(answer) for answer in answers] == [LedgerUnavailable] * 3
    assert len(applied) == 1
    with pytest.raises(LedgerError):
        await backend.ledger.records([session.txid(1)])
    with contextlib.suppress(LedgerError):
        await backend.owner.close()
