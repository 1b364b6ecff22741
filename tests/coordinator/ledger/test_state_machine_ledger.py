"""What is asked of a ledger while decisions come in."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from tests.coordinator.ledger.signing import Signing, TaggingLedger
from undoubt.coordinator.errors import LedgerUnavailable
from undoubt.coordinator.ledger.commands import AdvanceTime, Command, ExpireSession
from undoubt.coordinator.ledger.contract import (
    BranchRecord,
    DecisionRecord,
    RecordedDecision,
    Session,
    SessionState,
    Verdict,
)
from undoubt.coordinator.ledger.memory import MemoryLedger
from undoubt.participants.contract import Decision
from undoubt.participants.ids import Protocol, TxId


class SlowHistory(TaggingLedger):
    """History is read elsewhere, and takes its time."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.go_on = asyncio.Event()

    async def _wait(self) -> None:
        self.asked.set()
        await self.go_on.wait()

    async def _history_of(self, txid: TxId) -> DecisionRecord | None:
        found = await super()._history_of(txid)
        await self._wait()
        return found

    async def _history(self, limit: int, before: DecisionRecord | None) -> Sequence[DecisionRecord]:
        await self._wait()
        return await super()._history(limit, before)


async def test_who_is_renewed_while_others_expire_is_not_expired(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if a coordinator that was just told that its session goes on loses it."""
    ledger = MemoryLedger()
    gone, slow = await begin(ledger), await begin(ledger)
    propose = ledger.propose

    async def renew_meanwhile(command: Command) -> Any:
        if command == ExpireSession(gone.id):
            await ledger.keep_alive(slow, 1)
        return await propose(command)

    monkeypatch.setattr(ledger, "propose", renew_meanwhile)
    await ledger.elapse(60)
    states = [session.state for session in await ledger.sessions()]
    assert states == [SessionState.EXPIRED, SessionState.OPEN]


async def test_times_for_people_are_of_the_ledgers_own_clock() -> None:
    """Broken if a simulated ledger asks the real clock: no run of it would be the same again."""
    ledger = MemoryLedger()
    ledger._wall = lambda: 5.0
    session = await begin(ledger)
    signing = Signing(ledger)
    signing.remember(session)
    await signing.decide(session.txid(1), Decision.ABORT, [BranchRecord(1, "orders")])
    await signing.precommit(session.txid(2), [BranchRecord(1, "orders")])
    assert ledger.machine.unfinished()[0].decided_at == 5.0
    known = ledger.machine.precommitted(session.txid(2))
    assert known is not None
    assert known.at == 5.0


async def begin(ledger: MemoryLedger) -> Session:
    return await ledger.open_session("test", 10.0)


@pytest.mark.parametrize("finished", [False, True])
async def test_a_decision_that_comes_while_history_is_read_is_told_whole(finished: bool) -> None:
    """Broken if what is told of one transaction mixes two moments: committed, but nowhere."""
    ledger = SlowHistory()
    txid = (await begin(ledger)).txid(1)
    asking = asyncio.create_task(ledger.transaction(txid))
    await ledger.asked.wait()
    await ledger.decide(txid, Decision.COMMIT, [BranchRecord(1, "orders")], protocol=Protocol.THREE_PHASE)
    if finished:
        await ledger.finish([txid])
    ledger.go_on.set()
    info = await asking
    assert info is not None
    assert (info.record, info.protocol, info.finished) == (
        RecordedDecision.COMMIT,
        Protocol.THREE_PHASE,
        finished,
    )


async def test_what_is_finished_while_history_is_read_is_listed_once() -> None:
    """Broken if a transaction appears twice in a list, or not at all."""
    ledger = SlowHistory()
    session = await begin(ledger)
    txids = [session.txid(1), session.txid(2)]
    for txid in txids:
        await ledger.decide(txid, Decision.COMMIT, [BranchRecord(1, "orders")])
    asking = asyncio.create_task(ledger.transactions(limit=10))
    await ledger.asked.wait()
    await ledger.finish([txids[0]])
    ledger.go_on.set()
    told = sorted((info.txid, info.finished) for info in await asking)
    assert told == [(txids[0], True), (txids[1], False)]


class LostHistory(TaggingLedger):
    """As a node that was brought up to date by a snapshot."""

    async def _history_of(self, txid: TxId) -> DecisionRecord | None:  # noqa: ARG002 - of none
        return None


async def test_what_is_not_known_any_more_is_not_made_up() -> None:
    """Broken if the protocol of a transaction of which only the decision is left were guessed."""
    ledger = LostHistory()
    txid = (await begin(ledger)).txid(1)
    await ledger.decide(txid, Decision.COMMIT, [BranchRecord(1, "orders")], protocol=Protocol.PAXOS)
    assert (told := await ledger.transaction(txid)) is not None
    assert told.protocol is Protocol.PAXOS
    await ledger.finish([txid])
    assert (told := await ledger.transaction(txid)) is not None
    assert (told.record, told.verdict, told.finished) == (RecordedDecision.COMMIT, Verdict.COMMITTED, True)
    assert (told.protocol, told.branches) == (None, ())


class LosesAnswers(MemoryLedger):
    """Applies what advances time, and does not answer."""

    async def propose(self, command: Command) -> Any:
        answer = await super().propose(command)
        if isinstance(command, AdvanceTime):
            raise LedgerUnavailable("the answer is lost")
        return answer


async def test_time_is_counted_once_if_its_answer_is_lost() -> None:
    """Broken if the same minute is counted again, as often as no answer comes: retention would drop sessions
    and keys too early."""
    ledger = LosesAnswers()
    for _ in range(3):
        await ledger.elapse(60.0)
    assert (await ledger.info()).ledger_time_s == 180.0
