"""A ledger that writes into a history what it is asked and what it answers: in simulation, or in real
processes that each keep one and dump it at their end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tests.linearizability.history import Call, History
from undoubt.coordinator.ledger.agents import AgentBinding
from undoubt.coordinator.ledger.contract import BranchRecord, Ledger, RecordedDecision, Session, Verdict
from undoubt.participants.contract import Decision
from undoubt.participants.ids import Gid, Protocol, TxId


class Recorder:
    """The contract over ``ledger``; ``who`` names the caller. What is not listed here passes through."""

    def __init__(self, ledger: Ledger, who: str, history: History) -> None:
        self.ledger = ledger
        self.who = who
        self.history = history

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ledger, name)

    async def open_session(self, name: str, ttl_s: float, *, agent: AgentBinding | None = None) -> Session:
        with self.history.call(self.who, "open") as call:
            session = await self.ledger.open_session(name, ttl_s, agent=agent)
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
        self,
        txid: TxId,
        decision: Decision,
        branches: Sequence[BranchRecord],
        *,
        protocol: Protocol = Protocol.TWO_PHASE,
        cause: str = "",
    ) -> Decision:
        of = {"session": txid.session, "seq": txid.seq, "asked": str(decision), "protocol": str(protocol)}
        with self.history.call(self.who, "decide", **of) as call:
            decided = await self.ledger.decide(txid, decision, branches, protocol=protocol, cause=cause)
            call.result = str(decided)
        return decided

    async def outcomes(self, gids: Iterable[Gid]) -> Mapping[Gid, Verdict]:
        """That a name is an impostor's tells nothing of the transaction in it: that call stays unanswered."""
        asked = {gid: self._begin("outcome", gid.txid, gid.protocol) for gid in gids}
        verdicts = await self.ledger.outcomes(list(asked))
        for gid, call in asked.items():
            if verdicts[gid] is not Verdict.IMPOSTOR:
                self.history.end(call, str(verdicts[gid]))
        return verdicts

    async def records(self, txids: Iterable[TxId]) -> Mapping[TxId, RecordedDecision]:
        asked = {txid: self._begin("record", txid, "") for txid in txids}
        records = await self.ledger.records(list(asked))
        for txid, call in asked.items():
            self.history.end(call, str(records[txid]))
        return records

    def _begin(self, what: str, txid: TxId, protocol: str) -> Call:
        of = {"session": txid.session, "seq": txid.seq, "protocol": str(protocol)}
        return self.history.begin(self.who, what, **of)
