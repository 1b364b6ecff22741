"""A ledger that writes into a history what it is asked and what it answers: in simulation, or in real
processes that each keep one and dump it at their end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from coordinator.ledger.contract import BranchRecord, Decision, Ledger, Record, Session, Verdict
from participants.ids import TxId
from tests.linearizability.history import Call, History


class Recorder:
    """The contract over ``ledger``; ``who`` names the caller. What is not listed here passes through."""

    def __init__(self, ledger: Ledger, who: str, history: History) -> None:
        self.ledger = ledger
        self.who = who
        self.history = history

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ledger, name)

    async def open_session(self, name: str, ttl_s: float) -> Session:
        with self.history.call(self.who, "open") as call:
            session = await self.ledger.open_session(name, ttl_s)
            call.session, call.result = session.id, session.nonce
        return session

    async def keep_alive(self, session: Session, floor: int) -> None:
        with self.history.call(self.who, "keep_alive", session=session.id, floor=floor) as call:
            await self.ledger.keep_alive(session, floor)
            call.result = "ok"

    async def close_session(self, session: Session) -> None:
        with self.history.call(self.who, "close", session=session.id) as call:
            await self.ledger.close_session(session)
            call.result = "ok"

    async def decide(
        self, txid: TxId, decision: Decision, branches: Sequence[BranchRecord], *, protocol: str = "2"
    ) -> Decision:
        of = {"session": txid.session, "seq": txid.seq, "asked": str(decision), "protocol": str(protocol)}
        with self.history.call(self.who, "decide", **of) as call:
            decided = await self.ledger.decide(txid, decision, branches, protocol=protocol)
            call.result = str(decided)
        return decided

    async def outcomes(self, txids: Iterable[TxId], *, protocol: str = "2") -> Mapping[TxId, Verdict]:
        calls = self._begin("outcome", txids, protocol)
        verdicts = await self.ledger.outcomes(list(calls), protocol=protocol)
        self._end(calls, verdicts)
        return verdicts

    async def records(self, txids: Iterable[TxId]) -> Mapping[TxId, Record]:
        calls = self._begin("record", txids, "")
        records = await self.ledger.records(list(calls))
        self._end(calls, records)
        return records

    def _begin(self, what: str, txids: Iterable[TxId], protocol: str) -> dict[TxId, Call]:
        begin = self.history.begin
        return {
            txid: begin(self.who, what, session=txid.session, seq=txid.seq, protocol=str(protocol))
            for txid in txids
        }

    def _end(self, calls: Mapping[TxId, Call], answers: Mapping[TxId, Verdict | Record]) -> None:
        for txid, call in calls.items():
            self.history.end(call, str(answers[txid]))
