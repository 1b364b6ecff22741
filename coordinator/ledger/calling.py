"""The ledger's contract in terms of one function: carry out this call, wherever the ledger is."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from coordinator.ledger import calls
from coordinator.ledger.contract import (
    Acceptors,
    BranchRecord,
    Decision,
    DecisionRecord,
    Heuristic,
    LedgerInfo,
    Record,
    Session,
    SessionInfo,
    TransactionInfo,
    Verdict,
)
from participants.ids import Gid, TxId, new_nonce


class CallingLedger(abc.ABC):
    """All calls of :class:`~coordinator.ledger.contract.Ledger` but for its properties and ``close``."""

    acceptors: Acceptors | None = None

    @abc.abstractmethod
    async def _call(self, call: calls.Call) -> Any:
        """The result of ``call``, in the shape of ``calls.REPLY_TYPES``. Raises what the contract raises."""

    def _nonce(self) -> str:
        return new_nonce()

    async def open_session(self, name: str, ttl_s: float) -> Session:
        session: Session = await self._call(calls.OpenSessionCall(name, ttl_s, self._nonce()))
        return session

    async def keep_alive(self, session: Session, floor: int) -> None:
        await self._call(calls.KeepAliveCall(session, floor))

    async def close_session(self, session: Session) -> None:
        await self._call(calls.CloseSessionCall(session))

    async def sessions(self) -> Sequence[SessionInfo]:
        sessions: list[SessionInfo] = await self._call(calls.SessionsCall())
        return sessions

    async def decide(
        self, txid: TxId, decision: Decision, branches: Sequence[BranchRecord], *, protocol: str = "2"
    ) -> Decision:
        decided: Decision = await self._call(calls.DecideCall(txid, decision, tuple(branches), protocol))
        return decided

    async def precommit(self, txid: TxId, branches: Sequence[BranchRecord], *, protocol: str = "3") -> None:
        await self._call(calls.PrecommitCall(txid, tuple(branches), protocol))

    async def outcomes(self, txids: Iterable[TxId], *, protocol: str = "2") -> Mapping[TxId, Verdict]:
        asked = tuple(txids)
        return dict(zip(asked, await self._call(calls.OutcomesCall(asked, protocol)), strict=True))

    async def records(self, txids: Iterable[TxId]) -> Mapping[TxId, Record]:
        asked = tuple(txids)
        return dict(zip(asked, await self._call(calls.RecordsCall(asked)), strict=True))

    async def unfinished(self) -> Sequence[DecisionRecord]:
        records: list[DecisionRecord] = await self._call(calls.UnfinishedCall())
        return records

    async def finish(self, txids: Iterable[TxId]) -> None:
        await self._call(calls.FinishCall(tuple(txids)))

    async def record_heuristic(self, heuristic: Heuristic) -> None:
        await self._call(calls.RecordHeuristicCall(heuristic))

    async def forget_heuristic(self, gid: Gid) -> bool:
        return bool(await self._call(calls.ForgetHeuristicCall(gid, self._nonce())))

    async def heuristics(self, *, include_forgotten: bool = False) -> Sequence[Heuristic]:
        heuristics: list[Heuristic] = await self._call(calls.HeuristicsCall(include_forgotten))
        return heuristics

    async def transaction(self, txid: TxId) -> TransactionInfo | None:
        info: TransactionInfo | None = await self._call(calls.TransactionCall(txid))
        return info

    async def transactions(self, *, limit: int, before: TxId | None = None) -> Sequence[TransactionInfo]:
        infos: list[TransactionInfo] = await self._call(calls.TransactionsCall(limit, before))
        return infos

    async def info(self) -> LedgerInfo:
        info: LedgerInfo = await self._call(calls.InfoCall())
        return info
