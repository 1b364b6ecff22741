"""Histories of a real ledger: right as they are, wrong once the ledger forgets."""

from __future__ import annotations

import itertools

import pytest

from coordinator.errors import SessionLost
from coordinator.ledger.contract import BranchRecord, Decision
from participants.ids import Gid, Protocol, SessionKey
from tests.coordinator.ledger.signing import TaggingLedger
from tests.linearizability.check import violations
from tests.linearizability.history import History
from tests.linearizability.recorder import Recorder

BRANCHES = [BranchRecord(1, "orders"), BranchRecord(2, "payments")]


async def test_what_a_real_ledger_answers_is_possible() -> None:
    """Broken if recorder and checker understand calls and answers differently."""
    ticks = itertools.count()
    history = History(lambda: float(next(ticks)))
    memory = TaggingLedger()
    ledger = Recorder(memory, "test", history)
    session = await ledger.open_session("test", 10.0)
    first, second, third = (session.txid(seq) for seq in (1, 2, 3))
    gids = [
        Gid(memory.ledger_id, Protocol.TWO_PHASE, txid, 1, "orders").tagged(SessionKey(session.key))
        for txid in (first, second, third)
    ]
    assert await ledger.decide(first, Decision.COMMIT, BRANCHES) is Decision.COMMIT
    await ledger.keep_alive(session, 3)
    assert await ledger.decide(second, Decision.COMMIT, BRANCHES) is Decision.ABORT
    await ledger.outcomes(gids)
    await memory.elapse(11.0)
    await ledger.outcomes(gids)
    await ledger.records([first, second, third])
    with pytest.raises(SessionLost):
        await ledger.keep_alive(session, 3)
    await ledger.close_session(session)
    assert len(history.calls) == 15
    assert violations(history) == []
    memory.machine.state.unfinished.clear()  # a ledger that forgets
    await ledger.records([first])
    assert violations(history) != []
