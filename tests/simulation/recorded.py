"""A ledger that tells what it is asked and what it answers: to the judge at once, to a history for later."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from coordinator.ledger.contract import (
    BranchRecord,
    Decision,
    DecisionRecord,
    Heuristic,
    Ledger,
    Record,
    Session,
    Verdict,
)
from participants.ids import Gid, TxId
from tests.linearizability.history import History
from tests.simulation.judge import Judge


class RecordedLedger:
    """The contract over ``ledger``; ``who`` is the process. What is not listed here passes through."""

    def __init__(self, ledger: Ledger, who: str, judge: Judge, history: History) -> None:
        self._ledger = ledger
        self._who = who
        self._judge = judge
        self._history = history

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    async def open_session(self, name: str, ttl_s: float) -> Session:
        with self._history.call(self._who, "open") as call:
            session = await self._ledger.open_session(name, ttl_s)
            call.session, call.result = session.id, session.nonce
        return session

    async def keep_alive(self, session: Session, floor: int) -> None:
        with self._history.call(self._who, "keep_alive", session=session.id, floor=floor) as call:
            await self._ledger.keep_alive(session, floor)
            call.result = "ok"

    async def close_session(self, session: Session) -> None:
        with self._history.call(self._who, "close", session=session.id) as call:
            await self._ledger.close_session(session)
            call.result = "ok"

    async def decide(
        self, txid: TxId, decision: Decision, branches: Sequence[BranchRecord], *, protocol: str = "2"
    ) -> Decision:
        asked = {"session": txid.session, "seq": txid.seq, "asked": str(decision)}
        with self._history.call(self._who, "decide", **asked) as call:
            decided = await self._ledger.decide(txid, decision, branches, protocol=protocol)
            call.result = str(decided)
        self._judge.decided(str(txid), str(decided))
        return decided

    async def outcomes(self, txids: Iterable[TxId], *, protocol: str = "2") -> Mapping[TxId, Verdict]:
        asked = list(txids)
        calls = [self._history.begin(self._who, "outcome", session=t.session, seq=t.seq) for t in asked]
        verdicts = await self._ledger.outcomes(asked, protocol=protocol)
        for txid, call in zip(asked, calls, strict=True):
            verdict = verdicts[txid]
            self._history.end(call, str(verdict))
            if verdict is Verdict.COMMITTED:
                self._judge.decided(str(txid), "commit")
            elif verdict is Verdict.ABORTED:
                self._judge.presumed(str(txid))
        return verdicts

    async def records(self, txids: Iterable[TxId]) -> Mapping[TxId, Record]:
        asked = list(txids)
        calls = [self._history.begin(self._who, "record", session=t.session, seq=t.seq) for t in asked]
        records = await self._ledger.records(asked)
        for txid, call in zip(asked, calls, strict=True):
            self._history.end(call, str(records[txid]))
            if records[txid] is not Record.NOT_RECORDED:
                self._judge.decided(str(txid), str(records[txid]))
        return records

    async def unfinished(self) -> Sequence[DecisionRecord]:
        found = await self._ledger.unfinished()
        for record in found:
            self._judge.decided(str(record.txid), str(record.decision))
        return found

    async def record_heuristic(self, heuristic: Heuristic) -> None:
        await self._ledger.record_heuristic(heuristic)
        self._judge.heuristic(str(heuristic.gid.txid), str(heuristic.gid))

    async def forget_heuristic(self, gid: Gid) -> bool:
        return await self._ledger.forget_heuristic(gid)
