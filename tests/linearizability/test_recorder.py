"""Histories of a real ledger: right as they are, wrong once the ledger forgets."""

from __future__ import annotations

import itertools

import pytest

from tests.coordinator.ledger.signing import TaggingLedger
from tests.linearizability.check import violations
from tests.linearizability.history import History
from tests.linearizability.recorder import Recorder
from undoubt.coordinator.errors import Impostor, SessionLost
from undoubt.coordinator.ledger.contract import BranchRecord
from undoubt.participants.contract import Decision
from undoubt.participants.ids import Gid, Protocol

BRANCHES = [BranchRecord(1, "orders"), BranchRecord(2, "payments")]


async def test_what_a_real_ledger_answers_is_possible() -> None:
    """Broken if recorder and checker understand calls and answers differently."""
    ticks = itertools.count()
    history = History(lambda: float(next(ticks)))
    memory = TaggingLedger()
    ledger = Recorder(memory, "test", history)
    session = await ledger.open_session("test", 10.0)
    first, second, third = (session.txid(seq) for seq in (1, 2, 3))
    key = memory.names.key(session.id, session.nonce)
    forged = [Gid(memory.ledger_id, Protocol.TWO_PHASE, txid, 1, "orders") for txid in (first, second, third)]
    gids = [gid.tagged(key) for gid in forged]
    assert await ledger.decide(first, Decision.COMMIT, BRANCHES) is Decision.COMMIT
    await ledger.keep_alive(session, 3)
    assert await ledger.decide(second, Decision.COMMIT, BRANCHES) is Decision.ABORT
    await ledger.outcomes(gids)
    await memory.elapse(11.0)
    await ledger.outcomes([*gids, *forged])
    await ledger.records([first, second, third])
    with pytest.raises(SessionLost):
        await ledger.keep_alive(session, 3)
    await ledger.close_session(session)
    with pytest.raises(Impostor):
        await ledger.decide(third, Decision.COMMIT, [BranchRecord(1, "orders", tag=20 * "0")])
    assert len(history.calls) == 19
    assert violations(history) == []
    memory.machine.state.unfinished.clear()  # a ledger that forgets
    await ledger.records([first])
    assert violations(history) != []
