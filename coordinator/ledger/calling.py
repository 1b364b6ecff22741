"""The ledger's contract in terms of one function: carry out this call, wherever the ledger is."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from undoubt.coordinator.errors import VersionHeldBack
from undoubt.coordinator.ledger import bounds, calls
from undoubt.coordinator.ledger.contract import (
    UNFINISHED_MAX,
    Acceptors,
    Act,
    BranchRecord,
    DecisionRecord,
    Heuristic,
    LedgerInfo,
    RecordedDecision,
    Session,
    SessionInfo,
    TransactionInfo,
    Verdict,
)
from undoubt.coordinator.ledger.names import new_request, nonce_of
from undoubt.coordinator.ledger.pages import behind
from undoubt.participants.contract import Claim, Decision
from undoubt.participants.ids import Gid, TxId, new_nonce

R = TypeVar("R")


class CallingLedger(abc.ABC):
    """All calls of :class:`~undoubt.coordinator.ledger.contract.Ledger` but for its properties and
    ``close``."""

    acceptors: Acceptors | None = None

    @abc.abstractmethod
    async def _call(self, call: calls.LedgerCall[R]) -> R:
        """The result of ``call``. Raises what the contract raises."""

    def _request(self) -> str:
        return new_request()

    def _nonce(self) -> str:
        return new_nonce()

    async def open_session(self, name: str, ttl_s: float) -> Session:
        return await self._open_session(name, ttl_s)

    async def _open_session(self, name: str, ttl_s: float, *, bind: bool = False) -> Session:
        request = self._request()
        call = calls.OpenSessionCall(name, ttl_s, nonce_of(request), bind, request)
        session: Session = await self._call(call)
        return session

    async def keep_alive(self, session: Session, floor: int) -> None:
        await self._call(calls.KeepAliveCall(session.public, floor))

    async def close_session(self, session: Session) -> None:
        await self._call(calls.CloseSessionCall(session.public))

    async def sessions(self) -> Sequence[SessionInfo]:
        sessions: Sequence[SessionInfo] = await self._call(calls.SessionsCall())
        return sessions

    async def decide(
        self,
        txid: TxId,
        decision: Decision,
        branches: Sequence[BranchRecord],
        *,
        protocol: str = "2",
        cause: str = "",
    ) -> Decision:
        call = calls.DecideCall(txid, decision, tuple(branches), protocol, cause)
        decided: Decision = await self._call(call)
        return decided

    async def precommit(self, txid: TxId, branches: Sequence[BranchRecord], *, protocol: str = "3") -> None:
        await self._call(calls.PrecommitCall(txid, tuple(branches), protocol))

    async def outcomes(self, gids: Iterable[Gid]) -> Mapping[Gid, Verdict]:
        asked = tuple(gids)
        try:
            verdicts = await self._call(calls.VerdictsCall(asked))
        except VersionHeldBack:  # by a cluster with a member of version 0.1.0, which gives no tags
            return await self._old_outcomes(asked)
        return dict(zip(asked, verdicts, strict=True))

    async def _old_outcomes(self, asked: Sequence[Gid]) -> dict[Gid, Verdict]:
        verdicts: dict[Gid, Verdict] = {}
        for protocol in sorted({gid.protocol for gid in asked}):
            txids = tuple(sorted({gid.txid for gid in asked if gid.protocol is protocol}))
            told = await self._call(calls.OutcomesCall(txids, protocol))
            by_txid: dict[TxId, Verdict] = dict(zip(txids, told, strict=True))
            verdicts |= {gid: by_txid[gid.txid] for gid in asked if gid.protocol is protocol}
        return {gid: Verdict.IMPOSTOR if gid.tag else verdicts[gid] for gid in asked}

    async def backends(self, claims: Iterable[Claim]) -> Sequence[TxId | None]:
        asked = tuple(claims)
        try:
            proved: Sequence[TxId | None] = await self._call(calls.BackendsCall(asked))
        except VersionHeldBack:
            return [None] * len(asked)
        return proved

    async def doom(self, txid: TxId, cause: str) -> None:
        with contextlib.suppress(VersionHeldBack):
            await self._call(calls.DoomCall(txid, cause))

    async def doomed(self, txid: TxId) -> str | None:
        cause: str | None = None
        with contextlib.suppress(VersionHeldBack):
            cause = await self._call(calls.DoomedCall(txid))
        return cause

    async def records(self, txids: Iterable[TxId]) -> Mapping[TxId, RecordedDecision]:
        asked = tuple(txids)
        return dict(zip(asked, await self._call(calls.RecordsCall(asked)), strict=True))

    async def unfinished(
        self, *, after: TxId | None = None, limit: int = UNFINISHED_MAX
    ) -> Sequence[DecisionRecord]:
        bounds.check_page(limit, after)
        try:
            records: Sequence[DecisionRecord] = await self._call(calls.UnfinishedCall(limit, after))
        except VersionHeldBack:  # version 0.1.0 tells all of them at once, in no order
            return behind(await self._call(calls.UnfinishedCall()), after)
        return records

    async def finish(self, txids: Iterable[TxId]) -> None:
        await self._call(calls.FinishCall(tuple(txids)))

    async def record_heuristic(self, heuristic: Heuristic) -> None:
        await self._call(calls.RecordHeuristicCall(heuristic))

    async def forget_heuristic(self, gid: Gid) -> bool:
        return bool(await self._call(calls.ForgetHeuristicCall(gid, self._nonce())))

    async def heuristics(self, *, include_forgotten: bool = False) -> Sequence[Heuristic]:
        heuristics: Sequence[Heuristic] = await self._call(calls.HeuristicsCall(include_forgotten))
        return heuristics

    async def record_act(self, act: Act) -> None:
        await self._call(calls.RecordActCall(act.clipped()))

    async def acts(self, *, limit: int) -> Sequence[Act]:
        acts: Sequence[Act] = await self._call(calls.ActsCall(limit))
        return acts

    async def transaction(self, txid: TxId) -> TransactionInfo | None:
        info: TransactionInfo | None = await self._call(calls.TransactionCall(txid))
        return info

    async def transactions(self, *, limit: int, before: TxId | None = None) -> Sequence[TransactionInfo]:
        infos: Sequence[TransactionInfo] = await self._call(calls.TransactionsCall(limit, before))
        return infos

    async def info(self) -> LedgerInfo:
        info: LedgerInfo = await self._call(calls.InfoCall())
        return info
