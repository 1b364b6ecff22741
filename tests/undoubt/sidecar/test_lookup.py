"""What the ledger says of a transaction that nobody here has begun: unknown is never aborted."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.coordinator.ledger.signing import TaggingLedger
from undoubt.coordinator.errors import Impostor, LedgerUnavailable
from undoubt.coordinator.ledger.contract import BranchRecord, Session, Settlement
from undoubt.coordinator.ledger.memory import MemoryLedger
from undoubt.coordinator.ledger.session_mark import is_marked, mark
from undoubt.participants.contract import Decision
from undoubt.participants.ids import NO_KEY, SessionKey, TxId
from undoubt.serve.sidecar.lookup import address_in, address_of, look_up, session_name

BRANCHES = (BranchRecord(1, "orders"),)


@pytest.fixture
async def ledger() -> AsyncIterator[TaggingLedger]:
    made = TaggingLedger()
    yield made
    await made.close()


NAME = session_name("http://127.0.0.1:7480", "here")


async def opened(ledger: TaggingLedger) -> Session:
    """As a sidecar's."""
    session = await ledger.open_session(NAME, 30.0)
    await mark(ledger, session, SessionKey(session.key))
    return session


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
    session = await ledger.open_session("an application", 30.0)
    await ledger.close_session(session)
    assert await state(ledger, session.txid(1)) == "nothing"


async def test_the_name_of_a_session_proves_nothing(ledger: TaggingLedger) -> None:
    """Any application may give its sessions a sidecar's name, and commit in one phase: a committed
    transaction would be told as aborted."""
    session = await ledger.open_session(NAME, 30.0)
    assert await state(ledger, session.txid(1)) == "nothing"
    assert await address_of(ledger, session.txid(1)) == ""
    await ledger.close_session(session)
    assert await state(ledger, session.txid(1)) == "nothing"


async def test_only_the_opener_of_a_session_can_mark_it() -> None:
    """Without this, any client of the ledger could have another's commits told as aborts."""
    ledger = MemoryLedger()
    session, other = await ledger.open_session(NAME, 30.0), await ledger.open_session(NAME, 30.0)
    for key in (NO_KEY, SessionKey(other.key), SessionKey.drawn()):
        with pytest.raises(Impostor):
            await mark(ledger, session, key)
    assert not await is_marked(ledger, session)
    await mark(ledger, session, SessionKey(session.key))
    await mark(ledger, session, SessionKey(session.key))
    assert await is_marked(ledger, session)
    assert not await is_marked(ledger, other)
    assert not await ledger.unfinished()
    await ledger.close()


async def test_a_marked_session_tells_its_address(ledger: TaggingLedger) -> None:
    session = await opened(ledger)
    assert await address_of(ledger, session.txid(1)) == "http://127.0.0.1:7480"
    await ledger.close_session(session)
    assert await address_of(ledger, session.txid(1)) == ""


def test_a_sidecar_without_an_address_has_none() -> None:
    assert address_in(session_name("", "http://127.0.0.1:1 x")) == ""
    assert address_in("an application") == ""


async def test_of_no_session_nothing_is_known(ledger: TaggingLedger) -> None:
    assert await state(ledger, TxId(999, "0123456789abcdef", 1)) == "nothing"


@pytest.mark.parametrize("chosen", [*Decision, None])
async def test_acceptors_know_an_outcome_before_the_ledger(
    ledger: TaggingLedger, monkeypatch: pytest.MonkeyPatch, chosen: Decision | None
) -> None:
    """Paxos Commit: a coordinator may die between the votes and the record. Broken if what the acceptors have
    committed is told as aborted."""

    class Chosen:
        async def settle(self, txid: TxId) -> Settlement:
            if chosen is None:
                raise LedgerUnavailable("no quorum")
            return Settlement(chosen, ())

    session = await opened(ledger)
    ledger.machine.state.sessions[session.id].acceptors = (1, 2, 3)
    await ledger.close_session(session)
    told = {Decision.COMMIT: "committed", Decision.ABORT: "aborted", None: "unknown"}[chosen]
    assert await state(ledger, session.txid(1)) == "unknown", "nobody to ask"
    monkeypatch.setattr(ledger, "acceptors", Chosen(), raising=False)
    assert await state(ledger, session.txid(1)) == told


async def test_what_was_precommitted_is_unknown(ledger: TaggingLedger) -> None:
    """Three-phase commit ends it without its coordinator, and may commit it."""
    session = await opened(ledger)
    await ledger.precommit(session.txid(1), BRANCHES)
    await ledger.close_session(session)
    assert await state(ledger, session.txid(1)) == "unknown"
