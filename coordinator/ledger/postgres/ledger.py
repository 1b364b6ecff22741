"""The contract over the tables of one PostgreSQL database. ``queries.sql`` says why each is safe."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from coordinator.errors import LedgerUnavailable, SessionLost, WrongProcess
from coordinator.ledger import schema
from coordinator.ledger.commands import Decide
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
    SessionState,
    TransactionInfo,
    Verdict,
)
from coordinator.ledger.postgres import rows
from coordinator.ledger.postgres.connections import Connections
from coordinator.ledger.postgres.decisions import Decisions, encode_branches
from coordinator.ledger.postgres.upkeep import Upkeep
from coordinator.ledger.rules import verdict_of
from coordinator.settings import LedgerSettings
from participants.ids import Gid, TxId, new_nonce


class PostgresLedger:
    """Made by :meth:`open`. Belongs to the event loop and the process in which it was opened."""

    backend = "postgresql"
    acceptors: Acceptors | None = None

    def __init__(self, settings: LedgerSettings, clock: Callable[[], float]) -> None:
        self.settings = settings
        self._connections = Connections(settings)
        self._decisions = Decisions(self._connections)
        self._upkeep = Upkeep(self._connections, settings, clock)
        self._ledger_id = ""
        self._pid = os.getpid()
        self._closed = False

    @classmethod
    async def open(
        cls, settings: LedgerSettings, *, clock: Callable[[], float] = time.monotonic
    ) -> PostgresLedger:
        """``clock`` is monotonic, in seconds, and used while this one leads. Raises ``LedgerMissing``,
        ``LedgerUnusable`` or ``LedgerUnavailable``."""
        ledger = cls(settings, clock)
        try:
            await ledger._find()
            await ledger._upkeep.start()
        except BaseException:
            await ledger._connections.close()
            raise
        return ledger

    async def _find(self) -> None:
        ((revision,),) = await self._connections.run("revision") or [(None,)]
        schema.POSTGRES.check(revision, f"ledger {self._connections.url}")
        ((self._ledger_id,),) = await self._connections.run("identity")

    @property
    def ledger_id(self) -> str:
        return self._ledger_id

    @property
    def leads(self) -> bool:
        return self._upkeep.leads

    async def close(self) -> None:
        """Let go of the ledger; another process may lead from now on."""
        self._closed = True
        if os.getpid() != self._pid:
            return
        await self._upkeep.close()
        await self._decisions.close()
        await self._connections.close()

    async def _ask(self, statement: str, /, **parameters: Any) -> list[tuple[Any, ...]]:
        self._check_open()
        return await self._connections.ask(statement, **parameters)

    def _check_open(self) -> None:
        if os.getpid() != self._pid:
            raise WrongProcess(
                f"this ledger was opened by process {self._pid}; open one of your own after a fork"
            )
        if self._closed:
            raise LedgerUnavailable("the ledger is closed")

    # Sessions.

    async def open_session(self, name: str, ttl_s: float) -> Session:
        nonce, ttl_ms = new_nonce(), round(ttl_s * 1000)
        ((number,),) = await self._ask("open_session", nonce=nonce, name=name, ttl_ms=ttl_ms)
        return Session(number, nonce, name, ttl_ms / 1000)

    async def keep_alive(self, session: Session, floor: int) -> None:
        ((kept,),) = await self._ask("keep_alive", session=session.id, nonce=session.nonce, floor=floor)
        if kept is None:
            raise SessionLost(f"session {session.id} was closed or has expired")

    async def close_session(self, session: Session) -> None:
        await self._ask("close_session", session=session.id, nonce=session.nonce)

    async def sessions(self) -> Sequence[SessionInfo]:
        found = await self._ask("sessions")
        return [rows.session_info(*row) for row in found if row[0] is not None]

    # Decisions.

    async def decide(
        self, txid: TxId, decision: Decision, branches: Sequence[BranchRecord], *, protocol: str = "2"
    ) -> Decision:
        self._check_open()
        return await self._decisions.decide(Decide(txid, protocol, decision, tuple(branches), time.time()))

    async def precommit(self, txid: TxId, branches: Sequence[BranchRecord], *, protocol: str = "3") -> None:
        given = encode_branches(branches)
        ((lease,),) = await self._ask("precommit", **_key(txid), protocol=protocol, branches=given)
        if lease is None:
            raise SessionLost(f"session {txid.session} was closed or has expired")

    async def outcomes(self, txids: Iterable[TxId], *, protocol: str = "2") -> Mapping[TxId, Verdict]:
        return {
            txid: verdict_of(
                None if decision is None else Decision(decision),
                None if state is None else SessionState(state),
                floor or 0,
                txid.seq,
                protocol,
            )
            for txid, state, floor, decision in await self._looked_up(txids)
        }

    async def records(self, txids: Iterable[TxId]) -> Mapping[TxId, Record]:
        return {
            txid: Record.NOT_RECORDED if decision is None else Record(decision)
            for txid, _, _, decision in await self._looked_up(txids)
        }

    async def _looked_up(
        self, txids: Iterable[TxId]
    ) -> list[tuple[TxId, str | None, int | None, str | None]]:
        """With state and floor of the session, and the decision."""
        asked = list(txids)
        if not asked:
            return []
        found = await self._ask("outcomes", **_columns(asked))
        return [(TxId(session, nonce, seq), *rest) for session, nonce, seq, *rest in found]

    async def unfinished(self) -> Sequence[DecisionRecord]:
        return [rows.decision_record(*row) for row in await self._ask("unfinished") if row[0] is not None]

    async def finish(self, txids: Iterable[TxId]) -> None:
        asked = list(txids)
        if asked:
            await self._ask("finish", **_columns(asked))

    # Heuristics.

    async def record_heuristic(self, heuristic: Heuristic) -> None:
        await self._ask(
            "record_heuristic",
            gid=str(heuristic.gid),
            session=heuristic.gid.txid.session,
            seq=heuristic.gid.txid.seq,
            kind=str(heuristic.kind),
            decision=None if heuristic.decision is None else str(heuristic.decision),
            found_at=heuristic.found_at,
            note=heuristic.note,
        )

    async def forget_heuristic(self, gid: Gid) -> bool:
        ((forgotten,),) = await self._ask("forget_heuristic", gid=str(gid), request=new_nonce())
        return forgotten is not None

    async def heuristics(self, *, include_forgotten: bool = False) -> Sequence[Heuristic]:
        found = await self._ask("heuristics", all=include_forgotten)
        return [rows.heuristic(*row) for row in found if row[0] is not None]

    # For people.

    async def transaction(self, txid: TxId) -> TransactionInfo | None:
        found = await self._transactions(only=txid.session, seq=txid.seq, nonce=txid.nonce)
        if found:
            return found[0]
        (undecided,) = await self._ask("precommitted", **_key(txid))
        return None if undecided[0] is None else rows.undecided_info(txid, *undecided)

    async def transactions(self, *, limit: int, before: TxId | None = None) -> Sequence[TransactionInfo]:
        marker = None if before is None else await self.transaction(before)
        if marker is None:
            return await self._transactions(limit=limit)
        return await self._transactions(
            limit=limit, at=marker.decided_at, session=marker.txid.session, seq=marker.txid.seq
        )

    async def _transactions(self, **chosen: Any) -> list[TransactionInfo]:
        nothing = dict.fromkeys(("only", "nonce", "limit", "at", "session", "seq"))
        found = [
            row for row in await self._ask("transactions", **{**nothing, **chosen}) if row[0] is not None
        ]
        heuristics = await self._connections.run(
            "heuristics_of", session=[row[0] for row in found], seq=[row[2] for row in found]
        )
        known = [rows.heuristic(*row) for row in heuristics]
        return [rows.transaction_info(row, known) for row in found]

    async def info(self) -> LedgerInfo:
        ((ledger_id, incarnation, time_ms, *counts),) = await self._ask("info")
        return LedgerInfo(
            ledger_id,
            incarnation,
            self._connections.url,
            self.backend,
            schema.POSTGRES.newest,
            time_ms / 1000,
            *counts,
        )


def _key(txid: TxId) -> dict[str, Any]:
    return {"session": txid.session, "nonce": txid.nonce, "seq": txid.seq}


def _columns(txids: Sequence[TxId]) -> dict[str, list[Any]]:
    return {
        "session": [txid.session for txid in txids],
        "nonce": [txid.nonce for txid in txids],
        "seq": [txid.seq for txid in txids],
    }
