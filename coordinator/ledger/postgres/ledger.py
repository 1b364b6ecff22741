"""The contract over the tables of one PostgreSQL database. Comments in ``queries.sql`` say why each statement
is safe."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from undoubt.coordinator.errors import LedgerUnavailable, SessionLost, WrongProcess
from undoubt.coordinator.ledger import schema
from undoubt.coordinator.ledger.agents import AgentBinding, AgentKey
from undoubt.coordinator.ledger.commands import (
    Command,
    Decide,
    Doom,
    Finish,
    ForgetHeuristic,
    KeepAlive,
    OpenSession,
    Precommit,
    RecordHeuristic,
    check_given,
    check_limit,
    check_page,
)
from undoubt.coordinator.ledger.contract import (
    ACTS_MAX,
    CAUSE_CHARACTERS_MAX,
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
    SessionState,
    TransactionInfo,
    Verdict,
)
from undoubt.coordinator.ledger.postgres import codec
from undoubt.coordinator.ledger.postgres.connections import Connections
from undoubt.coordinator.ledger.postgres.decisions import Decisions, encode_branches
from undoubt.coordinator.ledger.postgres.keys import KeyTable
from undoubt.coordinator.ledger.postgres.locks import PostgresLocks
from undoubt.coordinator.ledger.postgres.maintenance import Leadership
from undoubt.coordinator.ledger.rules import Names, verdict_of
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.bounds import seconds
from undoubt.participants.contract import Claim, Decision
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import Gid, Protocol, TxId, new_nonce

SESSIONS_MAX = 1_000
"""Most sessions for which it is cached whether their gids have tags."""


class PostgresLedger(KeyTable, PostgresLocks):
    """A ledger in a PostgreSQL database. Made by :meth:`open`. May be used only in the event loop and the
    process in which it was opened."""

    backend = "postgresql"
    acceptors: Acceptors | None = None

    def __init__(self, settings: LedgerSettings, clock: Callable[[], float]) -> None:
        super().__init__(self._ask)
        self.settings = settings
        self._connections = Connections(settings)
        self._renewals = Connections(settings)
        """For the renewal of sessions alone: it waits behind no other request of this process."""
        self._decisions = Decisions(self._connections)
        self.upkeep = Leadership(self._connections, settings, clock)
        """The periodic work of the process that leads: expiring sessions and deleting old records."""
        self._ledger_id = ""
        self._names = Names("", b"")
        self._tagged: dict[tuple[int, str], bool] = {}
        self._pid = os.getpid()
        self._closed = False

    @classmethod
    async def open(
        cls, settings: LedgerSettings, *, clock: Callable[[], float] = time.monotonic
    ) -> PostgresLedger:
        """Open the ledger. ``clock`` is monotonic, in seconds, and used while this process leads. Raises
        ``LedgerMissing``, ``LedgerUnusable`` or ``LedgerUnavailable``."""
        ledger = cls(settings, clock)
        try:
            await ledger._find()
            await ledger.upkeep.start()
        except BaseException:
            await ledger._connections.close()
            raise
        return ledger

    async def _find(self) -> None:
        ((revision,),) = await self._connections.run("revision") or [(None,)]
        schema.POSTGRES.check(revision, f"ledger {self._connections.url}")
        ((ledger_id, secret),) = await self._connections.run("identity")
        self._ledger_id = ledger_id
        self._names = Names(ledger_id, bytes(secret))

    @property
    def ledger_id(self) -> str:
        return self._ledger_id

    @property
    def leads(self) -> bool:
        return self.upkeep.leads

    @property
    def secret(self) -> bytes:
        """The secret of the ledger."""
        return self._names.secret

    async def close(self) -> None:
        """Release the ledger; another process may lead from now on."""
        self._closed = True
        if os.getpid() != self._pid:
            return
        await self.upkeep.close()
        await self._decisions.close()
        await self._renewals.close()
        await self._connections.close()

    async def _ask(self, statement: str, /, **parameters: Any) -> list[tuple[Any, ...]]:
        self._check_open()
        return await self._connections.ask(statement, **parameters)

    def _check_open(self) -> None:
        if os.getpid() != self._pid:
            raise WrongProcess(
                f"this ledger was opened by process {self._pid}; after a fork, open the ledger again"
            )
        if self._closed:
            raise LedgerUnavailable("the ledger is closed")

    # Sessions.

    async def open_session(self, name: str, ttl_s: float, *, agent: AgentBinding | None = None) -> Session:
        nonce, ttl_ms = new_nonce(), round(seconds("ttl_s", ttl_s, least=0.001) * 1000)
        _check_command(OpenSession(nonce, name, ttl_ms, agent=agent))
        bound = codec.encode_agent(agent)
        ((number,),) = await self._ask("open_session", nonce=nonce, name=name, ttl_ms=ttl_ms, agent=bound)
        self._note_tagged(number, nonce, tagged=True)
        return Session(number, nonce, name, ttl_ms / 1000, key=self._names.key_bytes(number, nonce))

    async def keep_alive(self, session: Session, floor: int) -> None:
        _check_command(KeepAlive(session.id, session.nonce, floor))
        self._check_open()
        about = {"session": session.id, "nonce": session.nonce, "floor": floor}
        ((kept,),) = await self._renewals.ask("keep_alive", **about)
        if kept is None:
            raise SessionLost(f"session {session.id} was closed or has expired")

    async def close_session(self, session: Session) -> None:
        await self._ask("close_session", session=session.id, nonce=session.nonce)

    async def sessions(self) -> Sequence[SessionInfo]:
        found = await self._ask("sessions")
        return [codec.session_info(*row) for row in found if row[0] is not None]

    # Decisions.

    async def decide(
        self,
        txid: TxId,
        decision: Decision,
        branches: Sequence[BranchRecord],
        *,
        protocol: Protocol = Protocol.TWO_PHASE,
        cause: str = "",
    ) -> Decision:
        self._check_open()
        cause = _text(cause)[:CAUSE_CHARACTERS_MAX]
        command = Decide(txid, protocol, decision, tuple(branches), time.time(), cause)
        # Checked here, since a statement contains the decisions of many callers: only this caller gets the
        # error.
        _check_command(command)
        await self._check(txid, protocol, decision, branches)
        return await self._decisions.decide(command)

    async def _check(
        self, txid: TxId, protocol: Protocol, decision: Decision, branches: Sequence[BranchRecord]
    ) -> None:
        key = (txid.session, txid.nonce)
        if key not in self._tagged:
            ((tagged,),) = await self._ask("lease", session=txid.session, nonce=txid.nonce)
            if tagged is None:
                return  # no such session, or it was dropped: nothing can be recorded for it
            self._note_tagged(*key, tagged=tagged)
        self._names.check(txid, protocol, decision, branches, tagged=self._tagged[key])

    def _note_tagged(self, session: int, nonce: str, *, tagged: bool) -> None:
        while len(self._tagged) >= SESSIONS_MAX:
            del self._tagged[next(iter(self._tagged))]
        self._tagged[session, nonce] = tagged

    async def precommit(
        self, txid: TxId, branches: Sequence[BranchRecord], *, protocol: Protocol = Protocol.THREE_PHASE
    ) -> None:
        _check_command(Precommit(txid, protocol, tuple(branches), time.time()))
        await self._check(txid, protocol, Decision.COMMIT, branches)
        given = encode_branches(branches)
        ((lease,),) = await self._ask("precommit", **_key(txid), protocol=protocol, branches=given)
        if lease is None:
            raise SessionLost(f"session {txid.session} was closed or has expired")

    async def outcomes(self, gids: Iterable[Gid]) -> Mapping[Gid, Verdict]:
        asked = list(gids)
        known = await self._looked_up({gid.txid for gid in asked})
        issued = max((gid.txid.session for gid in asked if self._never_issued(gid, known)), default=0)
        if issued:
            await self._connections.set_back(issued)
            known = await self._looked_up({gid.txid for gid in asked})
        return {gid: self._verdict(gid, known[gid.txid]) for gid in asked}

    def _never_issued(self, gid: Gid, known: Mapping[TxId, _Known]) -> bool:
        """Whether the ledger gave the name ``gid`` in a session that its records do not contain yet: it was
        set back."""
        return gid.txid.session >= known[gid.txid].next_session and self._names.gave(gid)

    def _verdict(self, gid: Gid, known: _Known) -> Verdict:
        # Names of version 0.1.0 have no proof; they count as given as long as their session is known.
        ours = self._names.gave(gid) if gid.tag else known.state is not None and not known.tagged
        if gid.ledger != self._ledger_id or not ours:
            return Verdict.IMPOSTOR
        return verdict_of(
            None if known.decision is None else Decision(known.decision),
            None if known.state is None else SessionState(known.state),
            known.floor or 0,
            gid.txid.seq,
            gid.protocol,
        )

    async def records(self, txids: Iterable[TxId]) -> Mapping[TxId, RecordedDecision]:
        return {
            txid: RecordedDecision.NOT_RECORDED
            if known.decision is None
            else RecordedDecision(known.decision)
            for txid, known in (await self._looked_up(txids)).items()
        }

    async def _looked_up(self, txids: Iterable[TxId]) -> dict[TxId, _Known]:
        asked = list(txids)
        if not asked:
            return {}
        _check_command(Finish(tuple(asked)))
        found = await self._ask("outcomes", **_columns(asked))
        return {TxId(session, nonce, seq): _Known(*rest) for session, nonce, seq, *rest in found}

    async def backends(self, claims: Iterable[Claim]) -> Sequence[TxId | None]:
        asked = list(claims)
        found = await self._ask("claimed", session=sorted({claim.session for claim in asked}))
        nonces = {session: nonce for session, nonce in found if session is not None}
        return [
            self._names.proved(claim, nonces[claim.session]) if claim.session in nonces else None
            for claim in asked
        ]

    async def agent_keys(self, txids: Iterable[TxId]) -> Sequence[AgentKey | None]:
        asked = list(txids)
        _check_command(Finish(tuple(asked)))
        found = await self._ask("agents", session=sorted({txid.session for txid in asked}))
        bound = {(row[0], row[1]): codec.decode_agent(row[2]) for row in found if row[0] is not None}
        return [self._names.agent_key(txid, bound.get((txid.session, txid.nonce))) for txid in asked]

    async def doom(self, txid: TxId, cause: str) -> None:
        cause = _text(cause)[:CAUSE_CHARACTERS_MAX]
        _check_command(Doom(txid, cause))
        await self._ask("doom", **_key(txid), cause=cause)

    async def doomed(self, txid: TxId) -> str | None:
        ((cause,),) = await self._ask("doomed", **_key(txid))
        return None if cause is None else str(cause)

    async def unfinished(
        self, *, after: TxId | None = None, limit: int = UNFINISHED_MAX
    ) -> Sequence[DecisionRecord]:
        check_page(limit, after)
        session, seq = (0, 0) if after is None else (after.session, after.seq)
        found = await self._ask("unfinished", session=session, seq=seq, limit=limit)
        return [codec.decision_record(*row) for row in found if row[0] is not None]

    async def finish(self, txids: Iterable[TxId]) -> None:
        asked = list(txids)
        if asked:
            _check_command(Finish(tuple(asked)))
            await self._ask("finish", **_columns(asked))

    # Heuristics.

    async def record_heuristic(self, heuristic: Heuristic) -> None:
        heuristic = msgspec.structs.replace(heuristic, note=_text(heuristic.note))
        _check_command(RecordHeuristic(heuristic))
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
        _check_command(ForgetHeuristic(gid))
        ((forgotten,),) = await self._ask("forget_heuristic", gid=str(gid), request=new_nonce())
        return forgotten is not None

    async def heuristics(self, *, include_forgotten: bool = False) -> Sequence[Heuristic]:
        found = await self._ask("heuristics", all=include_forgotten)
        return [codec.heuristic(*row) for row in found if row[0] is not None]

    # For operators.

    async def record_act(self, act: Act) -> None:
        columns = msgspec.structs.asdict(act.clipped())
        del columns["certificate"]  # there is none: the server knows only a role
        await self._ask("record_act", **columns, keep=ACTS_MAX)

    async def acts(self, *, limit: int) -> Sequence[Act]:
        check_limit(limit)
        return [
            Act(*row) for row in await self._ask("acts", limit=min(limit, ACTS_MAX)) if row[0] is not None
        ]

    async def transaction(self, txid: TxId) -> TransactionInfo | None:
        _check_command(Finish((txid,)))
        found = await self._transactions(only=txid.session, seq=txid.seq, nonce=txid.nonce)
        if found:
            return found[0]
        (undecided,) = await self._ask("precommitted", **_key(txid))
        return None if undecided[0] is None else codec.undecided_info(txid, *undecided)

    async def transactions(self, *, limit: int, before: TxId | None = None) -> Sequence[TransactionInfo]:
        check_limit(limit)
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
        known = [codec.heuristic(*row) for row in heuristics]
        return [codec.transaction_info(row, known) for row in found]

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


class _Known(NamedTuple):
    """The records of a transaction: state and floor of its session, whether its gids have tags, the decision,
    and the number of the next session of the ledger."""

    state: str | None
    floor: int | None
    tagged: bool | None
    decision: str | None
    next_session: int


def _text(text: str) -> str:
    """``text`` without NUL characters, which PostgreSQL's text type cannot contain (manual, 8.3)."""
    return text.replace("\0", "")


def _check_command(command: Command) -> None:
    """Check ``command`` by the types and bounds of the other ledgers, before a statement is sent. Raises
    ``UsageError``."""
    check_given(command)
    match command:
        case OpenSession():
            texts = [command.name, codec.encode_agent(command.agent) or ""]
        case Decide() | Precommit():
            texts = [command.txid.nonce, command.protocol, encode_branches(command.branches)]
        case Finish():
            texts = [txid.nonce for txid in command.txids]
        case _:
            texts = []
    if any("\0" in text or "\\u0000" in text for text in texts):
        raise UsageError(f"{type(command).__name__} contains a NUL character, which no database accepts")


def _key(txid: TxId) -> dict[str, Any]:
    return {"session": txid.session, "nonce": txid.nonce, "seq": txid.seq}


def _columns(txids: Sequence[TxId]) -> dict[str, list[Any]]:
    return {
        "session": [txid.session for txid in txids],
        "nonce": [txid.nonce for txid in txids],
        "seq": [txid.seq for txid in txids],
    }
