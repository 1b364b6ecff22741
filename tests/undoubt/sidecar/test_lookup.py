"""What the ledger says of a transaction that nobody here has begun: unknown is never aborted."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.coordinator.ledger.signing import TaggingLedger
from undoubt.coordinator.ledger.contract import BranchRecord, Session
from undoubt.participants.contract import Decision
from undoubt.participants.ids import TxId
from undoubt.serve.sidecar.lookup import SESSION_NAME, look_up

BRANCHES = (BranchRecord(1, "orders"),)


@pytest.fixture
async def ledger() -> AsyncIterator[TaggingLedger]:
    made = TaggingLedger()
    yield made
    await made.close()


async def opened(ledger: TaggingLedger, name: str = f"{SESSION_NAME}here") -> Session:
    return await ledger.open_session(name, 30.0)


async def state(ledger: TaggingLedger, txid: TxId) -> str:
    told = await look_up(ledger, txid)
    return "nothing" if told is None else told.state


@pytest.mark.parametrize("decision", list(Decision))
async def test_what_is_recorded_is_told(ledger: TaggingLedger, decision: Decision) -> None:
    session = await opened(ledger)
    await ledger.decide(session.txid(1), decision, BRANCHES)
    assert await state(ledger, session.txid(1)) == {"commit": "committed", "abort": "aborted"}[decision]
    await ledger.finish([session.txid(1)])
    await ledger.close_session(session)
    assert await state(ledger, session.txid(1)) == {"commit": "committed", "abort": "aborted"}[decision]


async def test_while_its_session_lives_it_is_unknown(ledger: TaggingLedger) -> None:
    session = await opened(ledger)
    assert await state(ledger, session.txid(1)) == "unknown"
    await ledger.keep_alive(session, 2)
    assert await state(ledger, session.txid(1)) == "aborted"
    assert await state(ledger, session.txid(2)) == "unknown"
    await ledger.close_session(session)
    assert await state(ledger, session.txid(2)) == "aborted"


async def test_of_an_applications_session_nothing_is_known(ledger: TaggingLedger) -> None:
    """It may have committed in one phase, of which nothing is recorded."""
    session = await opened(ledger, "an application")
    await ledger.close_session(session)
    assert await state(ledger, session.txid(1)) == "nothing"


async def test_of_no_session_nothing_is_known(ledger: TaggingLedger) -> None:
    assert await state(ledger, TxId(999, "0123456789abcdef", 1)) == "nothing"
